"""The one sampler: processors, law, noise and pick, for the target and for drafts alike."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.sampling.draws import drawn, sampled
from outpace.sampling.history import History, state_after
from outpace.sampling.noise import Stream, gumbel, node_key, uniform
from outpace.sampling.processors import bias, forbid, force
from outpace.sampling.settings import Sampling
from outpace.sampling.truncation import candidates, cuts, in_order, likeliest, needs_order

if TYPE_CHECKING:
    from outpace.constrain.protocol import ConstraintState

__all__ = ["History", "Law", "Sampler"]

_NEAR = 1 << 17  # logits whose float64 lie in a second-level cache
LARGEST = 1e38  # a bias or penalty beyond it counts as this much: float32 holds it, with any logit on top


@dataclass(slots=True)
class Law:
    """A law over tokens, unnormalised.

    Attributes:
        logits: [N, K] float64; -inf = cut away.
        ids: [N, K] int64 token of each column, or None when the columns are the vocabulary.
        vocab_size: V.
        is_sound: [N] bool, False where the model's logits are NaN, or infinite upwards: no token is drawn there.
    """

    logits: Tensor
    ids: Tensor | None
    vocab_size: int
    is_sound: Tensor

    def named(self, ids: Tensor, vocab_size: int = 0) -> Law:
        """Return the law with the tokens [K] of its columns, which were taken for a vocabulary; V for `probs` alone."""
        tokens = ids.expand(self.logits.shape) if self.ids is None else ids[self.ids]
        return Law(self.logits, tokens, vocab_size, self.is_sound)

    def probs(self) -> Tensor:
        """Return normalised probabilities over the whole vocabulary, [N, V] float64; all 0 where no token is drawn."""
        probs = self.logits.softmax(-1).masked_fill_(~self.is_sound.unsqueeze(-1), 0)
        if self.ids is None:
            return probs
        # Added, because a list that was padded names token 0 more than once.
        return probs.new_zeros(probs.shape[0], self.vocab_size).scatter_add_(-1, self.ids, probs)


class Sampler:
    """Settings bound to rows.

    Args:
        settings: the sampling settings of every row.
        keys: the rows' noise keys (`row_key`).
        end_tokens: per row, the ids that end its text; `min_tokens` and a constraint hold them back.
        states: per row, where its final text stands in the constraint; None = told from the text each time.
        sources: per row, an encoder-decoder's source; empty = the prompt is the source.
        limits: per row, the greatest length of its text, prompt included; 0 = none is known.
    """

    parts: Sequence[tuple[list[int], Sampler]] = ()
    """Where settings differ between rows: the rows of each, and their sampler."""

    def __init__(
        self,
        settings: Sampling,
        keys: list[int],
        end_tokens: Sequence[Sequence[int]] = (),
        states: Sequence[ConstraintState | None] = (),
        sources: Sequence[Sequence[int]] = (),
        limits: Sequence[int] = (),
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.end_tokens = [tuple(ends) for ends in end_tokens] or [()] * len(keys)
        self.states = list(states) or [None] * len(keys)
        self.sources = list(sources) or [()] * len(keys)
        self.limits = list(limits) or [0] * len(keys)

    def rows(self, index: Sequence[int]) -> Sampler:
        """Return a sampler for some of the rows, in that order."""
        return self._with(self.settings, index)

    def _with(self, settings: Sampling, index: Sequence[int]) -> Sampler:
        per_row = (self.keys, self.end_tokens, self.states, self.sources, self.limits)
        return Sampler(settings, *([values[i] for i in index] for values in per_row))  # type: ignore[arg-type]

    @property
    def is_greedy(self) -> bool:
        """Whether a pick is the likeliest token, without noise."""
        return self.settings.is_greedy

    def softened(self) -> Sampler:
        """Return a sampler at temperature 1 where this one is at 0, whose laws have a single token."""
        if not self.is_greedy:
            return self
        return self._with(replace(self.settings, temperature=1.0), range(len(self.keys)))

    def perturbed(self, logits: Tensor, position: Tensor, ids: Tensor) -> Tensor:
        """Return what a pick takes the largest of, apart from cuts: logits plus the target's noise at their scale.

        Args:
            logits: [B, ..., K] processed, of some tokens.
            position: [B, ...] int64 index of the drawn token in its row's sequence.
            ids: the tokens, [K] or [B, ..., K] int64.
        """
        if self.is_greedy:
            return logits
        noise = gumbel(self.noise(Stream.TARGET, position), ids)
        return logits + noise.to(logits.dtype) * self.settings.temperature

    @property
    def is_parallel(self) -> bool:
        """Whether every node can be picked at once: no state along the path, and few tokens alive at each node."""
        return not self.settings.is_stateful and (self.settings.is_greedy or 0 < self.settings.top_k <= 256)

    def history(self, texts: Sequence[Sequence[int]], prompts: Sequence[int], vocab_size: int) -> History | None:
        """Return the rows' history when a processor needs one, else None.

        Args:
            texts: per row of this sampler, its tokens: the final ones, or any others that it might have. (Texts of
                other rows, or several of one, take `rows` first.)
            prompts: how many leading tokens of each are its prompt.
            vocab_size: V.
        """
        if not self.settings.is_stateful:
            return None
        constraint, states = self.settings.constraint, []
        if constraint is not None:
            known = zip(texts, prompts, self.states, strict=True)
            states = [state_after(constraint, text[prompt:], state) for text, prompt, state in known]
        laws = self.settings.laws
        return History(texts, prompts, vocab_size, self.end_tokens, states, self.sources, self.limits, laws)

    def process(self, logits: Tensor, history: History | None) -> Tensor:
        """Apply penalties, biases, laws, bad words, lengths, constraint, and forced and suppressed tokens.

        Args:
            logits: [N, V] (any leading shape when there is no history).
            history: of the same N rows, or None.
        """
        settings = self.settings
        if (history is not None or settings.logit_bias) and logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # a bias may lie beyond float16, and a small penalty below bfloat16's steps
        # Stage 1: what shifts logits. The order of all stages is that of transformers, which checkpoints rely on.
        if history is not None:
            logits = self._penalise(logits, history)
        if settings.logit_bias:
            ids = torch.tensor(list(settings.logit_bias), dtype=torch.int64, device=logits.device)
            bias = torch.tensor(list(settings.logit_bias.values()), dtype=torch.float64, device=logits.device)
            bias = bias.clamp(-LARGEST, LARGEST).to(logits.dtype)
            logits = logits.index_add(-1, ids, bias.expand(*logits.shape[:-1], -1))
        for row, states in enumerate(history.guides if history is not None else ()):
            for state in states:
                state.apply(logits[row])
        # Stage 2: what forbids and forces, which nothing may shift back.
        if history is not None:
            forbid(logits, history, settings)  # in place: the logits are a private copy by now
            self._constrain(logits, history)
            force(logits, history, settings)
        if settings.suppress_tokens:
            ids = torch.tensor(settings.suppress_tokens, dtype=torch.int64, device=logits.device)
            logits = logits.index_fill(-1, ids, float("-inf"))
        return logits

    def _penalise(self, logits: Tensor, history: History) -> Tensor:
        settings, logits = self.settings, logits.clone()
        bias(logits, history, settings)
        if settings.repetition_penalty != 1:
            scaled = torch.where(logits > 0, logits / settings.repetition_penalty, logits * settings.repetition_penalty)
            logits = torch.where(history.seen.to(logits.device) > 0, scaled, logits)
        if settings.presence_penalty or settings.frequency_penalty:
            written = history.written.to(logits.device)
            penalty = settings.presence_penalty * (written > 0).double() + settings.frequency_penalty * written.double()
            logits = logits - penalty.clamp(-LARGEST, LARGEST).to(logits.dtype)
        return logits

    def _constrain(self, logits: Tensor, history: History) -> None:
        """Set the tokens to -inf that the constraint does not allow, in place."""
        if self.settings.constraint is None:
            return
        for row in range(len(history.tokens)):
            allowed = history.allowed(row)
            if allowed is not None:
                logits[row].masked_fill_(~allowed.to(logits.device), float("-inf"))

    def law(self, logits: Tensor) -> Law:
        """Turn processed logits [N, V] into the law that tokens are drawn from.

        At temperature 0 all mass lies on the likeliest token (ties: lowest id).
        """
        settings, vocab = self.settings, logits.shape[-1]
        if settings.is_greedy:
            best = likeliest(logits).unsqueeze(-1)
            return Law(torch.zeros_like(best, dtype=torch.float64), best.clamp(min=0), vocab, best[:, 0] >= 0)
        if not needs_order(settings):
            return Law(logits.double() / settings.temperature, None, vocab, torch.isfinite(logits.amax(-1)))
        values, ids, log_total = candidates(logits, settings)
        keep, _ = cuts(values, settings, log_total, is_measured=False)
        return Law(torch.where(keep, values, float("-inf")), ids, vocab, values[:, 0].abs() < float("inf"))

    def draw(self, law: Law, key: Tensor) -> Tensor:
        """Return argmax(log p + Gumbel) per law, [N] int64, -1 where none is sound; `key` [N] comes from `noise`."""
        if law.ids is None:
            return torch.where(law.is_sound, drawn(law.logits, key), -1)
        best = (law.logits + gumbel(key, law.ids)).argmax(-1, keepdim=True)
        return torch.where(law.is_sound, law.ids.gather(-1, best).squeeze(-1), -1)

    def noise(self, stream: Stream, position: Tensor, visit: int | Sequence[int] = 0) -> Tensor:
        """Return the keys of draws at `position` [B, ...] of these rows, as `node_key`."""
        return node_key(self.keys, stream, position, visit)

    def accepts(self, chance: Tensor, position: Tensor) -> Tensor:
        """Return [B, ...] bool, each true with its own probability, from the accept stream.

        Args:
            chance: [B, ...] float64; 1 or more = always, 0 or NaN = never.
            position: [B, ...] int64 position of the draft under test, or `place_in_step`; no two tests share one.
        """
        only = torch.zeros(1, dtype=torch.int64, device=position.device)
        return uniform(self.noise(Stream.ACCEPT, position), only).squeeze(-1) < chance

    def pick(
        self,
        logits: Tensor,
        position: Tensor,
        stream: Stream = Stream.TARGET,
        visit: int | Sequence[int] = 0,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Draw one token per processed logits row; -1 where the row is NaN, or infinite upwards.

        Args:
            logits: [B, ..., V] processed logits.
            position: [B, ...] int64 index of the drawn token in its row's sequence; not read at temperature 0.
            stream: which noise to use.
            visit: reference steps before this draw (canvases), of all rows or of each.
            ids: [K] tokens of the columns, where `logits` speak of some only; None = of the vocabulary.
        """
        if self.settings.is_greedy:
            best = likeliest(logits)
            return best if ids is None else torch.where(best < 0, -1, ids[best.clamp(min=0)])
        key, flat = self.noise(stream, position, visit).reshape(-1), logits.reshape(-1, logits.shape[-1])
        if ids is None and not needs_order(self.settings):
            found = sampled(flat, self.settings.temperature, key)
            if found is not None:
                return found.view(position.shape)
        # On a host few whole laws at a time, so that what is computed of them lies in a near cache.
        is_whole = flat.is_cpu and not self.settings.top_k
        size = max(1, _NEAR // flat.shape[-1] if is_whole else len(flat))
        found = torch.empty(len(flat), dtype=torch.int64, device=flat.device)
        for begin in range(0, len(flat), size):
            part = slice(begin, begin + size)
            law = self.law(flat[part])
            found[part] = self.draw(law if ids is None else law.named(ids), key[part])
        return found.view(position.shape)

    def margin(self, logits: Tensor, position: int, row: int, visit: int = 0) -> float:
        """Return how far the pick at one node is from being another token.

        The least of: what another token lacks to overtake the pick in log p + Gumbel, or to pass the cut that it fell
        to, whichever is more; and the pick's own distance to a cut. In logits divided by the temperature, or in mass
        where top-p or typical-p decides (of first order: right for moves the size of rounding). Costs a sort.

        Args:
            logits: [V] processed logits of one node.
            position: index of the drawn token.
            row: which row draws.
            visit: as in `pick`.
        """
        settings = self.settings
        if settings.is_greedy:
            best = logits.double().topk(min(2, logits.shape[-1])).values
            return float(best[0] - best[-1])
        # Stage 1: every token's distance to the cuts, on its own side of them.
        values, ids = in_order(logits.unsqueeze(0))
        values = values.double() / settings.temperature
        keep, distance = torch.ones_like(values, dtype=torch.bool), torch.full_like(values, float("inf"))
        if 0 < settings.top_k < values.shape[-1]:
            keep[:, settings.top_k :] = False
            inside, outside = values[:, settings.top_k - 1], values[:, settings.top_k]
            distance = torch.where(keep, values - outside, inside - values)
        log_total = values.masked_fill(~keep, float("-inf")).logsumexp(-1, keepdim=True)
        kept, gaps = cuts(values.masked_fill(~keep, float("-inf")), settings, log_total)
        keep, distance = keep & kept, functools.reduce(torch.minimum, gaps, distance)
        # Stage 2: who wins with the noise of this place.
        where = torch.tensor([position], dtype=torch.int64, device=logits.device)
        key = node_key([self.keys[row]], Stream.TARGET, where, visit)
        noisy = values + gumbel(key, ids)
        first, winner = noisy.masked_fill(~keep, float("-inf")).max(-1, keepdim=True)
        # Stage 3: another token must overtake the winner and, if it was cut, pass the cut; the winner must be cut.
        needed = torch.maximum((first - noisy).clamp(min=0), distance.masked_fill(keep, 0))
        needed = needed.masked_fill(values == float("-inf"), float("inf"))  # forbidden tokens stay so
        return float(needed.scatter(-1, winner, distance.gather(-1, winner)).min())

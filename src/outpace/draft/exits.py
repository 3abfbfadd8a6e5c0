"""A drafting model with exits: each token goes through no more layers than it takes to be sure.

Source: Kavehzadeh et al. (2024), arXiv 2407.01955, S2D. The model's layers are cut at its exits into stages. A token
passes the first stage, and what it comes to is read through the model's own final norm and head; where that is not
sure enough, it passes the next stage too. What enters a stage waits until some token passes it, and goes through
together with it, so that every layer reads every token once at most, and all exits share weights and entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.draft.reading import Drafter
from outpace.errors import CapabilityError
from outpace.run.layout import lay_out
from outpace.run.prefill import no_nodes
from outpace.run.tree import TokenTree
from outpace.types import Adapter, Context, Outcome, Outputs, View

__all__ = ["ExitDrafter"]

_CHUNK = 256  # tokens of a text that one forward reads


@dataclass
class ExitDrafter(Drafter):
    """A model, its exits, and what waits at them.

    Attributes:
        exits: layers passed at each exit, ascending; the last is all of them.
        confidence: an exit is taken where its likeliest token is at least this likely.
        later: a cache for each stage but the first, whose cache is `cache`; each holds the entries of its own layers.
        waiting: for each of those stages, per row, the states [n, hidden] that enter it next.
        taken: how many tokens were drafted at each exit.
    """

    exits: tuple[int, ...]
    confidence: float
    later: dict[int, Cache]
    waiting: dict[int, list[Tensor]]
    taken: dict[int, list[int]]
    _trimmed: Adapter | None = field(default=None, init=False)

    @classmethod
    def begin_with(cls, model: Adapter, context: Context, exits: tuple[int, ...], confidence: float) -> ExitDrafter:
        """Return the drafter of the joining rows; its caches are empty."""
        rows, stages = len(context.texts), range(1, len(exits))
        width = model.embed(torch.zeros(1, 1, dtype=torch.int64, device=model.device)).shape[-1]
        none = torch.zeros(0, width, dtype=model.dtype, device=model.device)
        later = {stage: context.cache_for("draft") for stage in stages}
        waiting = {stage: [none] * rows for stage in stages}
        taken = {stage: [0] * rows for stage in range(len(exits))}
        return cls(model, context.cache_for("draft"), exits, confidence, later, waiting, taken)

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Take in the texts, and return the logits after them at each row's exit, [B, V]."""
        self._truncate([len(text) - 1 for text in view.texts])
        rows = zip(view.texts, self.cache.lengths, reach, strict=True)
        texts = [text if ahead > 0 else text[:held] for text, held, ahead in rows]
        while True:  # all but the last token: nobody asks what follows it
            due = [text[held:-1][:_CHUNK] for text, held in zip(texts, self.cache.lengths, strict=True)]
            if not any(due):
                break
            self._enter(due, has_logits=False)
        return self._read([text[held:] for text, held in zip(texts, self.cache.lengths, strict=True)])

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        """Lengthen the chain of each running row, and return the logits after it at its exit, [B, V]."""
        del place
        pairs = zip(token.tolist(), running, strict=True)
        return self._read([[one] if is_on else [] for one, is_on in pairs])

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        """Refuse: what waits at an exit waits for a chain.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("A drafter with exits drafts chains.", "Use it as an ordinary draft model for trees.")

    def forget(self, outcome: Outcome, view: View) -> None:
        """Drop what did not become text, waiting or not."""
        emitted = zip(view.lengths, outcome.emitted, outcome.accepted, strict=True)
        self._truncate([length - len(tokens) + accepted for length, tokens, accepted in emitted])

    def _truncate(self, lengths: list[int]) -> None:
        before = self.cache
        before.truncate(lengths)
        for stage, cache in self.later.items():
            cache.truncate(lengths)
            rows = zip(self.waiting[stage], before.lengths, cache.lengths, strict=True)
            self.waiting[stage] = [states[: ahead - held] for states, ahead, held in rows]
            before = cache

    def _read(self, pending: list[list[int]]) -> Tensor:
        """Forward what each row lacks, as far as it takes; return the logits after its last token, [B, V]."""
        logits = self._enter(pending, has_logits=True)
        open_rows = [bool(tokens) for tokens in pending]
        for stage in range(len(self.exits)):
            sure = (logits.float().softmax(-1).amax(-1) >= self.confidence).tolist()
            is_last = stage + 1 == len(self.exits)
            for row, is_sure in enumerate(sure):
                if open_rows[row] and (is_sure or is_last):
                    self.taken[stage][row] += 1
                    open_rows[row] = False
            if not any(open_rows):
                break
            deeper = self._pass(stage + 1, open_rows)
            logits = torch.where(torch.tensor(open_rows, device=logits.device).unsqueeze(1), deeper, logits)
        return logits

    def _enter(self, pending: list[list[int]], *, has_logits: bool) -> Tensor:
        """Let tokens pass the first stage; what leaves it waits before the second."""
        logits, left = self._stage(0, pending, None, has_logits)
        self._wait(1, left, [len(tokens) for tokens in pending])
        return logits

    def _pass(self, stage: int, is_open: Sequence[bool]) -> Tensor:
        """Let what waits before a stage pass it, in the open rows; return the logits after its last, [B, V]."""
        states = [own if on else own[:0] for own, on in zip(self.waiting[stage], is_open, strict=True)]
        counts = [len(own) for own in states]
        inputs = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        logits, left = self._stage(stage, [[0] * count for count in counts], inputs, True)
        self.waiting[stage] = [own[count:] for own, count in zip(self.waiting[stage], counts, strict=True)]
        self._wait(stage + 1, left, counts)
        return logits

    def _wait(self, stage: int, left: Tensor, counts: Sequence[int]) -> None:
        if stage in self.waiting:
            rows = enumerate(zip(self.waiting[stage], counts, strict=True))
            self.waiting[stage] = [torch.cat([own, left[row, :count]]) for row, (own, count) in rows]

    def _stage(
        self, stage: int, tokens: list[list[int]], inputs: Tensor | None, has_logits: bool
    ) -> tuple[Tensor, Tensor]:
        """Run the layers of a stage over tokens, or what enters it.

        Returns:
            The logits after the last token [B, V], and what leaves the stage [B, T, hidden].
        """
        cache = self.later[stage] if stage else self.cache
        end, depth = self.exits[stage], self.adapter.capabilities.num_layers
        skip = (*range(self.exits[stage - 1] if stage else 0), *range(end, depth))
        layout = lay_out(tokens, cache.lengths, no_nodes(len(tokens), cache.device))
        given = (layout.tokens, layout.position, layout.visible, cache)
        last = torch.tensor([[max(0, len(one) - 1)] for one in tokens], device=cache.device)
        if stage + 1 == len(self.exits):
            scores = self.adapter.score(*given, last, inputs=inputs, skip=skip)
            cache.keep([range(len(one)) for one in tokens])
            return scores.logits[:, 0], scores.logits[:, :0]
        # Every token's state is wanted, but the logits of the last alone, and the head is a small model's largest part.
        scores = self._without_head().score(*given, outputs=Outputs((end,), True), inputs=inputs, skip=skip)
        cache.keep([range(len(one)) for one in tokens])
        assert scores.last is not None  # it was asked for
        if not has_logits:
            return scores.logits[:, 0], scores.taps[end]
        hidden = scores.last.gather(1, last.unsqueeze(-1).expand(-1, -1, scores.last.shape[-1]))
        return self.adapter.head(hidden)[:, 0], scores.taps[end]

    def _without_head(self) -> Adapter:
        if self._trimmed is None:
            one = torch.zeros(1, dtype=torch.int64, device=self.device)
            self._trimmed = self.adapter.trim_head(one) or self.adapter
        return self._trimmed

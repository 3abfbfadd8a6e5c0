"""Neural phrase-based translation: source states, softly reordered, write a phrase each, from left to right.

Papers: Huang et al. (2018), "Towards Neural Phrase-based Machine Translation", arXiv:1706.05565: the reordering layer
is eq. 3, decoding section 2.3; Wang et al. (2017), "Sequence Modeling via Segmentations" (SWAN), arXiv:1702.07463: the
probability of a target is a sum over all ways to cut it into phrases, one a source state, some of them empty (eq. 1),
by dynamic programming (eq. 3).
Decoding: greedily, a phrase ends where its end is likelier than not, and the next source state goes on. So the state
behind a token is a function of the text, and the engine may draft, sample or branch: the law of the next token is that
of the words where the phrases stand. The text ends with the source.
Differences: the paper ends a phrase where its end is likelier than each single word, which a network that hesitates
between words does too soon; a recurrent state over the whole target joins the source state at the start of a phrase, as
in SWAN with carried-over states; the softmax is taken in two steps, a class and a word in it (Goodman 2001,
arXiv:cs/0108006), so that all phrases of a sentence fit a step on a CPU; a phrase of the greatest length needs no end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from outpace.models.nets.base import PairConfig, PairNet, Window, gathered
from outpace.papers import Paper

__all__ = ["PAPERS", "Phrases", "PhrasesConfig", "segmentation_score"]

PAPERS = (
    Paper(
        "Towards Neural Phrase-based Machine Translation",
        "Huang et al.",
        2018,
        "1706.05565",
        61,
        "Its beam over phrases with an outside language model, and the sizes of its published models.",
        "outpace train pairs-phrases",
    ),
)
NEVER = -1e4  # a logit whose probability is 0 in every float type
_LOW = -1e30  # log of 0 in sums whose gradient must stay a number


@dataclass(frozen=True, slots=True, kw_only=True)
class PhrasesConfig(PairConfig):
    """Sizes of a phrase-based translator.

    Attributes:
        width: of embeddings.
        hidden: of the recurrent states, even.
        reach: tokens on each side that the reordering layer draws from.
        longest: most tokens of a phrase.
        dropout: of embeddings, in training.
    """

    width: int = 128
    hidden: int = 96
    reach: int = 3
    longest: int = 3
    dropout: float = 0.1

    @property
    def class_size(self) -> int:
        """Words in a class: about as many as there are classes."""
        return int(self.vocab_size**0.5 + 0.999999)


class Phrases(PairNet):
    """A reordering layer, a bidirectional GRU, and a GRU that writes phrases."""

    Config = PhrasesConfig
    has_logits = False

    def __init__(self, config: PhrasesConfig) -> None:
        super().__init__()
        self.config, width, hidden = config, config.width, config.hidden
        self.source_embedding, self.embedding = (nn.Embedding(config.vocab_size, width) for _ in range(2))
        self.reorder = nn.Linear((2 * config.reach + 1) * width, 2 * config.reach + 1)
        self.reader = nn.GRU(width, hidden // 2, batch_first=True, bidirectional=True)
        self.history, self.writer = nn.GRUCell(width, hidden), nn.GRUCell(width, hidden)
        self.from_source, self.from_history = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        size, classes = config.class_size, -(-config.vocab_size // config.class_size)
        self.classes = nn.Linear(hidden, classes + 1)  # the last one is the end of a phrase
        self.words = nn.Parameter(torch.randn(classes, size, hidden) * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(classes, size))
        for table in (self.source_embedding, self.embedding):
            nn.init.normal_(table.weight, std=width**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width]."""
        return F.dropout(self.embedding(tokens), self.config.dropout, self.training)

    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return the mask [B, S] and the states [B, S, hidden], each as it opens a phrase."""
        states = F.dropout(self.source_embedding(sources), self.config.dropout, self.training)
        states = self.reordered(states * is_real.unsqueeze(-1).to(states.dtype))
        packed = pack_padded_sequence(states, is_real.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        read, _ = pad_packed_sequence(self.reader(packed)[0], batch_first=True, total_length=sources.shape[1])
        return [is_real, self.from_source(read)]

    def reordered(self, states: Tensor) -> Tensor:
        """Return a gated sum of each token's neighbourhood, [B, S, width] (eq. 3); padding has to be zero."""
        reach = self.config.reach
        around = F.pad(states, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1).transpose(2, 3)  # [B, S, 2r+1, width]
        gates = torch.sigmoid(self.reorder(around.flatten(2)))
        return torch.tanh((gates.unsqueeze(-1) * around).sum(2))

    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """A token's entry: the target's state, the phrase's state, its source token and its length so far."""
        del source
        return [(self.config.hidden,), (self.config.hidden,), (2,)]

    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Read new tokens one after another, each where the token before it left the phrases."""
        rows, size = window.position.shape
        entries = [window.inputs.new_zeros(rows, size, *shape) for shape in self.entry_shapes(0)]
        parents = window.ancestors(1)
        for at in range(size):
            where = parents[:, at : at + 1]
            before = [gathered(p[:, : window.slots], e, where)[:, 0] for p, e in zip(window.past, entries, strict=True)]
            after = self._advance(window.inputs[:, at], before, where[:, 0] < 0, window.memory)
            for entry, new in zip(entries, after, strict=True):
                entry[:, at] = new
        return self._shown(entries[1], entries[2], window.memory[0]), entries

    def states(self, sources: Tensor, is_real: Tensor, inputs: Tensor) -> Tensor:
        """Return what the head reads of whole targets, [B, T, hidden + 1]."""
        entries = self._walk(self.encode(sources, is_real), inputs)
        return torch.stack([self._shown(state, place, is_real) for _, state, place in entries], 1)

    @torch.no_grad()
    def writers(self, source: list[int], target: list[int]) -> list[int]:
        """Return which source token's phrase holds each target token, as greedy decoding walks over the source."""
        ids = torch.tensor([source])
        inputs = torch.tensor([[self.config.start_token, *target[:-1]]])
        entries = self._walk(self.encode(ids, torch.ones_like(ids, dtype=torch.bool)), inputs)
        return [int(place[0, 0]) for _, _, place in entries]

    def _walk(self, memory: list[Tensor], inputs: Tensor) -> Iterator[list[Tensor]]:
        """Yield the entry behind each token of whole targets [B, T]."""
        embedded = self.embed(inputs)
        entry = [embedded.new_zeros(len(inputs), *shape) for shape in self.entry_shapes(0)]
        for at in range(inputs.shape[1]):
            is_first = torch.full((len(inputs),), at == 0, device=inputs.device)
            entry = self._advance(embedded[:, at], entry, is_first, memory)
            yield entry

    def head(self, hidden: Tensor) -> Tensor:
        """Return the law of the next token, of last states [..., hidden + 1] whose last number says if all is over."""
        law, is_over, end = self._law(hidden[..., :-1])[0], hidden[..., -1] > 0, self.config.end_token
        law = law.index_fill(-1, torch.tensor([end], device=law.device), NEVER)
        ended = torch.full_like(law, NEVER)
        ended[..., end] = 0.0
        return torch.where(is_over.unsqueeze(-1), ended, law)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean negative log-likelihood in nats per token, over all segmentations.

        Args:
            batch: sources, their mask, inputs and labels (negative = none). The end token is counted and costs nothing:
                the text ends with the source.
        """
        sources, mask, inputs, labels = batch
        lengths = (labels >= 0).sum(1) - 1
        scores = self.log_likelihood(sources, mask.bool(), inputs, lengths)
        return -scores.sum() / (lengths + 1).sum()

    def log_likelihood(self, sources: Tensor, is_real: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return log p(target | source) of each row, [B].

        Args:
            sources, is_real: [B, S], as for `encode`.
            inputs: [B, T + 1], the start token and the target, end token left out; padding may hold any id.
            lengths: [B] int64, tokens of each target.
        """
        phrases = self.phrase_scores(self.encode(sources, is_real), inputs)
        return segmentation_score(phrases, is_real.sum(1), lengths)

    def phrase_scores(self, memory: list[Tensor], inputs: Tensor) -> Tensor:
        """Return log p of every phrase [B, S, T + 1, longest + 1]: of a source token, from a place on, of a length."""
        embedded, target = self.embed(inputs), F.pad(inputs, (0, self.config.longest))[:, 1:]
        history = [embedded.new_zeros(len(inputs), self.config.hidden)]
        for at in range(inputs.shape[1]):
            history.append(self.history(embedded[:, at], history[-1]))
        state = torch.tanh(memory[1].unsqueeze(2) + self.from_history(torch.stack(history[1:], 1)).unsqueeze(1))
        fed = F.pad(F.linear(embedded, self.writer.weight_ih, self.writer.bias_ih), (0, 0, 0, self.config.longest))
        so_far, found, size = state.new_zeros(state.shape[:3], dtype=torch.float32), list[Tensor](), inputs.shape[1]
        for count in range(self.config.longest):
            word, close = self._word_scores(state, target[:, count : count + size])
            found.append(so_far + close)
            so_far = so_far + word
            state = _gru(self.writer, fed[:, None, count + 1 : count + 1 + size], state)
        return torch.stack([*found, so_far], -1)

    def _word_scores(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p of words [B, J] and of a phrase's end, each [B, S, J], after states [B, S, J, hidden]."""
        law, size = self.classes(states).log_softmax(-1), self.config.class_size
        kind = words // size
        logits = torch.einsum("bsjh,bjch->bsjc", states, self.words[kind]) + self._class_bias()[kind].unsqueeze(1)
        of_class = law.take_along_dim(kind[:, None, :, None], -1)
        in_class = logits.log_softmax(-1).take_along_dim((words % size)[:, None, :, None], -1)
        return (of_class + in_class).squeeze(-1), law[..., -1]

    def _class_bias(self) -> Tensor:
        """Return the words' biases, with places of the last class that stand for no word closed."""
        number = torch.arange(self.bias.numel(), device=self.bias.device).view_as(self.bias)
        return self.bias.masked_fill(number >= self.config.vocab_size, NEVER)

    def _law(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p of every word [..., V] and of the phrase's end [...]."""
        law = self.classes(states).log_softmax(-1)
        logits = torch.einsum("...h,kch->...kc", states, self.words) + self._class_bias()
        words = (law[..., :-1].unsqueeze(-1) + logits.log_softmax(-1)).flatten(-2)
        return words[..., : self.config.vocab_size], law[..., -1]

    def _advance(
        self, inputs: Tensor, before: list[Tensor], is_first: Tensor, memory: Sequence[Tensor]
    ) -> list[Tensor]:
        """Read one token [B, width] behind an entry, and close the phrases that end behind it."""
        history = self.history(inputs, before[0])
        state = _gru(self.writer, F.linear(inputs, self.writer.weight_ih, self.writer.bias_ih), before[1])
        at, count = before[2].long().unbind(-1)
        # The start token stands before the source, at the end of a phrase of nothing.
        at, count = at.masked_fill(is_first, -1), (count + 1).masked_fill(is_first, self.config.longest)
        held, opened = memory[0].sum(1), torch.tanh(memory[1] + self.from_history(history).unsqueeze(1))
        while True:
            close = self.classes(state).softmax(-1)[..., -1]
            is_ended = ((count >= self.config.longest) | (close > 0.5)) & (at < held)
            if not is_ended.any():
                return [history, state, torch.stack([at, count], -1).to(state.dtype)]
            at, count = at + is_ended.long(), count.masked_fill(is_ended, 0)
            place = at.clamp(min=0, max=opened.shape[1] - 1)[:, None, None]
            state = torch.where(is_ended.unsqueeze(-1), opened.take_along_dim(place, 1)[:, 0], state)

    def _shown(self, states: Tensor, places: Tensor, is_real: Tensor) -> Tensor:
        """Return states [..., hidden], and behind each whether the source is used up."""
        held = is_real.sum(1).view(-1, *[1] * (places.dim() - 2))
        return torch.cat([states, (places[..., :1] >= held.unsqueeze(-1)).to(states.dtype)], -1)


def segmentation_score(phrases: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Return the log of a sum over all segmentations of the product of their phrases' probabilities, [B].

    Args:
        phrases: [B, S, T + 1, L + 1], log p of the phrase that source token s writes from place j on, by its length.
        sources, targets: [B] int64, tokens of each side.
    """
    phrases = phrases.float() if phrases.dtype != torch.float64 else phrases
    rows, size, places, longest = len(phrases), phrases.shape[1], phrases.shape[2], phrases.shape[3] - 1
    forward = phrases.new_full((rows, places), _LOW)
    forward[:, 0] = 0.0
    for at in range(size):
        ways = [F.pad(forward + phrases[:, at, :, n], (n, 0), value=_LOW)[:, :places] for n in range(longest + 1)]
        reached = torch.stack(ways).logsumexp(0)
        forward = torch.where((at < sources).unsqueeze(1), reached, forward)
    return forward.gather(1, targets.unsqueeze(1)).squeeze(1)


def _gru(cell: nn.GRUCell, fed: Tensor, state: Tensor) -> Tensor:
    """Return a cell's next state [..., hidden] of inputs that went through its input matrix, [..., 3 hidden]."""
    reset, update, new = fed.chunk(3, -1)
    from_reset, from_update, from_new = F.linear(state, cell.weight_hh, cell.bias_hh).chunk(3, -1)
    fresh = torch.tanh(new + torch.sigmoid(reset + from_reset) * from_new)
    return torch.lerp(fresh, state, torch.sigmoid(update + from_update))

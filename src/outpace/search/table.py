"""The rows of a search between two writes: texts that share pages, are forked, written on, scored and dropped.

A `Leaf` is a text as it stands, with its entries; nothing changes it. Writing leaves gives new ones, and the old ones
can be written again, with the same or other noise. All that is written at a time is one ragged batch of one run, by
whatever method that run has. A leaf that nobody holds any more gives its pages back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache, PagedCache
from outpace.run import state as trees
from outpace.run.batch import bind
from outpace.run.loop import Run
from outpace.run.row import Row, Usage, forked
from outpace.sampling import Stream, fork_key, gumbel, node_key, row_key
from outpace.search.rewards import Reward

__all__ = ["Leaf", "Shelf", "Table"]

_PER_TOKEN = (  # what a row notes of each token
    *("log_probs", "top_log_probs", "margins", "sources", "drafters", "entropies", "choices"),
)
_SUMMED = ("num_proposed", "num_accepted", "num_recovered", "num_bonus", "positions_scored")
Writing = Generator[None, None, "list[Leaf]"]


@dataclass(slots=True, eq=False)
class Leaf:
    """A text as it stands.

    Attributes:
        row: its tokens and what is known of them; not to be changed.
        cache: its entries, of one row.
        state: of the run's method, of one row.
        number: of its row in the search, for messages.
    """

    row: Row
    cache: Cache
    state: Any
    number: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the text has ended."""
        return self.row.finish is not None

    @property
    def written(self) -> list[int]:
        """Its tokens behind the prompt."""
        return self.row.written

    @property
    def log_prob(self) -> float:
        """The natural log-probability of what was written, under the model's own law."""
        return math.fsum(self.row.log_probs)

    @property
    def text(self) -> Any:
        """What was written as text; its ids, where there is no tokenizer."""
        return self.written if self.row.text is None else self.row.text.text


class Shelf(dict[Row, Leaf]):
    """Where rows lie that have left a run, for the tables that wait for them.

    Args:
        run: whose rows they are; one shelf per run.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        run.on_leave = self._lay

    def _lay(self, row: Row, cache: Cache, place: int) -> None:
        self[row] = Leaf(row, cache.rows([place]), trees.rows(self.run.batch.state, [place]))


class Table:
    """The rows of one search.

    Args:
        shelf: of the run that writes them.
        prompt: a row with a prompt, which is read when it is first asked for.
        seed: of all noise; `sample(i)` has that of plain decoding's sample number i.
        spellings: the bytes that each id writes, as `Tokenizer.spellings` has them; empty = there is no tokenizer.
        text: the prompt as text, or its ids.

    Attributes:
        notes: what a user should know.
        usage: what all rows have cost.
    """

    def __init__(
        self, shelf: Shelf, prompt: Row, seed: int, spellings: Sequence[bytes | None] = (), text: Any = None
    ) -> None:
        self.run, self._shelf, self._seed, self._spellings = shelf.run, shelf, seed, spellings
        self._row, self._text = prompt, text
        self._prompt: Leaf | None = None
        self.notes: list[str] = []
        self.usage = Usage(num_prompt=prompt.num_prompt)
        self.rows: list[Row] = []  # being written

    @property
    def _root(self) -> Leaf:
        if self._prompt is None:
            row, counter = self._row, self.run.counters["target"]
            before = counter.nfe
            self.run.join([row])
            self.run.read()
            self.run.leave([row])
            self._prompt = self._shelf.pop(row)
            self.usage.target_nfe += counter.nfe - before
            self.usage.positions_scored += row.usage.positions_scored
        return self._prompt

    def sample(self, number: int) -> Leaf:
        """Return the prompt with the noise of a sample; number 0 is what plain decoding writes."""
        leaf = self._root
        key = row_key(self._seed, number)
        return Leaf(replace(leaf.row, **forked(leaf.row), key=key), leaf.cache, leaf.state, number)

    def fork(self, leaf: Leaf, number: int, name: int | None = None) -> Leaf:
        """Return the same text with noise of its own from here on; number 0 keeps the noise.

        Args:
            leaf: to go on from.
            number: of the fork among those of the leaf.
            name: its number in the search; None = as before.
        """
        place = len(leaf.row.tokens)  # a text forks again where it is longer, and its forks' noise is new then
        key = fork_key(leaf.row.key, (place << 32) + number) if number else leaf.row.key
        return Leaf(replace(leaf.row, key=key), leaf.cache, leaf.state, leaf.number if name is None else name)

    def instead(self, before: Leaf, after: Leaf, token: int) -> Leaf:
        """Return the text before a write of one token with another token in the place of the one that was written.

        Args:
            before, after: a leaf, and what `write(..., tokens=1)` made of it. The entries are the same: the last token
                of a text has none yet.
            token: one of `after.row.choices[-1]`, whose log-probability is noted.
        """
        row = replace(before.row, **forked(before.row))
        row.push(token)
        row.is_paused = False
        row.sources.append("plain")
        row.drafters.append("")
        own = {one: law for one, _, law in after.row.choices[-1]}
        row.choices.append(after.row.choices[-1])
        if len(after.row.log_probs) > len(row.log_probs):
            row.log_probs.append(own[token])
        row.entropies = list(after.row.entropies)
        return Leaf(row, after.cache, after.state, before.number)

    def cut(self, leaf: Leaf, count: int) -> Leaf:
        """Return the first `count` written tokens of a leaf's text, to be written on from there."""
        row, root = leaf.row, self._root.row
        new = replace(root, **forked(root), key=row.key)
        for token in row.written[:count]:
            new.push(token)
        for name in _PER_TOKEN:
            setattr(new, name, list(getattr(row, name)[:count]))
        if isinstance(leaf.cache, PagedCache):  # others read the text again
            new.cached = leaf.cache.tables()[0], len(new.tokens) - 1
        self.run.join([new])  # a method that saw what came behind begins anew
        self.run.leave([new])
        cut = self._shelf.pop(new)
        cut.number = leaf.number
        return cut

    def drawn(self, leaf: Leaf, weights: Sequence[float]) -> int:
        """Return which of several ways to go on from a text is drawn, by noise of its own.

        Args:
            leaf: the text, whose key and length the noise depends on.
            weights: of the ways, in nats; -inf = never.
        """
        place = torch.tensor([[len(leaf.row.tokens)]])
        noise = gumbel(node_key([leaf.row.key], Stream.ACCEPT, place), torch.arange(len(weights)))[0, 0].tolist()
        sums = [weight + own for weight, own in zip(weights, noise, strict=True)]
        return sums.index(max(sums))

    def then(self, leaf: Leaf, token: int) -> Leaf:
        """Return a text with a token more, which nothing was forwarded for: its entries are not for writing on."""
        row = replace(leaf.row, **forked(leaf.row))
        row.push(token)
        row.is_paused = False
        row.sources.append("plain")
        row.drafters.append("")
        return Leaf(row, leaf.cache, leaf.state, leaf.number)

    def mixed(self, cache: Cache, leaves: Sequence[Leaf], weights: Sequence[float]) -> Tensor:
        """Forward one position that mixes the last tokens of some texts of one length, and keep its entry.

        Args:
            cache: of one row, which holds what comes before.
            leaves: the texts.
            weights: of their last tokens' embeddings.

        Returns:
            [N, V] float64, per text the log-probability of each next token behind its penalties and bans.
        """
        target, counter, rows = self.run.target, self.run.counters["target"], [leaf.row for leaf in leaves]
        device, before = cache.device, (counter.nfe, counter.positions)
        place = torch.tensor([[len(rows[0].tokens) - 1]], device=device)
        last = torch.tensor([[row.tokens[-1] for row in rows]], device=device)
        embedded = target.embed(last)[0]
        mixture = (torch.tensor(weights, dtype=embedded.dtype, device=device).unsqueeze(1) * embedded).sum(0)
        with torch.no_grad():
            scores = target.score(last[:, :1], place, None, cache, inputs=mixture.view(1, 1, -1))
        cache.keep([range(1)])
        self.usage.target_nfe += counter.nfe - before[0]
        self.usage.positions_scored += counter.positions - before[1]
        logits = scores.logits[:, -1].expand(len(rows), -1)
        sampler = bind(self.run.settings, rows)
        history = sampler.history([row.tokens for row in rows], [row.num_prompt for row in rows], logits.shape[-1])
        return sampler.process(logits, history).double().log_softmax(-1)

    def marked(self, marks: str) -> frozenset[int]:
        """Return the ids that write one of some characters."""
        signs = [sign.encode() for sign in marks]
        return frozenset(
            at for at, spelling in enumerate(self._spellings) if spelling and any(sign in spelling for sign in signs)
        )

    def write(self, leaves: Sequence[Leaf], tokens: int = 0, marks: Collection[int] = ()) -> Writing:
        """Let texts be written on, side by side; `found = yield from table.write(...)`.

        Args:
            leaves: where to go on; those that have ended stay as they are.
            tokens: to write at most; 0 = to the end.
            marks: ids behind which a text rests, too.

        Returns:
            The new leaves, in order.
        """
        rows = {at: self._resumed(leaf, tokens, marks) for at, leaf in enumerate(leaves) if not leaf.is_over}
        if rows:
            states = [trees.rows(trees.rows(leaves[at].state, [0, 0]), [0]) for at in rows]
            caches = [leaves[at].cache.rows([0]) for at in rows]
            self.run.batch.join(list(rows.values()), Cache.join(caches), trees.join(states))
        self.rows = list(rows.values())
        before = {at: replace(row.usage) for at, row in rows.items()}
        while any(row not in self._shelf for row in rows.values()):
            yield
        self.rows = []
        found = [self._shelf.pop(rows[at]) if at in rows else leaf for at, leaf in enumerate(leaves)]
        for leaf, old in zip(found, leaves, strict=True):
            leaf.number = old.number
        self._count(before, rows)
        return found

    def _resumed(self, leaf: Leaf, tokens: int, marks: Collection[int]) -> Row:
        """Return a row to be written on from a leaf."""
        row = replace(leaf.row, **forked(leaf.row))
        end = len(row.tokens) + tokens if tokens else math.inf

        def is_due(row: Row) -> bool:
            return len(row.tokens) >= end or row.tokens[-1] in marks

        row.pause, row.is_paused = is_due, False
        return row

    def _count(self, before: Mapping[int, Usage], rows: Mapping[int, Row]) -> None:
        """Add what a write has cost: rows step together, and each has its own positions and drafts."""
        pairs = [(before[at], row.usage) for at, row in rows.items()]
        for name in ("num_steps", "target_nfe", "draft_nfe"):
            most = max((getattr(new, name) - getattr(old, name) for old, new in pairs), default=0)
            setattr(self.usage, name, getattr(self.usage, name) + most)
        for name in _SUMMED:
            more = sum(getattr(new, name) - getattr(old, name) for old, new in pairs)
            setattr(self.usage, name, getattr(self.usage, name) + more)

    def score(self, leaves: Sequence[Leaf], reward: Reward) -> list[float]:
        """Return how good texts are: by a reward, or, without one, by their mean log-probability per token.

        Raises:
            RewardError: the reward cannot be used.
        """
        if not reward:
            return [leaf.log_prob / max(1, len(leaf.row.log_probs)) for leaf in leaves]
        texts, prompts = [leaf.text for leaf in leaves], [self._text] * len(leaves)
        values, notes = reward(texts, prompts, [leaf.number for leaf in leaves])
        self.notes += [note for note in notes if note not in self.notes]
        return values

    def best(self, leaves: Sequence[Leaf], scores: Sequence[float], count: int) -> list[Leaf]:
        """Return the best texts, the best first, each told its score; of equals the earlier."""
        order = sorted(range(len(leaves)), key=lambda at: -scores[at])[:count]
        for at in order:
            leaves[at].row.score = scores[at]
        return [leaves[at] for at in order]

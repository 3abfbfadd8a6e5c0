"""Beam search over the rows of a group: which texts go on, which have ended, and when no better one can come.

Source: transformers' `generate(num_beams=...)` says what the settings mean: candidates, length penalty, the three ways
to stop early. Groups of beams that keep apart: Vijayakumar et al. (2018), arXiv 1610.02424, algorithm 1, with the
penalty in the score, as transformers had it.

A step may hold drafts. Where every text that goes on does so with a token that was drafted behind it, the logits behind
that token are known, and the search goes on within the step: it makes the same choices from the same numbers.

Longer than most: the search stands in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.accept.nodes import children_of, parents
from outpace.types import Decision, Ending, Proposal, Scores, View

__all__ = ["BeamRules", "Beams", "search_beams"]

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class BeamRules:
    """What a search is after.

    Attributes:
        length_penalty: a text's score is its log-probability divided by its written tokens to this power.
        early_stopping: when a group with as many ended texts as beams stops: "true" = at once, "false" = when its
            likeliest text, if it ended now, would not be better than the worst ended one, "never" = when it could not
            become better.
        num_groups: groups of beams that keep apart.
        is_renormalised: log-probabilities sum to 1 again behind penalties and bans.
        diversity: subtracted from a token's log-probability for each beam of an earlier group that goes on with it.
    """

    length_penalty: float = 1.0
    early_stopping: str = "false"
    num_groups: int = 1
    diversity: float = 0.0
    is_renormalised: bool = False


@dataclass
class Beams:
    """The state of a search.

    Attributes:
        total: [B] float64, the log-probability of each row's text, -inf where it only stands in for another.
        best: [B] float64, the score of the ended text beside each row, -inf where there is none.
        is_open: [B] bool, whether its group of beams is still searched.
    """

    total: Tensor
    best: Tensor
    is_open: Tensor

    @staticmethod
    def begin(rows: int, device: torch.device) -> Beams:
        """Return the state of rows that have written nothing."""
        zeros = torch.zeros(rows, dtype=torch.float64, device=device)
        return Beams(zeros, torch.full_like(zeros, _NEVER), torch.ones_like(zeros, dtype=torch.bool))


@dataclass(slots=True)
class _Path:
    """A text as it stands within the step: a row's text, and what followed it."""

    row: int
    tokens: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)

    @property
    def node(self) -> int:
        """The last node, whose logits tell what follows; -1 = the root."""
        return self.nodes[-1] if self.nodes else -1

    def then(self, token: int, node: int) -> _Path:
        """Return the text with a token more, drafted as a node (-1 = not drafted)."""
        return _Path(self.row, [*self.tokens, token], [*self.nodes, node])


@dataclass(slots=True)
class _Group:
    """The texts of one group, and the ended ones in order, as they stand within the step."""

    rows: list[int]
    paths: list[_Path]
    endings: list[Ending | None]
    is_over: bool = False
    is_broken: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether the drafts tell what follows every text."""
        return not (self.is_over or self.is_broken) and all(path.node >= 0 for path in self.paths)


class _Search:
    """One step of all groups of one size."""

    def __init__(
        self,
        scores: Scores,
        view: View,
        rules: BeamRules,
        children: Sequence[dict[tuple[int, int], int]],
        groups: Sequence[_Group],
    ) -> None:
        self.scores, self.view, self.rules, self.children, self.groups = scores, view, rules, children, groups
        self.lengths, size = view.lengths, len(groups[0].rows)
        self.num_parts = rules.num_groups if size % rules.num_groups == 0 else 1
        self.part = size // self.num_parts

    def run(self, beams: Beams) -> None:
        """Search on for as long as the drafts tell what follows; change the groups and the state, in place."""
        active = list(range(len(self.groups)))
        while active:
            groups = [self.groups[number] for number in active]
            index = torch.tensor([group.rows for group in groups], device=beams.total.device)
            now = Beams(beams.total[index], beams.best[index], beams.is_open[index])
            self._begin(groups, now)
            self._grow(groups, now)
            beams.total[index], beams.best[index], beams.is_open[index] = now.total, now.best, now.is_open
            active = [n for n, group in zip(active, groups, strict=True) if group.goes_on]

    def _begin(self, groups: Sequence[_Group], now: Beams) -> None:
        """Let one beam of each part count where nothing is written: all texts are equal."""
        is_new = [self._written(group) == 1 for group in groups]
        behind = torch.arange(now.total.shape[1], device=now.total.device) % self.part > 0
        now.total[torch.tensor(is_new, device=now.total.device).unsqueeze(1) & behind] = _NEVER

    def _grow(self, groups: Sequence[_Group], now: Beams) -> None:
        """Write one token more of every text."""
        laws, is_broken = self._laws(groups)
        chosen, vocab = [], laws.shape[-1]
        counts = laws.new_zeros(len(groups), vocab) if self.num_parts > 1 and self.rules.diversity else None
        for part in range(self.num_parts):
            beams = slice(part * self.part, (part + 1) * self.part)
            lawful = laws[:, beams] if counts is None else laws[:, beams] - self.rules.diversity * counts[:, None]
            source, token = self._choose(groups, now, beams, lawful)
            chosen.append((source, token))
            if counts is not None:
                counts.scatter_add_(1, token, (now.total[:, beams] > _NEVER).to(counts.dtype))
        sources, tokens = (torch.cat(each, 1).tolist() for each in zip(*chosen, strict=True))
        is_alive, is_open = (now.total > _NEVER).tolist(), now.is_open.any(1).tolist()
        for at, group in enumerate(groups):
            group.is_broken = is_broken[at]
            group.is_over = not (is_open[at] and any(is_alive[at]))
            if group.is_over or group.is_broken:
                continue
            lead = is_alive[at].index(True)  # a beam that is none any more stands in for this one
            picked = [beam if alive else lead for beam, alive in enumerate(is_alive[at])]
            steps = [(group.paths[sources[at][beam]], tokens[at][beam]) for beam in picked]
            group.paths = [path.then(token, self._child(path, token)) for path, token in steps]

    def _child(self, path: _Path, token: int) -> int:
        return self.children[path.row].get((path.node, token), -1)

    def _laws(self, groups: Sequence[_Group]) -> tuple[Tensor, list[bool]]:
        """Return [G, N, V] the log-probability of each next token, processed; and which groups have none."""
        view, paths = self.view, [path for group in groups for path in group.paths]
        rows, device = [path.row for path in paths], self.scores.logits.device
        asked = torch.tensor([path.node + 1 for path in paths], device=device)
        logits = self.scores.logits[torch.tensor(rows, device=device), asked]
        is_short = logits.dtype in (torch.float16, torch.bfloat16)
        logits = logits.float() if is_short else logits
        logits = logits if self.scores.is_summed else logits.log_softmax(-1)
        shape = (len(groups), -1, logits.shape[-1])
        is_broken = logits.sum(-1).isnan().view(shape[:2]).any(1).tolist()
        sampler = view.sampler.rows(rows)
        texts = [[*view.texts[path.row], *path.tokens] for path in paths] if sampler.settings.is_stateful else []
        history = sampler.history(texts, [view.prompts[row] for row in rows], logits.shape[-1])
        logits = sampler.process(logits, history)
        if history is not None and sampler.settings.constraint is not None:
            stuck = [at for at in range(len(rows)) if history.is_stuck(at)]
            logits[stuck] = _NEVER
        if self.rules.is_renormalised:
            logits = logits.log_softmax(-1)
        return logits.view(shape), is_broken

    def _choose(self, groups: Sequence[_Group], now: Beams, beams: slice, laws: Tensor) -> tuple[Tensor, Tensor]:
        """Choose what the beams of a part go on from, and with; note what ends. [G, M] places in the group, tokens."""
        part, is_open = self.part, now.is_open[:, beams.start].clone()
        sizes = [part * max(2, 1 + len(self.view.sampler.end_tokens[group.rows[0]])) for group in groups]
        # The likeliest of all are among the likeliest of each, which saves sums over the vocabulary.
        each, named = laws.topk(min(max(sizes), laws.shape[-1]))
        sums = (now.total[:, beams, None] + each).masked_fill(~is_open[:, None, None], _NEVER).flatten(1)
        values, index = (found[:, : max(sizes)] for found in sums.sort(dim=1, descending=True, stable=True))
        order = torch.arange(values.shape[1], device=values.device)
        values = values.masked_fill(order >= torch.tensor(sizes, device=values.device).unsqueeze(1), _NEVER)
        source, token = index // each.shape[-1] + beams.start, named.flatten(1).gather(1, index)
        ends = torch.tensor(self._ends(groups, values, source, token), device=values.device)

        # Only the likeliest candidates, as many as beams, may end; the others are there to go on with.
        written = [self._written(group) for group in groups]
        scale = torch.tensor([n**self.rules.length_penalty for n in written], dtype=values.dtype, device=values.device)
        ended = (values / scale.unsqueeze(1)).masked_fill(~ends | (order >= part), _NEVER)
        merged, origin = torch.cat([now.best[:, beams], ended], 1).sort(dim=1, descending=True, stable=True)
        now.best[:, beams] = merged[:, :part]
        self._note(groups, beams.start, merged[:, :part], origin[:, :part], source, token)

        running, at = values.masked_fill(ends, _NEVER).sort(dim=1, descending=True, stable=True)
        missing = part - running.shape[1]
        if missing > 0:  # a vocabulary of fewer tokens
            running = torch.nn.functional.pad(running, (0, missing), value=_NEVER)
            at = torch.nn.functional.pad(at, (0, missing))
        now.total[:, beams] = running[:, :part]
        now.is_open[:, beams] = (is_open & self._may_improve(groups, now, beams, written)).unsqueeze(1)
        return source.gather(1, at[:, :part]), token.gather(1, at[:, :part])

    def _written(self, group: _Group) -> int:
        """Return how many tokens a text has with the next one."""
        row = group.rows[0]
        return self.lengths[row] - self.view.prompts[row] + len(group.paths[0].tokens) + 1

    def _ends(self, groups: Sequence[_Group], values: Tensor, source: Tensor, token: Tensor) -> list[list[bool]]:
        """Return for every candidate whether the text would end with it."""
        view, found = self.view, []
        table = zip(groups, values.tolist(), source.tolist(), token.tolist(), strict=True)
        for group, value, beam, tokens in table:
            is_last = view.room[group.rows[0]] <= len(group.paths[0].tokens) + 1
            candidates = zip(value, (group.paths[at] for at in beam), tokens, strict=True)
            found.append(
                [
                    one > _NEVER and (is_last or view.ends(path.row, [*path.tokens, last]))
                    for one, path, last in candidates
                ]
            )
        return found

    def _note(
        self, groups: Sequence[_Group], first: int, best: Tensor, origin: Tensor, source: Tensor, token: Tensor
    ) -> None:
        """Keep the ended texts in the order of their scores."""
        table = zip(groups, best.tolist(), origin.tolist(), source.tolist(), token.tolist(), strict=True)
        for group, scores, places, beam, tokens in table:
            held, new = group.endings[first : first + self.part], list[Ending | None]()
            for score, place in zip(scores, places, strict=True):
                if score == _NEVER:
                    new.append(None)
                elif place < self.part:
                    new.append(held[place])
                else:
                    path, last = group.paths[beam[place - self.part]], tokens[place - self.part]
                    path = path.then(last, self._child(path, last))
                    new.append(Ending(path.row, path.tokens, path.nodes, score))
            group.endings[first : first + self.part] = new

    def _may_improve(self, groups: Sequence[_Group], now: Beams, beams: slice, written: list[int]) -> Tensor:
        """Return [G] whether a text that goes on may yet be better than one that has ended."""
        rules, device = self.rules, now.total.device
        lengths = written
        if rules.early_stopping == "never" and rules.length_penalty > 0:
            lengths = [
                n + self.view.room[g.rows[0]] - len(g.paths[0].tokens) - 1 for n, g in zip(written, groups, strict=True)
            ]
        scale = torch.tensor([n**rules.length_penalty for n in lengths], dtype=torch.float64, device=device)
        worst = now.best[:, beams].amin(1)  # -inf until there are as many as beams
        is_better = now.total[:, beams.start] / scale > worst
        return is_better & (worst == _NEVER) if rules.early_stopping == "true" else is_better


def search_beams(proposal: Proposal, scores: Scores, view: View, beams: Beams, rules: BeamRules) -> Decision:
    """Return what the rows of each group go on with; the new `Beams` are the decision's `carry`.

    Args:
        proposal: drafts, a chain or a tree per row, or nothing.
        scores: logits [B, 1 + W, V], root first.
        view: the step.
        beams: the state.
        rules: of the search.
    """
    table = zip(proposal.tokens.tolist(), parents(proposal).tolist(), proposal.drafts or proposal.length, strict=True)
    children = [children_of(*row) for row in table]
    state = Beams(beams.total.clone(), beams.best.clone(), beams.is_open.clone())
    held = state.best.tolist()
    groups = [
        _Group(
            rows,
            [_Path(row) for row in rows],
            [Ending(row, [], [], held[row]) if held[row] > _NEVER else None for row in rows],
        )
        for rows in view.groups
    ]
    for size in sorted({len(group.rows) for group in groups}):
        alike = [group for group in groups if len(group.rows) == size]
        _Search(scores, view, rules, children, alike).run(state)
    return _decide(groups, children, len(view.texts), state)


def _decide(
    groups: Sequence[_Group], children: Sequence[dict[tuple[int, int], int]], count: int, state: Beams
) -> Decision:
    """Put what the groups came to together, row by row."""
    paths, endings = [_Path(row) for row in range(count)], list[Ending | None]([None] * count)
    is_over, is_recovered = [False] * count, [False] * count
    for group in groups:
        ended = group.endings
        if group.is_broken:
            group.paths = [_Path(row, [-1], [-1]) for row in group.rows]
        elif group.is_over:
            group.paths = [_Path(row) for row in group.rows]
            ended = sorted(ended, key=lambda one: _NEVER if one is None else one.score, reverse=True)
        for row, path, ending in zip(group.rows, group.paths, ended, strict=True):
            paths[row], endings[row], is_over[row] = path, ending, group.is_over and not group.is_broken
            above = path.nodes[-2] if len(path.nodes) > 1 else -1
            is_recovered[row] = path.node < 0 and any(parent == above for parent, _ in children[path.row])
    device, width = state.total.device, max(1, *(len(path.tokens) for path in paths))

    def laid(values: list[list[int]]) -> Tensor:
        return torch.tensor([row + [-1] * (width - len(row)) for row in values], device=device)

    return Decision(
        laid([path.tokens for path in paths]),
        torch.tensor([len(path.tokens) for path in paths], device=device),
        laid([path.nodes for path in paths]),
        source=torch.tensor([path.row for path in paths], device=device),
        is_recovered=torch.tensor(is_recovered, device=device),
        endings=endings,
        is_over=is_over,
        carry=state,
    )

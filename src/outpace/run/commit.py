"""The loop's bookkeeping around a decision: fitting proposals, reading decisions back, cutting, keeping, recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from outpace.run.row import Row
from outpace.sampling.truncation import likeliest_of
from outpace.types import Decision, Outcome, Proposal, Sampled, View

__all__ = [
    "HostDecision",
    "append",
    "fit",
    "kept",
    "read_back",
    "record",
    "sound",
    "together",
    "void_laws",
]

T = TypeVar("T")
_NEVER = float("-inf")
_UNSOUND = "The drafter proposed ids outside the vocabulary or laws that are none; those drafts were ignored."


@dataclass(frozen=True, slots=True)
class HostDecision:
    """A Decision as Python lists, one entry per row; `source` None = every row continues itself."""

    tokens: list[list[int]]
    path: list[list[int]]
    is_recovered: list[bool]
    source: list[int] | None = None

    def follow(self, values: list[T]) -> list[T]:
        """Return what was said of each row in the forward for the rows that continue it."""
        return values if self.source is None else [values[i] for i in self.source]


def read_back(decision: Decision) -> HostDecision:
    """Bring a Decision to the host in one transfer: the step's only synchronisation."""
    flag, source, path = decision.is_recovered, decision.source, decision.path
    per_row = [decision.num, *(part for part in (flag, source) if part is not None)]
    tables = [decision.tokens] if path is None else [decision.tokens, path]
    if decision.num.is_cpu:  # nothing to wait for, and three lists are made sooner than one table
        lists, wide = [part.tolist() for part in per_row], [part.tolist() for part in tables]
    else:
        lists, wide = together(per_row, tables)
    nums = lists[0]
    tokens = [row[:num] for row, num in zip(wide[0], nums, strict=True)]
    nodes = [row[:num] for row, num in zip(wide[-1], nums, strict=True)]
    if path is None:
        nodes = [[*range(num - 1), -1] if num else [] for num in nums]
    is_recovered = [False] * len(nums) if flag is None else [bool(value) for value in lists[1]]
    is_forked = source is not None and lists[-1] != list(range(len(nums)))
    return HostDecision(tokens, nodes, is_recovered, lists[-1] if is_forked else None)


def together(per_row: Sequence[Tensor], tables: Sequence[Tensor]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Return tensors [B] and tensors [B, N] as lists, read in one transfer."""
    first, size = len(per_row), tables[0].shape[1]
    both = torch.cat([*(part.to(torch.int64).unsqueeze(1) for part in per_row), *tables], 1).tolist()
    begins = [first + size * at for at in range(len(tables))]
    return [[row[at] for row in both] for at in range(first)], [[row[at : at + size] for row in both] for at in begins]


def sound(proposal: Proposal, rows: Sequence[Row], vocab_size: int) -> Proposal:
    """Cut each row's drafts before the first that is no token, or whose law is no law; note it on the row.

    Parents precede children, so what is left of a tree is one. On the CPU the look costs microseconds.
    """
    if proposal.tokens.shape[1] == 0 or proposal.visible is not None:
        return proposal
    low, high = (int(value) for value in torch.aminmax(proposal.tokens))
    is_bad = None if low >= 0 and high < vocab_size else (proposal.tokens < 0) | (proposal.tokens >= vocab_size)
    if proposal.law is not None:
        is_void = void_laws(proposal.law)
        is_bad = is_void if is_bad is None else is_bad | is_void
    if is_bad is None or not bool(is_bad.any()):
        return proposal
    # Padding may hold anything, so only nodes that count can be bad.
    first = torch.where(is_bad.any(-1), is_bad.to(torch.int8).argmax(-1), is_bad.shape[1]).tolist()
    length = [min(n, at) for n, at in zip(proposal.length, first, strict=True)]
    for row, old, new in zip(rows, proposal.length, length, strict=True):
        if new < old and _UNSOUND not in row.notes:
            row.notes.append(_UNSOUND)
    drafts = proposal.drafts and [min(n, at) for n, at in zip(proposal.drafts, first, strict=True)]
    return replace(proposal, tokens=proposal.tokens.clamp(0, vocab_size - 1), length=length, drafts=drafts)


def void_laws(law: Sampled) -> Tensor:
    """Return [B, W] bool, true where a law is none."""
    mass = law.probs.sum(-1)
    return ~(torch.isfinite(mass) & (mass > 0)) | (law.probs.amin(-1) < 0)


def fit(proposal: Proposal, limit: int, pad_to: int) -> Proposal:
    """Keep the first `limit` nodes (parents precede children, so a tree stays one) and pad a chain to `pad_to`."""
    width = max(0, limit)
    if width < proposal.tokens.shape[1]:
        law = proposal.law
        proposal = replace(
            proposal,
            tokens=proposal.tokens[:, :width],
            length=[min(n, width) for n in proposal.length],
            parent=_cut(proposal.parent, width),
            position=_cut(proposal.position, width),
            visible=None if proposal.visible is None else proposal.visible[:, :width, :width],
            ask=None if proposal.ask is None else proposal.ask.clamp(max=width - 1),
            inputs=_cut(proposal.inputs, width),
            is_soft=_cut(proposal.is_soft, width),
            drafts=None if proposal.drafts is None else [min(n, width) for n in proposal.drafts],
            law=None if law is None else replace(law, probs=law.probs[:, :width]),
        )
    missing = pad_to - proposal.tokens.shape[1]
    if missing > 0 and proposal.parent is None:
        law, inputs, place, pad = proposal.law, proposal.inputs, proposal.position, torch.nn.functional.pad
        proposal = replace(
            proposal,
            tokens=pad(proposal.tokens, (0, missing)),
            position=None if place is None else pad(place, (0, missing)),
            inputs=None if inputs is None else pad(inputs, (0, 0, 0, missing)),
            law=None if law is None else replace(law, probs=pad(law.probs, (0, 0, 0, missing))),
        )
    return proposal


def _cut(value: Any, width: int) -> Any:
    return None if value is None else value[:, :width]


def append(
    row: Row, tokens: list[int], path: list[int], is_recovered: bool, num_proposed: int, origin: str = ""
) -> int:
    """Write decided tokens, drafted by `origin`, to a row until it ends, and count them.

    Returns:
        How many were written: nothing after an end token, a stop string, the length limit, a NaN pick (-1) or a token
        that the row's constraint refuses.
    """
    size, usage = len(row.tokens), row.usage
    for token in tokens:
        if row.push(token):
            break
    count = len(row.tokens) - size
    row.stopped_inside = row.finish is not None and count < len(tokens)
    last = "recovered" if is_recovered else "bonus" if num_proposed else "plain"
    is_draft = [node >= 0 for node in path[:count]]
    row.sources += ["draft" if one else last for one in is_draft]
    row.drafters += [origin if one else "" for one in is_draft]
    accepted = sum(is_draft)
    if row.steps is not None:
        row.steps.append((num_proposed, accepted))
    usage.num_accepted += accepted
    usage.num_recovered += count - accepted if last == "recovered" else 0
    usage.num_bonus += count - accepted if last == "bonus" else 0
    usage.num_proposed += num_proposed
    usage.num_emitted = len(row.tokens) - row.num_prompt
    usage.num_steps += 1
    return count


def kept(starts: Sequence[int], path: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
    """Return per row the scratch entries that stay: pending ones, then the accepted nodes among what was written.

    Args:
        starts: per row, where its window began in the forward.
        path, counts: nodes of the decided tokens, and how many of these were written.
    """
    result = []
    for start, nodes, count in zip(starts, path, counts, strict=True):
        accepted = [start + node for node in nodes[:count] if node >= 0]
        # The last final token always stays pending, so that the next forward has a root.
        result.append([*range(start), *accepted][: start + count - 1])
    return result


def record(names: Sequence[str], num_top: int, rows: Sequence[Row], outcome: Outcome, view: View) -> None:
    """Note log-probabilities, entropies, likeliest tokens and margins of what was just written, by `view.texts` too.

    A row's own wishes come before `names` and `num_top`. A method that draws tokens before it writes them tells their
    log-probabilities, and has no margins.
    """
    proposal, decision, scores = outcome.proposal, outcome.decision, outcome.scores
    wishes = [
        (names if row.record is None else row.record, num_top if row.num_top is None else row.num_top) for row in rows
    ]
    if proposal is None or decision is None or scores is None:
        return
    path, source = outcome.path, range(len(rows)) if decision.source is None else decision.source.tolist()
    for index, (row, tokens, wish) in enumerate(zip(rows, outcome.emitted, wishes, strict=True)):
        names, num_top = wish
        if decision.log_probs is not None:
            if "log_probs" in names:
                row.log_probs += decision.log_probs[index, : len(tokens)].tolist()
            continue
        at = source[index]  # the row whose forward and whose draws these were
        asked = [0, *(node + 1 for node in path[index])]  # the logits before a token, the root's first
        if proposal.ask is not None:
            nodes = proposal.ask[at].tolist()
            asked = [nodes.index(number - 1) for number in asked[: len(tokens)]]
        first = len(row.tokens) - len(tokens)
        for offset, token in enumerate(tokens):
            logits = scores.logits[at, asked[offset]]
            law = logits.double().log_softmax(-1) if {"log_probs", "entropies"} & {*names} or row.num_choices else None
            if law is not None and "log_probs" in names:
                row.log_probs.append(float(law[token]))
            if law is not None and "entropies" in names:
                row.entropies.append(float(-torch.special.xlogy(law.exp(), law.exp()).sum()))
            if num_top:
                row.top_log_probs.append(likeliest_of(logits, num_top))
            if "margins" in names or row.num_choices:
                own, text = view.sampler.rows([at]), [row.tokens[: first + offset]]
                history = own.history(text, [row.num_prompt], logits.shape[-1])
                if "margins" in names:
                    row.margins.append(own.margin(own.process(logits.unsqueeze(0), history)[0], first + offset, 0))
                if law is not None and row.num_choices:
                    seen = own.process(law.to(logits.dtype).unsqueeze(0), history)[0]
                    values, ids = seen.topk(min(row.num_choices, len(seen)))
                    kept = [(one, value) for one, value in zip(ids.tolist(), values.tolist(), strict=True)]
                    row.choices.append([(one, value, float(law[one])) for one, value in kept if value > _NEVER])

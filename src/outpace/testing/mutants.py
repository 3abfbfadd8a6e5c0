"""Deliberate faults: each changes one function of the shipped code, and the checks must notice.

    python -m outpace.testing.mutants

Faults of what only canvases use meet the checks of canvases; all others meet the rest. Exactness tests that never
failed prove nothing: these make them fail. How a fault is planted is told in `outpace.testing.faults`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from outpace.methods.base import Method
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.sampling import gumbel
from outpace.sampling.noise import Stream
from outpace.testing.answers import answer_checks, law_checks
from outpace.testing.canvas_answers import canvas_answers
from outpace.testing.checks import contract_checks
from outpace.testing.enumeration import rule_checks
from outpace.testing.faults import Change, Mutant, seeing, stand_in, text
from outpace.testing.page_checks import page_checks

__all__ = ["CANVAS_MUTANTS", "MUTANTS", "Mutant", "battery", "catch"]


def _always(value: Any) -> Change:
    """Return the change of a function to one that returns a value, whatever it is given."""
    return lambda original: lambda *given, **named: value


def _sampling(**changes: Callable[[Any], Any]) -> Change:
    """Return the change of what a function that takes a view finds in its sampler: name to what is made of it."""

    def change(original: Any) -> Callable[..., Any]:
        def faulty(*given: Any, **named: Any) -> Any:
            at = next(i for i, value in enumerate(given) if hasattr(value, "sampler") and hasattr(value, "texts"))
            sampler = given[at].sampler
            changed = stand_in(sampler, **{name: make(sampler) for name, make in changes.items()})
            return original(*given[:at], stand_in(given[at], sampler=changed), *given[at + 1 :], **named)

        return faulty

    return change


# The cache and the layout of a forward


def _kept_late(keep: Any) -> Any:
    def faulty(self: Any, staged: Any) -> None:
        bases = list(self.lengths)
        keep(self, staged)
        for row, offsets in enumerate(staged):
            if any(offset != i for i, offset in enumerate(offsets)):
                for buffer in self.buffers:
                    entries = buffer[row]
                    picked = entries.narrow(self.slot_axis - 1, bases[row], len(offsets)).clone()
                    entries.narrow(self.slot_axis - 1, bases[row] + 1, len(offsets)).copy_(picked)

    return faulty


def _neighbours_kept(retain: Any) -> Any:
    def shifted(slots: Any) -> list[int]:
        still = next((i for i, slot in enumerate(slots) if slot != i), len(slots))
        return [*slots[:still], *(slot - 1 for slot in slots[still:])]

    return lambda self, slots: retain(self, [shifted(chosen) for chosen in slots])


def _shared_page_written(plan: Any) -> Any:
    def faulty(self: Any, *given: Any) -> Any:
        return plan(stand_in(self, pages=stand_in(self.pages, uses=lambda page: 1)), *given)

    return faulty


def _hit_one_longer(match: Any) -> Any:
    def faulty(self: Any, *given: Any) -> Any:
        length, table = match(self, *given)
        return length + (length > 0), table

    return faulty


def _window_shifted(lay_out: Any) -> Any:
    def faulty(*given: Any, **named: Any) -> Any:
        layout = lay_out(*given, **named)
        place = torch.arange(layout.position.shape[1], device=layout.position.device)
        start = torch.tensor(layout.start, device=place.device).unsqueeze(1)
        return replace(layout, position=layout.position + (place >= start))

    return faulty


def _last_token_repeated(catch_up: Any) -> Any:
    def faulty(adapter: Any, *given: Any, **named: Any) -> Any:
        def score(tokens: Any, *rest: Any, **others: Any) -> Any:
            return adapter.score(torch.cat([tokens[:, :-1], tokens[:, :1]], 1), *rest, **others)

        return catch_up(stand_in(adapter, score=score), *given, **named)

    return faulty


def _without_blocks(catch_up: Any) -> Any:
    def faulty(adapter: Any, *given: Any, **named: Any) -> Any:
        unaware = replace(adapter.capabilities, block_size=0)
        return catch_up(stand_in(adapter, capabilities=unaware), *given, **named)

    return faulty


def _seeing_siblings(ancestors: Any) -> Any:
    return lambda parent: ancestors(parent) | (parent.unsqueeze(1) == parent.unsqueeze(2))


# What is written, and what stays of it


def _one_too_many(push: Any) -> Any:
    def faulty(self: Any, token: int) -> bool:
        self.max_tokens += 1
        try:
            return bool(push(self, token))
        finally:
            self.max_tokens -= 1

    return faulty


def _stops_seldom_sought(push: Any) -> Any:
    def faulty(self: Any, token: int) -> bool:
        if self.text is None:
            return bool(push(self, token))
        found = self.text.push
        is_due = (len(self.tokens) + 1) % 3 == 0
        stream = stand_in(self.text, push=lambda token: found(token) and is_due)
        return bool(push(stand_in(self, text=stream), token))

    return faulty


def _past_the_end(append: Any) -> Any:
    def faulty(row: Any, *given: Any) -> Any:
        def push(token: int) -> bool:
            row.push(token)
            return False

        return append(stand_in(row, push=push), *given)

    return faulty


def _rejected_kept(kept: Any) -> Any:
    del kept
    return lambda starts, path, counts, *rest: [
        list(range(start + count)) for start, count in zip(starts, counts, strict=True)
    ]


def _kept_as_chain(kept: Any) -> Any:
    def faulty(starts: Any, path: Any, *rest: Any) -> Any:
        return kept(starts, [[i if node >= 0 else -1 for i, node in enumerate(nodes)] for nodes in path], *rest)

    return faulty


def _read_one_node_early(record: Any) -> Any:
    def faulty(names: Any, num_top: int, rows: Any, outcome: Any, view: Any) -> Any:
        path = [[max(node, 0) - 1 for node in nodes] for nodes in outcome.path]
        return record(names, num_top, rows, replace(outcome, path=path), view)

    return faulty


def _cache_rows_swapped(leave: Any) -> Any:
    def faulty(self: Any, gone: Any) -> None:
        cache = self.cache
        if cache is None:
            leave(self, gone)
            return
        leave(stand_in(self, cache=stand_in(cache, leave=lambda stay: cache.leave(stay[::-1]))), gone)

    return faulty


def _state_kept(drop: Any) -> Any:
    trees = drop.__globals__["trees"]
    return seeing(drop, trees=stand_in(trees, rows=lambda state, stay: trees.rows(state, range(len(stay)))))


def _noise_kept(drop: Any) -> Any:
    def faulty(self: Any, leaving: Any) -> Any:
        sampler = self.sampler
        return drop(
            stand_in(self, sampler=stand_in(sampler, rows=lambda stay: sampler.rows(range(len(stay))))), leaving
        )

    return faulty


# Noise


def _noise_of_slots(node_key: Any) -> Any:
    return lambda keys, *rest, **named: node_key(list(range(len(keys))), *rest, **named)


def _one_stream(node_key: Any) -> Any:
    return lambda keys, stream, *rest, **named: node_key(keys, Stream.TARGET, *rest, **named)


def _rounded_up(uniform: Any) -> Any:
    return lambda key, ids: uniform(key, ids).mul_(256).ceil_().div_(256)


def _without_visit(pick: Any) -> Any:
    return lambda self, logits, position, stream=Stream.TARGET, visit=0: pick(self, logits, position, stream)


def _by_place_in_window(picks: Any) -> Any:
    def faulty(proposal: Any, scores: Any, view: Any) -> Any:
        return picks(proposal, scores, stand_in(view, lengths=[0] * len(view.lengths)))

    return faulty


def _tested_with_draft_noise(accepts: Any) -> Any:
    def faulty(self: Any, *given: Any) -> Any:
        return accepts(stand_in(self, noise=lambda stream, place: self.noise(Stream.DRAFT, place)), *given)

    return faulty


def _target_noise(noise: Any) -> Any:
    del noise

    def faulty(view: Any, number: Any, tokens: Any) -> Any:
        lengths = torch.tensor(view.lengths).view(-1, *[1] * (number.dim() - 1))
        return gumbel(view.sampler.noise(Stream.TARGET, lengths + number), tokens)

    return faulty


# Processors and cuts


def _counts_kept(push: Any) -> Any:
    def faulty(self: Any, *given: Any) -> None:
        before = self.seen.clone(), self.written.clone()
        push(self, *given)
        self.seen.copy_(before[0])
        self.written.copy_(before[1])

    return faulty


def _tokens_kept(push: Any) -> Any:
    def faulty(self: Any, tokens: Any, rows: Any) -> None:
        push(self, tokens, rows)
        for row in rows:
            self.tokens[row].pop()

    return faulty


def _highest_ids_first(candidates: Any) -> Any:
    def faulty(logits: Any, settings: Any) -> Any:
        vocab = logits.shape[-1]
        if not 0 < settings.top_k < vocab:
            return candidates(logits, settings)
        values, ids, log_total = candidates(logits.flip(-1), settings)
        return values, vocab - 1 - ids, log_total

    return faulty


# Sample and match


def _no_bonus(match: Any) -> Any:
    def faulty(proposal: Any, drawn: Any) -> Any:
        decision = match(proposal, drawn)
        return replace(decision, num=decision.num.clamp(max=max(proposal.tokens.shape[1], 1)))

    return faulty


def _one_more_accepted(match: Any) -> Any:
    def faulty(proposal: Any, drawn: Any) -> Any:
        decision = match(proposal, drawn)
        num = (decision.num + 1).clamp(max=min(proposal.length) + 1)
        lengths = torch.tensor(proposal.length, device=num.device)
        return replace(decision, num=num, is_recovered=num - 1 < lengths)

    return faulty


def _padding_taken(match: Any) -> Any:
    return lambda proposal, drawn: match(replace(proposal, length=[proposal.tokens.shape[1]] * len(drawn)), drawn)


class _AnyChild(dict[Any, int]):
    """Children by parent and token, of which one is found below another parent too."""

    def get(self, key: Any, default: Any = None) -> Any:
        return next((node for (_, token), node in self.items() if token == key[1] and node > key[0]), default)


def _wrong_sibling(walk: Any) -> Any:
    children = walk.__globals__["children_of"]
    return seeing(walk, children_of=lambda *given: _AnyChild(children(*given)))


# Drafting


def _entry_of_rejected(forget: Any) -> Any:
    def faulty(self: Any, *given: Any) -> None:
        cache = self.cache
        longer = stand_in(cache, truncate=lambda lengths: cache.truncate([length + 1 for length in lengths]))
        forget(stand_in(self, cache=longer), *given)

    return faulty


def _stale_draft_law(draft_chain: Any) -> Any:
    def faulty(*given: Any, **named: Any) -> Any:
        proposal = draft_chain(*given, **named)
        if proposal.law is None:
            return proposal
        probs = proposal.law.probs
        return replace(proposal, law=type(proposal.law)(torch.cat([probs[:, :1], probs[:, :-1]], 1)))

    return faulty


def _cold(sampler: Any) -> Any:
    return lambda logits: stand_in(sampler.law(logits), probs=lambda: logits.double().softmax(-1))


def _likeliest(sampler: Any) -> Any:
    def pick(logits: Any, place: Any, stream: Stream = Stream.TARGET, **named: Any) -> Any:
        return sampler.pick(logits, place, stream, **named) if stream is Stream.TARGET else logits.argmax(-1)

    return pick


def _cut_by_token(draft_chain: Any) -> Any:
    def faulty(drafter: Any, view: Any, *given: Any, min_confidence: float = 0.0, **named: Any) -> Any:
        seen = []

        def pick(logits: Any, *rest: Any, **named: Any) -> Any:
            drawn = view.sampler.pick(logits, *rest, **named)
            seen.append(logits.softmax(-1).gather(-1, drawn.clamp(min=0).unsqueeze(-1))[:, 0] >= min_confidence)
            return drawn

        watched = stand_in(view, sampler=stand_in(view.sampler, pick=pick))
        proposal = draft_chain(drafter, watched, *given, **named)
        if not seen:
            return proposal
        sure = torch.stack(seen, 1).cumprod(-1).sum(-1).tolist()
        return replace(proposal, length=[min(pair) for pair in zip(proposal.length, sure, strict=True)])

    return faulty


def _siblings_of_one_noise(independent: Any) -> Any:
    noise = independent.__globals__["_noise"]

    def faulty(view: Any, level: Any, *rest: Any) -> Any:
        def shared(view: Any, own: Any, tokens: Any) -> Any:
            return noise(view, level.nodes.unsqueeze(-1).expand(own.shape) + 1, tokens)

        return seeing(independent, _noise=shared)(view, level, *rest)

    return faulty


def _without_noise(function: Any) -> Any:
    return seeing(function, _noise=lambda view, number, tokens: torch.zeros(*number.shape, len(tokens)))


def _beam_reversed(children: Any) -> Any:
    def faulty(view: Any, level: Any, shape: Any, *rest: Any) -> Any:
        found = children(view, level, shape, *rest)
        return tuple(part.flip(-1) for part in found) if shape.beam else found

    return faulty


# Rules that test drafts against laws


def _ratio_without_draft(rejection: Any) -> Any:
    return seeing(rejection, chance_of=lambda kept, drawn: kept)


def _whole_law_left(rejection: Any) -> Any:
    left_over = rejection.__globals__["left_over"]
    return seeing(rejection, left_over=lambda target, draft: left_over(target, 0 * draft))


def _law_before_rejection(in_turn: Any) -> Any:
    left_over = in_turn.__globals__["left_over"]
    return seeing(in_turn, left_over=lambda target, draft: (target, left_over(target, draft)[1]))


def _siblings_forget_rejected(in_turn: Any) -> Any:
    return lambda candidates, target, has_replacement: in_turn(candidates, target, True)


def _residual_forgotten(descend: Any) -> Any:
    def faulty(proposal: Any, scores: Any, view: Any, rule: Any) -> Any:
        return descend(proposal, scores, view, lambda candidates, target: (rule(candidates, target)[0], target))

    return faulty


def _history_stands(sampler: Any) -> Any:
    def history(*given: Any) -> Any:
        found = sampler.history(*given)
        return None if found is None else stand_in(found, push=lambda *pushed: None)

    return history


def _texts_without_paths(node_laws: Any) -> Any:
    def faulty(proposal: Any, scores: Any, view: Any) -> Any:
        def rows(index: Any) -> Any:
            chosen = view.sampler.rows(index)
            return stand_in(chosen, history=lambda texts, *rest: chosen.history([view.texts[i] for i in index], *rest))

        return node_laws(proposal, scores, stand_in(view, sampler=stand_in(view.sampler, rows=rows)))

    return faulty


def _undivided(division_factor: Any) -> Any:
    del division_factor
    return lambda target, draft, number: torch.ones_like(target[:, :1])


def _share_not_raised(dims: int) -> Change:
    """Return the change of a rule to one that tests with the share itself where it asks for mass / (mass + 1 - share).

    Args:
        dims: of the masses, so that other chances stay as they are.
    """

    def change(rule: Any) -> Any:
        chance_of = rule.__globals__["chance_of"]
        return seeing(rule, chance_of=lambda a, b: a + 1 - b if a.dim() == dims else chance_of(a, b))

    return change


def _ratio_kept(take: Any) -> Any:
    return lambda self, *given: take(stand_in(self, keeps=("ratio",)), *given)


MUTANTS = (
    Mutant(
        "kv-shifted",
        "cache entries of accepted tree nodes are stored one slot late",
        "cache.static:Cache.keep",
        _kept_late,
    ),
    Mutant(
        "shared-page-written",
        "a page that other rows hold too is written into instead of copied",
        "cache.paged:PagedCache._plan",
        _shared_page_written,
    ),
    Mutant("hold-not-counted", "a page is free while a row still holds it", "cache.pages:Pages.hold", _always(None)),
    Mutant(
        "hit-too-long",
        "one token too many of a prefix counts as read",
        "cache.prefixes:Prefixes.match",
        _hit_one_longer,
    ),
    Mutant("window-shifted", "drafts are scored one position too far", "run.layout:lay_out", _window_shifted),
    Mutant(
        "noise-by-slot",
        "noise is keyed on the batch slot instead of the row",
        "sampling.noise:node_key",
        _noise_of_slots,
    ),
    Mutant(
        "noise-by-draw",
        "noise is keyed on the place in the window instead of the position in the text",
        "accept.match:picks",
        _by_place_in_window,
    ),
    Mutant(
        "noise-streams-shared",
        "drafts, accept tests and recovered tokens share their noise",
        "sampling.noise:node_key",
        _one_stream,
    ),
    Mutant("noise-reaches-one", "uniforms are rounded up, so that 1.0 occurs", "sampling.noise:uniform", _rounded_up),
    Mutant(
        "visit-ignored",
        "a canvas position that is drawn again gets the same noise",
        "sampling.sampler:Sampler.pick",
        _without_visit,
    ),
    Mutant(
        "penalty-row-copied",
        "the penalties of the prefix are used for the whole draft",
        "sampling.history:History.push",
        _counts_kept,
    ),
    Mutant(
        "minimum-ignores-drafts",
        "bad words and the minimum length do not see drafted tokens",
        "sampling.history:History.push",
        _tokens_kept,
    ),
    Mutant(
        "constraint-of-the-prefix",
        "the constraint's mask after the final text is used for the whole draft",
        "sampling.history:History.push",
        lambda push: lambda self, *given: push(stand_in(self, _advance=lambda row, token: None), *given),
    ),
    Mutant(
        "past-the-end",
        "an accepted run is written to its end, whatever ends the text inside it",
        "run.commit:append",
        _past_the_end,
    ),
    Mutant(
        "past-the-stop",
        "stop strings are searched only at the end of an accepted run",
        "run.row:Row.push",
        _stops_seldom_sought,
    ),
    Mutant("length-overshoot", "one token more than max_tokens is written", "run.row:Row.push", _one_too_many),
    Mutant("bonus-dropped", "the token after full acceptance is thrown away", "accept.match:_match_chain", _no_bonus),
    Mutant("accepted-one-more", "the accepted count is off by one", "accept.match:_match_chain", _one_more_accepted),
    Mutant(
        "padding-accepted",
        "padding behind a short draft can be accepted",
        "accept.match:_match_chain",
        _padding_taken,
    ),
    Mutant("rejected-entry-kept", "the cache keeps the entry of a rejected draft", "run.commit:kept", _rejected_kept),
    Mutant(
        "tree-kept-as-chain",
        "the first nodes of a tree are kept instead of the accepted path",
        "run.commit:kept",
        _kept_as_chain,
    ),
    Mutant(
        "law-of-the-first",
        "rows of other settings are drawn by those of the first row",
        "sampling.samplers:sampler_of",
        lambda sampler_of: lambda settings, *given: sampler_of([settings[0]] * len(settings), *given),
    ),
    Mutant(
        "chain-beside-tree",
        "beside trees the nodes of a chain all hang from the root",
        "run.beside:lay_beside",
        text("torch.arange(-1, own - 1, device=device)", "torch.full((own,), -1, device=device)"),
    ),
    Mutant("siblings-visible", "tree nodes see their siblings", "run.tree:ancestors", _seeing_siblings),
    Mutant("wrong-sibling", "the walk enters the wrong child", "accept.match:_walk", _wrong_sibling),
    Mutant(
        "rows-swapped",
        "when a row leaves, the others' cache entries change places",
        "run.batch:Batch.leave",
        _cache_rows_swapped,
    ),
    Mutant(
        "state-not-reindexed",
        "when a row leaves, its neighbours inherit its method state",
        "run.batch:Batch._drop",
        _state_kept,
    ),
    Mutant(
        "keys-not-reindexed",
        "when a row leaves, its neighbours inherit its noise",
        "run.batch:Batch._drop",
        _noise_kept,
    ),
    Mutant(
        "prompt-token-skipped",
        "prefill repeats a token of each chunk in place of the last",
        "run.prefill:catch_up",
        _last_token_repeated,
    ),
    Mutant(
        "stale-draft-cache",
        "the drafter's cache keeps the entry of a rejected draft",
        "draft.reading:Drafter.forget",
        _entry_of_rejected,
    ),
    Mutant(
        "draft-law-stale",
        "each draft carries the law of the draft before it",
        "draft.model:draft_chain",
        _stale_draft_law,
    ),
    Mutant(
        "draft-law-cold",
        "the drafts' law ignores temperature and cuts",
        "draft.model:draft_chain",
        _sampling(law=_cold),
    ),
    Mutant(
        "draft-argmax",
        "the likeliest token is drafted but the soft law handed over",
        "draft.model:draft_chain",
        _sampling(pick=_likeliest),
    ),
    Mutant(
        "cut-by-token",
        "a chain ends before a token because the token drawn is unlikely",
        "draft.model:draft_chain",
        _cut_by_token,
    ),
    Mutant(
        "chain-from-target-noise",
        "drafts for the ratio test are drawn with the noise of recovered tokens",
        "draft.model:draft_chain",
        _sampling(pick=lambda sampler: lambda logits, place, stream: sampler.pick(logits, place, Stream.TARGET)),
    ),
    Mutant(
        "tree-from-target-noise",
        "sampled trees are drawn with the noise of recovered tokens",
        "draft.stochastic:_noise",
        _target_noise,
    ),
    Mutant(
        "tests-from-draft-noise",
        "a draft is tested with the noise that it was drawn with",
        "sampling.sampler:Sampler.accepts",
        _tested_with_draft_noise,
    ),
    Mutant(
        "steps-share-noise",
        "rules that look ahead meet the same noise again in the next step",
        "sampling.noise:place_in_step",
        lambda place_in_step: lambda lengths, number: lengths + number,
    ),
    Mutant(
        "siblings-share-noise",
        "siblings that should be independent are drawn with one noise",
        "draft.stochastic:_independent",
        _siblings_of_one_noise,
    ),
    Mutant(
        "siblings-argmax",
        "the likeliest token is drafted, but the soft law handed over",
        "draft.stochastic:_independent",
        _without_noise,
    ),
    Mutant(
        "top-k-called-sampled",
        "the likeliest tokens are drafted as if drawn without replacement",
        "draft.stochastic:_children",
        _without_noise,
    ),
    Mutant(
        "beam-out-of-order",
        "the siblings of a stochastic beam do not stand in the order in which they were drawn",
        "draft.stochastic:_children",
        _beam_reversed,
    ),
    Mutant(
        "ratio-ignores-draft",
        "a draft is kept with the target's probability, undivided by the drafter's",
        "accept.rejection:rejection",
        _ratio_without_draft,
    ),
    Mutant(
        "residual-not-zeroed",
        "after a rejection the token comes from the target's law instead of the residual",
        "accept.rejection:rejection",
        _whole_law_left,
    ),
    Mutant(
        "stale-law",
        "the next candidate is tested against the target's law as it was before the rejection",
        "accept.multi_candidate:_in_turn",
        _law_before_rejection,
    ),
    Mutant(
        "stale-draft-law",
        "a rejected token stays in the law of its siblings, which were drawn without it",
        "accept.multi_candidate:_in_turn",
        _siblings_forget_rejected,
    ),
    # A division inside an expression: no name is called, and the sum that is left out shows nowhere else.
    Mutant(
        "removed-not-renormalised",
        "a rejected token is taken out of the law of its siblings, which is not normalised again",
        "accept.multi_candidate:_in_turn",
        text("rest / rest.sum(-1, keepdim=True).clamp_(min=1e-300)", "rest"),
    ),
    Mutant(
        "walk-forgets-residual",
        "after the last candidate failed, the token comes from the target's law",
        "accept.descent:descend",
        _residual_forgotten,
    ),
    Mutant(
        "walk-forgets-path",
        "going down a tree, penalties do not see the drafts on the path",
        "accept.descent:descend",
        _sampling(history=_history_stands),
    ),
    Mutant(
        "laws-forget-path",
        "the target's laws in a tree are penalised for the final text alone",
        "accept.nodes:node_laws",
        _texts_without_paths,
    ),
    Mutant(
        "k-seq-undivided",
        "k-seq tests every candidate as if it were the only one",
        "accept.spectr:division_factor",
        _undivided,
    ),
    # A bound inside a product that the rule carries along: what it bounds is seen nowhere else.
    Mutant(
        "block-share-above-one",
        "in block verification, later drafts make up for what an unlikely one has lost",
        "accept.block:block_verification",
        text("(kept[-1] * ratio[:, i]).clamp(max=1)", "kept[-1] * ratio[:, i]"),
    ),
    Mutant(
        "block-share-not-raised",
        "in block verification, a cut before the end is tested with the chance of one at the end",
        "accept.block:block_verification",
        _share_not_raised(2),
    ),
    Mutant(
        "traversal-share-not-raised",
        "in traversal, a node's share stays as it was when its children have failed",
        "accept.traversal:_Search._take_from_parent",
        _share_not_raised(1),
    ),
    Mutant(
        "traversal-stale-siblings",
        "in traversal, what a failed child has taken is not told to its siblings",
        "accept.traversal:_Search._take_from_parent",
        _ratio_kept,
    ),
    Mutant(
        "ties-by-highest-id",
        "equal logits at a cut are broken by the highest id",
        "sampling.truncation:candidates",
        _highest_ids_first,
    ),
    Mutant(
        "log-prob-of-neighbour",
        "log-probabilities are read one node too early",
        "run.commit:record",
        _read_one_node_early,
    ),
    Mutant(
        "character-split",
        "bytes of an unfinished character are released",
        "text.stream:TextStream._certain",
        lambda certain: lambda self, whole: len(whole),
    ),
    Mutant(
        "stop-leaks",
        "the beginning of a stop string is released before the rest is known",
        "text.stream:TextStream._held_back",
        _always(0),
    ),
)


# Canvases: reading and writing


def _visits_by_step(write: Any) -> Any:
    def faulty(row: Any, *given: Any) -> Any:
        step = 0 if row.end <= row.base else row.step
        return replace(write(row, *given), visit=step + 1)

    return faulty


def _closed_early(finish: Any) -> Any:
    def faulty(row: Any, canvas: Any) -> Any:
        last, tokens = min(row.end, row.live()) - 1, row.tokens.copy()
        if tokens[last] == canvas.mask_id:
            tokens[last] = next(token for token in range(99) if token not in (canvas.mask_id, *row.ends))
        return replace(finish(replace(row, tokens=tokens), canvas), tokens=row.tokens)

    return faulty


def _piece_overwritten(begin: Any) -> Any:
    def faulty(cls: Any, text: Any, rest: Any, canvas: Any, ends: Any) -> Any:
        row = begin(cls, text, rest, canvas, ends)
        is_late = np.arange(len(row.tokens)) >= len(text) + 3
        return replace(row, tokens=np.where(row.given & is_late, canvas.mask_id, row.tokens))

    return faulty


def _ends_allowed(start: Any) -> Any:
    def faulty(self: Any, context: Any) -> Any:
        state = start(self, context)
        return replace(state, banned=[tokens[:1] for tokens in state.banned])

    return faulty


# Canvases: what stays in the cache


def _place_before_read(keep: Any) -> Any:
    def faulty(before: Any, after: Any, window: Any, parts: Any) -> Any:
        helpers = {name: keep.__globals__[name] for name in ("seen", "places_asked")}
        told = {name: lambda row, _, helper=helper: helper(row, parts) for name, helper in helpers.items()}
        unaware = replace(parts, canvas=replace(parts.canvas, logits_shift=False))
        return seeing(keep, **told)(before, after, window, unaware)

    return faulty


def _dual_keeps_block(dual: Any) -> Any:
    def faulty(policy: Any, step: Any) -> Any:
        return dual(policy, stand_in(step, after=stand_in(step.after, end=step.after.base)))

    return faulty


def _prefix_keeps_rest(prefix: Any) -> Any:
    def faulty(policy: Any, step: Any) -> Any:
        return prefix(policy, stand_in(step, before=stand_in(step.before, base=len(step.before.tokens))))

    return faulty


def _refreshed_late(stay: Any) -> Any:
    return lambda self, step: stay(replace(self, refresh=self.refresh and self.refresh + 1), step)


# Canvases: several copies in a forward


def _guess_followed(verify: Any) -> Any:
    advance = verify.__globals__["advance"]

    def faulty(copies: Any, *given: Any) -> Any:
        def from_guess(state: Any, reading: Any, window: Any, parts: Any) -> Any:
            copy = next(copy for copy in copies if copy.window is window)
            return advance(copy.row, reading, window, parts)

        return seeing(verify, advance=from_guess)(copies, *given)

    return faulty


def _first_copy_read(readers: Any) -> Any:
    def faulty(self: Any, *given: Any) -> Any:
        return [lambda copy, read=read: read(replace(copy, asked=0)) for read in readers(self, *given)]

    return faulty


def _copies_seen(lay_copies: Any) -> Any:
    def faulty(copies: Any, canvas: Any) -> Any:
        window = lay_copies(copies, canvas)
        for copy in copies:
            own = slice(copy.first, copy.first + len(copy.window.tokens))
            window.visible[own, : own.stop] = True
        return window

    return faulty


def _entries_unseen(lay_copies: Any) -> Any:
    def faulty(copies: Any, canvas: Any) -> Any:
        num_held = len(copies[0].slots)
        return lay_copies([replace(copy, slots=copy.slots[:num_held]) for copy in copies], canvas)

    return faulty


def _dropped_entries_taken(follow: Any) -> Any:
    def is_equal(a: Any, b: Any) -> bool:  # what is held is compared with 0, 1, ...; tokens with tokens
        return np.array_equal(a, b) or np.array_equal(b, np.arange(len(b)))

    return seeing(follow, np=stand_in(np, array_equal=is_equal))


def _on_canvas(name: str, fault: str, where: str, change: Change) -> Mutant:
    return Mutant(name, fault, where, change, is_canvas=True)


CANVAS_MUTANTS = (
    _on_canvas(
        "draw-without-visit",
        "a place is drawn with the same noise in every step",
        "canvas.reading:draw",
        lambda draw: lambda logits, places, visit, sampler: draw(logits, places, 0, sampler),
    ),
    _on_canvas(
        "draw-by-rank",
        "draws are keyed by the place's rank among the masks instead of the place",
        "canvas.reading:draw",
        lambda draw: lambda logits, places, *rest: draw(logits, np.arange(len(places)), *rest),
    ),
    _on_canvas(
        "visit-by-step",
        "the key of draws counts steps of the block instead of tokens written",
        "canvas.advance:write",
        _visits_by_step,
    ),
    _on_canvas(
        "guess-accepted-unseen",
        "a guess is kept whether or not the reference comes to it",
        "canvas.verify:_stands_for",
        _always(True),
    ),
    _on_canvas(
        "guess-followed",
        "the walk goes on with the guessed state: its memory and its log-probabilities",
        "canvas.verify:verify",
        _guess_followed,
    ),
    _on_canvas(
        "first-copy-kept",
        "the cache keeps the entries of the row's own copy instead of the accepted one's",
        "canvas.copies:Copy.after",
        lambda after: lambda self, *given: after(replace(self, first=0), *given),
    ),
    _on_canvas(
        "first-copy-read",
        "every copy is decided by what was said of the row's own",
        "methods.diffusion.base:CanvasMethod.readers",
        _first_copy_read,
    ),
    _on_canvas("copies-see-copies", "a copy sees the copies before it", "canvas.copies:lay_copies", _copies_seen),
    _on_canvas(
        "entries-not-seen",
        "a copy does not see the entries that the copies before it stand for",
        "canvas.copies:lay_copies",
        _entries_unseen,
    ),
    _on_canvas(
        "dropped-entries-seen",
        "guesses go on behind a step that drops entries of the cache",
        "canvas.verify:_follow",
        _dropped_entries_taken,
    ),
    _on_canvas(
        "block-sees-ahead",
        "copies under block attention see the whole window",
        "canvas.copies:_sight",
        _always(True),
    ),
    _on_canvas(
        "shift-ignored",
        "where logits are shifted, the place before an asked one is read from the cache",
        "canvas.advance:keep",
        _place_before_read,
    ),
    _on_canvas(
        "floor-one-block-late",
        "the block in work counts as exact",
        "canvas.row:Canvas.floor",
        lambda floor: lambda self, base, prompt: floor(self, base + max(self.block_size, 1) - 1, prompt),
    ),
    _on_canvas(
        "border-one-block-late",
        "the model sees the block behind its own",
        "canvas.row:Canvas.border",
        lambda border: lambda self, base, prompt: border(self, base + self.block_size, prompt),
    ),
    _on_canvas(
        "prefill-open-block",
        "the prompt's last block is cached although its end is still to be written",
        "run.prefill:catch_up",
        _without_blocks,
    ),
    _on_canvas(
        "dual-holds-block",
        "the dual cache keeps written places of the block in work",
        "canvas.policies:_dual",
        _dual_keeps_block,
    ),
    _on_canvas(
        "prefix-holds-rest",
        "the prefix cache keeps what lies behind the block",
        "canvas.policies:_prefix",
        _prefix_keeps_rest,
    ),
    _on_canvas(
        "delayed-too-early",
        "the delayed cache keeps the entry of a place that was forwarded as a mask",
        "canvas.policies:_delayed",
        lambda delayed: lambda policy, step: step.after.tokens != step.canvas.mask_id,
    ),
    _on_canvas(
        "refresh-too-late",
        "an approximate cache is computed anew one step too late",
        "canvas.policies:Policy.stay",
        _refreshed_late,
    ),
    _on_canvas(
        "end-not-cut",
        "an end token does not end the canvas",
        "canvas.row:CanvasRow.live",
        lambda live: lambda self: len(self.tokens),
    ),
    _on_canvas(
        "end-not-cut-together",
        "an end token does not end the canvas where all rows step at once",
        "canvas.table:RowTable.live",
        lambda live: lambda self: self.size,
    ),
    _on_canvas(
        "draw-without-visit-together",
        "where all rows step at once, a place that is drawn again gets the same noise",
        "canvas.reading:read_all",
        lambda read_all: (
            lambda logits, places, rows, *rest: read_all(logits, places, replace(rows, visit=0 * rows.visit), *rest)
        ),
    ),
    _on_canvas(
        "shift-ignored-together",
        "where all rows step at once, the place before a shifted law is kept",
        "canvas.together:_keep",
        lambda keep: (
            lambda before, after, parts: keep(
                before, after, replace(parts, canvas=replace(parts.canvas, logits_shift=False))
            )
        ),
    ),
    _on_canvas(
        "end-between-pieces",
        "a text may end between given pieces",
        "methods.diffusion.base:CanvasMethod.start",
        _ends_allowed,
    ),
    _on_canvas(
        "pieces-overwritten",
        "the first given piece counts as one to be written",
        "canvas.row:CanvasRow.begin",
        _piece_overwritten,
    ),
    _on_canvas(
        "block-never-closed",
        "a block is final while its last place is masked",
        "canvas.advance:_finish",
        _closed_early,
    ),
    _on_canvas(
        "mask-taken",
        "a prompt with a mask token is not refused",
        "methods.diffusion.base:CanvasMethod._check",
        lambda check: lambda self, prompt, rest, canvas: check(self, prompt, rest, replace(canvas, mask_id=-2)),
    ),
    _on_canvas(
        "slots-shuffled",
        "the cache keeps the neighbours of the entries that should stay",
        "cache.static:Cache.retain",
        _neighbours_kept,
    ),
)


def battery(is_canvas: bool = False) -> list[tuple[str, Callable[[], None]]]:
    """Return all checks that a fault has to pass, named; the cheap ones first.

    Args:
        is_canvas: those of what only canvases use.
    """
    if is_canvas:
        return [(check.__name__, check) for check in canvas_answers()]
    subjects: list[Method] = [DraftModel(draft_len=4), DraftModel(draft_len=2, tree_width=2), PromptLookup(draft_len=5)]
    first = [
        "check_equality",
        "check_lengths",
        "check_end_tokens",
        "check_drafts_alone",
        "check_records",
        "check_options",
    ]
    named: dict[bool, list[tuple[str, Callable[[], None]]]] = {True: [], False: []}
    rank = {name: place for place, name in enumerate(first)}
    for check in sorted(contract_checks(), key=lambda check: rank.get(check.__name__, len(rank))):
        for subject in subjects:
            name = f"{check.__name__}[{_short(subject)}]"
            named[check.__name__ in first].append((name, functools.partial(check, subject)))
    cheap, slow = ([(check.__name__, check) for check in checks] for checks in (_cheap_checks(), law_checks()))
    return [*cheap, *named[True], *slow, *named[False]]


def _cheap_checks() -> list[Callable[[], None]]:
    return [*answer_checks(), *page_checks(), *rule_checks()]


def _short(method: Method) -> str:
    return f"{method.name} tree" if method.needs.has_tree else method.name


def catch(mutant: Mutant | None, is_thorough: bool = False) -> list[str]:
    """Return the names of the checks that fail under a fault; empty = it escaped.

    Args:
        mutant: the fault; None = the code as it is, which must fail nothing.
        is_thorough: run every check, rather than stop at the first that fails.

    Raises:
        LookupError: the code moved on, so that the fault cannot be planted, or breaks by itself.
    """
    caught = []
    with mutant.applied() if mutant is not None else contextlib.nullcontext():
        for name, check in _batteries(mutant):
            try:
                check()
            except Exception as error:  # a crash is a failure too
                if mutant is not None:
                    mutant.check_crash(error)
                caught.append(name)
                if not is_thorough:
                    break
    return caught


def _batteries(mutant: Mutant | None) -> list[tuple[str, Callable[[], None]]]:
    if mutant is None:
        return [*battery(), *battery(is_canvas=True)]
    return battery(mutant.is_canvas)


def main() -> int:
    """Print a table of all faults and what caught them; return the exit status, 1 if one escaped."""
    is_thorough = "--all" in sys.argv[1:]
    escaped = 0
    clean = catch(None)
    print(f"{'(no fault)':24}{'nothing fails' if not clean else 'FAILS: ' + clean[0]}")
    mutants = (*MUTANTS, *CANVAS_MUTANTS)
    for mutant in mutants:
        began = time.perf_counter()
        try:
            caught = catch(mutant, is_thorough)
        except LookupError as error:
            print(error)
            caught = []
        escaped += not caught
        print(
            f"{mutant.name:24}{', '.join(caught) or 'ESCAPED':60}{time.perf_counter() - began:6.1f} s  {mutant.fault}"
        )
    print(f"{len(mutants) - escaped} of {len(mutants)} faults were caught.")
    return 1 if escaped or clean else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())

"""Deliberate faults: each changes one line of the shipped code, and the checks must notice.

    python -m outpace.testing.mutants

Faults of what only canvases use meet the checks of canvases; all others meet the rest.

A mutant names a function and one piece of its source to replace, so it is always a change of the code as it is now; if
that piece is gone, applying the mutant fails and says so. Exactness tests that never failed prove nothing: these make
them fail.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from outpace.methods.base import Method
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.testing import world
from outpace.testing.answers import answer_checks, law_checks
from outpace.testing.canvas_answers import canvas_answers
from outpace.testing.checks import contract_checks, own_text
from outpace.testing.enumeration import rule_checks

__all__ = ["CANVAS_MUTANTS", "MUTANTS", "Mutant", "battery", "catch"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: short.
        fault: what goes wrong, one line.
        where: "module:function" or "module:Class.function", below `outpace`.
        old: a piece of its source, found exactly once.
        new: what stands there instead.
        is_canvas: it lies in what only canvases use.
    """

    name: str
    fault: str
    where: str
    old: str
    new: str
    is_canvas: bool = False

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the fault in place, everywhere the function is known, for the length of a `with` block.

        Raises:
            LookupError: the piece of source is not there exactly once: the code moved on, and the mutant must follow.
        """
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(f"outpace.{module_name}")
        *owners, last = path.split(".")
        owner: Any = module
        for name in owners:
            owner = getattr(owner, name)
        original = inspect.getattr_static(owner, last)
        changed = self._changed(module, original, last)
        # A function that other modules imported by name is replaced there too.
        places = [owner] if owners else [m for n, m in list(sys.modules.items()) if n.startswith("outpace")]
        known = [place for place in places if vars(place).get(last) is original]
        # So is one that its module keeps in a table, by name.
        tables = [table for table in vars(module).values() if isinstance(table, dict) and table is not vars(module)]
        entries = [(table, key) for table in tables for key, value in table.items() if value is original]
        try:
            for place in known:
                setattr(place, last, changed)
            for table, key in entries:
                table[key] = changed
            _forget()
            yield
        finally:
            for place in known:
                setattr(place, last, original)
            for table, key in entries:
                table[key] = original
            _forget()

    def _changed(self, module: Any, original: Any, name: str) -> Any:
        function = getattr(original, "__func__", getattr(original, "fget", original))
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise LookupError(
                f"The mutant {self.name!r} no longer applies to {self.where}: {self.old!r} is not there once."
            )
        scope = dict(vars(module))
        code = "from __future__ import annotations\n" + source.replace(self.old, self.new)
        exec(compile(code, f"<mutant {self.name}>", "exec"), scope)
        return scope[name]


MUTANTS = (
    Mutant(
        "kv-shifted",
        "cache entries of accepted tree nodes are stored one slot late",
        "cache.static:Cache.keep",
        "narrow(self.slot_axis - 1, base, len(offsets))",
        "narrow(self.slot_axis - 1, base + 1, len(offsets))",
    ),
    Mutant(
        "window-shifted",
        "drafts are scored one position too far",
        "run.layout:lay_out",
        "position = base + torch.arange(longest + width, device=device)",
        "position = base + torch.arange(longest + width, device=device) + (torch.arange(longest + width) >= longest)",
    ),
    Mutant(
        "noise-by-slot",
        "noise is keyed on the batch slot instead of the row",
        "sampling.noise:node_key",
        "for key in keys]",
        "for key in range(len(keys))]",
    ),
    Mutant(
        "noise-by-draw",
        "noise is keyed on the place in the window instead of the position in the text",
        "accept.match:picks",
        "position = lengths + torch",
        "position = 0 * lengths + torch",
    ),
    Mutant(
        "noise-streams-shared",
        "drafts, accept tests and recovered tokens share their noise",
        "sampling.noise:node_key",
        "_base(key, stream, visit)",
        "_base(key, Stream.TARGET, visit)",
    ),
    Mutant(
        "noise-reaches-one",
        "uniforms are rounded up, so that 1.0 occurs",
        "sampling.noise:uniform",
        "((bits >> 12) & ((1 << 52) - 1)).double().add_(0.5).mul_(2.0**-52)",
        "((bits >> 12) & ((1 << 52) - 1)).double().mul_(2.0**-52).mul_(256).ceil().div_(256)",
    ),
    Mutant(
        "visit-ignored",
        "a canvas position that is drawn again gets the same noise",
        "sampling.sampler:Sampler.pick",
        "self.noise(stream, position, visit)",
        "self.noise(stream, position, 0)",
    ),
    Mutant(
        "penalty-row-copied",
        "the penalties of the prefix are used for the whole draft",
        "sampling.sampler:History.push",
        "self.seen[row, tokens[row]] += 1\n        self.written[row, tokens[row]] += 1",
        "pass",
    ),
    Mutant(
        "minimum-ignores-drafts",
        "bad words and the minimum length do not see drafted tokens",
        "sampling.sampler:History.push",
        "self.tokens[row].append(tokens[row])",
        "pass",
    ),
    Mutant(
        "constraint-of-the-prefix",
        "the constraint's mask after the final text is used for the whole draft",
        "sampling.sampler:History.push",
        "self._advance(row, tokens[row])",
        "pass",
    ),
    Mutant(
        "past-the-end",
        "an accepted run is written to its end, whatever ends the text inside it",
        "run.commit:append",
        "            break\n",
        "            pass\n",
    ),
    Mutant(
        "past-the-stop",
        "stop strings are searched only at the end of an accepted run",
        "run.row:Row.push",
        "elif self.text is not None and self.text.push(token):",
        "elif self.text is not None and self.text.push(token) and len(self.tokens) % 3 == 0:",
    ),
    Mutant(
        "length-overshoot",
        "one token more than max_tokens is written",
        "run.row:Row.push",
        "elif self.room <= 0:",
        "elif self.room < 0:",
    ),
    Mutant(
        "bonus-dropped",
        "the token after full acceptance is thrown away",
        "accept.match:_match_chain",
        "return Decision(drawn, num + 1,",
        "return Decision(drawn, (num + 1).clamp(max=max(width, 1)),",
    ),
    Mutant(
        "accepted-one-more",
        "the accepted count is off by one",
        "accept.match:_match_chain",
        "num = is_match.cumprod(-1).sum(-1)",
        "num = (is_match.cumprod(-1).sum(-1) + 1).clamp(max=min(proposal.length))",
    ),
    Mutant(
        "padding-accepted",
        "padding behind a short draft can be accepted",
        "accept.match:_match_chain",
        "if min(proposal.length) < width:",
        "if False:",
    ),
    Mutant(
        "rejected-entry-kept",
        "the cache keeps the entry of a rejected draft",
        "run.commit:kept",
        "accepted = [start + node for node in nodes[:count] if node >= 0]",
        "accepted = [start + i for i in range(count)]\n        count += 1",
    ),
    Mutant(
        "tree-kept-as-chain",
        "the first nodes of a tree are kept instead of the accepted path",
        "run.commit:kept",
        "accepted = [start + node for node in nodes[:count] if node >= 0]",
        "accepted = [start + i for i, node in enumerate(nodes[:count]) if node >= 0]",
    ),
    Mutant(
        "siblings-visible",
        "tree nodes see their siblings",
        "run.tree:ancestors",
        "return reach > 0",
        "return (reach > 0) | (parent.unsqueeze(1) == parent.unsqueeze(2))",
    ),
    Mutant(
        "wrong-sibling",
        "the walk enters the wrong child",
        "accept.match:_walk",
        "following = children[row].get((node[row], drawn[row]), -1)",
        "following = next((n for (_, t), n in children[row].items() if t == drawn[row] and n > node[row]), -1)",
    ),
    Mutant(
        "rows-swapped",
        "when a row leaves, the others' cache entries change places",
        "run.batch:Batch.leave",
        "self.cache.leave(stay)",
        "self.cache.leave(stay[::-1])",
    ),
    Mutant(
        "state-not-reindexed",
        "when a row leaves, its neighbours inherit its method state",
        "run.batch:Batch.leave",
        "trees.rows(self.state, stay)",
        "trees.rows(self.state, range(len(stay)))",
    ),
    Mutant(
        "keys-not-reindexed",
        "when a row leaves, its neighbours inherit its noise",
        "run.batch:Batch.leave",
        "self.sampler.rows(stay)",
        "self.sampler.rows(range(len(stay)))",
    ),
    Mutant(
        "prompt-token-skipped",
        "prefill repeats a token of each chunk in place of the last",
        "run.prefill:catch_up",
        "text[at : at + n] for",
        "[*text[at : at + n - 1], *text[at : at + 1]][:n] for",
    ),
    Mutant(
        "stale-draft-cache",
        "the drafter's cache keeps the entry of a rejected draft",
        "draft.reading:Drafter.forget",
        "length - len(tokens) + accepted for",
        "length - len(tokens) + accepted + 1 for",
    ),
    Mutant(
        "draft-law-stale",
        "each draft carries the law of the draft before it",
        "draft.model:draft_chain",
        "torch.stack(laws, 1)",
        "torch.stack([laws[0], *laws[:-1]], 1)",
    ),
    Mutant(
        "draft-law-cold",
        "the drafts' law ignores temperature and cuts",
        "draft.model:draft_chain",
        "view.sampler.law(processed).probs()",
        "processed.double().softmax(-1)",
    ),
    Mutant(
        "draft-argmax",
        "the likeliest token is drafted but the soft law handed over",
        "draft.model:draft_chain",
        "token = view.sampler.pick(processed, place, stream).clamp(min=0)",
        "token = view.sampler.pick(processed, place, stream).clamp(min=0) if is_coupled else processed.argmax(-1)",
    ),
    Mutant(
        "cut-by-token",
        "a chain ends before a token because the token drawn is unlikely",
        "draft.model:draft_chain",
        "sure = (processed.softmax(-1).amax(-1) >= min_confidence).tolist()",
        "place = torch.tensor([length + step for length in view.lengths])\n"
        "            drawn = view.sampler.pick(processed, place, stream).unsqueeze(-1)\n"
        "            sure = (processed.softmax(-1).gather(-1, drawn)[:, 0] >= min_confidence).tolist()",
    ),
    Mutant(
        "chain-from-target-noise",
        "drafts for the ratio test are drawn with the noise of recovered tokens",
        "draft.model:draft_chain",
        "else Stream.DRAFT",
        "else Stream.TARGET",
    ),
    Mutant(
        "tree-from-target-noise",
        "sampled trees are drawn with the noise of recovered tokens",
        "draft.stochastic:_noise",
        "view.sampler.noise(Stream.DRAFT, place_in_step(lengths, number))",
        "view.sampler.noise(Stream.TARGET, lengths + number)",
    ),
    Mutant(
        "tests-from-draft-noise",
        "a draft is tested with the noise that it was drawn with",
        "sampling.sampler:Sampler.accepts",
        "Stream.ACCEPT",
        "Stream.DRAFT",
    ),
    Mutant(
        "steps-share-noise",
        "rules that look ahead meet the same noise again in the next step",
        "sampling.noise:place_in_step",
        "(lengths << 32) + number",
        "lengths + number",
    ),
    Mutant(
        "siblings-share-noise",
        "siblings that should be independent are drawn with one noise",
        "draft.stochastic:_independent",
        "_noise(view, own, vocab)",
        "_noise(view, level.nodes.unsqueeze(-1).expand(own.shape) + 1, vocab)",
    ),
    Mutant(
        "siblings-argmax",
        "the likeliest token is drafted, but the soft law handed over",
        "draft.stochastic:_independent",
        "log_law.unsqueeze(2) + _noise(view, own, vocab)",
        "log_law.unsqueeze(2)",
    ),
    Mutant(
        "top-k-called-sampled",
        "the likeliest tokens are drafted as if drawn without replacement",
        "draft.stochastic:_children",
        "scores = scores + _noise(view, level.nodes + 1, vocab)",
        "pass",
    ),
    Mutant(
        "beam-out-of-order",
        "the siblings of a stochastic beam do not stand in the order in which they were drawn",
        "draft.stochastic:_children",
        "value, best = total.flatten(1).topk(min(shape.beam, count * vocab), dim=-1)",
        "value, best = (part.flip(-1) for part in total.flatten(1).topk(min(shape.beam, count * vocab), dim=-1))",
    ),
    Mutant(
        "ratio-ignores-draft",
        "a draft is kept with probability p instead of p / q",
        "accept.rejection:rejection",
        "chance_of(kept, drawn_with)",
        "kept",
    ),
    Mutant(
        "residual-not-zeroed",
        "after a rejection the token comes from the target's law instead of the residual",
        "accept.rejection:rejection",
        "draft_law * is_rejected.unsqueeze(-1)",
        "0 * draft_law",
    ),
    Mutant(
        "stale-law",
        "the next candidate is tested against the target's law as it was before the rejection",
        "accept.multi_candidate:_in_turn",
        "target = torch.where(is_rejected, left_over(target, draft)[0], target)",
        "pass",
    ),
    Mutant(
        "stale-draft-law",
        "a rejected token stays in the law of its siblings, which were drawn without it",
        "accept.multi_candidate:_in_turn",
        "draft = torch.where(is_rejected, rest / rest.sum(-1, keepdim=True).clamp_(min=1e-300), draft)",
        "pass",
    ),
    Mutant(
        "removed-not-renormalised",
        "a rejected token is taken out of the law of its siblings, which is not normalised again",
        "accept.multi_candidate:_in_turn",
        "rest / rest.sum(-1, keepdim=True).clamp_(min=1e-300)",
        "rest",
    ),
    Mutant(
        "walk-forgets-residual",
        "after the last candidate failed, the token comes from the target's law",
        "accept.descent:descend",
        "torch.where(alive.unsqueeze(1), rest, law)",
        "torch.where(alive.unsqueeze(1), target, law)",
    ),
    Mutant(
        "walk-forgets-path",
        "going down a tree, penalties do not see the drafts on the path",
        "accept.descent:descend",
        "history.push(token[:, 0].tolist(), alive.nonzero().flatten().tolist())",
        "pass",
    ),
    Mutant(
        "laws-forget-path",
        "the target's laws in a tree are penalised for the final text alone",
        "accept.nodes:node_laws",
        "paths.append([*paths[above + 1], token])",
        "paths.append([*text])",
    ),
    Mutant(
        "k-seq-undivided",
        "k-seq tests every candidate as if it were the only one",
        "accept.spectr:division_factor",
        "is_allowed = _any_of(one, number) <= middle * one",
        "is_allowed = one >= 0",
    ),
    Mutant(
        "block-share-above-one",
        "in block verification, later drafts make up for what an unlikely one has lost",
        "accept.block:block_verification",
        "(kept[-1] * ratio[:, i]).clamp(max=1)",
        "kept[-1] * ratio[:, i]",
    ),
    Mutant(
        "block-share-not-raised",
        "in block verification, a cut before the end is tested with the chance of one at the end",
        "accept.block:block_verification",
        "chance_of(mass, mass + 1 - share)[:, 1:]",
        "share[:, 1:]",
    ),
    Mutant(
        "traversal-share-not-raised",
        "in traversal, a node's share stays as it was when its children have failed",
        "accept.traversal:_Search._take_from_parent",
        "torch.where(is_rejected, chance_of(mass, mass + 1 - share), share)",
        "share",
    ),
    Mutant(
        "traversal-stale-siblings",
        "in traversal, what a failed child has taken is not told to its siblings",
        "accept.traversal:_Search._take_from_parent",
        "self.ratio = torch.where(is_sibling, ratio, self.ratio)",
        "pass",
    ),
    Mutant(
        "ties-by-highest-id",
        "equal logits at a cut are broken by the highest id",
        "sampling.truncation:candidates",
        "values, ids = values[:, : settings.top_k], ids[:, : settings.top_k]",
        "values, ids = logits.flip(-1).sort(dim=-1, descending=True, stable=True)\n"
        "        values, ids = values[:, : settings.top_k], logits.shape[-1] - 1 - ids[:, : settings.top_k]",
    ),
    Mutant(
        "log-prob-of-neighbour",
        "log-probabilities are read one node too early",
        "run.commit:record",
        "asked = [0, *(node + 1 for node in path[index])]  # the logits before a token, the root's first",
        "asked = [0, *(max(node, 0) for node in path[index])]",
    ),
    Mutant(
        "character-split",
        "bytes of an unfinished character are released",
        "text.stream:TextStream._certain",
        "end = len(whole.rstrip(_BROKEN))",
        "end = len(whole)",
    ),
    Mutant(
        "stop-leaks",
        "the beginning of a stop string is released before the rest is known",
        "text.stream:TextStream._held_back",
        "return size",
        "return 0",
    ),
)


def _forget() -> None:
    """Forget texts written by other code."""
    world.reference.cache_clear()
    own_text.cache_clear()


def _on_canvas(name: str, fault: str, where: str, old: str, new: str) -> Mutant:
    return Mutant(name, fault, where, old, new, is_canvas=True)


CANVAS_MUTANTS = (
    _on_canvas(
        "draw-without-visit",
        "a place is drawn with the same noise in every step",
        "canvas.reading:draw",
        "where, visit=visit)",
        "where, visit=0)",
    ),
    _on_canvas(
        "draw-by-rank",
        "draws are keyed by the place's rank among the masks instead of the place",
        "canvas.reading:draw",
        "where = torch.from_numpy(places)",
        "where = torch.arange(len(places))",
    ),
    _on_canvas(
        "visit-by-step",
        "the key of draws counts steps of the block instead of tokens written",
        "canvas.advance:write",
        "visit=row.visit + len(at)",
        "visit=row.step + 1",
    ),
    _on_canvas(
        "guess-accepted-unseen",
        "a guess is kept whether or not the reference comes to it",
        "canvas.verify:verify",
        "other.parent == at and _stands_for(other, state, slots, parts)",
        "other.parent == at",
    ),
    _on_canvas(
        "guess-followed",
        "the walk goes on with the guessed state: its memory and its log-probabilities",
        "canvas.verify:verify",
        "step = advance(state, reading, copy.window, parts)",
        "step = advance(copy.row, reading, copy.window, parts)",
    ),
    _on_canvas(
        "first-copy-kept",
        "the cache keeps the entries of the row's own copy instead of the accepted one's",
        "canvas.copies:Copy.after",
        "nodes = num_held + self.first + np",
        "nodes = num_held + np",
    ),
    _on_canvas(
        "first-copy-read",
        "every copy is decided by what was said of the row's own",
        "methods.diffusion.base:CanvasMethod.readers",
        "logits[copy.laws]",
        "logits[: len(copy.window.asked)].clone()",
    ),
    _on_canvas(
        "copies-see-copies",
        "a copy sees the copies before it",
        "canvas.copies:lay_copies",
        "visible[own, own] = _sight(copy.window.places, canvas)",
        "visible[own, : own.stop] = True",
    ),
    _on_canvas(
        "entries-not-seen",
        "a copy does not see the entries that the copies before it stand for",
        "canvas.copies:lay_copies",
        "visible[own, copy.slots[num_held:] - num_held] = True",
        "pass",
    ),
    _on_canvas(
        "dropped-entries-seen",
        "guesses go on behind a step that drops entries of the cache",
        "canvas.verify:_follow",
        "np.array_equal(slots[:num_held], np.arange(num_held))",
        "True",
    ),
    _on_canvas(
        "block-sees-ahead",
        "copies under block attention see the whole window",
        "canvas.copies:_sight",
        "if not canvas.block_size:",
        "if True:",
    ),
    _on_canvas(
        "shift-ignored",
        "where logits are shifted, the place before an asked one is read from the cache",
        "canvas.advance:keep",
        "if canvas.logits_shift:",
        "if False:",
    ),
    _on_canvas(
        "floor-one-block-late",
        "the block in work counts as exact",
        "canvas.row:Canvas.floor",
        "return length // self.block_size * self.block_size",
        "return -(-length // self.block_size) * self.block_size",
    ),
    _on_canvas(
        "border-one-block-late",
        "the model sees the block behind its own",
        "canvas.row:Canvas.border",
        "(base // self.block_size + 1)",
        "(base // self.block_size + 2)",
    ),
    _on_canvas(
        "prefill-open-block",
        "the prompt's last block is cached although its end is still to be written",
        "run.prefill:catch_up",
        "(len(text) - 1) // grain * grain - length",
        "(len(text) - 1) - length",
    ),
    _on_canvas(
        "dual-holds-block",
        "the dual cache keeps written places of the block in work",
        "canvas.policies:_dual",
        "place >= step.after.end",
        "place >= step.after.base",
    ),
    _on_canvas(
        "prefix-holds-rest",
        "the prefix cache keeps what lies behind the block",
        "canvas.policies:_prefix",
        "step.before.base",
        "len(step.before.tokens)",
    ),
    _on_canvas(
        "delayed-too-early",
        "the delayed cache keeps the entry of a place that was forwarded as a mask",
        "canvas.policies:_delayed",
        "return step.settled()",
        "return step.after.tokens != step.canvas.mask_id",
    ),
    _on_canvas(
        "refresh-too-late",
        "an approximate cache is computed anew one step too late",
        "canvas.policies:Policy.stay",
        "step.before.age + 1 >= self.refresh",
        "step.before.age >= self.refresh",
    ),
    _on_canvas(
        "end-not-cut",
        "an end token does not end the canvas",
        "canvas.row:CanvasRow.live",
        "if not self.ends:",
        "if True:",
    ),
    _on_canvas(
        "end-between-pieces",
        "a text may end between given pieces",
        "methods.diffusion.base:CanvasMethod.start",
        "*(ends if is_filled_in else ())",
        "*()",
    ),
    _on_canvas(
        "pieces-overwritten",
        "the first given piece counts as one to be written",
        "canvas.row:CanvasRow.begin",
        "np.where(given, tokens, canvas.mask_id)",
        "np.where(given & (np.arange(len(tokens)) < size + 3), tokens, canvas.mask_id)",
    ),
    _on_canvas(
        "block-never-closed",
        "a block is final while its last place is masked",
        "canvas.advance:_finish",
        "row.tokens[row.base : end]",
        "row.tokens[row.base : end - 1]",
    ),
    _on_canvas(
        "mask-taken",
        "a prompt with a mask token is not refused",
        "methods.diffusion.base:CanvasMethod._check",
        "if canvas.mask_id in text or canvas.mask_id in rest:",
        "if False:",
    ),
    _on_canvas(
        "slots-shuffled",
        "the cache keeps the neighbours of the entries that should stay",
        "cache.static:Cache.retain",
        "torch.tensor(chosen[still:], device",
        "torch.tensor([slot - 1 for slot in chosen[still:]], device",
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
    return [*answer_checks(), *rule_checks()]


def _short(method: Method) -> str:
    return f"{method.name} tree" if method.needs.has_tree else method.name


def catch(mutant: Mutant | None, is_thorough: bool = False) -> list[str]:
    """Return the names of the checks that fail under a fault; empty = it escaped.

    Args:
        mutant: the fault; None = the code as it is, which must fail nothing.
        is_thorough: run every check, rather than stop at the first that fails.
    """
    caught = []
    with mutant.applied() if mutant is not None else contextlib.nullcontext():
        for name, check in _batteries(mutant):
            try:
                check()
            except Exception:  # a crash is a failure too
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
        caught = catch(mutant, is_thorough)
        escaped += not caught
        print(
            f"{mutant.name:24}{', '.join(caught) or 'ESCAPED':60}{time.perf_counter() - began:6.1f} s  {mutant.fault}"
        )
    print(f"{len(mutants) - escaped} of {len(mutants)} faults were caught.")
    return 1 if escaped or clean else 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    raise SystemExit(main())

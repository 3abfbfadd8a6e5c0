"""What every method on a canvas is: a rule, a block schedule and a cache policy, and how they meet the loop.

This is the one place where canvases meet the four functions of a method, so the methods themselves may be a few
settings and a rule; hence its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from outpace.canvas import (
    CACHES,
    Advance,
    Canvas,
    CanvasRow,
    Copy,
    FixedBlocks,
    Parts,
    Policy,
    Reading,
    Rule,
    Schedule,
    advance,
    begin_constraint,
    make_policy,
    read,
)
from outpace.canvas.copies import propose_copies
from outpace.canvas.reading import read_all
from outpace.canvas.report import report
from outpace.canvas.table import CanvasRows
from outpace.canvas.together import Asked, Steps, advance_all, decide_all, propose_all, serves
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method
from outpace.sampling.measures import measure
from outpace.setting import setting
from outpace.types import Capabilities, Context, Decision, Guarantee, Needs, Outcome, Proposal, Report, Scores, View

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["CanvasBatch", "CanvasMethod", "ReadCopy"]

BLOCK = 32  # places per block where neither the user nor the model names a length
_STEP = ("forwarded", "dress", "readers", "take", "accept", "decide", "observe")  # what a row's step is made of
ReadCopy = Callable[[Copy], Reading]
"""What this forward says of a copy of one row, drawn as its state draws."""


@dataclass
class CanvasBatch:
    """The rows on their canvases.

    Attributes:
        canvases: one per row.
        parts: what they share.
        target: the model, for methods that embed tokens themselves.
        banned: per row, [K] int64 tokens that may not be written.
        extra: what a method adds, with a row axis.
    """

    canvases: CanvasRows
    parts: Parts
    target: Any
    banned: list[Tensor] = field(default_factory=list)
    extra: Any = None

    def rule_out(self, logits: Tensor) -> None:
        """Set the banned tokens of logits [B, A, V] to -inf, in place, but for the mask token: that is all rows'."""
        for index, banned in enumerate(self.banned):
            if banned.shape[0] > 1:
                logits[index].index_fill_(-1, banned, float("-inf"))


@dataclass(frozen=True)
class CanvasMethod(Method):
    """Base of the methods that write on a canvas; a subclass gives the `rule`.

    Attributes:
        block: places per block; 0 = the model's own block length, or 32.
        cache: "auto" (exact: "block" where the model has blocks, else "none"), "none", "block", or an approximate
            policy: "prefix", "dual", "delayed", "greedy", "free".
        refresh: steps after which an approximate cache is computed anew; 0 = at the ends of blocks only.
        ahead: masked places behind the block that a forward under full attention holds; -1 = all up to the end.
        end: where an end token may be written: "free" = anywhere, as the models were trained; "last" = only where
            everything before it is decided, for models that flood a canvas with end tokens. It then waits, so that
            steps may write fewer places than they would.

    Raises:
        ConfigError: a setting outside its range.
    """

    block: int = setting(0, least=0, note="0 takes the model's own")
    cache: str = setting("auto", among=CACHES)
    refresh: int = setting(0, least=0, note="0 refreshes at the ends of blocks only")
    ahead: int = setting(-1, least=-1, note="-1 shows the whole canvas")
    end: str = setting("free", among=("free", "last"))

    @property
    def rule(self) -> Rule:
        """The unmasking rule."""
        raise NotImplementedError

    def schedule(self, canvas: Canvas) -> Schedule:
        """Return the block schedule."""
        return FixedBlocks(self.block or canvas.block_size or BLOCK)

    def policy(self, canvas: Canvas) -> Policy:
        """Return the cache policy."""
        name = ("block" if canvas.block_size else "none") if self.cache == "auto" else self.cache
        return make_policy(name, self.refresh)

    def parts(self, offered: Capabilities, tokenizer: Tokenizer | None) -> Parts:
        """Return what the method is joined from on such a model.

        Args:
            offered: of the model.
            tokenizer: the model's, where it has one.

        Raises:
            ConfigError: the model has no mask token.
            CapabilityError: the exact block cache on a model whose attention allows none.
        """
        del tokenizer
        if offered.mask_id is None:
            raise ConfigError("The model has no mask token.", "Use a masked model, such as stories-mask.")
        size = offered.block_size
        if self.cache == "block" and not size:
            raise CapabilityError(
                f"The cache 'block' needs block attention (the model's is {offered.attention}).",
                "Use cache=none, or an approximate one: prefix, dual, delayed, greedy, free.",
            )
        is_causal = offered.attention == "causal-block"
        canvas = Canvas(offered.mask_id, size, offered.logits_shift, self.ahead, self.end == "last", is_causal)
        return Parts(canvas, self.rule, self.schedule(canvas), self.policy(canvas))

    @property
    def needs(self) -> Needs:
        """A masked model with full or block attention."""
        return Needs(attention="canvas", has_mask=True)

    @property
    def guarantee(self) -> Guarantee:
        """Places written together ignore each other."""
        return Guarantee.APPROXIMATE

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases.

        Raises:
            ConfigError: settings that no canvas can hold, or a prompt with a mask token.
            CapabilityError: as `parts`.
        """
        parts = self.parts(context.target.capabilities, context.tokenizers.get("target"))
        sampler, canvas = context.sampler, parts.canvas
        if sampler.settings.is_stateful:
            raise ConfigError(
                f"{self.name} writes out of order: no penalty, bad word, min_tokens or constraint over prefixes holds.",
                "Leave them out, or use a causal model.",
            )
        rows, banned = [], []
        device = context.target.device
        for text, rest, ends in zip(context.texts, context.canvases, sampler.end_tokens, strict=True):
            self._check(text, rest, canvas)
            is_filled_in = any(token >= 0 for token in rest)
            row = CanvasRow.begin(text, rest, canvas, () if is_filled_in else ends)
            constraint = begin_constraint(sampler.settings.canvas_constraint, rest)
            rows.append(replace(row, constraint=constraint, memo=parts.rule.start(row, canvas, parts.schedule)))
            # Between given pieces no text may end.
            banned.append(torch.tensor([canvas.mask_id, *(ends if is_filled_in else ())], device=device))
        return CanvasBatch(CanvasRows(rows), parts, context.target, banned)

    def _check(self, text: Sequence[int], rest: Sequence[int], canvas: Canvas) -> None:
        if canvas.mask_id in text or canvas.mask_id in rest:
            raise ConfigError(
                f"The prompt holds the mask token {canvas.mask_id}, which stands for text to be written.",
                "Leave it out; to fill gaps between given pieces use infill.",
            )
        if self.block and not canvas.block_size and all(token < 0 for token in rest) and len(rest) % self.block:
            raise ConfigError(
                f"The generation length {len(rest)} is no multiple of the block of {self.block}.",
                f"Use max_tokens={len(rest) // self.block * self.block or self.block}, or leave block out.",
            )

    def propose(self, view: View, state: CanvasBatch) -> Proposal:
        """Propose every visible place that the cache does not hold, of all that `forwarded` returns."""
        if self._is_together(view, state) and (table := state.canvases.table()) is not None:
            return propose_all(table.prefilled(view.cache.lengths), state.parts, view.device, self.name)
        rows = state.canvases.list()
        for index, (row, length) in enumerate(zip(rows, view.cache.lengths, strict=True)):
            if len(row.held) != length:
                rows[index] = replace(row, held=np.arange(length))
        state.canvases = CanvasRows(rows)
        copies = [self.forwarded(index, view, state) for index in range(len(rows))]
        proposal = propose_copies(copies, state.parts.canvas, view.device, self.name)
        return self.dress(proposal, view, state)

    def _is_together(self, view: View, state: CanvasBatch) -> bool:
        """Return whether all rows take their steps at once: they draw alike, and a row's step is left as it is here."""
        is_own = [getattr(type(self), name) is not getattr(CanvasMethod, name) for name in _STEP]
        return not any(is_own) and not view.sampler.parts and serves(state.parts)

    def forwarded(self, index: int, view: View, state: CanvasBatch) -> Sequence[Copy]:
        """Return the states of a row that this step forwards; by default the row alone."""
        del view
        return [Copy.of(state.canvases[index], state.parts)]

    def dress(self, proposal: Proposal, view: View, state: CanvasBatch) -> Proposal:
        """Change a proposal before it is scored (soft inputs, notes); as it is by default."""
        del view, state
        return proposal

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasBatch) -> Decision:
        """Advance every row by what `take` makes of its copies; what became final is emitted."""
        if isinstance(proposal.carry, Asked):
            state.rule_out(scores.logits)
            asked, canvas = proposal.carry, state.parts.canvas
            reading = read_all(scores.logits, asked.places, asked.rows, canvas, view.sampler)
            return decide_all(asked.rows, advance_all(asked, reading, state.parts))
        readers = self.readers(scores, view, state)
        steps = [self.take(copies, reader, state.parts) for copies, reader in zip(proposal.carry, readers, strict=True)]
        return self.decide(steps, state)

    def readers(self, scores: Scores, view: View, state: CanvasBatch) -> list[ReadCopy]:
        """Return, per row, what reads its copies off this forward."""
        canvas, rows = state.parts.canvas, state.canvases
        state.rule_out(scores.logits)
        # One look at all laws: what a rule asks of them is then on the host, whatever number of rows there are.
        known = measure(scores.logits, canvas.mask_id)

        def reader(index: int) -> ReadCopy:
            logits, sampler = scores.logits[index], view.sampler.rows([index])

            def read_copy(copy: Copy) -> Reading:
                at = copy.laws
                figures = None if known is None else known[index, at]
                return read(logits[at], copy.window.asked, copy.row, canvas, sampler, None, figures)

            return read_copy

        return [reader(index) for index in range(len(rows))]

    def take(self, copies: Sequence[Copy], reader: ReadCopy, parts: Parts) -> Advance | None:
        """Return a row after a step; by default one step of the row itself. None = a law is none."""
        reading = reader(copies[0])
        return None if reading.is_broken else advance(copies[0].row, reading, copies[0].window, parts)

    def decide(self, steps: Sequence[Advance | None], state: CanvasBatch) -> Decision:
        """Return the decision that rows after a step make; a row of None is broken and ends with an error.

        `Decision.carry` holds the steps, for `observe` and for watchers.
        """
        emitted, log_probs, keep = [], [], []
        for before, step in zip(state.canvases, steps, strict=True):
            after = before if step is None else step.row
            written = slice(before.base, after.base)
            emitted.append([-1] if step is None else after.tokens[written].tolist())
            log_probs.append([0.0] if step is None else after.log_probs[written].tolist())
            keep.append([] if step is None else step.slots.tolist())
        width = max(len(tokens) for tokens in emitted)
        table = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in emitted], dtype=torch.int64)
        chances = torch.tensor([row + [0.0] * (width - len(row)) for row in log_probs], dtype=torch.float64)
        num = torch.tensor([len(tokens) for tokens in emitted])
        path = torch.arange(width).expand(len(steps), width)
        table = table.view(len(steps), width)
        return Decision(table, num, path, keep, log_probs=chances.view(len(steps), width), carry=list(steps))

    def observe(self, outcome: Outcome, view: View, state: CanvasBatch) -> CanvasBatch:
        """Take the rows as they are after the step."""
        del view
        if outcome.decision is None:
            return state
        steps: Sequence[Advance | None] = outcome.decision.carry
        if isinstance(steps, Steps):
            return replace(state, canvases=CanvasRows(steps.after))
        rows = [old if step is None else step.row for old, step in zip(state.canvases, steps, strict=True)]
        return replace(state, canvases=CanvasRows(rows))

    def report(self, outcome: Outcome, view: View, state: CanvasBatch) -> list[Report]:
        """Tell which places were written, final or not."""
        del view
        steps: Sequence[Advance | None] = [] if outcome.decision is None else outcome.decision.carry
        return [report(row, step) for row, step in zip(state.canvases, steps, strict=True)]

"""What every method on a canvas is: a rule, a block schedule and a cache policy, and how they meet the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.canvas import (
    Advance,
    Canvas,
    CanvasRow,
    FixedBlocks,
    Policy,
    Reading,
    Rule,
    Schedule,
    Window,
    advance,
    begin_constraint,
    lay_window,
    make_policy,
    propose_windows,
    read,
)
from outpace.canvas.report import report
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Report, Scores, View

__all__ = ["CanvasMethod", "CanvasState"]

BLOCK = 32  # places per block where neither the user nor the model names a length


@dataclass
class CanvasState:
    """The rows on their canvases.

    Attributes:
        canvases: one per row.
        canvas: what they share.
        target: the model, for methods that embed tokens themselves.
        banned: per row, [K] int64 tokens that may not be written.
        extra: what a method adds, with a row axis.
    """

    canvases: list[CanvasRow]
    canvas: Canvas
    target: Any
    banned: list[Tensor] = field(default_factory=list)
    extra: Any = None


@dataclass(frozen=True)
class CanvasMethod(Method):
    """Base of the methods that write on a canvas; a subclass gives the `rule`.

    Attributes:
        block: places per block; 0 = the model's own block length, or 32.
        cache: "auto" (exact: "block" under block attention, else "none"), "none", "block", or an approximate policy:
            "prefix", "dual", "delayed", "greedy", "free".
        refresh: steps after which an approximate cache is computed anew; 0 = at the ends of blocks only.
        ahead: masked places behind the block that a forward under full attention holds; -1 = all up to the end.
        end: where an end token may be written: "free" = anywhere, as the models were trained; "last" = only where
            everything before it is decided, for models that flood a canvas with end tokens. It then waits, so that
            steps may write fewer places than they would.

    Raises:
        ConfigError: a negative number, or a cache policy or an `end` that does not exist.
    """

    block: int = 0
    cache: str = "auto"
    refresh: int = 0
    ahead: int = -1
    end: str = "free"

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ConfigError(f"block is {self.block}.", "block must be 1 or more; 0 takes the model's own.")
        if self.ahead < -1:
            raise ConfigError(f"ahead is {self.ahead}.", "ahead must be 0 or more; -1 shows the whole canvas.")
        if self.end not in ("free", "last"):
            raise ConfigError(f"end is {self.end!r}.", "Use free or last.")
        make_policy(self.cache, self.refresh)

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

    @property
    def needs(self) -> Needs:
        """A masked model with full or block attention."""
        return Needs(attention="canvas", has_mask=True)

    @property
    def guarantee(self) -> Guarantee:
        """Places written together ignore each other."""
        return Guarantee.APPROXIMATE

    def start(self, context: Context) -> CanvasState:
        """Return the rows' canvases.

        Raises:
            ConfigError: settings that no canvas can hold, or a prompt with a mask token.
            CapabilityError: the exact block cache on a model whose attention allows none.
        """
        capabilities = context.target.capabilities
        canvas = _canvas(self, capabilities)
        if self.cache == "block" and not canvas.block_size:
            raise CapabilityError(
                f"The cache 'block' needs block attention (the model's is {capabilities.attention}).",
                "Use cache=none, or an approximate one: prefix, dual, delayed, greedy, free.",
            )
        if context.sampler.settings.is_stateful:
            raise ConfigError(
                f"{self.name} writes out of order: no penalty, bad word, min_tokens or constraint over prefixes holds.",
                "Leave them out, or use a causal model.",
            )
        rows, banned = [], []
        sampler, device = context.sampler, context.target.device
        for text, rest, ends in zip(context.texts, context.canvases, sampler.end_tokens, strict=True):
            self._check(text, rest, canvas)
            is_filled_in = any(token >= 0 for token in rest)
            row = CanvasRow.begin(text, rest, canvas, () if is_filled_in else ends)
            constraint = begin_constraint(context.sampler.settings.canvas_constraint, rest)
            rows.append(replace(row, constraint=constraint))
            # Between given pieces no text may end.
            banned.append(torch.tensor([canvas.mask_id, *(ends if is_filled_in else ())], device=device))
        return CanvasState(rows, canvas, context.target, banned)

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

    def propose(self, view: View, state: CanvasState) -> Proposal:
        """Propose every visible place that the cache does not hold."""
        schedule = self.schedule(state.canvas)
        self._take_over(view, state)
        windows = [lay_window(row, state.canvas, schedule) for row in state.canvases]
        return self.shape(propose_windows(windows, self._device(view), self.name), view, state)

    def shape(self, proposal: Proposal, view: View, state: CanvasState) -> Proposal:
        """Change a proposal before it is scored (soft inputs); as it is by default."""
        del view, state
        return proposal

    def _take_over(self, view: View, state: CanvasState) -> None:
        """Note what the loop's prefill has cached of rows that are new."""
        for index, (row, length) in enumerate(zip(state.canvases, view.cache.lengths, strict=True)):
            if len(row.held) != length:
                state.canvases[index] = replace(row, held=np.arange(length))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasState) -> Decision:
        """Advance every row by one step; what became final is emitted."""
        schedule, policy = self.schedule(state.canvas), self.policy(state.canvas)
        steps: list[Advance | None] = []
        for index, (row, window) in enumerate(zip(state.canvases, proposal.carry, strict=True)):
            reading = self.reading(scores.logits[index, : len(window.asked)], window, index, view, state)
            if reading.is_broken:
                steps.append(None)
                continue
            steps.append(advance(row, reading, window, state.canvas, self.rule, schedule, policy))
        return self.decide(steps, state)

    def reading(self, logits: Tensor, window: Window, index: int, view: View, state: CanvasState) -> Reading:
        """Return what the logits [A, V] of a row's asked places say."""
        row, sampler = state.canvases[index], view.sampler.rows([index])
        return read(logits, window.asked, row, state.canvas, sampler, state.banned[index])

    def decide(self, steps: Sequence[Advance | None], state: CanvasState) -> Decision:
        """Return the decision that rows after a step make; a row of None is broken and ends with an error."""
        emitted, log_probs, keep, rows = [], [], [], []
        for before, step in zip(state.canvases, steps, strict=True):
            after = before if step is None else step.row
            written = slice(before.base, after.base)
            emitted.append([-1] if step is None else after.tokens[written].tolist())
            log_probs.append([0.0] if step is None else after.log_probs[written].tolist())
            keep.append([] if step is None else step.slots)
            rows.append(after)
        width = max(len(tokens) for tokens in emitted)
        table = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in emitted], dtype=torch.int64)
        chances = torch.tensor([row + [0.0] * (width - len(row)) for row in log_probs], dtype=torch.float64)
        num = torch.tensor([len(tokens) for tokens in emitted])
        path = torch.arange(width).expand(len(rows), width)
        table = table.view(len(rows), width)
        return Decision(table, num, path, keep, log_probs=chances.view(len(rows), width), carry=rows)

    def observe(self, outcome: Outcome, view: View, state: CanvasState) -> CanvasState:
        """Take the rows as they are after the step."""
        del view
        if outcome.decision is None:
            return state
        return replace(state, canvases=list(outcome.decision.carry))

    def report(self, outcome: Outcome, view: View, state: CanvasState) -> list[Report]:
        """Tell which places were written, final or not."""
        del view
        carry = [] if outcome.decision is None else outcome.decision.carry
        return [report(before, [after]) for before, after in zip(state.canvases, carry, strict=True)]

    def _device(self, view: View) -> Any:
        return view.device


def _canvas(method: CanvasMethod, capabilities: Any) -> Canvas:
    mask_id = capabilities.mask_id
    if mask_id is None:
        raise ConfigError("The model has no mask token.", "Use a masked model, such as stories-mask.")
    size = capabilities.block_size if capabilities.attention == "block" else 0
    return Canvas(mask_id, size, capabilities.logits_shift, method.ahead, method.end == "last")

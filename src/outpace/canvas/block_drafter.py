"""Drafting with a masked model: the rest of its block in one forward, or in a few, for a causal target to check.

Under block attention the drafter keeps exact entries of the text's finished blocks; the block that holds the end of the
text is forwarded whole, masks and all, since its entries change with every token. Blocks begin at multiples of the
model's block length. Under full attention nothing can be kept.

A causal target that was taught blocks of masks behind its text drafts for itself (`draft=own`): a block that begins
with the last token stands behind the text's entries in the target's own cache, sees them and all of itself, and is
forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.canvas.rules.rule import surest
from outpace.errors import ConfigError
from outpace.run.prefill import catch_up
from outpace.types import Adapter, Context, Counter, Needs, View

__all__ = ["OWN", "BlockDrafter", "greatest", "masked_drafting"]

OWN = "own"  # names the target as its own drafter
_LAG = 64  # tokens behind the text from which on the cache catches up in forwards of their own (prompts)


@dataclass
class _Line:
    """One row while it is drafted for.

    Attributes:
        text: final tokens.
        limit: places beyond which nothing is drafted.
        drafts: tokens behind the text; -1 = a mask.
        begin, end: the places in work: masks of one block.
        is_open: whether it wants more.
        sure: how likely the likeliest token was where each token was drawn.
    """

    text: list[int]
    limit: int
    drafts: list[int] = field(default_factory=list)
    begin: int = 0
    end: int = 0
    is_open: bool = True
    sure: list[float] = field(default_factory=list)

    def masked(self) -> list[int]:
        """Return the masked places in work that are wanted."""
        base = len(self.text)
        return [place for place in range(self.begin, min(self.end, self.limit)) if self.drafts[place - base] < 0]


@dataclass
class BlockDrafter:
    """A masked model and its cache, valid up to a prefix of each row's text that ends with a block.

    Attributes:
        adapter: the model.
        cache: its cache.
        window: masks per forward under full attention; under block attention blocks are the model's.
        mask: the mask token.
        own: counts the forwards of a target that drafts for itself; None = the model is another one.
    """

    adapter: Adapter
    cache: Cache
    window: int
    mask: int = 0
    own: Counter | None = None

    @classmethod
    def begin(cls, context: Context, role: str, window: int) -> BlockDrafter:
        """Return a drafter with an empty cache for the joining rows; without a model in the role, the target itself.

        Raises:
            ConfigError: the target is to draft for itself, and has no blocks.
        """
        target = context.target
        if role not in context.models:
            if target.own_mask is None:
                reason = "The model was not taught blocks of masks that it could draft for itself."
                raise ConfigError(reason, "Leave out draft=own, or load a Nemotron-Labs-Diffusion model.")
            nothing = target.new_cache(len(context.texts), 1)  # every draft begins with a fork of the target's
            return cls(target, nothing, window, target.own_mask, context.counters["draft"])
        adapter = context.models[role]
        size = adapter.capabilities.block_size or window
        # A forward stages what the text lacks, the rest of its block, and perhaps the next block.
        slots = context.capacity + _LAG + 2 * size + window
        cache = adapter.new_cache(len(context.texts), slots, context.counters["draft"])
        return cls(adapter, cache, window, adapter.capabilities.mask_id or 0)

    @property
    def _size(self) -> int:
        return self.adapter.capabilities.block_size

    def reach(self, view: View, most: Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft; 0 past the drafter's context."""
        context = self.adapter.capabilities.max_positions
        rows = zip(most, view.room, view.lengths, strict=True)
        return [max(0, min(limit, room - 1, context - length)) for limit, room, length in rows]

    def draft(
        self, view: View, reach: Sequence[int], steps: int, fewest: int, min_confidence: float
    ) -> list[list[int]]:
        """Return drafts for every row, at most `reach` long, drawn with the target's noise.

        Args:
            view: the run.
            reach: most tokens per row; 0 = this row is left where it is.
            steps: forwards per block: each writes its share of the masks, the surest first.
            fewest: where a row has fewer drafts when its block is full, the next block is drafted as well.
            min_confidence: drafts end before a place where no token was this likely when it was drawn.
        """
        if self.own is None:
            return self._fill(view, reach, steps, fewest, min_confidence)
        fork = replace(self, cache=view.cache.fork(self.own))
        return fork._fill(view, reach, steps, 0, min_confidence)

    def _fill(
        self, view: View, reach: Sequence[int], steps: int, fewest: int, min_confidence: float
    ) -> list[list[int]]:
        lines = [_Line(text, len(text) + n) for text, n in zip(view.texts, reach, strict=True)]
        # 1. A prompt is read in forwards of its own: beside the masks of other rows it would widen every forward.
        self._catch_up(lines)
        for line in lines:
            self._open(line)
        # 2. Block by block, until every row has as many drafts as are worth a check of the target.
        while any(line.is_open for line in lines):
            for step in range(steps):
                self._look(view, lines, steps - step)
            for line in lines:
                line.is_open = line.is_open and len(line.drafts) < fewest
                self._open(line)
        # 3. What lies behind an unsure place follows from it, so the whole rest goes.
        return [_cut(line, min_confidence) for line in lines]

    def _catch_up(self, lines: Sequence[_Line]) -> None:
        """Bring far texts nearer; the last few blocks ride along with the masks."""
        if self._size:
            pairs = zip(lines, self.cache.lengths, strict=True)
            texts = [line.text if _is_far(line, held) else line.text[:held] for line, held in pairs]
            for _ in catch_up(self.adapter, self.cache, texts):
                pass

    def _open(self, line: _Line) -> None:
        """Put masks behind what is drafted, up to the border of a block; close the line where no draft is wanted."""
        line.begin = line.end = len(line.text) + len(line.drafts)
        if not line.is_open or line.begin >= line.limit:
            line.is_open = False
            return
        size, context = self._size, self.adapter.capabilities.max_positions
        if self.own is not None:
            context = min(context, self.cache.capacity)
        # Masks fill the block although fewer drafts are wanted: the model was trained on whole blocks.
        border = (line.begin // size + 1) * size if size else line.begin + self.window
        line.end = min(border, context)
        line.drafts += [-1] * (line.end - line.begin)
        line.sure += [0.0] * (line.end - line.begin)

    def _look(self, view: View, lines: Sequence[_Line], left: int) -> None:
        """Run one forward, draw at every mask in work, and write one in `left` of them."""
        asked = [line.masked() if line.is_open else [] for line in lines]
        if not any(asked):
            return
        logits = self._forward(lines, asked)
        logits[..., self.mask] = float("-inf")
        drawn, sure = self._draw(view, lines, asked, logits)
        for index, (line, places) in enumerate(zip(lines, asked, strict=True)):
            # An even share for each forward that is left, the last one taking all there is.
            count = -(-len(places) // left)
            chosen = surest(sure[index, : len(places)], np.ones(len(places), dtype=np.bool_), count)
            for entry in np.flatnonzero(chosen):
                at = places[entry] - len(line.text)
                line.drafts[at], line.sure[at] = max(0, int(drawn[index][entry])), float(sure[index, entry])

    def _forward(self, lines: Sequence[_Line], asked: Sequence[list[int]]) -> Tensor:
        """Return the logits [B, A, V] at the asked places; the text's finished blocks stay in the cache."""
        device, held = self.cache.device, self.cache.lengths
        # Everything that the cache lacks: the text's open block, the drafts and the masks. A row that asks nothing
        # forwards nothing, as padding.
        runs = [
            [*line.text, *(self.mask if token < 0 else token for token in line.drafts)][at:] if places else []
            for line, places, at in zip(lines, asked, held, strict=True)
        ]
        rows, width, count = len(lines), max(map(len, runs)), max(map(len, asked))
        tokens = np.zeros((rows, width), dtype=np.int64)
        position, ask = np.full((rows, width), -1, dtype=np.int64), np.zeros((rows, count), dtype=np.int64)
        for row, (run, places) in enumerate(zip(runs, asked, strict=True)):
            tokens[row, : len(run)] = run
            position[row, : len(run)] = np.arange(held[row], held[row] + len(run))
            ask[row, : len(places)] = np.array(places, dtype=np.int64) - held[row]
        given = [torch.from_numpy(table).to(device) for table in (tokens, position, ask)]
        visible = None if self.own is None else torch.from_numpy(_behind_text(position, lines)).to(device)
        scores = self.adapter.score(given[0], given[1], visible, self.cache, given[2])
        # Staged entries of finished blocks stay, since no later token changes them; the others saw masks.
        # Never the block that holds the last token: what is said of the next place may be computed there.
        done = [
            max(0, (len(line.text) - 1) // self._size * self._size - at) if self._size and places else 0
            for line, places, at in zip(lines, asked, held, strict=True)
        ]
        self.cache.keep([range(count) for count in done])
        return scores.logits

    def _draw(
        self, view: View, lines: Sequence[_Line], asked: Sequence[list[int]], logits: Tensor
    ) -> tuple[list[list[int]], np.ndarray]:
        """Return the tokens [B, A] that the target's noise draws from the drafter's laws, and the greatest chances.

        Penalties and constraints see the drafts between the text and a place, drawn ones included.
        """
        sampler, (rows, count, vocab) = view.sampler, logits.shape
        place = torch.tensor([places + [0] * (count - len(places)) for places in asked], device=logits.device)
        history = sampler.history(view.texts, view.prompts, vocab)
        # Without a history no place waits for another: one draw for all.
        if history is None:
            processed = sampler.process(logits, None)
            return sampler.pick(processed, place).tolist(), greatest(processed)
        drawn, sure = [[0] * count for _ in range(rows)], np.zeros((rows, count))
        # Else from left to right, one place of every row at a time: a penalty counts the drafts before it.
        entry = [0] * rows
        wanted = [min(line.end, line.limit) - len(line.text) for line in lines]
        for offset in range(max(wanted)):
            tokens, here = [0] * rows, [row for row in range(rows) if offset < wanted[row]]
            at = torch.tensor([min(entry[row], count - 1) for row in range(rows)], device=logits.device)
            every = torch.arange(rows, device=logits.device)
            processed = sampler.process(logits[every, at], history)
            picked, chances = sampler.pick(processed, place[every, at]).clamp(min=0).tolist(), greatest(processed)
            for row in here:
                line = lines[row]
                tokens[row] = line.drafts[offset]
                if entry[row] < len(asked[row]) and asked[row][entry[row]] == len(line.text) + offset:
                    tokens[row] = drawn[row][entry[row]] = picked[row]
                    sure[row, entry[row]] = chances[row]
                    entry[row] += 1
            history.push(tokens, here)
        return drawn, sure


def _behind_text(position: np.ndarray, lines: Sequence[_Line]) -> np.ndarray:
    """Return [B, T, T]: the block sees all there is, text before it what stands before that.

    The block begins with the last token of the text, as such models were taught and are decoded by their makers.

    Args:
        position: [B, T], -1 = padding, which sees itself, so that its softmax stays finite.
        lines: the rows.
    """
    begin = np.array([len(line.text) - 1 for line in lines])[:, np.newaxis]
    is_seen: np.ndarray = (position[:, np.newaxis] <= position[..., np.newaxis]) | (position >= begin)[..., np.newaxis]
    is_seen &= (position >= 0)[:, np.newaxis]
    return is_seen | np.eye(position.shape[1], dtype=np.bool_)


def masked_drafting(draft: str, width: int) -> Needs:
    """Return what a method needs that drafts with a masked model: a causal target, and the model or blocks of its own.

    Args:
        draft: the model's name; "own" = the target.
        width: most tokens drafted at once.
    """
    if draft == OWN:
        return Needs(has_tree=True, has_rollback=True, width=width)
    return Needs(has_rollback=True, width=width, models=("draft",), model_attention={"draft": "canvas"})


def _is_far(line: _Line, held: int) -> bool:
    return line.limit > len(line.text) and len(line.text) - held > _LAG


def greatest(processed: Tensor) -> np.ndarray:
    """Return the greatest chance [B, A] of each law."""
    return processed.double().softmax(-1).amax(-1).nan_to_num(0.0).cpu().numpy()


def _cut(line: _Line, min_confidence: float) -> list[int]:
    """Return the drafts up to the row's limit, and before the first that is too unsure."""
    unsure = (index for index, chance in enumerate(line.sure) if chance < min_confidence)
    return line.drafts[: min(next(unsure, len(line.drafts)), line.limit - len(line.text))]

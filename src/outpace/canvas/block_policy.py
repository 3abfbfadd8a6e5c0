"""Blocks whose size a small trained policy picks from the model's state where the block begins (CtrlDiff).

The policy is a perceptron with one hidden layer; it is stored as one JSON file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outpace.canvas.blocks import FixedBlocks
from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow, Floats
from outpace.errors import ConfigError

__all__ = ["BlockPolicy", "SizedBlocks", "known_at", "read_policy"]

_HOW = "Make one with python -m outpace.train.block_policy MODEL --out FILE."


@dataclass(frozen=True, slots=True, eq=False)
class BlockPolicy:
    """The weights of a policy.

    Attributes:
        sizes: [K] places of a block to choose from, ascending.
        hidden: [H, D + K + 1], the bias last; D is the width of the model's states.
        out: [K, H + 1], the bias last.
        vocab_size: of the model that it was trained with.
    """

    sizes: tuple[int, ...]
    hidden: Floats
    out: Floats
    vocab_size: int

    def logits(self, known: Floats) -> Floats:
        """Return [..., K] unnormalised log-probabilities of the sizes, of [..., D + K] what `known_at` tells."""
        inner = np.tanh(known @ self.hidden[:, :-1].T + self.hidden[:, -1])
        found: Floats = inner @ self.out[:, :-1].T + self.out[:, -1]
        return found


def known_at(state: Floats, reading: Reading, base: int, sizes: tuple[int, ...]) -> Floats:
    """Return [D + K] what a policy reads where a block begins.

    The direction of the model's state there, since states may be of any length, and for each size the mean entropy of
    the laws that such a block would begin with, in nats.

    Args:
        state: [D].
        reading: of the row's open places.
        base: where the block begins.
        sizes: [K].
    """
    entropy, inside = reading.entropy, [reading.within(base + size) for size in sizes]
    ahead = [entropy[one].sum() / max(int(one.sum()), 1) for one in inside]
    return np.concatenate([state / np.sqrt(max(float((state * state).mean()), 1e-12)), ahead])


@dataclass(frozen=True, slots=True)
class SizedBlocks:
    """Fixed blocks of one row and step; before a block begins, laws are asked as far as any choice reaches.

    Attributes:
        size: places of the block that begins now.
        reach: the greatest size that may be chosen.
    """

    size: int
    reach: int

    def asked(self, row: CanvasRow, canvas: Canvas) -> int:
        """Return the end of the block in work; before it is chosen, that of the longest."""
        return FixedBlocks(self.reach).asked(row, canvas)

    def open(self, row: CanvasRow, reading: Reading, canvas: Canvas) -> int:
        """Return where a fixed block of this size ends."""
        # A greater size need be no multiple of a smaller one, so that its fixed blocks may end earlier.
        return min(FixedBlocks(self.size).open(row, reading, canvas), self.asked(row, canvas))


@functools.lru_cache(maxsize=4)
def read_policy(path: str) -> BlockPolicy:
    """Return the policy of a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        hidden, out = (np.asarray(held[name], dtype=np.float64) for name in ("hidden", "out"))
        sizes, vocab = tuple(int(size) for size in held["sizes"]), int(held["vocab_size"])
    except OSError as error:
        raise ConfigError(f"The block policy {path} cannot be read.", _HOW) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The file {path} is no block policy.", _HOW) from error
    if not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes)):
        raise ConfigError(f"The block policy {path} names sizes {sizes}, which are no ascending sizes.", _HOW)
    if hidden.ndim != 2 or hidden.shape[1] <= len(sizes) or out.shape != (len(sizes), len(hidden) + 1):
        raise ConfigError(f"The layers of the block policy {path} do not fit each other.", _HOW)
    if not (np.isfinite(hidden).all() and np.isfinite(out).all()):
        raise ConfigError(f"The block policy {path} holds numbers that are none.", _HOW)
    return BlockPolicy(sizes, hidden, out, vocab)

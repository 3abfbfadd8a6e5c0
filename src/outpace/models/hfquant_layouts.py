"""How GPTQ, AWQ and compressed-tensors lay out integer codes in words: from words to codes and zeros.

All three pack codes of few bits one after the other, lowest bits first, also across the borders of words; they
differ in the direction, in the order within a word and in how zero points are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.models.quantised import BITS, SMALLEST_GROUP, Quantised

__all__ = ["Codes", "from_words", "in_awq_order", "plus_one"]


@dataclass(slots=True)
class Codes:
    """One matrix [out, in] as a checkpoint holds it: weight = scale * (code - zero).

    Attributes:
        codes: [out, in] uint8.
        bits: of a code, 1 to 8.
        scale: [out, groups], as stored.
        zero: [out, groups] int16.
        index: [in] int64, the group of each input; None = groups follow each other.
    """

    codes: Tensor
    bits: int
    scale: Tensor
    zero: Tensor
    index: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the matrix [out, in] in float32, each product rounded once."""
        scale, zero = self.scale.float(), self.zero.float()
        if self.index is not None:
            return self.codes.float().sub_(zero[:, self.index]).mul_(scale[:, self.index])
        grouped = self.codes.float().view(*scale.shape, -1).sub_(zero.unsqueeze(-1))  # exact
        return grouped.mul_(scale.unsqueeze(-1)).view(self.codes.shape)

    def reason_dense(self) -> str:
        """Return why kernels cannot keep the codes; "" = they can."""
        size = self.codes.shape[1] // self.scale.shape[1]
        if self.index is not None:
            return "where their groups are permuted (desc_act)"
        if size != SMALLEST_GROUP and size % 32:
            return f"where a scale is for {size} inputs: kernels know 16, and multiples of 32"
        shift = -self.scale.double() * self.zero
        return "" if torch.equal(shift.float().double(), shift) else "where scale times zero point fits no float32"

    def quantised(self) -> Quantised:
        """Return the same numbers in the form that kernels read; only where `reason_dense` finds none."""
        scale = self.scale.float().contiguous()
        bits = next(bits for bits in BITS if bits >= self.bits)
        return Quantised(self.codes, bits, scale, -scale * self.zero)


def from_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Return codes that lie one after the other along a row, lowest bits first.

    Args:
        words: [rows, ceil(count * bits / 32)] int32.
        bits: of a code, 1 to 8.
        count: codes of a row.

    Returns:
        [rows, count] uint8.
    """
    together = 8 // math.gcd(bits, 8)  # codes that fill whole bytes
    size = together * bits // 8
    runs = -(-count // together)
    raw = words.contiguous().view(torch.uint8)
    parts = torch.nn.functional.pad(raw, (0, runs * size - raw.shape[1])).view(len(words), runs, size)
    codes = torch.empty(len(words), runs, together, dtype=torch.uint8)
    for place in range(together):
        first, offset = divmod(place * bits, 8)
        code = parts[..., first] >> offset
        if offset + bits > 8:
            code |= parts[..., first + 1] << (8 - offset)
        codes[..., place] = code & ((1 << bits) - 1)
    return codes.view(len(words), -1)[:, :count].contiguous()


def in_awq_order(codes: Tensor) -> Tensor:
    """Return codes [rows, columns] of AWQ's words in the order of the columns: 0, 2, 4, 6, 1, 3, 5, 7 of each eight."""
    return codes.view(len(codes), -1, 2, 2, 2).permute(0, 1, 3, 4, 2).reshape(codes.shape)


def plus_one(words: Tensor, bits: int) -> Tensor:
    """Return GPTQ's stored zero points plus one, for bits that divide 32.

    One is added to whole words, as it was taken from them: where a zero point is 0, it borrowed from its neighbour.

    Args:
        words: int32.
        bits: 2, 4 or 8.
    """
    ones = sum(1 << at for at in range(0, 32, bits))
    return (words.long() + ones).to(torch.int32)  # modulo 2 ** 32

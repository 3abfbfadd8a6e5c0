"""Every block format of GGUF, decoded from random bytes, against the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize

from outpace.models.gguf_blocks import PLAIN, unpack
from outpace.text.gguf_file import BLOCKS

KINDS = [(number, *block) for number, block in BLOCKS.items() if block[0] not in PLAIN]
# Bytes at which a format holds a float16; of random bytes every 32nd would be no number.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}
HALVES |= {"Q4_K": (0, 2), "Q5_K": (0, 2)}
ROWS, COLUMNS = 24, 512


def random_bytes(kind: str, weights: int, size: int) -> np.ndarray:
    source = np.random.default_rng(5)
    blocks = source.integers(0, 256, (ROWS * COLUMNS // weights, size), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        numbers = source.standard_normal(len(blocks)) * 10.0 ** source.integers(
            -7, 3, len(blocks)
        )  # subnormal ones too
        blocks[:, at : at + 2] = numbers.astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind == "MXFP4":
        blocks[:, 0] = np.arange(len(blocks)) % 250  # two to the power of it; above, products are infinite
    return blocks


@pytest.mark.parametrize(("number", "kind", "weights", "size"), KINDS, ids=[kind[1] for kind in KINDS])
def test_blocks_are_the_numbers_that_they_stand_for(number: int, kind: str, weights: int, size: int) -> None:
    blocks = random_bytes(kind, weights, size)
    wanted = torch.from_numpy(dequantize(blocks.reshape(ROWS, -1), GGMLQuantizationType(number)))
    found = unpack(torch.from_numpy(blocks).view(-1), kind, (ROWS, COLUMNS))
    assert torch.equal(found.dense(), wanted)
    assert int(found.codes.max()) < 2**found.bits
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.rows(order).dense(), wanted[order])


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_factors_are_whole_numbers_times_those_of_their_block(kind: str) -> None:
    weights, size = next(block[1:] for block in BLOCKS.values() if block[0] == kind)
    blocks = random_bytes(kind, weights, size)
    found = unpack(torch.from_numpy(blocks).view(-1), kind, (ROWS, COLUMNS))
    assert found.coarse is not None
    for factors, part in zip((found.scale, found.shift), found.coarse, strict=True):
        per = factors.view(ROWS, COLUMNS // 256, -1).double()
        whole = torch.where(part[..., None] == 0, torch.zeros_like(per), per / part[..., None].double())
        assert torch.equal(whole, whole.round())
        assert whole.min() >= -128
        assert whole.max() < (128 if whole.min() < 0 else 256)

"""How far several tokens behind one full pass are from tokens drawn one by one, with a sampler layer and without.

    python -m outpace.bench.joint stories-mask runs/stories-mask-joint --data data --json joint.json

On held-out texts with an open block, a few places are drawn behind one pass, from the left or in random order. Each
draw's law is compared with that of a further full pass that knows the draws before it; the sum of these divergences is
the divergence of the joint laws, in nats per group of places. Nothing is decoded: contexts are equal for all rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.api.engine import load
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.errors import CapabilityError
from outpace.failures import guarded
from outpace.models.sampler_layer import SamplerLayer, corrected, read_sampler
from outpace.train.data import encode_stream, find_data
from outpace.train.export import load_tokenizer
from outpace.train.joint import opened, told
from outpace.train.loop import beside
from outpace.train.sources import tiny_stories
from outpace.types import Adapter

__all__ = ["divergence", "main"]

_HEADS = ("places behind a pass", "marginals", "sampler layer", "share", "error")


@dataclass(frozen=True, slots=True)
class Contexts:
    """Texts with open places.

    Attributes:
        canvas: [B, L] int64.
        places: [B, A] int64, open ones.
        order: [B, K] int64, indices into `places`: which are drawn, one after the other.
    """

    canvas: Tensor
    places: Tensor
    order: Tensor


@torch.no_grad()
def divergence(target: Adapter, layer: SamplerLayer | None, contexts: Contexts, seed: int) -> Tensor:
    """Return the divergence [B] of drawing behind one pass from drawing one by one, in nats.

    Each place's law is summed over its tokens; only the tokens before it are drawn, by the law that is judged.
    """
    rows = torch.arange(len(contexts.canvas))
    generator = torch.Generator().manual_seed(seed)
    logits, last = told(target, contexts.canvas, contexts.places)
    said, found = torch.full_like(contexts.places, -1), torch.zeros(len(rows), dtype=torch.float64)
    canvas = contexts.canvas.clone()
    for number in range(contexts.order.shape[1]):
        at = contexts.order[:, number]
        truth = logits if number == 0 else told(target, canvas, contexts.places)[0]
        ours = (
            logits
            if layer is None or number == 0
            else _ruled(corrected(layer, target, last, said, contexts.places), logits)
        )
        law, exact = (one[rows, at].double().log_softmax(-1) for one in (ours, truth))
        found += torch.where(law.isinf(), 0.0, law.exp() * (law - exact)).sum(-1)
        drawn = torch.multinomial(law.exp(), 1, generator=generator)[:, 0]
        said[rows, at] = drawn
        canvas[rows, contexts.places[rows, at]] = drawn
    return found


def _ruled(found: Tensor, like: Tensor) -> Tensor:
    return found.float().masked_fill(like.isneginf(), float("-inf"))


def contexts_of(tokens: Tensor, block: int, count: int, is_random: bool, mask: int, seed: int) -> Contexts:
    """Return texts with an open block of which `count` places are drawn, from left to right or in random order."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(1000):
        found = opened(tokens, block, 1, mask, seed + number)
        size = found.places.shape[1]
        if size >= count:
            break
    order = torch.rand(len(tokens), size, generator=generator).argsort(1) if is_random else torch.arange(size)
    return Contexts(found.canvas, found.places, order.expand(len(tokens), -1)[:, :count])


def _held_out(directory: Path, data: Path | None, rows: int, length: int) -> Tensor:
    source, folder = tiny_stories(), find_data(data)
    text = (folder / "tinystories" / "valid.txt").read_text(encoding="utf-8")[: rows * length * 8]
    del source
    stream = torch.from_numpy(encode_stream(load_tokenizer(directory), [text]).astype("int64"))
    return stream[: len(stream) // length * length].view(-1, length)[:rows]


def measure(
    target: Adapter, layer: SamplerLayer, texts: Tensor, block: int, count: int, is_random: bool
) -> dict[str, Any]:
    """Return the figures of one number of places behind a pass."""
    mask = target.capabilities.mask_id
    assert mask is not None
    sums = [torch.zeros(0, dtype=torch.float64)] * 2
    for at in range(0, len(texts), 16):
        one = contexts_of(texts[at : at + 16], block, count, is_random, mask, at)
        for number, each in enumerate((None, layer)):
            sums[number] = torch.cat([sums[number], divergence(target, each, one, at)])
    plain, joint = sums
    error = float((joint - plain).std()) / len(plain) ** 0.5
    return {
        "places": count,
        "order": "random" if is_random else "left",
        "marginal": float(plain.mean()),
        "joint": float(joint.mean()),
        "error": error,
        "texts": len(plain),
    }


def _work(given: argparse.Namespace) -> int:
    torch.set_num_threads(given.threads)
    layer, lm = read_sampler(given.sampler), load(given.model, dtype="float32")
    offered = lm.target.capabilities
    if offered.mask_id is None or offered.vocab_size != layer.config.vocab:
        raise CapabilityError(f"{given.sampler} is no layer of {given.model}.", "Train one on this model.")
    texts = _held_out(beside(given.model, Path("runs") / "none"), given.data, given.texts, 64)
    rows = [
        measure(lm.target, layer, texts, given.block, count, is_random)
        for is_random in (False, True)
        for count in given.places
    ]
    cells = [
        [
            f"{row['places']}, {row['order']}",
            *(f"{row[key]:.3f}" for key in ("marginal", "joint")),
            f"{row['joint'] / row['marginal']:.0%}",
            f"{row['error']:.3f}",
        ]
        for row in rows
    ]
    table = Table("", _HEADS, cells)
    print(table.markdown())
    if given.json:
        new_report("joint-sampler", vars(given), describe(), rows, tables=[table]).write(given.json)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.joint", description="Joint against marginal draws.")
    parser.add_argument("model", help="a masked model, e.g. stories-mask")
    parser.add_argument("sampler", type=Path, help="directory of its sampler layer")
    parser.add_argument("--places", type=int, nargs="+", default=[2, 4, 8], help="drawn behind one pass")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    return guarded(lambda _: _work(given), [])


if __name__ == "__main__":
    sys.exit(main())

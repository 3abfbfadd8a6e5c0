"""An encoder-decoder against a decoder of equal size on long sources: time to the first token, tokens a second.

    outpace bench --stacks 128,512,1024 --max-tokens 64 --threads 1

Weights are random, both run on the eager path, in turn and several times; the table holds medians. Multiplications are
counted besides, which no noise touches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from outpace.api.engine import LanguageModel
from outpace.errors import ConfigError
from outpace.models.nets.adapter import NetAdapter
from outpace.models.nets.base import PairNet
from outpace.models.nets.stacks import DecoderOnly, EncoderDecoder, equal_configs

__all__ = ["Work", "compare", "measure", "new_pair", "work_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Multiplications and additions of one network, in millions of floating-point operations.

    Attributes:
        parameters: how many it has.
        first: from the source to the first token.
        later: for the token behind the first one.
    """

    parameters: int
    first: float
    later: float


def new_pair(layers: int, width: int, vocab: int, source: int, target: int, seed: int = 0) -> tuple[PairNet, PairNet]:
    """Return a decoder and an encoder-decoder of equal size, with random weights.

    Raises:
        ConfigError: too few layers to be split.
    """
    if layers < 5 or width < 4 or width % 4:
        raise ConfigError(
            f"{layers} layers of width {width} make no two networks of equal size.",
            "Ask for 5 layers or more, and a width that 4 divides.",
        )
    sizes = {"vocab_size": vocab, "width": width, "heads": 4, "max_source": source, "max_positions": target + 1}
    plain, split = equal_configs(layers, **sizes)
    torch.manual_seed(seed)
    return DecoderOnly(plain).eval(), EncoderDecoder(split).eval()


def work_of(net: PairNet, source: int) -> Work:
    """Count the work of a first and of a second token behind a source of so many tokens."""
    adapter, counts = NetAdapter(net), list[float]()
    cache = adapter.new_cache(1, 4)
    for at in range(2):
        with FlopCounterMode(display=False) as counter:
            if not at:
                adapter.encode([_source(net, source, 0)], cache)
            adapter.score(torch.tensor([[2]]), torch.tensor([[at]]), None, cache)
        cache.keep([[0]])
        counts.append(counter.get_total_flops() / 1e6)
    return Work(parameters=sum(weight.numel() for weight in net.parameters()), first=counts[0], later=counts[1])


def measure(net: PairNet, source: int, target: int, seed: int) -> tuple[float, float]:
    """Return seconds to the first token, and tokens a second over a whole target."""
    lm, ids = LanguageModel(NetAdapter(net)), _source(net, source, seed)
    began = time.perf_counter()
    lm.generate(ids, max_tokens=1)
    first = time.perf_counter() - began
    began = time.perf_counter()
    lm.generate(ids, max_tokens=target)
    return first, target / (time.perf_counter() - began)


def _source(net: PairNet, size: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, net.config.vocab_size, (size,), generator=generator).tolist()


def compare(
    sources: Sequence[int],
    target: int,
    *,
    layers: int = 12,
    width: int = 256,
    vocab: int = 8192,
    repeats: int = 3,
) -> Iterator[str]:
    """Yield the lines of a table, as they are measured: for each source length, what both networks do.

    Args:
        sources: tokens of the sources.
        target: tokens written.
        layers: of the decoder; the other network has as many parameters.
        width, vocab: of both.
        repeats: of everything; medians are shown.

    Raises:
        ConfigError: a number that is not positive, or too few layers to be split.
    """
    if min(*sources, target, repeats) < 1:
        raise ConfigError("Sources, targets and repetitions are 1 or more.", "Write it as in --stacks 128,512,1024.")
    nets = new_pair(layers, width, vocab, max(sources), target)
    yield "| source | network | parameters | MFLOP, first token | MFLOP, later | first token, ms | tokens/s |"
    yield "|---|---|---|---|---|---|---|"
    for size in sources:
        rounds = [[measure(net, size, target, seed) for net in nets] for seed in range(repeats)]
        for net, runs in zip(nets, zip(*rounds, strict=True), strict=True):
            work, (first, rate) = work_of(net, size), (statistics.median(each) for each in zip(*runs, strict=True))
            yield (
                f"| {size} | {type(net).__name__} | {work.parameters:,} | {work.first:,.0f} | {work.later:,.1f} "
                f"| {1000 * first:,.0f} | {rate:,.1f} |"
            )

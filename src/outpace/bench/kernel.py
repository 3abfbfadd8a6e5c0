"""Time the compiled decoder against prepacked PyTorch linears of the same shapes, and against the memory floor.

    python -m outpace.bench.kernel [--shapes 30m,350m] [--dtypes bfloat16,float32] [--threads 2] [--clock wall]

All sides take turns within one run, so that a noisy machine disturbs them alike; medians and minima are printed. The
floor is the time to read as many bytes as one token streams, measured in the same turns (small models fit the last
cache, and so does their floor). On a busy machine, `--clock cpu --threads 1` counts processor time instead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.kernels.decoder import CompiledDecoder, compile_decoder
from outpace.kernels.library import Reader, load, note
from outpace.models.spec import Rope, Spec
from outpace.models.weights import LayerWeights, Matrix, Norm, Weights

__all__ = ["SHAPES", "TorchLinears", "interleave", "make_weights", "new_cache", "streamed_bytes", "window"]

WIDTHS = (1, 4, 16, 32, 128)
PREFIX = 128  # cached tokens before the timed window


def _llama(vocab: int, hidden: int, layers: int, heads: int, ffn: int) -> Spec:
    rope = Rope(tuple(10000.0 ** (-i / 64) for i in range(0, 64, 2)))
    return Spec(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=64,
        ffn_size=ffn,
        max_positions=2048,
        ropes=(rope,),
    )


SHAPES = {"30m": _llama(8000, 512, 8, 8, 1408), "350m": _llama(16000, 1024, 24, 16, 2816)}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one competitor over the repetitions."""

    median: float
    best: float


def make_weights(spec: Spec, dtype: torch.dtype, seed: int = 0) -> Weights:
    """Return random weights of a pre-norm gated decoder, scaled so that activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(outputs: int, inputs: int) -> Matrix:
        return Matrix((torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(dtype))

    def norm(size: int) -> Norm:
        return Norm(torch.ones(size, dtype=dtype))

    hidden = spec.hidden_size
    layers = [
        LayerWeights(
            matrix(spec.q_size + 2 * spec.kv_size, hidden),
            matrix(hidden, spec.q_size),
            matrix(2 * spec.ffn_size, hidden),
            matrix(hidden, spec.ffn_size),
            norm(hidden),
            norm(hidden),
        )
        for _ in range(spec.num_layers)
    ]
    embed = torch.randn(spec.vocab_size, hidden, generator=generator).to(dtype)
    head = Matrix(embed) if spec.tie_embeddings else matrix(spec.vocab_size, hidden)
    return Weights(embed, layers, head, norm(hidden))


def streamed_bytes(spec: Spec, dtype: torch.dtype) -> int:
    """Return the bytes of weights that one token reads: all matrices but the embedding."""
    tables = spec.vocab_size * spec.hidden_size
    return (spec.num_weights - (0 if spec.tie_embeddings else tables)) * dtype.itemsize


def new_cache(spec: Spec, dtype: torch.dtype, length: int, capacity: int) -> Cache:
    """Return a one-row cache that claims `length` entries of noise."""
    shape = (1, spec.num_kv_heads, capacity, spec.head_dim)
    buffers = [torch.randn(shape).to(dtype) for _ in range(2 * spec.num_layers)]
    return Cache(buffers, 2, None, [length])


def window(spec: Spec, width: int, start: int) -> tuple[Tensor, Tensor]:
    """Return tokens and positions [1, width] of a chain at `start`."""
    return torch.randint(0, spec.vocab_size, (1, width)), torch.arange(start, start + width)[None]


class TorchLinears:
    """Only the linear layers of a decoder, prepacked by oneDNN: what plain PyTorch cannot be faster than."""

    def __init__(self, spec: Spec, weights: Weights) -> None:
        self.spec = spec
        self.matrices = [matrix for layer in weights.layers for matrix in layer.matrices()] + [weights.head]
        self.dtype = weights.embed.dtype
        for matrix in self.matrices:
            matrix.pack()

    def __call__(self, width: int) -> None:
        """Apply every matrix to an input of `width` rows."""
        with torch.inference_mode():
            for matrix in self.matrices:
                matrix(self._input(width, matrix.shape[1]))

    def _input(self, width: int, size: int) -> Tensor:
        return torch.zeros(width, size, dtype=self.dtype)


def interleave(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time several functions in turns, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: Timing(statistics.median(values), min(values)) for name, values in seconds.items()}


def _rows(spec: Spec, dtype: torch.dtype, widths: Sequence[int], repeats: int, clock: Callable[[], float]) -> list[str]:
    weights, library = make_weights(spec, dtype), load()
    decoder = compile_decoder(spec, weights, dtype)
    if decoder is None or library is None:
        return [note()]
    linears, reader = TorchLinears(spec, weights), Reader(library, streamed_bytes(spec, dtype))
    rows = []
    for width in widths:
        cache = new_cache(spec, dtype, PREFIX, PREFIX + width)
        runs: dict[str, Callable[[], object]] = {"torch": _linears(linears, width), "floor": reader}
        runs["ours"] = _forward(decoder, spec, width, cache)
        rows.append(_row(width, interleave(runs, max(7, repeats // (1 + width // 16)), clock)))
    return rows


def _forward(decoder: CompiledDecoder, spec: Spec, width: int, cache: Cache) -> Callable[[], object]:
    tokens, position = window(spec, width, PREFIX)
    ask = None if width <= 32 else torch.tensor([[width - 1]])  # a prefill asks for its last token only
    return lambda: decoder.forward(tokens, position, None, cache, ask)


def _linears(linears: TorchLinears, width: int) -> Callable[[], object]:
    return lambda: linears(width)


def _row(width: int, timing: Mapping[str, Timing]) -> str:
    ours, torchs, floor = timing["ours"], timing["torch"], timing["floor"]
    return (
        f"T({width:3d})  ours {1e3 * ours.median:8.3f} ms (best {1e3 * ours.best:8.3f})  "
        f"torch linears {1e3 * torchs.median:8.3f} ({1e3 * torchs.best:8.3f})  "
        f"ratio {ours.median / torchs.median:5.2f} ({ours.best / torchs.best:5.2f})  "
        f"floor {1e3 * floor.median:7.3f} ({1e3 * floor.best:7.3f}), "
        f"share {floor.median / ours.median:4.0%} ({floor.best / ours.best:4.0%})"
    )


def main() -> None:
    """Print one table per shape and dtype."""
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.kernel", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    print(f"{note()}; {options.threads} threads; prefix of {PREFIX} tokens")
    for shape in options.shapes.split(","):
        for name in options.dtypes.split(","):
            dtype, spec = getattr(torch, name), SHAPES[shape]
            print(f"\n{shape} {name}: {streamed_bytes(spec, dtype) / 1e6:.1f} MB per token")
            widths = [int(width) for width in options.widths.split(",")]
            print("\n".join(_rows(spec, dtype, widths, options.repeats, clock)), flush=True)


if __name__ == "__main__":
    main()

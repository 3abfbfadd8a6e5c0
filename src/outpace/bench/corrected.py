"""Does resampling earlier tokens mend errors? A toy language, and a model that has half learned it.

    python -m outpace.bench.corrected

A text of the toy counts upwards in a circle of numbers from a random one. A small network is trained on it with windows
(`outpace.train.objectives_window`) and stopped early, so that it miscounts now and then. A tenth of the numbers that
it reads are misprinted, and what it is taught is not: a model that never read an error cannot tell which of two tokens
that contradict each other is wrong, and drawing again then spreads errors. Texts are drawn with 0, 1, 2 and 4
iterations over a window; shown is the share of neighbours that do not count.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from outpace.api.corrected import Corrector
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.models.loading import load_model
from outpace.sampling import Sampler, Sampling, row_key
from outpace.train.data import EOS_ID, MASK_ID
from outpace.train.network import Llama, LlamaShape, hf_config
from outpace.train.objectives import masked_loss
from outpace.train.objectives_window import window_canvas
from outpace.types import Adapter

__all__ = ["counting", "errors", "main", "run_corrected", "trained"]

NUMBERS, WINDOW = 10, 3
ITERATIONS = (0, 1, 2, 4)
FIRST = 2  # the token of number 0, behind the end and the mask


def counting(rows: int, length: int, step: int) -> Tensor:
    """Return texts [rows, length] that count from a random number."""
    generator = torch.Generator().manual_seed(step)
    first = torch.randint(NUMBERS, (rows, 1), generator=generator)
    return FIRST + (first + torch.arange(length)) % NUMBERS


def misprinted(inputs: Tensor, step: int) -> Tensor:
    """Return inputs a tenth of whose numbers are others, so that a model has seen contexts with an error in them."""
    generator = torch.Generator().manual_seed(-1 - step)
    other = FIRST + torch.randint(NUMBERS, inputs.shape, generator=generator)
    is_hit = (torch.rand(inputs.shape, generator=generator) < 0.1) & (inputs >= FIRST)
    return torch.where(is_hit, other, inputs)


def trained(steps: int, seed: int) -> Llama:
    """Return a network after some steps on the toy."""
    vocab = FIRST + NUMBERS
    shape = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=2, head_dim=16, ffn=48, vocab=vocab, context=64)
    network = Llama(shape, seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        batch = window_canvas(counting(16, 25, step), WINDOW, 12, step, seed)
        loss = masked_loss(network, *batch._replace(inputs=misprinted(batch.inputs, step)))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return network.eval()


def opened(network: Llama, place: Path) -> Adapter:
    """Return a network as the engine runs it, by way of files in a directory."""
    import json

    from safetensors.torch import save_file

    place.mkdir(parents=True, exist_ok=True)
    config = hf_config(network.shape, eos_id=EOS_ID, mask_id=MASK_ID)
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {name: weight.detach().contiguous() for name, weight in network.state_dict().items()},
        place / "model.safetensors",
    )
    return load_model(place, "float32", "cpu")


def errors(text: Sequence[int]) -> int:
    """Return how many neighbours of a text do not count."""
    return sum((a - FIRST + 1) % NUMBERS != (b - FIRST) % NUMBERS or b < FIRST for a, b in itertools.pairwise(text))


def error_rates(target: Adapter, texts: int, length: int, seed: int, temperature: float) -> list[float]:
    """Return the share of neighbours that do not count in texts drawn with each of `ITERATIONS`."""
    found = []
    for iterations in ITERATIONS:
        sampler = Sampler(Sampling(temperature=temperature), [row_key(seed, sample) for sample in range(texts)])
        prompts = [[FIRST + sample % NUMBERS] for sample in range(texts)]
        writer = Corrector(target, MASK_ID, prompts, sampler, WINDOW, length)
        while writer.length < length + 1:
            writer.extend()
            for visit in range(1, iterations + 1):
                writer.correct(visit)
        found.append(sum(map(errors, writer.texts)) / (texts * length))
    return found


def run_corrected(
    steps: int, texts: int, length: int, networks: int = 1, seed: int = 0, temperature: float = 1.0
) -> Report:
    """Train networks of seeds in a row on the toy; count the errors of what each writes.

    Raises:
        ConfigError: a number below 1.
    """
    import tempfile

    if min(steps, texts, length, networks) < 1:
        raise ConfigError("No steps, texts, tokens or networks were asked for.", "Ask for 1 or more of each.")
    each = []
    for number in range(seed, seed + networks):
        with tempfile.TemporaryDirectory() as place:
            target = opened(trained(steps, number), Path(place))
            each.append(error_rates(target, texts, length, number, temperature))
    rows = [
        {"iterations": iterations, "errors": sum(rates) / networks, "each": list(rates)}
        for iterations, rates in zip(ITERATIONS, zip(*each, strict=True), strict=True)
    ]
    cells = [
        [str(iterations), f"{sum(rates) / networks:.2%}", ", ".join(f"{rate:.2%}" for rate in rates)]
        for iterations, rates in zip(ITERATIONS, zip(*each, strict=True), strict=True)
    ]
    table = Table("", ("iterations", "neighbours that do not count", "of each network"), cells)
    asked = {"steps": steps, "texts": texts, "length": length, "networks": networks, "window": WINDOW, "seed": seed}
    return new_report("corrected", asked, describe(), rows, tables=[table])


def _work(given: argparse.Namespace) -> None:
    report = run_corrected(given.steps, given.texts, given.length, given.networks, given.seed, given.temperature)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("corrected", __doc__, threads=1)
    parser.add_argument("--steps", type=int, default=800, help="of training (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=1000, help="for each number (default: %(default)s)")
    parser.add_argument("--length", type=int, default=20, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=3, help="trained, with seeds in a row (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of every draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The dynamic programs of one-pass training: their share of a training step, and the memory that a graph takes.

    python -m outpace.bench.programs --rows 32 --tokens 30

A step is the forward and backward of one network (two passes with glancing) on random sentences, all of one length, and
the update. The program is what is added to any other network by the sum over alignments, forward and backward, and with
glancing by the search for the best one. Times are those of the processor (`time.process_time`), so that neighbours
disturb little; the median of `--rounds` is told. Peak memory is that of one step in a fresh process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import peak_memory
from outpace.bench.report import Table
from outpace.errors import OutpaceError
from outpace.models.nar.ctc import CtcConfig, best_alignment, ctc_nll
from outpace.models.nar.dag import Dag, DagConfig
from outpace.models.nar.lattice import best_paths, log_likelihood, plain_log_likelihood
from outpace.models.nar.network import NarConfig
from outpace.train.nar.network import NarShape, TrainedNar
from outpace.train.nar.objectives import Glancing, Likelihood, Objective
from outpace.train.pairs import PairBatch

__all__ = ["PEAKS", "main", "peak_of", "shares"]

_CPU_MB = 1 << 20


def _config(kind: str, given: argparse.Namespace) -> NarConfig:
    sizes = {"width": given.width, "heads": 4, "ffn": 3 * given.width, "encoder_layers": 2, "decoder_layers": 2}
    most = {"max_source": given.tokens, "max_positions": 8 * given.tokens}
    if kind == "dag":
        return DagConfig(factor=given.factor, reach=given.reach, block=given.block, **sizes, **most)
    return CtcConfig(factor=3, **sizes, **most)


def _started(kind: str, given: argparse.Namespace) -> tuple[TrainedNar, PairBatch]:
    """Return a random network and a batch whose sources and targets have `tokens` tokens each."""
    torch.manual_seed(0)
    network = NarShape(config=_config(kind, given)).build(given.vocab)
    sources, labels = torch.randint(3, given.vocab, (2, given.rows, given.tokens)).unbind()
    return network, PairBatch(sources, torch.ones_like(sources), torch.zeros_like(labels), labels)


def _step(network: TrainedNar, batch: PairBatch, objective: Objective) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network.loss(batch, objective)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _programs(network: TrainedNar, batch: PairBatch) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the sum over alignments, forward and backward, and the search for the best one, of a network's outputs."""
    run = network.begin(batch)
    sizes, blank = run.is_place.sum(1), network.net.config.vocab_size
    outputs = [part.detach().requires_grad_() for part in network.net.finish(run)]
    if isinstance(network.net, Dag):
        index = run.targets[:, None].expand(-1, outputs[0].shape[1], -1)
        said = outputs[0].detach().gather(2, index).transpose(1, 2).requires_grad_()
        given = said, outputs[1], sizes, run.lengths
        return lambda: (-log_likelihood(*given)).sum().backward(), lambda: _drop(best_paths(*given))
    rest = sizes, run.targets, run.lengths, blank
    return lambda: ctc_nll(outputs[0], *rest).sum().backward(), lambda: _drop(best_alignment(outputs[0], *rest))


def _drop(result: object) -> None:
    del result


def _seconds(work: Callable[[], None], rounds: int) -> float:
    """Return the median of processor seconds, after one call that is not counted."""
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def shares(given: argparse.Namespace) -> Table:
    """Return how much of a training step each program takes."""
    cells = []
    for kind in ("ctc", "dag"):
        for name, objective in (("likelihood", Likelihood()), ("glancing", Glancing())):
            network, batch = _started(kind, given)
            summed, searched = _programs(network, batch)
            step = _seconds(_step(network, batch, objective), given.rounds)
            parts = [_seconds(summed, given.rounds)]
            parts += [_seconds(searched, given.rounds)] if name == "glancing" else []
            cells.append([kind, name, f"{1e3 * step:.0f}", f"{1e3 * sum(parts):.1f}", f"{sum(parts) / step:.1%}"])
    title = f"{given.rows} rows of {given.tokens} target tokens, {torch.get_num_threads()} threads"
    return Table(title, ("network", "objective", "step, ms", "program, ms", "share"), cells, left=2)


def _blocks(network: TrainedNar, batch: PairBatch) -> Tensor:
    return network.net.loss(network.begin(batch)).sum()


def _whole(network: TrainedNar, batch: PairBatch) -> Tensor:
    run = network.begin(batch)
    return network.net.nll(network.net.finish(run), run).sum()


def _stepwise(network: TrainedNar, batch: PairBatch) -> Tensor:
    run = network.begin(batch)
    log_probs, links = network.net.finish(run)
    index = run.targets[:, None].expand(-1, log_probs.shape[1], -1)
    return -plain_log_likelihood(
        log_probs.gather(2, index).transpose(1, 2), links, run.is_place.sum(1), run.lengths
    ).sum()


def _glancing(network: TrainedNar, batch: PairBatch) -> Tensor:
    return network.loss(batch, Glancing())


PEAKS: dict[str, Callable[[TrainedNar, PairBatch], Tensor]] = {
    "in blocks": _blocks,
    "in blocks, with glancing": _glancing,
    "all log-probabilities at once": _whole,
    "PyTorch's own way back": _stepwise,
}


def peak_of(name: str, given: argparse.Namespace) -> int:
    """Return the bytes that one forward and backward of a graph took beyond what stood before it."""
    network, batch = _started("dag", given)
    before = peak_memory()
    with torch.autocast("cpu", torch.bfloat16):
        loss = PEAKS[name](network, batch)
    loss.backward()
    return max(0, peak_memory() - before)  # the kernel counts pages thread by thread: a peak may lie one below itself


def _peaks(given: argparse.Namespace) -> Table:
    """Return the peak of each way, each in a process of its own."""
    own = [
        f"--{name}={getattr(given, name)}" for name in ("rows", "tokens", "vocab", "width", "factor", "reach", "block")
    ]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    cells = []
    for name in PEAKS:
        command = [sys.executable, "-m", "outpace.bench.programs", *own, f"--threads={given.threads}", f"--peak={name}"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
        if done.returncode:
            raise OutpaceError(f"The memory run failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
        cells.append([name, f"{int(done.stdout) / _CPU_MB:,.0f}"])
    title = f"Graph of {given.factor} x {given.tokens} places, {given.rows} rows, vocabulary {given.vocab:,}"
    return Table(title, ("loss, forward and backward", "peak beyond the network, MB"), cells)


def _work(given: argparse.Namespace) -> None:
    if given.peak:
        print(peak_of(given.peak, given))
        return
    print(shares(given).markdown(), "\n")
    print(_peaks(given).markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit status."""
    parser = new_parser("programs", __doc__, threads=1)
    for name, value, meaning in (
        ("rows", 32, "rows of a batch"),
        ("tokens", 30, "tokens of each source and target"),
        ("vocab", 2500, "tokens of the vocabulary"),
        ("width", 128, "of the network"),
        ("factor", 8, "places of a graph per source token"),
        ("reach", 32, "links of a place"),
        ("block", 512, "places whose laws are held at once"),
        ("rounds", 5, "timed calls of each"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=meaning)
    parser.add_argument("--peak", choices=list(PEAKS), help="print the peak of one way in bytes, and end")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

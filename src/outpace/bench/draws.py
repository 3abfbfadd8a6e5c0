"""Processor time of a draw from whole vocabularies: all the noise, beside the noise of those that may win.

    python -m outpace.bench.draws

Logits are normal with a standard deviation of 3; of both ways the least of some rounds is told, and they draw alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.kernels import load_library
from outpace.sampling.draws import drawn, plain_drawn

__all__ = ["main", "run_draws"]


def _milliseconds(work: Callable[[Tensor, Tensor], Tensor], logits: Tensor, key: Tensor, rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work(logits, key)
        found.append(1000 * (time.process_time() - began))
    return min(found)


def run_draws(rows: Sequence[int], vocabs: Sequence[int], rounds: int) -> Report:
    """Measure batches of rows over vocabularies.

    Raises:
        ConfigError: a number below 1.
    """
    if min([*rows, *vocabs, rounds]) < 1:
        raise ConfigError("No rows, tokens or rounds were asked for.", "Ask for 1 or more of each.")
    load_library()
    told = []
    generator = torch.Generator().manual_seed(0)
    for vocab in vocabs:
        for count in rows:
            logits = 3 * torch.randn(count, vocab, generator=generator, dtype=torch.float64)
            key = torch.randint(2**62, (count,), generator=generator)
            assert torch.equal(drawn(logits, key), plain_drawn(logits, key))
            ways = {"all": plain_drawn, "few": drawn}
            times = {name: _milliseconds(way, logits, key, rounds) for name, way in ways.items()}
            told.append({"vocab": vocab, "rows": count, **times})
    cells = [[f"{r['vocab']:,}", str(r["rows"]), f"{r['all']:.3f}", f"{r['few']:.3f}"] for r in told]
    heads = ("tokens", "rows", "all noise, ms", "of those that may win, ms")
    asked = {"rows": list(rows), "vocabs": list(vocabs), "rounds": rounds}
    return new_report("draws", asked, describe(), told, tables=[Table("", heads, cells)])


def _work(given: argparse.Namespace) -> None:
    report = run_draws(given.rows, given.vocabs, given.rounds)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("draws", __doc__, threads=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="drawn at once (default: 1 16)")
    parser.add_argument("--vocabs", type=int, nargs="+", default=[8192, 49152], help="tokens (default: 8192 49152)")
    parser.add_argument("--rounds", type=int, default=20, help="of which the least counts (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Time outside the forwards: the real loop on a model that costs nothing and always agrees with a chain of 16.

    python -m outpace.bench.overhead [--vocab 8192] [--against OTHER/src]

`--against` measures another checkout of the package, by this module of its own, in turns with this one, each run in a
process of its own: what was before a change beside what is after it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.bench.command import new_parser, run_command
from outpace.bench.report import Table
from outpace.bench.rounds import in_turns
from outpace.bench.stats import median_ratio
from outpace.cache import Cache
from outpace.kernels import load_library
from outpace.methods.base import Method, chain
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Needs, Outputs, Proposal, Scores, View

__all__ = ["CHAIN", "LAWS", "FixedChain", "PresetModel", "main", "overhead"]

CHAIN = 16
LAWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "T 0.7, top-k 50, top-p 0.9": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}


class PresetModel(Adapter):
    """An adapter that returns preset logits without computing: node i is followed by token i + 1.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.capabilities = Capabilities(vocab_size, 1 << 20)
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(1, CHAIN + 1, vocab_size, generator=generator) * 3
        nodes = torch.arange(CHAIN + 1)
        self.logits[0, nodes, nodes] += 100

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache that holds one number per slot."""
        return Cache([torch.zeros(rows, 1, capacity, 1)], 2, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return no numbers: there is no hidden state."""
        return torch.zeros(*tokens.shape, 0)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the first row of the preset logits."""
        return self.logits[0, 0].expand(*hidden.shape[:-1], -1)

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Return the first rows of the preset logits; see `outpace.types.Adapter`."""
        del position, visible, outputs, inputs, skip
        cache.counter.add(tokens.shape[1], 1)
        return Scores(self.logits[:, : tokens.shape[1] if ask is None else ask.shape[1]])


@dataclass(frozen=True)
class FixedChain(Method):
    """Proposes tokens 0 to 15 every time: the least that any drafter costs."""

    name: ClassVar[str] = "fixed-chain"

    @property
    def needs(self) -> Needs:
        """Room for the chain."""
        return Needs(has_rollback=True, width=CHAIN)

    def propose(self, view: View, state: Any) -> Proposal:
        """Return the chain."""
        del state
        return chain(view, [list(range(CHAIN))], self.name)


def overhead(vocab_size: int, law: str, method: str, steps: int = 60, repeats: int = 5) -> dict[str, Any]:
    """Return milliseconds per step outside the forwards, every draft accepted.

    Args:
        vocab_size: V.
        law: a key of `LAWS`.
        method: "fixed-chain" or "prompt-lookup".
        steps: per run.
        repeats: runs, after one that warms up; the median counts.
    """
    load_library()  # as beside any model on the CPU: compiled code looks for the candidates of top-k
    lm = LanguageModel(PresetModel(vocab_size), None, name="preset")
    chosen: dict[str, Any] = {"method": FixedChain()}
    if method != FixedChain.name:
        chosen = {"method": method, "options": {"draft_len": CHAIN}}
    prompt = list(range(CHAIN + 1)) * 8
    found: dict[str, list[float]] = {"total": [], "draft": [], "accept": [], "other": []}
    tokens_per_step = 0.0
    for number in range(repeats + 1):
        result = lm.generate(prompt, **chosen, max_tokens=steps * (CHAIN + 1), **LAWS[law])
        taken, timing = result.usage.num_steps, result.timing
        tokens_per_step = len(result.tokens) / taken
        if number:
            outside = timing["decode_s"] - timing["score_s"]
            found["total"].append(outside / taken)
            for name in ("draft", "accept", "other"):
                found[name].append(timing[f"{name}_s"] / taken)
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in found.items()}
    return {"vocab": vocab_size, "law": law, "method": method, "tokens_per_step": tokens_per_step, **medians}


_CHILD = """import json, sys, torch
from outpace.bench.overhead import overhead
torch.set_num_threads(1)
print(json.dumps(overhead(**json.loads(sys.argv[1]))))
"""


def _in_a_process(source: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Return what the `overhead` of the package in a source folder gives, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _work(given: argparse.Namespace) -> None:
    sources = {"now": Path(__file__).parents[2], **({"other": given.against} if given.against else {})}
    cells = []
    for law in LAWS:
        for method in given.methods.split(","):
            job = {"vocab_size": given.vocab, "law": law, "method": method, "steps": given.steps}
            sides = {name: partial(_in_a_process, source, job) for name, source in sources.items()}
            found = in_turns(sides, given.rounds, warm_ups=0)
            totals = {name: [run["total_ms"] for run in runs] for name, runs in found.items()}
            for name, runs in found.items():
                times = [
                    f"{statistics.median(run[f'{part}_ms'] for run in runs):.3f}"
                    for part in ("total", "draft", "accept", "other")
                ]
                ratio = f"{median_ratio(totals[name], totals['other']):.2f}" if given.against else ""
                cells.append([method, law, name, *times, f"{min(totals[name]):.3f}", ratio])
    columns = ("method", "law", "code", "ms/step", "draft", "accept", "other", "least", "x other")
    print(f"Outside the forwards, a chain of {CHAIN}, all accepted, {given.vocab} words, one thread.\n")
    print(Table("", columns, cells, left=3).markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("overhead", __doc__)
    parser.add_argument("--vocab", type=int, default=8192, help="size of the vocabulary")
    parser.add_argument("--methods", default="fixed-chain,prompt-lookup", help="what drafts, comma-separated")
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--against", type=Path, help="the src folder of another checkout, measured in turns")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

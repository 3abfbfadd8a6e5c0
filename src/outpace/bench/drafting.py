"""What drafting from history costs on the host: `python -m outpace.bench.drafting` prints microseconds per step.

No model runs. A text that repeats itself is replayed: each step proposes, then observes two written tokens and random
logits for every node, so that everything a drafter does between two forwards is timed, and nothing else.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from outpace.bench.command import new_parser, run_command
from outpace.bench.overhead import PresetModel
from outpace.bench.report import Table
from outpace.cache import Cache
from outpace.methods.base import Method
from outpace.methods.speculative.aded import Aded
from outpace.methods.speculative.alignment import Alignment, AlignmentState
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.methods.speculative.suffix import Suffix
from outpace.methods.speculative.token_recycling import TokenRecycling
from outpace.sampling import Sampler, Sampling
from outpace.types import Context, Counter, Outcome, Scores, View

__all__ = ["LIMIT_US", "drafters", "drafting", "main", "repeating_text"]

LIMIT_US = 200  # per step, on an idle core: n-gram lookup, suffix and recycling with 64 nodes at 8192 ids
_CHUNK = 256  # prompt tokens per observed chunk


def drafters(nodes: int) -> list[Method]:
    """Return the methods that draft from history, set to draft that many nodes wherever they can."""
    return [
        PromptLookup(draft_len=nodes),
        Suffix(nodes=nodes, factor=nodes, min_prob=0.0, is_tree=True),
        Suffix(nodes=nodes, factor=nodes, min_prob=0.0),
        TokenRecycling(nodes=nodes),
        Aded(nodes=nodes, depth=16),
        Alignment(draft_len=max(1, nodes // 3), threshold=1.0),
    ]


def drafting(
    vocab_size: int = 8192,
    nodes: int = 64,
    steps: int = 300,
    prompt: int = 2048,
    methods: Sequence[Method] | None = None,
) -> list[dict[str, Any]]:
    """Return one row of figures per drafter, each on one thread and one sequence.

    A row has method, nodes (drafted per step), propose_us and observe_us (medians), step_us (median of their sum),
    best_us (least of it), index_us and index_bytes (per prompt token; logits where the method asks for them), and
    table_bytes (before the first token).

    Args:
        vocab_size: V.
        nodes: per step.
        steps: timed, after 30 that warm up.
        prompt: tokens before the first step.
        methods: which; None = all of `drafters`.
    """
    text = repeating_text(vocab_size, prompt + 2 * (steps + 31))
    with _quiet():
        chosen = drafters(nodes) if methods is None else methods
        return [_measure(method, text, prompt, vocab_size, steps) for method in chosen]


def repeating_text(vocab_size: int, length: int, seed: int = 0) -> list[int]:
    """Return a text of phrases that come back: spans of 1 to 40 tokens from a Zipf-distributed source."""
    random = np.random.default_rng(seed)
    source = np.minimum(random.zipf(1.3, 4000), vocab_size) - 1
    text: list[int] = []
    while len(text) < length:
        first = random.integers(len(source) - 40)
        text += source[first : first + random.integers(1, 40)].tolist()
    return text[:length]


def _measure(method: Method, text: list[int], prompt: int, vocab_size: int, steps: int) -> dict[str, Any]:
    model = PresetModel(vocab_size)
    sampler = Sampler(Sampling(), [1])
    counters = {"target": Counter(), "draft": Counter()}
    state = method.start(Context(model, [text[:prompt]], 1 << 20, sampler, {}, counters))
    view = View([text[:prompt]], [prompt], [1 << 20], 0, Cache([torch.zeros(1, 1, 1, 1)], 2), sampler)
    size = _held(state)
    index_us, index_bytes = _fill(method, view, state, vocab_size)
    logits = _logits(method.needs.width + 1, vocab_size, text)
    figures = []
    for step in range(steps + 30):
        began = time.thread_time_ns()
        proposal = method.propose(view, state)
        middle = time.thread_time_ns()
        view.texts[0] += text[prompt + 2 * step : prompt + 2 * step + 2]
        scores = Scores(logits[:, : proposal.tokens.shape[1] + 1])
        path = [0, -1] if proposal.length[0] else [-1, -1]
        outcome = Outcome([view.texts[0][-2:]], [1], [path], proposal, scores=scores)
        again = time.thread_time_ns()
        state = method.observe(outcome, view, state)
        figures.append(((middle - began) / 1e3, (time.thread_time_ns() - again) / 1e3, proposal.length[0]))
    propose, observe, drafted = zip(*figures[30:], strict=True)
    total = [a + b for a, b in zip(propose, observe, strict=True)]
    return {
        "method": method.name,
        "settings": method.to_dict(),
        "nodes": statistics.mean(drafted),
        "propose_us": statistics.median(propose),
        "observe_us": statistics.median(observe),
        "step_us": statistics.median(total),
        "best_us": min(total),
        "index_us": index_us,
        "index_bytes": index_bytes,
        "table_bytes": size,
    }


def _fill(method: Method, view: View, state: Any, vocab_size: int) -> tuple[float, float]:
    """Show the prompt to the method, twice; return microseconds and bytes per token."""
    text, counters = view.texts[0], {"target": Counter(), "draft": Counter()}
    logits = _logits(_CHUNK, vocab_size, text) if method.needs.has_prefill_logits else None
    places = [range(first, first + _CHUNK) for first in range(0, len(text) - _CHUNK + 1, _CHUNK)]
    chunks = [Outcome([[]], [0], scores=None if logits is None else Scores(logits), chunk=[at]) for at in places]
    fresh = method.start(Context(PresetModel(vocab_size), [list(text)], 1 << 20, view.sampler, {}, counters))
    began = time.thread_time_ns()
    for chunk in chunks:
        method.observe(chunk, view, fresh)
    spent, held = time.thread_time_ns() - began, _held(state)
    tracemalloc.start()
    for chunk in chunks:
        method.observe(chunk, view, state)
    grown = tracemalloc.get_traced_memory()[0] + _held(state) - held
    tracemalloc.stop()
    return spent / 1e3 / len(text), grown / len(text)


def _logits(rows: int, vocab_size: int, text: list[int]) -> torch.Tensor:
    """Return random logits that prefer tokens of the text, so that what they make a drafter expect is known to it."""
    logits = torch.randn(1, rows, vocab_size, generator=torch.Generator().manual_seed(0))
    logits[..., sorted(set(text))] += 20
    return logits


def _held(state: Any) -> int:
    """Return the bytes of arrays and tensors that a state holds."""
    parts = state.laws if isinstance(state, AlignmentState) else getattr(state, "tables", state)
    return sum(getattr(part, "num_bytes", 0) for part in parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Use one thread, and collect no garbage: a pass over the whole heap costs more than a hundred steps."""
    threads, is_collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if is_collecting:
            gc.enable()


def _work(given: argparse.Namespace) -> None:
    """Print the table, always of one thread."""
    cells = []
    for row in drafting(given.vocab, given.nodes, given.steps):
        times = [f"{row[name]:.1f}" for name in ("nodes", "propose_us", "observe_us", "step_us", "best_us")]
        sizes = [f"{row['index_us']:.2f}", f"{row['index_bytes']:.0f}", str(row["table_bytes"])]
        cells.append([row["method"], *times, *sizes])
    print(Table("", _COLUMNS, cells).markdown())


_COLUMNS = (
    *("method", "nodes", "propose us", "observe us", "step us", "best us"),
    *("index us/token", "bytes/token", "table bytes"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("drafting", __doc__)
    parser.add_argument("--vocab", type=int, default=8192, help="size of the vocabulary")
    parser.add_argument("--nodes", type=int, default=64, help="drafted per step")
    parser.add_argument("--steps", type=int, default=300)
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

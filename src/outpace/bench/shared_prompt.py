"""Many texts of one prompt as one search, beside as many calls, and beside transformers, in pairs that take turns.

    python -m outpace.bench.shared_prompt --model stories --texts 16 --prompt-tokens 500 --max-tokens 32

Separate calls read the prompt each; transformers writes `num_return_sequences` texts in one batch. Memory is what the
search's pages hold at most, and its ratio to one row with the tails of the others beside it: the prompt once, and what
each text wrote. No text ends early, so that all write as many tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.api.starting import start
from outpace.bench.command import new_parser, run_command
from outpace.bench.distinct import PROMPTS
from outpace.bench.machine import describe
from outpace.bench.peers import load_hf
from outpace.bench.report import Table, new_report
from outpace.failures import tell
from outpace.run.threads import fixed

__all__ = ["held", "main", "seconds"]


def _arguments(texts: int, max_tokens: int) -> dict[str, Any]:
    options = {"n": texts, "reward": lambda found: [0.0] * len(found)}
    law = {"temperature": 1.0, "max_tokens": max_tokens, "ignore_eos": True}
    return {"search": "best-of", "options": options, **law}


def held(lm: LanguageModel, prompt: list[int], texts: int, max_tokens: int) -> tuple[int, float]:
    """Return the most bytes of a search's pages, and their ratio to one row and the tails of the others."""
    job = start(lm, prompt, _arguments(texts, max_tokens))
    pages, most = job.run.pages, 0
    assert job.searching is not None
    if pages is None:
        return 0, 0.0
    while not job.searching.is_over:
        job.searching.step()
        most = max(most, pages.num_pages - pages.num_free)
    entries = len(prompt) + texts * max_tokens
    return most * pages.page_bytes, most * pages.page_size / entries


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _separate(lm: LanguageModel, prompt: list[int], texts: int, max_tokens: int) -> None:
    for seed in range(texts):
        lm.generate(prompt, temperature=1.0, seed=seed, max_tokens=max_tokens, ignore_eos=True)


def _peer(model: Any, prompt: list[int], texts: int, max_tokens: int) -> None:
    ids = torch.tensor([prompt])
    given = {"do_sample": True, "top_k": 0, "min_new_tokens": max_tokens, "max_new_tokens": max_tokens}
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=texts, pad_token_id=0, **given)


def _work(given: argparse.Namespace) -> None:
    lm = load(given.model)
    whole = lm.encode(" ".join(PROMPTS[False]) + " The end. ")
    prompt = (whole * (given.prompt_tokens // len(whole) + 1))[: given.prompt_tokens]
    size = (given.texts, given.max_tokens)
    arms: dict[str, Callable[[], object]] = {
        "search": lambda: lm.generate(prompt, **_arguments(*size)),
        "separate calls": lambda: _separate(lm, prompt, *size),
    }
    if given.peer and lm.directory is not None:
        try:
            peer = load_hf(lm.directory, lm.target.dtype)
            arms["transformers"] = lambda: _peer(peer, prompt, *size)
        except (ImportError, ValueError, OSError) as error:
            tell(f"transformers cannot read the model: {str(error).splitlines()[0]}")
    rows = list[dict[str, Any]]()
    with fixed(given.threads or torch.get_num_threads()):
        for number in range(given.pairs):
            order = list(arms.items())[:: 1 if number % 2 else -1]
            rows.append({name: seconds(work) for name, work in order})
    bytes_held, ratio = held(lm, prompt, *size)
    cells = []
    for name in arms:
        times = [row[name] / row["search"] for row in rows]
        shown = f"{min(times):.1f} to {max(times):.1f}"
        middle = statistics.median(row[name] for row in rows)
        cells.append([name, f"{middle:.2f}", f"{statistics.median(times):.1f}", shown])
    table = Table("", ("arm", "seconds, median", "x search, median", "least to most"), cells)
    note = f"Pages of the search: {bytes_held / 2**20:.1f} MiB, {ratio:.2f} times one row and the other texts' tails."
    asked = {"model": Path(given.model).name, "texts": given.texts, "prompt_tokens": len(prompt)}
    asked |= {"max_tokens": given.max_tokens, "pairs": given.pairs}
    facts = {"bytes": bytes_held, "ratio": ratio}
    report = new_report("shared-prompt", asked, describe(), rows, tables=[table], notes=[note], memory=facts)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("shared_prompt", __doc__, threads=1)
    parser.add_argument("--model", default="stories", help="zoo name or directory of a causal decoder")
    parser.add_argument("--texts", type=int, default=16, help="of the prompt")
    parser.add_argument("--prompt-tokens", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=32, help="of each text")
    parser.add_argument("--pairs", type=int, default=3, help="times that all are measured, in turns")
    parser.add_argument("--peer", action="store_true", help="transformers too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

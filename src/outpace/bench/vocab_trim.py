"""VocabTrim by the size of the drafter's head: its bytes, what it accepts, and the speed-up where memory is the bound.

    python -m outpace.bench.vocab_trim stories --k 256,512,1024,2048,4096,8192

The tokens that stay are counted on texts that the target writes under other prompts than the measured ones. One row per
k: bytes of the trimmed head, tokens written per target forward, and the speed-up of `memory_bound_speedup`, after
Goel et al. (2025), arXiv 2506.22694. All of it is counted, nothing timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.prompts import read_prompts
from outpace.bench.report import Table
from outpace.bench.speed import model_facts
from outpace.draft.vocabulary import TokenCounts, count_tokens, memory_bound_speedup
from outpace.errors import ConfigError
from outpace.models.loading import read_config, resolve
from outpace.zoo import drafter_of

__all__ = ["Trimmed", "main", "table", "trimmed"]

_COUNTED = 192  # tokens per text that are counted on


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What one size of the head gave.

    Attributes:
        k: tokens that the head keeps.
        head_bytes: weights of the trimmed head.
        draft_bytes: weights that a forward of the drafter reads, the trimmed head included.
        acceptance_length: tokens written per target forward.
        speedup: over plain decoding, where reading weights is all that takes time.
    """

    k: int
    head_bytes: int
    draft_bytes: int
    acceptance_length: float
    speedup: float


def trimmed(
    model: str, draft: str, sizes: Sequence[int], num_prompts: int = 8, max_tokens: int = 64
) -> Iterator[Trimmed]:
    """Yield one record per size, under greedy decoding of the first stories of the shipped set.

    Raises:
        ConfigError: a size outside the vocabulary, or no prompt is left to count on.
    """
    texts = [prompt.text for prompt in read_prompts("stories", 0)]
    if not 1 <= num_prompts < len(texts):
        raise ConfigError(
            f"{num_prompts} prompts are asked for.", f"Take 1 to {len(texts) - 1}; the rest is counted on."
        )
    lm, drafter = load(model), load(draft)
    vocab = lm.target.capabilities.vocab_size
    if not all(1 <= k <= vocab for k in sizes):
        raise ConfigError(f"k is {min(sizes)} to {max(sizes)}.", f"Take 1 to {vocab}, the size of the vocabulary.")
    counts = count_tokens(lm, texts[num_prompts:], max_tokens=_COUNTED, temperature=1.0, seed=1, ignore_eos=True)
    whole, read = _streamed(lm, model), _streamed(drafter, draft)
    row = read_config(resolve(draft))["hidden_size"] * _size(drafter)
    for k in sizes:
        results = [
            lm.generate(
                prompt,
                max_tokens=max_tokens,
                ignore_eos=True,
                method="vocab-trim",
                options={"draft": draft, "k": k},
                memory=TokenCounts(counts.counts),  # a copy: it goes on counting
            )
            for prompt in texts[:num_prompts]
        ]
        steps = sum(result.usage.target_nfe for result in results)
        length = sum(len(result.tokens) for result in results) / steps
        drafted = sum(result.usage.draft_nfe for result in results) / steps
        ours = read - (vocab - k) * row
        yield Trimmed(k, k * row, ours, length, memory_bound_speedup(length, drafted, ours, whole))


def table(rows: Sequence[Trimmed]) -> str:
    """Return the records as a Markdown table."""
    columns = ("k", "head, bytes", "drafter reads, bytes", "tokens per target forward")
    cells = [
        (
            str(row.k),
            f"{row.head_bytes:,}",
            f"{row.draft_bytes:,}",
            f"{row.acceptance_length:.2f}",
            f"{row.speedup:.2f}",
        )
        for row in rows
    ]
    return Table("", (*columns, "speed-up where memory is the bound"), cells, left=0).markdown()


def _size(lm: LanguageModel) -> int:
    dtype: torch.dtype = lm.target.dtype
    return dtype.itemsize


def _streamed(lm: LanguageModel, name: str) -> int:
    """Return the bytes of weights that one forward reads."""
    facts = model_facts(name, resolve(name), lm.target.dtype)
    return int(facts["streamed_per_token"]) * _size(lm)


def _work(given: argparse.Namespace) -> None:
    draft = drafter_of(given.model) if given.draft == "auto" else given.draft
    print(table(list(trimmed(given.model, draft, given.k, given.prompts, given.max_tokens))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("vocab_trim", __doc__)
    parser.add_argument("model", help="the target, e.g. stories")
    parser.add_argument("--draft", default="auto", help="the drafter; auto = the shipped one")
    parser.add_argument("--k", type=numbers, default="256,512,1024,2048,4096,8192", help="sizes of the head")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

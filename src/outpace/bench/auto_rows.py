"""What `auto` gains or loses against plain decoding, by rows in a batch: `python -m outpace.bench.auto_rows`.

    python -m outpace.bench.auto_rows --model stories --prompts code --rows 1,8,32 --tokens 48 --repeats 5

Both decode the same prompts in turns, and the ratio is the median over pairs, so that what else runs meets both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.prompts import encode_prompt, read_prompts
from outpace.bench.rounds import in_turns
from outpace.bench.stats import median_ratio

__all__ = ["auto_rows", "main"]


def auto_rows(
    lm: LanguageModel, prompts: Sequence[list[int]], rows: Sequence[int], tokens: Sequence[int], repeats: int = 5
) -> list[dict[str, float]]:
    """Return one row of figures per number of rows and length of text, in the order asked.

    A row has rows, tokens, plain and auto (medians of tokens per second, all rows together), ratio (the median over
    pairs of `auto` over plain), and drafted (drafts that `auto` scored per token written).

    Args:
        lm: the model.
        prompts: taken in turn.
        rows: in a batch.
        tokens: written per row, past end tokens too.
        repeats: pairs.
    """
    figures = []
    for count in rows:
        texts = [prompts[i % len(prompts)] for i in range(count)]
        for length in tokens:
            sides = {method: partial(_rate, lm, texts, method, length) for method in ("autoregressive", "auto")}
            sides["autoregressive"]()  # warms up
            found = in_turns(sides, repeats, warm_ups=0)
            plain, auto = ([rate for rate, _ in runs] for runs in found.values())
            told = {"plain": statistics.median(plain), "auto": statistics.median(auto)}
            drafted = statistics.median(share for _, share in found["auto"])
            told |= {"ratio": median_ratio(auto, plain), "drafted": drafted}
            figures.append({"rows": count, "tokens": length, **told})
    return figures


def _rate(lm: LanguageModel, prompts: list[list[int]], method: str, tokens: int) -> tuple[float, float]:
    """Return tokens per second of all rows, and drafts per token written."""
    results = lm.generate(prompts, method=method, max_tokens=tokens, ignore_eos=True)
    total = sum(len(result.tokens) for result in results)
    return total / results[0].timing["decode_s"], sum(result.usage.num_proposed for result in results) / total


def _work(given: argparse.Namespace) -> None:
    lm = load(given.model)
    prompts = [encode_prompt(lm, prompt) for prompt in read_prompts(given.prompts)]
    print(f"{'rows':>5} {'tokens':>6} {'plain/s':>9} {'auto/s':>9} {'ratio':>6} {'drafted':>8}")
    for count in given.rows:
        for row in auto_rows(lm, prompts, [count], given.tokens, given.repeats):
            shown = f"{row['plain']:>9.0f} {row['auto']:>9.0f} {row['ratio']:>6.2f} {row['drafted']:>8.2f}"
            print(f"{row['rows']:>5} {row['tokens']:>6} {shown}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("auto_rows", __doc__)
    parser.add_argument("--model", default="stories")
    parser.add_argument("--prompts", default="stories", help="a shipped set, or a file")
    parser.add_argument("--rows", type=numbers, default="1,2,4,8,16,32")
    parser.add_argument("--tokens", type=numbers, default="48")
    parser.add_argument("--repeats", type=int, default=5)
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

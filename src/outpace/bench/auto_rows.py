"""What `auto` gains or loses against plain decoding, by rows in a batch: `python -m outpace.bench.auto_rows`.

    python -m outpace.bench.auto_rows --model stories --prompts code --rows 1,8,32 --tokens 48 --repeats 5

Both decode the same prompts in turns, and the ratio is the median over pairs, so that what else runs meets both alike.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from outpace.api.engine import LanguageModel, load
from outpace.bench.prompts import read_prompts

__all__ = ["auto_rows"]


def auto_rows(
    lm: LanguageModel, prompts: Sequence[str], rows: Sequence[int], tokens: Sequence[int], repeats: int = 5
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
            _rate(lm, texts, "autoregressive", length)  # warms up
            pairs = []
            for number in range(repeats):
                order = ("autoregressive", "auto") if number % 2 else ("auto", "autoregressive")
                found = {method: _rate(lm, texts, method, length) for method in order}
                pairs.append((found["autoregressive"][0], *found["auto"]))
            plain, auto, drafted = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(ours / theirs for theirs, ours, _ in pairs)
            told = {"plain": plain, "auto": auto, "ratio": ratio, "drafted": drafted}
            figures.append({"rows": count, "tokens": length, **told})
    return figures


def _rate(lm: LanguageModel, prompts: list[str], method: str, tokens: int) -> tuple[float, float]:
    """Return tokens per second of all rows, and drafts per token written."""
    results = lm.generate(prompts, method=method, max_tokens=tokens, ignore_eos=True)
    total = sum(len(result.tokens) for result in results)
    return total / results[0].timing["decode_s"], sum(result.usage.num_proposed for result in results) / total


def _main() -> None:
    parser = argparse.ArgumentParser(description="Measure auto against plain decoding by rows in a batch.")
    parser.add_argument("--model", default="stories")
    parser.add_argument("--prompts", default="stories", help="a shipped set, or a file")
    parser.add_argument("--rows", default="1,2,4,8,16,32")
    parser.add_argument("--tokens", default="48")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    prompts = [prompt.text for prompt in read_prompts(given.prompts)]
    rows, tokens = ([int(item) for item in text.split(",")] for text in (given.rows, given.tokens))
    print(f"{'rows':>5} {'tokens':>6} {'plain/s':>9} {'auto/s':>9} {'ratio':>6} {'drafted':>8}")
    lm = load(given.model)
    for count in rows:
        for row in auto_rows(lm, prompts, [count], tokens, given.repeats):
            print(
                f"{row['rows']:>5} {row['tokens']:>6} {row['plain']:>9.0f} {row['auto']:>9.0f} {row['ratio']:>6.2f} "
                f"{row['drafted']:>8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    _main()

"""How different the best texts of a search are: the share of distinct n-grams among those of a prompt.

    python -m outpace.bench.distinct --model translate
    python -m outpace.bench.distinct --model stories --methods beam-search diverse-beam-search:groups=4,diversity=2

Distinct-n (Li et al. 2016) is the number of different n-grams in all texts of a prompt, divided by the number of all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.failures import guarded
from outpace.methods.registry import read_spelled

__all__ = ["distinct", "measure"]

METHODS = ("beam-search", *(f"diverse-beam-search:groups=4,diversity={penalty}" for penalty in (0.5, 1.0, 2.0)))
PROMPTS = {
    True: (
        "Ein Hund läuft über die Wiese.",
        "Zwei Männer sitzen auf einer Bank im Park.",
        "Eine Frau in einem roten Kleid tanzt auf der Straße.",
        "Drei Kinder spielen mit einem Ball am Strand.",
    ),
    False: ("Once upon a time, there was", "One day, Tom", "The cat sat on", "Ben and Mia went to the beach."),
}


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams among those of some texts; 0 where there are none."""
    grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def measure(lm: LanguageModel, prompts: Sequence[str], method: str, beams: int, max_tokens: int) -> tuple[float, ...]:
    """Return the mean over prompts of distinct-1, distinct-2 and the best score, with as many texts as beams."""
    name, given = read_spelled(method)
    options = {"beams": beams, "n_best": beams, **given}
    seen = []
    for prompt in prompts:
        found: Any = lm.generate(prompt, method=name, options=options, max_tokens=max_tokens)
        results: list[Result] = found if isinstance(found, list) else [found]
        texts = [result.tokens for result in results]
        seen.append((distinct(texts, 1), distinct(texts, 2), results[0].score or 0.0))
    return tuple(sum(column) / len(seen) for column in zip(*seen, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description="How different the best texts of a search are.")
    parser.add_argument("--model", default="translate", help="zoo name or directory")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="searches, settings as in beam-search:beams=4")
    parser.add_argument("--beams", type=int, default=4, help="texts per prompt")
    parser.add_argument("--max-tokens", type=int, default=40, help="most tokens per text")
    asked = parser.parse_args(arguments)
    lm = load(asked.model)
    prompts = PROMPTS[lm.target.capabilities.is_encoder_decoder]
    print("| method | distinct-1 | distinct-2 | best score |\n|---|---|---|---|")
    for method in asked.methods:
        one, two, score = measure(lm, prompts, method, asked.beams, asked.max_tokens)
        print(f"| {method} | {one:.3f} | {two:.3f} | {score:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))

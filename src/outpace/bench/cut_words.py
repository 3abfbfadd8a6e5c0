"""What it costs to end a prompt inside a word: bits of the true next byte, by tokens as they are cut and by all covers.

    python -m outpace.bench.cut_words --models stories smollm2

Each text of a prompt set is cut at places drawn with a fixed seed. "as cut": the law of the token behind the prompt's
own tokens, summed by first byte. "exact": `next_bytes`. With --together the models' byte laws are averaged and
multiplied too, which they can be whatever their tokenizers.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.machine import describe
from outpace.bench.prompts import read_prompts
from outpace.bench.report import Table, new_report
from outpace.failures import guarded
from outpace.models.byte_model import byte_tokenizer
from outpace.text.byte_index import END
from outpace.text.speller import speller

__all__ = ["Cut", "as_cut", "cuts"]

_FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that ends where it was cut, and the byte that follows."""

    text: str
    byte: int
    is_inside: bool  # a word


def cuts(texts: Sequence[str], count: int, seed: int = 0) -> list[Cut]:
    """Return cuts of texts at random places, the same for the same seed; behind one character at least."""
    draw = random.Random(seed)
    found = list[Cut]()
    while len(found) < count:
        text = draw.choice(texts)
        at = draw.randrange(1, len(text))
        is_inside = text[at - 1].isalpha() and text[at].isalpha()
        found.append(Cut(text[:at], text[at].encode()[0], is_inside))
    return found


def as_cut(lm: LanguageModel, text: str) -> list[float]:
    """Return the probability of each byte behind a text, by the next token's law behind the text's own tokens."""
    ids = lm.encode(text)
    tokens, places = torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0)
    ask = torch.tensor([[len(ids) - 1]])
    logits = lm.target.score(tokens, places, None, lm.target.new_cache(1, len(ids)), ask).logits[0, 0]
    sums = [0.0] * END
    assert lm.tokenizer is not None  # or nothing was encoded
    spelled = speller(lm.tokenizer, lm.target.capabilities.vocab_size).bytes
    for chance, word in zip(logits.double().softmax(-1).tolist(), spelled, strict=True):
        if word:
            sums[word[0]] += chance
    total = sum(sums)
    return [each / total for each in sums]


def main(arguments: list[str] | None = None) -> int:
    """Print a table, and write it."""
    parser = argparse.ArgumentParser(description="What it costs to end a prompt inside a word.")
    parser.add_argument("--models", nargs="+", default=["stories"], help="causal models")
    parser.add_argument("--prompts", default="stories", help="a prompt set, or a file of texts")
    parser.add_argument("--count", type=int, default=200, help="cuts")
    parser.add_argument("--together", action="store_true", help="average and multiply the models' byte laws, too")
    parser.add_argument("--json", help="write the figures here")
    asked = parser.parse_args(arguments)
    given = cuts([prompt.text for prompt in read_prompts(asked.prompts)], asked.count)
    laws = dict[str, list[list[float]]]()
    for name in asked.models:
        lm = load(name)
        laws[f"{name}, as cut"] = [as_cut(lm, cut.text) for cut in given]
        laws[f"{name}, exact"] = [lm.next_bytes(cut.text).probs for cut in given]
    for sign in "+*" if asked.together else "":
        name = "bytes:" + sign.join(asked.models)
        laws[name] = [_of_bytes(load(name), cut.text) for cut in given]
    rows = [_row(name, found, given) for name, found in laws.items()]
    cells = [[row["law"], f"{row['bits']:.3f}", f"{row['bits_inside']:.3f}", f"{row['right']:.1f}"] for row in rows]
    table = Table("", ("law of the next byte", "bits", "bits inside words", "likeliest is right, %"), cells)
    report = new_report("cut-words", vars(asked), describe(), rows, tables=[table])
    print(report.markdown())
    if asked.json:
        report.write(asked.json)
    return 0


def _of_bytes(lm: LanguageModel, text: str) -> list[float]:
    tokens = torch.tensor([byte_tokenizer().encode(text)])
    places, ask = torch.arange(tokens.shape[1]).unsqueeze(0), torch.tensor([[tokens.shape[1] - 1]])
    logits = lm.target.score(tokens, places, None, lm.target.new_cache(1, tokens.shape[1]), ask).logits[0, 0]
    found: list[float] = logits.exp()[:END].tolist()
    return found


def _row(name: str, laws: Sequence[Sequence[float]], given: Sequence[Cut]) -> dict[str, Any]:
    bits = [-math.log2(max(_FLOOR, law[cut.byte])) for law, cut in zip(laws, given, strict=True)]
    inside = [value for value, cut in zip(bits, given, strict=True) if cut.is_inside]
    right = [max(range(END), key=law.__getitem__) == cut.byte for law, cut in zip(laws, given, strict=True)]
    return {
        "law": name,
        "bits": sum(bits) / len(bits),
        "bits_inside": sum(inside) / max(1, len(inside)),
        "right": 100 * sum(right) / len(right),
        "cuts": len(bits),
        "cuts_inside": len(inside),
    }


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))

"""Edits as spans: applying them gives the target back, whatever the two texts are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import pytest

from outpace.errors import ConfigError
from outpace.text.edits import Span, apply_spans, edit_spans, read_spans, realised, units, write_spans

ALPHABET = "ab c  .:\\\n\tn1 é\r\u2028'"


@pytest.mark.parametrize("seed", range(5))
def test_oracle_spans_reconstruct_every_target(seed: int) -> None:
    random = Random(seed)
    for _ in range(300):
        source = "".join(random.choices(ALPHABET, k=random.randrange(20)))
        target = list(source)
        for _ in range(random.randrange(4)):
            at = random.randrange(len(target) + 1)
            target[at : at + random.randrange(3)] = random.choices(ALPHABET, k=random.randrange(3))
        spans = edit_spans(source, "".join(target))
        assert "".join(units(source)) == source
        assert read_spans(write_spans(spans)) == spans
        assert apply_spans(source, read_spans(write_spans(spans))) == realised(source, write_spans(spans))
        assert apply_spans(source, spans) == "".join(target)


SHARED = Path(__file__).parents[3] / "shared" / "data"


def read_pairs(name: str) -> list[tuple[str, str]]:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not here")
    lines = gzip.decompress((SHARED / name).read_bytes()).decode().split("\n")[:1500]
    if name.endswith(".jsonl.gz"):
        return [(row["src"], row["tgt"]) for row in map(json.loads, filter(None, lines))]
    columns = [line.split("\t") for line in lines if line]
    return [(long, parts.replace("<::::> ", "")) for long, parts in columns]


@pytest.mark.parametrize("name", ["ua_gec/test.jsonl.gz", "wiki_split/test.tsv.gz"])
def test_real_pairs_are_reconstructed_from_fewer_characters(name: str) -> None:
    pairs = read_pairs(name)
    written = [write_spans(edit_spans(source, target)) for source, target in pairs]
    texts = [apply_spans(source, read_spans(spans)) for (source, _), spans in zip(pairs, written, strict=True)]
    assert texts == [target for _, target in pairs]
    assert sum(map(len, written)) < 0.5 * sum(len(target) for _, target in pairs)


def test_spans_say_what_changes_and_nothing_else() -> None:
    spans = edit_spans("She go to school.", "She goes to the school.")
    assert write_spans(spans) == "1 2 goes\n3 3 the"
    assert edit_spans("Same.", "Same.") == [] and write_spans([]) == "" and read_spans("") == []


def test_what_is_no_edit_is_refused_by_line_and_left_out_of_a_model_text() -> None:
    with pytest.raises(ConfigError, match="Line 2 is no edit: 'x'"):
        read_spans("1 2 goes\nx")
    with pytest.raises(ConfigError, match="units 5 to 9 does not fit behind unit 0 of 2"):
        apply_spans("a b", [Span(5, 9, "")])
    assert realised("She go home", "1 2 goes\n0 1 He\nx\n7 8\n3 3.") == "She goes home"
    assert realised("She go home", "1 2 goes\n3 3:.") == "She goes home."

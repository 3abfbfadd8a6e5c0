"""Methods on a canvas under constraints: every text is allowed, alone and in a ragged batch, filled in or not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import outpace
from outpace.api.engine import LanguageModel
from outpace.cli import main
from outpace.errors import ConfigError

pytest.importorskip("lark")

PROMPTS = ["Tom", "One day, a girl named Lily went to the"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = r"""
start: value
?value: object | array | STRING | NUMBER
object: "{" [STRING ": " value (", " STRING ": " value)*] "}"
array: "[" [value (", " value)*] "]"
STRING: /"[^"\\\x00-\x1f]*"/
NUMBER: /-?(0|[1-9][0-9]*)/
"""


def is_person(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"name", "age"} and len(value["name"]) <= 8 and 1 <= value["age"] <= 99


def parses(text: str) -> bool:
    json.loads(text)
    return True


KINDS: list[tuple[dict[str, Any], Any]] = [
    ({"regex": r"the [a-z ]{4,40}\."}, lambda text: re.fullmatch(r"the [a-z ]{4,40}\.", text) is not None),
    ({"json_schema": SCHEMA}, is_person),
    ({"grammar": JSON}, parses),
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories-mask", dtype="float64")


@pytest.mark.parametrize(("constraint", "holds"), KINDS, ids=["regex", "schema", "grammar"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "seed": 5, "options": {"block": 8}}], ids=["greedy", "drawn"]
)
def test_every_text_obeys_and_a_batch_equals_its_rows(
    lm: LanguageModel, constraint: dict[str, Any], holds: Any, options: dict[str, Any]
) -> None:
    request = {"method": "masked-diffusion", "max_tokens": 24, **constraint, **options}
    together = lm.generate(PROMPTS, **request)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert holds(result.text), result.text
        assert lm.generate(prompt, **request).tokens == result.tokens


@pytest.mark.parametrize("constraint", [kind for kind, _ in KINDS[1:]], ids=["schema", "grammar"])
def test_a_lossless_method_writes_what_its_reference_writes(lm: LanguageModel, constraint: dict[str, Any]) -> None:
    request = {"max_tokens": 20, "temperature": 0.9, "seed": 2, **constraint}
    plain = lm.generate("Tom said: ", method="masked-diffusion", **request)
    drafted = lm.generate("Tom said: ", method="freedave", options={"min_lead": 0.0}, **request)
    assert drafted.tokens == plain.tokens
    assert drafted.usage.target_nfe < plain.usage.target_nfe


def test_pieces_are_filled_in_as_the_constraint_wants(lm: LanguageModel) -> None:
    assert lm.tokenizer is not None
    pieces = [-1, -1, -1, *lm.tokenizer.encode(" cat"), -1, -1, *lm.tokenizer.encode(".")]
    pattern = r"[a-z]+( [a-z]+)*\."
    result = lm.generate("Once", method="masked-diffusion", canvas=pieces, regex=pattern)
    assert len(result.tokens) == len(pieces)
    assert re.fullmatch(pattern, result.text) and " cat" in result.text
    with pytest.raises(ConfigError, match="no way to meet the regular expression"):
        lm.generate("Once", method="masked-diffusion", canvas=pieces, regex="[b-z ]+")


def test_what_no_canvas_of_this_length_holds_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="No text of at most 5 tokens meets the JSON schema"):
        lm.generate("Once", method="masked-diffusion", max_tokens=5, json_schema=SCHEMA)
    with pytest.raises(ConfigError, match="No text of at most 1 tokens meets the grammar"):
        lm.generate("Once", method="masked-diffusion", max_tokens=1, grammar='start: "(" start ")" | "xqx"')
    with pytest.raises(ConfigError, match="No text of exactly 3 tokens"):
        lm.generate("Once", method="masked-diffusion", max_tokens=3, ignore_eos=True, regex="a")


def test_the_command_line_constrains_a_canvas(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "generate",
        "Tom said",
        "--model",
        "stories-mask",
        "--method",
        "masked-diffusion",
        "--max-tokens",
        "24",
    ]
    main([*arguments, "--json", "--json-schema", json.dumps(SCHEMA)])
    assert is_person(json.loads(capsys.readouterr().out)["text"])

"""`--card`: what a capability card should say instead, from the command line."""

from __future__ import annotations

import json

import pytest
from tests_cli import Command

from outpace import zoo
from outpace.models.loading import read_config

MASKED = ["x", "--model", "stories-mask", "--method", "masked-diffusion"]


@pytest.mark.parametrize(
    ("card", "message", "hint"),
    [
        ("logits_shift", "The card 'logits_shift' is not key=value", "--card logits_shift=false"),
        ("shift=true", "no field 'shift'", "'logits_shift'"),
        ("logits_shift=maybe", "logits_shift is 'maybe'", "true or false"),
        ("mask_id=8192", "mask_id is 8192", "0 to 8191"),
        ("mask_id=x", "mask_id is 'x'", "--card mask_id=5"),
        ("attention=block", "block_length is 0", "1 or more"),
        ("attention=causal", "causal attention and a mask token", "mask_id none"),
        ("noise=uniform", "noise is uniform", "masked checkpoint"),
    ],
)
def test_a_card_that_cannot_be(cli: Command, card: str, message: str, hint: str) -> None:
    ended = cli("generate", *MASKED, "--card", card)
    lines = ended.err.splitlines()
    assert (ended.status, ended.out, len(lines)) == (2, "", 2)
    assert lines[0].startswith("error: ") and message in lines[0]
    assert lines[1].startswith("hint: ") and hint in lines[1]


def test_a_wrong_shift_is_refused_with_figures(cli: Command) -> None:
    declared = bool(read_config(zoo.path("stories-mask")).get("logits_shift", False))
    ended = cli("generate", *MASKED, "--card", f"logits_shift={str(not declared).lower()}")
    assert ended.status == 2 and "masked tokens are found" in ended.err
    assert f"--card logits_shift={str(declared).lower()}" in ended.err


def test_what_the_card_says_already_changes_nothing(cli: Command) -> None:
    config = read_config(zoo.path("stories-mask"))
    plain, said = (
        json.loads(cli("generate", *MASKED, "--max-tokens", 4, "--json", *more).out)
        for more in ([], ["--card", f"mask_id={config['mask_token_id']}"])
    )
    assert plain["tokens"] == said["tokens"] and len(plain["tokens"]) == 4


def test_a_causal_card_makes_diffusion_methods_unfit(cli: Command) -> None:
    ended = cli("generate", *MASKED, "--card", "attention=causal", "--card", "mask_id=none")
    assert ended.status == 2 and "the model's is causal" in ended.err and "autoregressive" in ended.err

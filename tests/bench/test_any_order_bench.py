"""Forwards and likelihood of texts written in any order: the figures against a network read by hand, and a refusal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from outpace.bench.any_order import main, nats
from outpace.errors import ConfigError, OutpaceError
from outpace.methods.registry import read_spelled
from outpace.testing.world import toy_any_order


def test_nats_are_those_of_reading_token_after_token() -> None:
    target = toy_any_order()
    lm: Any = SimpleNamespace(target=target, name="toy")
    prompt, text = [1, 2], [3, 0, 1]
    whole, found = [*prompt, *text], 0.0
    for place in range(len(prompt), len(whole)):  # one place at a time, each from what stands before it alone
        tokens, order = torch.tensor([whole[: place + 1]]), torch.arange(place + 1).unsqueeze(0)
        with torch.inference_mode():
            law = target.net(tokens, order)[0, place].double().softmax(-1)
        found -= float(law[whole[place]].log())
    assert nats(lm, prompt, text) == pytest.approx(found / len(text), abs=1e-6)


def test_a_causal_model_is_refused() -> None:
    with pytest.raises(OutpaceError, match=r"any.order"):
        main(["stories", "--seeds", "1"])


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--max-tokens", "0"]])
def test_no_text_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="no text to measure"):
        main(["stories", *words])


@pytest.mark.parametrize("text", ["momentum:x", "momentum:=1"])
def test_an_option_without_a_value_is_named(text: str) -> None:
    assert read_spelled("a:b=c,d=e=f") == ("a", {"b": "c", "d": "e=f"}) and read_spelled("a") == ("a", {})
    with pytest.raises(ConfigError, match="is no option"):
        read_spelled(text)

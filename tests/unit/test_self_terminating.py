"""A law under which texts end: the bound by hand, and every decoding ends where the plain model goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import outpace
from outpace.laws.self_terminating import Ending

LAW = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


@pytest.mark.parametrize("ends", [(3,), (1, 3)])
@pytest.mark.parametrize("written", [0, 1, 7, 400])
def test_the_end_has_its_share_and_the_rest_keeps_its_proportions(ends: tuple[int, ...], written: int) -> None:
    state, logits = Ending(0.02).start([0], ends, 0), LAW.log() + 1.7
    for _ in range(written):
        state = state.after(2)
    state.apply(logits)
    bound = 1 - 0.98**written
    found, own = logits.softmax(-1), float(LAW[list(ends)].sum())
    assert float(found[list(ends)].sum()) == pytest.approx(bound + (1 - bound) * own)
    others = [token for token in range(4) if token not in ends]
    assert found[others].tolist() == pytest.approx((LAW[others] * (1 - bound)).tolist())
    assert found[list(ends)].tolist() == pytest.approx(
        (LAW[list(ends)] / own * float(found[list(ends)].sum())).tolist()
    )


def test_what_may_not_end_still_ends_by_the_bound() -> None:
    logits = torch.tensor([0.0, 0.0, -torch.inf])
    Ending(0.5, (2,), 1).apply(logits)
    assert logits.softmax(-1).tolist() == pytest.approx([0.25, 0.25, 0.5])
    untouched = torch.tensor([0.0, 1.0])
    Ending(0.5, (), 9).apply(untouched)  # nothing ends a text here
    Ending(0.5, (1,), 0).apply(untouched)
    assert untouched.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "given",
    [{}, {"temperature": 1.0, "top_k": 4}, {"temperature": 1.0, "top_p": 0.8}, {"method": "beam-search"}],
    ids=["greedy", "top-k", "nucleus", "beams"],
)
def test_every_decoding_ends_where_the_plain_model_goes_on(given: dict[str, Any]) -> None:
    lm = outpace.load("stories")
    prompt, room = "import os\n\ndef walk(path):\n", 120
    plain = lm.generate(prompt, max_tokens=room, **given)
    bound = lm.generate(prompt, max_tokens=room, law="self-terminating:epsilon=0.03", **given)
    assert plain.finish_reason == "length" and bound.finish_reason == "eos"


def test_without_a_bound_the_text_stays_and_drafts_obey_one() -> None:
    lm = outpace.load("stories", dtype="float64")
    law, given = "self-terminating:epsilon=0.02", {"max_tokens": 40, "temperature": 0.8}
    plain = lm.generate("Once upon a time", **given)
    assert lm.generate("Once upon a time", law="self-terminating:epsilon=0", **given).tokens == plain.tokens
    bound = lm.generate("Once upon a time", law=law, **given)
    assert lm.generate("Once upon a time", law=law, method="draft-model", **given).tokens == bound.tokens

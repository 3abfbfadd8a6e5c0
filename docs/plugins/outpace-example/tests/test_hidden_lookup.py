"""The method reads the hidden states that a forward of the whole text gives, and drafts what it should."""

from typing import Any

import pytest
import torch
from outpace_example.hidden_lookup import HiddenLookup

from outpace.errors import CapabilityError
from outpace.methods.misfit import check_fit
from outpace.testing import check_method
from outpace.testing.toy import ToyModel
from outpace.testing.world import PeriodicModel, drive, make_rows, make_run, write
from outpace.types import Capabilities, Outputs


@pytest.mark.parametrize("method", [HiddenLookup(), HiddenLookup(draft_len=1, low=0, high=3)])
def test_contract(method: HiddenLookup) -> None:
    check_method(method)


def test_hidden_states_are_those_of_the_whole_text() -> None:
    """From prompt chunks, roots and accepted drafts alike, at every final token but the last."""
    method, rows = HiddenLookup(draft_len=3), make_rows(max_tokens=12)
    run, model = make_run(method), ToyModel()
    drive(run, rows, steps=6)
    assert any(row.usage.num_accepted for row in rows)
    for row, known in zip(run.rows, run.batch.state, strict=True):
        text = torch.tensor([row.tokens])
        position = torch.arange(text.shape[1]).unsqueeze(0)
        given = (text, position, None, model.new_cache(1, text.shape[1]))
        taps = model.score(*given, outputs=Outputs(layers=(1, 2))).taps
        wanted = torch.nn.functional.normalize(torch.cat([taps[1], taps[2]], -1)[0, :-1], dim=-1)
        torch.testing.assert_close(known, wanted, rtol=0, atol=1e-12)


def test_drafts_are_right_where_the_text_repeats() -> None:
    [row] = write(HiddenLookup(), rows=make_rows([[*range(6), *range(6)]]), target=PeriodicModel(6))
    assert row.usage.num_proposed == row.usage.num_accepted > 0


@pytest.mark.parametrize(("offered", "lack"), [({}, "hidden states"), ({"has_hidden": True}, "layers up to 2")])
def test_a_model_without_such_states_is_refused(offered: dict[str, Any], lack: str) -> None:
    with pytest.raises(CapabilityError, match=lack):
        check_fit(HiddenLookup(), Capabilities(13, 64, num_layers=1, **offered))

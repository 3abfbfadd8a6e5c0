"""Early exit: the first layers draft, so it is skipping the last ones; what they add is all that can be rejected."""

from __future__ import annotations

import pytest

from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.early_exit import EarlyExit
from outpace.methods.speculative.layer_skip import LayerSkip
from outpace.sampling import Sampling
from outpace.testing import ToyModel
from outpace.testing.world import Watched, drive, make_rows, make_run, write


@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=0.8)], ids=["greedy", "sampled"])
def test_layers_that_add_nothing_may_be_left_out(settings: Sampling) -> None:
    target = ToyModel(num_layers=5, seed=3)
    target.weights[1][3:] = 0
    method = EarlyExit(exit_layer=3, draft_len=4, is_adaptive=False)
    rows = write(method, settings, make_rows(max_tokens=21), target=target)
    assert all(row.usage.num_accepted == row.usage.num_proposed for row in rows)
    # Steps of four drafts and a bonus, worked out by hand: 5, 10, 15, 20, and one last token.
    assert [row.usage.num_steps for row in rows] == [5] * len(rows)
    plain = write(Autoregressive(), settings, make_rows(max_tokens=21), target=target)
    assert [row.written for row in rows] == [row.written for row in plain]


def test_it_is_skipping_the_last_layers() -> None:
    target = Watched(ToyModel(num_layers=5, seed=3))
    run = make_run(EarlyExit(exit_layer=2, draft_len=4), target=target)
    rows = make_rows()
    drive(run, rows)
    assert target.calls.skips == {2, 3, 4}
    other = write(LayerSkip(skip=(2, 3, 4)), target=target)
    assert [row.sources for row in rows] == [row.sources for row in other]
    # Two of five layers per drafting forward.
    assert run.counters["draft"].layers == 2 * run.counters["draft"].nfe


def test_half_of_the_layers_by_default() -> None:
    target = Watched(ToyModel(num_layers=5))
    write(EarlyExit(), target=target)
    assert target.calls.skips == {3, 4}


def test_an_exit_behind_the_last_layer() -> None:
    for settings in ({"exit_layer": -1}, {"draft_len": 0}):
        with pytest.raises(ConfigError):
            EarlyExit(**settings)
    with pytest.raises(ConfigError, match="the model has 5 layers"):
        make_run(EarlyExit(exit_layer=5), target=ToyModel(num_layers=5)).join(make_rows())

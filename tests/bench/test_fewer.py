"""The table of fewer forwards: what counts as equal, and what is measured."""

from __future__ import annotations

from dataclasses import replace

from outpace.bench.canvas import SweepPoint
from outpace.bench.fewer import sweeps, table

FIRST = SweepPoint(
    arm="fixed", model="m", method="masked-diffusion", set="stories", settings={"per_step": 1, "block": 16},
    quality=0.3, nll=1.2, entropy=3.0, tokens=64, forwards=64, positions=900, draft_forwards=0, seconds=1.0,
)  # fmt: skip


def test_equal_means_equal_likelihood_and_entropy() -> None:
    points = [
        FIRST,
        replace(FIRST, nll=1.24, entropy=2.95, forwards=32, draft_forwards=96),
        replace(FIRST, nll=1.26),
        replace(FIRST, nll=0.5, entropy=2.8),  # likelier, because it repeats itself
    ]
    found = table(points)
    assert [line[-1] for line in found.cells] == ["yes", "yes", "no", "no"]
    assert [line[3] for line in found.cells] == ["1.00", "2.00", "1.00", "1.00"]
    assert [line[4] for line in found.cells] == ["0.00", "1.50", "0.00", "0.00"]
    assert found.cells[0][2] == "per_step=1, block=16"


def test_the_reference_comes_first_and_parts_only_where_they_are_named() -> None:
    bare = sweeps("m", [], "", 16)
    assert (bare[0].method, bare[0].settings[0]) == ("masked-diffusion", {"per_step": 1, "block": 16})
    assert {sweep.method for sweep in bare} == {"masked-diffusion", "fast-dllm", "edlm"}
    more = sweeps("m", ["s"], "filter.json", 16)
    assert {sweep.model for sweep in more} == {"m", "s"}
    assert {sweep.method for sweep in more} - {sweep.method for sweep in bare} == {"learn2pd"}
    told = sweeps("m", [], "", 16, ["t"])[len(bare) :]
    assert [(sweep.model, sweep.method) for sweep in told] == [("t", "masked-diffusion"), ("t", "rcd")]
    assert told[0].settings == told[1].settings

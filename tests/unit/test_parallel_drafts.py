"""PARD: a causal model with masks drafts all places in one forward, and the objective that teaches it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from outpace.draft.pard import ParallelDrafter
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.pard import Pard
from outpace.models.loading import load_model
from outpace.run.row import Row
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, PeriodicModel, drive, make_rows, make_run, write
from outpace.train.data import MASK_ID
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import masked_loss
from outpace.train.objectives_parallel import kept_levels, parallel_canvas
from outpace.types import Adapter


class Watching(ParallelDrafter):
    """Compares every draft with one forward of everything, without a cache."""

    seen: ClassVar[list[int]] = []

    def texts(self, view: Any, reach: Any) -> torch.Tensor:
        found = super().texts(view, reach)
        for row, (text, ahead) in enumerate(zip(view.texts, reach, strict=True)):
            if not ahead:
                continue
            tokens = torch.tensor([[*text, *[self.mask] * (ahead - 1)]])
            position = torch.arange(tokens.shape[1]).unsqueeze(0)
            cache = self.adapter.new_cache(1, tokens.shape[1])
            wanted = self.adapter.score(tokens, position, None, cache).logits[0, len(text) - 1 :]
            assert self.made is not None and torch.allclose(self.made[row, :ahead], wanted, atol=1e-9)
            self.seen.append(row)
        return found


@pytest.mark.parametrize("method", [Pard(draft_len=4), Pard(budget=6), Pard(branches=(2, 2))])
def test_drafts_are_what_a_forward_of_everything_says(method: Pard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was accepted before: masks leave nothing in the cache, and texts nothing out."""
    monkeypatch.setattr("outpace.methods.speculative.pard.ParallelDrafter", Watching)
    Watching.seen.clear()
    plain = [row.written for row in write(Autoregressive(), SETTINGS["temperature 0.7"])]
    assert [row.written for row in write(method, SETTINGS["temperature 0.7"])] == plain
    assert {*Watching.seen} == {*range(len(PROMPTS))}


def test_a_drafter_that_must_be_right_is_always_accepted_and_runs_once_a_round() -> None:
    """It goes on by position alone, behind masks too."""
    for target in (PeriodicModel(period=4), PeriodicModel(period=4)):  # one drafter, several targets
        drafter = PeriodicModel(period=4)
        drafter.mask_token = 12
        row = Row([0, 1], 2, 0, 21)
        drive(make_run(Pard(draft_len=4, is_adaptive=False), target=target, models={"draft": drafter}), [row])
        assert row.written == [at % 4 for at in range(2, 23)]
        assert row.usage.num_steps == 5 and row.usage.num_accepted == 16
        assert row.usage.draft_nfe == 4  # one a round, which reads the prompt too; none before the last token


def test_a_long_prompt_is_read_before_it_is_drafted_from() -> None:
    row = Row([one % 13 for one in range(90)], 90, 0, 6)
    run = make_run(Pard(), capacity=128)
    drive(run, [row])
    again = Row(row.tokens[:90], 90, 0, 6)
    drive(make_run(Autoregressive(), capacity=128), [again])
    assert row.written == again.written and row.usage.num_proposed


def test_a_row_drafts_as_it_does_alone() -> None:
    together = write(Pard(), SETTINGS["temperature 0.7"])
    for index in range(len(PROMPTS)):
        alone = make_rows()[index]
        write(Pard(), SETTINGS["temperature 0.7"], [alone])
        assert alone.sources == together[index].sources


def test_the_mask_is_named_by_the_files(tiny: Path, altered: Callable[[Callable[[Any], object]], Path]) -> None:
    directory = altered(lambda weights: None)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "pard_token": 7}))
    assert load_model(directory, "float64").mask_token == 7
    assert load_model(tiny, "float64").mask_token is None


@pytest.mark.parametrize(
    ("mask", "named", "word"), [(-1, None, "no pard_token"), (13, None, "outside"), (-1, 99, "outside")]
)
def test_a_drafter_without_a_mask_is_refused(mask: int, named: int | None, word: str) -> None:
    drafter: Adapter = ToyModel()
    drafter.mask_token = named
    with pytest.raises(ConfigError, match=word):
        write(Pard(mask=mask), models={"draft": drafter})


def test_masks_are_dropped_with_all_deeper_ones() -> None:
    levels = kept_levels(20, 3, 0.5, torch.Generator().manual_seed(0))
    assert [len(places) for places in levels] == [10, 5, 2]
    assert {*levels[2]} < {*levels[1]} < {*levels[0]}


def test_a_canvas_asks_what_drafting_asks() -> None:
    """Every output of the objective is the one of a chain: the text up to a place, and masks behind it."""
    shape = LlamaShape(hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, vocab=40)
    network = Llama(shape, seed=1).double()
    tokens = torch.randint(5, 40, (2, 13), generator=torch.Generator().manual_seed(0))
    canvas = parallel_canvas(tokens, depth=2, share=0.6, step=3, seed=0)
    hidden = network.hidden(canvas.inputs, pieces=canvas.pieces, positions=canvas.positions)
    assert canvas.positions is not None
    places = canvas.positions.tolist()
    width, checked = canvas.inputs.shape[1], 0
    levels = kept_levels(10, 2, 0.6, torch.Generator().manual_seed(3))
    masks = [(place, level) for level, kept in enumerate(levels, 1) for place in kept]
    for at, (place, level) in enumerate([*((place, 0) for place in range(12)), *masks]):
        assert places[at] == place + level
        text = torch.cat([tokens[:, : place + 1], torch.full((2, level), MASK_ID)], 1)
        assert torch.allclose(network.hidden(text)[:, -1], hidden[:, at], atol=1e-9)
        assert canvas.targets[at] == tokens[0, place + level + 1]
        assert canvas.targets[width + at] == tokens[1, place + level + 1]
        checked += 1
    assert checked == width
    assert float(canvas.weights.sum()) == pytest.approx(3)  # each task weighs as much


def test_training_teaches_to_draft_a_periodic_text() -> None:
    shape = LlamaShape(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24, vocab=16)
    network = Llama(shape, seed=0)
    tokens = (torch.arange(17) % 4 + 8).expand(2, -1)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.06)
    losses = []
    for step in range(40):
        loss = masked_loss(network, *parallel_canvas(tokens, 2, 0.8, step, 0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    text = torch.cat([tokens[:1, :6], torch.full((1, 2), MASK_ID)], 1)
    assert network(text)[0, -3:].argmax(-1).tolist() == [int(tokens[0, at]) for at in (6, 7, 8)]


def test_settings_of_a_tree_are_those_of_trained_drafters() -> None:
    with pytest.raises(ConfigError, match="chains"):
        Pard(budget=4, accept_rule="rejection")
    assert replace(Pard(), budget=3).needs.has_tree and not Pard().needs.has_tree

"""On a canvas: the reference is a plain loop's text, the lossless methods are the reference's, and the law is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow
from outpace.canvas.rules import Choice, Ranked
from outpace.errors import ConfigError
from outpace.methods.diffusion.freedave import FreeDave
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.ssd import SSD
from outpace.methods.registry import load_method, method_names
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.canvas_checks import check_canvas_method, check_reference, toy_canvas
from outpace.testing.canvas_oracle import random_order_law, unmask
from outpace.testing.gtest import PROMPT, g_test, small_model
from outpace.testing.world import PROMPTS, SEED, SETTINGS, drive, make_rows, make_run, target_for
from outpace.types import Guarantee

KINDS = [("full", False), ("full", True), ("block", False), ("block", True)]
CANVAS = [name for name in method_names() if load_method(name)().needs.attention == "canvas"]


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("name", ["greedy", "temperature 0.7"])
@pytest.mark.parametrize(("attention", "is_shifted"), KINDS)
def test_reference_is_the_plain_loop(attention: str, is_shifted: bool, name: str, order: str) -> None:
    model, ends = toy_canvas(attention, is_shifted), (3, 5)
    given = [[-1] * 9, [-1] * 9, [-1, 7, -1, -1, 8, 2, -1, -1, -1]]
    rows = [Row(list(p), len(p), row_key(SEED, i), 9, ends) for i, p in enumerate(PROMPTS[:3])]
    for row, rest in zip(rows, given, strict=True):
        row.canvas = list(rest)
    block = 3 if attention == "full" else 2
    drive(make_run(MaskedDiffusion(block=block, order=order), SETTINGS[name], target=model), rows)
    for row, rest, prompt in zip(rows, given, PROMPTS, strict=False):
        wanted = unmask(model, prompt, rest, SETTINGS[name], row.key, block, order, ends)
        assert row.written == wanted


@pytest.mark.parametrize("name", [name for name in CANVAS if name not in ("freedave", "ssd")])
def test_contract_on_canvases(name: str) -> None:
    check_canvas_method(load_method(name)())


@pytest.mark.parametrize("method", [FreeDave(), SSD()], ids=lambda method: method.name)
def test_contract_of_lossless_methods(method: FreeDave | SSD) -> None:
    assert method.guarantee is Guarantee.EXACT
    check_canvas_method(method)


@pytest.mark.parametrize("attention", ["full", "block"])
def test_fewer_guesses_change_no_text(attention: str) -> None:
    """Where guesses wait for a clear lead, steps lie between those of guessing always and those of the reference."""
    written, steps = [], []
    for method in (FreeDave(min_lead=0.0), FreeDave(min_lead=0.02), FreeDave(), FreeDave().reference()):
        rows = make_rows()
        run = make_run(method, SETTINGS["temperature 0.7"], target=target_for(attention))
        drive(run, rows)
        written.append([row.written for row in rows])
        steps.append(run.num_steps)
    assert all(texts == written[-1] for texts in written)
    assert steps == sorted(steps) and steps[0] < steps[1] < steps[-1]


@dataclass(frozen=True)
class Moody(Ranked):
    """Decides by what it remembers: the probability of what it wrote last."""

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        choice = Ranked("left" if memo and memo > 0.5 else "confidence").choose(reading, row, row.memo)
        choice.memo = float(reading.confidence[choice.writes].min())
        return choice


class MoodyReference(MaskedDiffusion):
    @property
    def rule(self) -> Ranked:
        return Moody()


class MoodySSD(SSD):
    @property
    def rule(self) -> Ranked:
        return Moody()

    def reference(self) -> MaskedDiffusion:
        return MoodyReference(cache=self.cache, block=self.block, refresh=self.refresh)


def test_rules_with_a_memory() -> None:
    check_reference(MoodySSD())


def test_one_copy_is_the_reference() -> None:
    rows, wanted = ([Row(list(PROMPTS[0]), 10, 1, 8)] for _ in range(2))
    drive(make_run(FreeDave(copies=1), SETTINGS["greedy"], target=toy_canvas("block", True)), rows)
    drive(make_run(MaskedDiffusion(), SETTINGS["greedy"], target=toy_canvas("block", True)), wanted)
    assert rows[0].written == wanted[0].written and rows[0].usage == wanted[0].usage


def test_a_small_cache_only_makes_fewer_guesses() -> None:
    """Capacity decides how many copies fit, never what is written."""
    texts = []
    for capacity in (19, 40, 200):
        row = Row(list(PROMPTS[0]), 10, 1, 8)
        drive(
            make_run(FreeDave(copies=8), SETTINGS["greedy"], target=toy_canvas("full", True), capacity=capacity), [row]
        )
        texts.append(row.written)
    assert texts[0] == texts[1] == texts[2]


def test_bad_settings() -> None:
    for method, settings in ((FreeDave, {"copies": 0}), (FreeDave, {"order": "up"}), (SSD, {"width": 0})):
        with pytest.raises(ConfigError):
            method(**settings)


def test_law_of_random_order() -> None:
    """Texts follow the enumerated law over both orders; the lossless method writes the same texts."""
    model, settings, num = small_model("full"), Sampling(temperature=0.9), 1_000
    prompt = [2 if token == model.capabilities.mask_id else token for token in PROMPT]
    texts = {}
    for method in (MaskedDiffusion(order="random", block=2), FreeDave(order="random", block=2, copies=2)):
        rows = [Row(list(prompt), 3, row_key(0, i), 2) for i in range(num)]
        drive(make_run(method, settings, target=model, capacity=24), rows)
        texts[method.name] = torch.tensor([row.written for row in rows])
    assert torch.equal(texts["masked-diffusion"], texts["freedave"])
    vocab = model.capabilities.vocab_size
    cells = texts["freedave"][:, 0] * vocab + texts["freedave"][:, 1]
    law = random_order_law(model, prompt, 0.9)
    assert abs(float(law.sum()) - 1) < 1e-12
    assert g_test(cells.bincount(minlength=vocab**2), law) > 1e-3

"""S2D: a nested drafter that is left at the first exit that is sure, and how its exits are taught."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from outpace.draft.exits import ExitDrafter
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.s2d import SortedDraft
from outpace.models.loading import load_model
from outpace.sampling import Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, drive, make_rows, make_run, write
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import sorted_loss
from outpace.types import Adapter


def at_exit(model: Adapter, text: Sequence[int], layers: int) -> Tensor:
    """Logits after a text when the model is left after so many layers: one forward of everything, without a cache."""
    skip = tuple(range(layers, model.capabilities.num_layers))
    tokens = torch.tensor([list(text)])
    position = torch.arange(len(text)).unsqueeze(0)
    return model.score(tokens, position, None, model.new_cache(1, len(text)), skip=skip).logits[0, -1]


class Watching(ExitDrafter):
    """Compares every draft's logits with those of a forward of everything up to the exit that was taken."""

    exits_seen: ClassVar[list[int]] = []
    chains: ClassVar[list[list[int]]] = []

    def texts(self, view: Any, reach: Any) -> Tensor:
        self.chains[:] = [list(text) for text in view.texts]
        before = {stage: list(counts) for stage, counts in self.taken.items()}
        return self._compared(super().texts(view, reach), before)

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        for chain, one in zip(self.chains, token.tolist(), strict=True):
            chain.append(one)
        before = {stage: list(counts) for stage, counts in self.taken.items()}
        return self._compared(super().token(token, place, running), before)

    def _compared(self, logits: Tensor, before: dict[int, list[int]]) -> Tensor:
        for stage, counts in self.taken.items():
            for row, (old, new) in enumerate(zip(before[stage], counts, strict=True)):
                if new == old:
                    continue
                wanted = at_exit(self.adapter, self.chains[row], self.exits[stage])
                assert torch.allclose(logits[row], wanted, atol=1e-9)
                self.exits_seen.append(stage)
                held = [self.cache, *self.later.values()]
                assert held[stage].lengths[row] == len(self.chains[row])
        return logits


@pytest.mark.parametrize(("exits", "confidence"), [((1,), 0.21), ((1, 2), 0.21), ((2,), 2.0), ((1, 2), 0.0)])
def test_every_exit_says_what_a_forward_up_to_it_says(
    exits: tuple[int, ...], confidence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever exits the tokens before had, and whatever was accepted: what waits is neither lost nor read twice."""
    monkeypatch.setattr("outpace.methods.speculative.s2d.ExitDrafter", Watching)
    Watching.exits_seen.clear()
    plain = [row.written for row in write(Autoregressive(), SETTINGS["temperature 0.7"])]
    method = SortedDraft(exits=exits, confidence=confidence, draft_len=4)
    assert [row.written for row in write(method, SETTINGS["temperature 0.7"])] == plain
    wanted = {0} if confidence == 0 else {len(exits)} if confidence > 1 else {*range(len(exits) + 1)}
    assert {*Watching.exits_seen} == wanted


def test_a_llama_is_left_at_its_exits_too(tiny: Path, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With heads trimmed to read states, and for two targets."""
    monkeypatch.setattr("outpace.methods.speculative.s2d.ExitDrafter", Watching)
    Watching.exits_seen.clear()
    drafter = load_model(tiny_draft, "float64")
    for target in (load_model(tiny, "float64"), drafter):
        texts = []
        for method in (Autoregressive(), SortedDraft(exits=(1, 2), confidence=0.2, draft_len=3)):
            rows = make_rows(max_tokens=8)
            drive(make_run(method, Sampling(temperature=0.7), target=target, models={"draft": drafter}), rows)
            texts.append([row.written for row in rows])
        assert texts[0] == texts[1]
    assert len({*Watching.exits_seen}) > 1


def test_a_drafter_that_is_the_target_is_always_accepted_at_its_last_exit() -> None:
    toy = ToyModel()
    rows = write(SortedDraft(confidence=2.0, draft_len=3, is_adaptive=False), target=toy, models={"draft": toy})
    assert all(row.usage.num_emitted - row.usage.num_accepted == row.usage.num_steps for row in rows)
    assert min(row.usage.num_accepted for row in rows) > 0


def test_a_row_drafts_as_it_does_alone() -> None:
    together = write(SortedDraft(confidence=0.21), SETTINGS["temperature 0.7"])
    for index in range(len(PROMPTS)):
        alone = make_rows()[index]
        write(SortedDraft(confidence=0.21), SETTINGS["temperature 0.7"], [alone])
        assert alone.sources == together[index].sources


def test_exits_are_named_by_the_files(altered: Callable[[Callable[[Any], object]], Path]) -> None:
    directory = altered(lambda weights: None)
    config = json.loads((directory / "config.json").read_text())
    for named, wanted in (([1, 3], (1, 3)), ([1, 9], ()), ("1", ())):
        (directory / "config.json").write_text(json.dumps({**config, "exit_layers": named}))
        assert load_model(directory, "float64").exits == wanted


@pytest.mark.parametrize("exits", [(2, 1), (1, 1), (4,)])
def test_exits_that_do_not_rise_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="do not rise"):
        write(SortedDraft(exits=exits))


def test_sorted_training_teaches_every_exit() -> None:
    shape = LlamaShape(hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, vocab=16)
    network = Llama(shape, seed=0)
    tokens = (torch.arange(13) % 4 + 8).expand(2, -1)
    whole = network.hidden(tokens)
    assert torch.allclose(network.exit_states(tokens, (1, 2))[-1], whole)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.06)
    losses = []
    for _ in range(30):
        loss = sorted_loss(network, tokens, (1, 2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        first, last = (float(sorted_loss(network, tokens, (layers,))) for layers in (1, 2))
    assert max(first, last) < 0.7 * losses[0]

"""Heads that draft several places ahead: their laws against a plain recomputation, known answers, and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.draft.features import joined_states
from outpace.errors import ConfigError
from outpace.heads.chimera import ChimeraDrafter
from outpace.heads.draft import SlotDrafter
from outpace.heads.koala import KoalaNet
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadNet, load_kind
from outpace.heads.slots import SlotNet
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.registry import load_method
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, make_rows, target_for, write
from outpace.types import Adapter, Outputs, View

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("medusa", {}),
    ("medusa", {"own_output": True, "blocks": 2}),
    ("hydra", {}),
    ("hydra", {"prefix": True, "blocks": 2, "own_output": True}),
    ("koala", {}),
    ("amphista", {}),
    ("chimera", {}),
    ("refined", {"top": 5}),
    ("hidden-transfer", {"layer": 1}),
]
NAMES = ["-".join([kind, *settings]) for kind, settings in FORMS]


class ToyFrozen:
    """A toy target while a drafter is trained beside it."""

    def __init__(self, target: ToyModel, ids: Tensor | None = None) -> None:
        self.target, self.ids = target, ids

    def embed(self, tokens: Tensor) -> Tensor:
        return self.target.embed(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.target.head(hidden.double())
        return logits if self.ids is None else logits[..., self.ids]

    def forward(
        self,
        inputs: Tensor,
        position: Tensor,
        visible: Tensor,
        states: Tensor | None = None,
        first: int = 0,
        hook: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        if not self.target.weights[1].any():  # layers that add nothing, and let gradients through
            return inputs, []
        cache, tokens = self.target.new_cache(*position.shape), torch.zeros_like(position)
        given: dict[str, Any] = {"inputs": inputs.detach(), "skip": range(first), "outputs": Outputs(has_last=True)}
        last = self.target.score(tokens, position, visible, cache, **given).last
        assert last is not None
        return last, []


def made(kind: str, target: Adapter, settings: dict[str, Any], ids: Tensor | None = None) -> HeadNet:
    """Return a network in float64."""
    found, width = load_kind(kind), target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    config = found.made_for(width, target.capabilities.vocab_size, target.capabilities.num_layers, **settings)
    torch.manual_seed(0)
    return found(type(config)(**{**config.to_dict(), "draft_vocab": 0 if ids is None else len(ids)})).double()


def batch_of(target: ToyModel, net: HeadNet, texts: Sequence[Sequence[int]], ids: Tensor | None = None) -> Batch:
    """Return a batch of texts of one length: one forward of each whole text, nothing kept."""
    tokens = torch.tensor(texts)
    outputs, cache = net.config.outputs, target.new_cache(len(texts), tokens.shape[1])
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    scores = target.score(tokens, position, None, cache, outputs=outputs | Outputs(has_last=True))
    assert scores.last is not None
    taught = torch.ones_like(tokens, dtype=torch.bool)
    return Batch(tokens, taught, joined_states(scores, outputs), scores.last, ToyFrozen(target, ids))


def method_for(kind: str, **settings: Any) -> Method:
    """Return the method of a kind."""
    method: Method = load_method(kind)(**settings)
    return method


def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...], Tensor]]:
    """Note every law that a drafter gives, with its text and its path."""
    found: list[tuple[tuple[int, ...], tuple[int, ...], Tensor]] = []
    now: list[tuple[list[list[int]], Sequence[int]]] = []
    texts = SlotDrafter.texts

    def noted_texts(self: SlotDrafter, view: View, reach: Sequence[int]) -> Tensor:
        now[:] = [([list(text) for text in view.texts], reach)]
        return texts(self, view, reach)

    def noting(laws: Any) -> Any:
        def noted(self: SlotDrafter, depth: Tensor, path: Tensor) -> Tensor:
            given: Tensor = laws(self, depth, path)
            for row, (text, ahead) in enumerate(zip(*now[0], strict=True)):
                for node, more in enumerate(depth[row].tolist()):
                    if more < ahead:  # other nodes are padding
                        found.append((tuple(text), tuple(path[row, node, 1 : more + 1].tolist()), given[row, node]))
            return given

        return noted

    monkeypatch.setattr(SlotDrafter, "texts", noted_texts)
    for drafter in (SlotDrafter, ChimeraDrafter):
        monkeypatch.setattr(drafter, "laws", noting(drafter.laws))
    return found


@pytest.mark.parametrize(("kind", "settings"), FORMS, ids=NAMES)
def test_every_law_is_that_of_a_plain_recomputation(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged rows, trees, prompts in pieces: what training computes of the whole text is what drafting computes."""
    target, told = target_for("causal"), heard(monkeypatch)
    ids = None if kind in ("hydra", "koala") else torch.arange(0, 13, 2)  # the others draft some tokens alone
    net = made(kind, target, settings, ids)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    assert isinstance(net, SlotNet)
    write(
        method_for(kind, budget=6),
        SETTINGS["temperature 0.7"],
        target=target,
        models={"draft": HeadModel(net, target, ids)},
    )
    assert {len(path) for _, path, _ in told} == {0, 1, 2, 3} and len({len(text) for text, _, _ in told}) > 8
    for text, path, law in told[:: max(1, len(told) // 25)]:
        with torch.no_grad():
            whole = net.laws(batch_of(target, net, [[*text, *path]], ids))
        torch.testing.assert_close(law, whole[len(path)][0, len(text) - 2], rtol=1e-9, atol=1e-9)


class Cycle(ToyModel):
    """A model that writes, after a token, the one `step` further on: with 0 the same again and again."""

    def __init__(self, step: int) -> None:
        super().__init__(hidden=13, sharpness=4.0)
        self.weights[0], self.weights[3] = torch.eye(13).double(), torch.eye(13).double().roll(step, 1)
        self.weights[1].zero_()


@pytest.mark.parametrize(("kind", "settings"), FORMS, ids=NAMES)
def test_the_targets_own_next_token_head_is_always_right(kind: str, settings: dict[str, Any]) -> None:
    """A kind begins as the target's own law of the next token, which a model that repeats itself always follows."""
    target = Cycle(0)
    net = made(kind, target, settings)
    net.begin(ToyFrozen(target))
    rows = make_rows([[*prompt, prompt[-1]] for prompt in PROMPTS], max_tokens=21)
    write(method_for(kind, is_adaptive=False), rows=rows, target=target, models={"draft": HeadModel(net, target)})
    for row in rows:
        assert row.written == [row.tokens[0 : row.num_prompt][-1]] * 21
        # After the first step, which a prompt that ends in a token twice lets draft as well, 5 tokens each.
        assert row.usage.num_accepted == row.usage.num_proposed and row.usage.num_steps <= 6, row.usage


@pytest.mark.parametrize(("kind", "settings"), FORMS, ids=NAMES)
def test_training_on_what_the_target_wrote_lets_its_drafts_be_accepted(kind: str, settings: dict[str, Any]) -> None:
    target, prompts = Cycle(5), [[3, 1, 4], [2, 7, 1]]
    written = [row.tokens for row in write(Autoregressive(), rows=make_rows(prompts, max_tokens=30), target=target)]
    net = made(kind, target, settings)
    net.begin(ToyFrozen(target))
    batch = batch_of(target, net, written)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        lesson = net.loss(batch)
        optimizer.zero_grad()
        lesson.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(lesson.loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    rows = make_rows(prompts, max_tokens=30)
    write(method_for(kind), rows=rows, target=target, models={"draft": HeadModel(net, target)})
    assert [row.tokens for row in rows] == written
    for row in rows:
        assert row.usage.num_accepted > 0.8 * row.usage.num_proposed, row.usage


def test_a_judges_word_is_turned_around_where_it_enters_the_heads() -> None:
    """The judge descends on its own loss, the heads ascend on it, with a weight."""
    target, weight = target_for("causal"), 0.3
    both, text = (made("koala", target, {"adversarial": value}) for value in (weight, 0.0))
    for first, second in zip(both.parameters(), text.parameters(), strict=True):
        torch.nn.init.normal_(first, std=0.3)
        second.data.copy_(first)
    assert isinstance(both, KoalaNet) and isinstance(text, KoalaNet)
    batch = batch_of(target, both, [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    both.loss(batch).loss.backward()  # type: ignore[no-untyped-call]
    text.loss(batch).loss.backward()  # type: ignore[no-untyped-call]
    # By hand: the mean over heads of how badly the judge tells a head's states from the target's.
    judge, drafted, losses = both.judge, both.hidden(batch.states), []
    for k in range(4):
        true, made_up = batch.last[0, k + 1 : -1], drafted[0, : -k - 2, k]
        which = torch.eye(4).double()[k].expand(len(true), -1)
        says = [judge(torch.cat([states, which], -1)).squeeze(-1) for states in (true, made_up)]
        losses.append(-torch.cat([says[0].sigmoid().log(), (-says[1]).sigmoid().log()]).mean())
    plain = torch.autograd.grad(torch.stack(losses).mean(), list(both.parameters()))
    for (name, got), alone, part in zip(both.named_parameters(), text.parameters(), plain, strict=True):
        assert got.grad is not None
        base = torch.zeros_like(part) if alone.grad is None else alone.grad
        torch.testing.assert_close(got.grad, part if name.startswith("judge") else base - weight * part)
    assert both.bytes_per_draft() < sum(weight.numel() * weight.element_size() for weight in both.parameters())


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("medusa", {"blocks": 0}, "blocks is 0"),
        ("koala", {"own_output": True}, "no setting 'own_output'"),
        ("koala", {"adversarial": -1}, "adversarial is -1"),
        ("hydra", {"blocks": "many"}, "blocks is 'many'"),
        ("amphista", {"heads": 3}, "no setting 'heads'"),
        ("chimera", {"inner": -2}, "inner is -2"),
        ("hidden-transfer", {"layer": 3}, "layer is 3"),
    ],
)
def test_settings_that_a_kind_cannot_have_are_refused(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_kind(kind).made_for(8, 13, 3, **settings)

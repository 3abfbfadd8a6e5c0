"""Drafts from soft tokens in the target's own forward: PPD, BiTA, SPACE, gated LoRA, lexical units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.heads.files import open_head, save_head
from outpace.heads.gated import GatedTarget
from outpace.heads.lowrank import GatedLoraNet, LowRankNet, SpaceNet
from outpace.heads.model import HeadModel, new_head
from outpace.heads.net import Batch, load_kind
from outpace.heads.probe import ProbeDrafter, ProbeNet, sow
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.mixed import Mixed
from outpace.methods.speculative.bita import Bita
from outpace.methods.speculative.gated_lora import GatedLora
from outpace.methods.speculative.lud import Lud
from outpace.methods.speculative.opt_tree import OptTree
from outpace.methods.speculative.ppd import Ppd
from outpace.methods.speculative.probed import Probed, _plan
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.methods.speculative.space import Space
from outpace.models.loading import load_model
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.testing import world
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, PeriodicModel, drive, make_rows, make_run, write
from outpace.train.drafter.frozen import FrozenTarget
from outpace.types import Adapter, Guarantee, Wanted

METHODS = {"ppd": Ppd(), "bita": Bita(), "space": Space(), "gated-lora": GatedLora()}


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Adapter:
    """A tiny Llama whose matrices are at hand."""
    return load_model(tiny, "float64")


def factored(kind: str, frozen: FrozenTarget, target: Adapter, **settings: Any) -> LowRankNet:
    """A network whose factors are random, as after some training."""
    torch.manual_seed(3)
    offered, width = target.capabilities, frozen.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    chosen = load_kind(kind)
    net = chosen(chosen.made_for(width, offered.vocab_size, offered.num_layers, **settings))
    net.begin(frozen)
    assert isinstance(net, LowRankNet)
    for name, weight in net.named_parameters():
        if name.endswith("lora_B.weight") or name == "sampler.out.weight":
            torch.nn.init.normal_(weight, std=0.1)
    return net


def told_after(run: Any, row: int) -> Tensor | None:
    drafter = run.batch.state.drafter
    assert isinstance(drafter, ProbeDrafter)
    return drafter.told[row] if drafter.ends[row] == len(run.batch.rows[row].tokens) else None


def recomputed(target: Adapter, net: ProbeNet, text: Sequence[int], levels: int) -> Tensor:
    """Logits of a group behind the last but one token of a text, from one forward of everything, without a cache."""
    soft = net.soft()[: net.num_prompts + levels * net.ensemble].to(target.dtype)
    parents, before = net.parents(levels), len(text) - 1
    total = before + len(soft)
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    position = list(range(before))
    for at, parent in enumerate(parents):
        chain = [at]
        while parents[chain[-1]] >= 0:
            chain.append(parents[chain[-1]])
        visible[before + at, before:] = False
        visible[before + at, [before + one for one in chain]] = True
        position.append(before - 1 + len(chain))
        assert parent < at
    tokens = torch.tensor([[*text[:-1], *[0] * len(soft)]])
    inputs = target.embed(tokens).clone()
    inputs[0, before:] = soft
    cache = target.new_cache(1, total)
    scores = target.score(tokens, torch.tensor([position]), visible.unsqueeze(0), cache, inputs=inputs)
    masks = scores.logits[0, before + net.num_prompts :]
    return masks.view(levels, net.ensemble, -1).mean(1)


@pytest.mark.parametrize("name", ["ppd", "bita", "space", "gated-lora"])
@pytest.mark.parametrize("settings", [{}, {"budget": 5}, {"budget": 0, "branches": (2, 1)}])
def test_drafts_that_must_be_right_are_all_accepted(name: str, settings: dict[str, Any]) -> None:
    """The model continues by position alone, soft tokens included, so that a group knows what comes."""
    target = PeriodicModel(period=4)
    made = {"prompts": 4} if name == "bita" else {}  # a whole period further on
    head = new_head(name, target, **made)
    method = replace(METHODS[name], **{"budget": 0, "branches": (), "most": 60, **settings})
    row = Row([0, 1], 2, 0, 26)
    run = make_run(method, target=target, models={"draft": head})
    drive(run, [row])
    depth = len(settings.get("branches", ())) or 3
    if name == "gated-lora":  # its sampler reads states, which are not by position
        assert row.usage.num_proposed
    else:
        assert row.usage.num_accepted == row.usage.num_emitted - row.usage.num_steps
        assert row.usage.num_steps == 1 + -(-25 // (depth + 1))
    assert row.written == [at % 4 for at in range(2, 28)]


@pytest.mark.parametrize("made", [{}, {"ensemble": 2}, {"prompts": 2, "depth": 2}])
@pytest.mark.parametrize("method", [Ppd(budget=6, most=12), Ppd(budget=0, branches=(2, 2), most=30)])
def test_a_group_says_what_a_forward_of_everything_says(made: dict[str, int], method: Ppd) -> None:
    """Whatever the tree, the batch and the cache: no level sees a sibling, and nothing of a group is kept."""
    target = ToyModel()
    head = new_head("ppd", target, **made)
    run = make_run(method, SETTINGS["temperature 0.7"], target=target, models={"draft": head})
    run.join(make_rows(max_tokens=14))
    looked = 0
    while run.rows:
        run.step()
        for row, one in enumerate(run.batch.rows):
            told = told_after(run, row)
            if told is not None:
                wanted = recomputed(target, head.net, one.tokens, len(told))  # type: ignore[attr-defined]
                assert torch.allclose(told, wanted, atol=1e-9)
                looked += 1
    assert looked >= 15


def test_masks_pass_the_factors_and_nothing_else_does(decoder: Adapter) -> None:
    """Real tokens have the bits that they had; masks say what the training forward says of them."""
    frozen = FrozenTarget(decoder, dtype=torch.float64)
    net = factored("gated-lora", frozen, decoder, rank=2).double()
    gated = net.beside(decoder)
    assert isinstance(gated, GatedTarget) and isinstance(net, GatedLoraNet)
    tokens = torch.tensor([[5, 9, 2, 7, 0, 0, 0]])
    inputs = decoder.embed(tokens).clone()
    inputs[0, 4:] = net.soft().detach()
    position = torch.arange(7).unsqueeze(0)
    with torch.no_grad():
        plain, changed = (
            one.score(tokens, position, None, one.new_cache(1, 7), inputs=inputs) for one in (decoder, gated)
        )
    assert torch.equal(plain.logits[:, :4], changed.logits[:, :4])
    assert not torch.allclose(plain.logits[:, 4:], changed.logits[:, 4:], atol=1e-3)
    is_soft = (torch.arange(7) >= 4).double().view(1, 7, 1)
    visible = torch.ones(1, 7, 7, dtype=torch.bool).tril()
    with torch.no_grad():
        hidden, _ = frozen.forward(inputs, position, visible, hook=net.hook(is_soft))
        assert torch.allclose(frozen.logits(hidden), changed.logits, atol=1e-5)  # its rotations are in float32


def test_factors_at_masks_change_no_text_and_draft_otherwise(decoder: Adapter) -> None:
    frozen = FrozenTarget(decoder, dtype=torch.float64)
    net = factored("gated-lora", frozen, decoder, rank=2)
    texts = []
    for method in (Autoregressive(), GatedLora(), GatedLora(is_linear=True, draft_len=3)):
        models = {} if isinstance(method, Autoregressive) else {"draft": HeadModel(net, decoder)}
        rows = make_rows(max_tokens=12)
        drive(make_run(method, Sampling(temperature=0.8), target=decoder, models=models), rows)
        texts.append([row.written for row in rows])
        if models:
            assert sum(row.usage.num_proposed for row in rows)
    assert texts[0] == texts[1] == texts[2]


def test_gated_factors_ask_for_matrices_at_hand(decoder: Adapter) -> None:
    net = factored("gated-lora", FrozenTarget(decoder, dtype=torch.float64), decoder, rank=2)
    with pytest.raises(CapabilityError, match="at hand"):
        net.beside(ToyModel())


def test_the_tuned_target_is_the_one_that_was_trained(decoder: Adapter, tiny: Path, tmp_path: Path) -> None:
    """SPACE's adapter, merged into the target's files, gives what training saw at real tokens and at masks."""
    frozen = FrozenTarget(decoder, dtype=torch.float64)
    net = factored("space", frozen, decoder, rank=2)
    save_head(net, tmp_path, dtype=torch.float32)
    tuned = load_model(tiny, "float64", adapter=tmp_path)
    head = open_head(tmp_path, tuned)
    assert isinstance(head.net, SpaceNet)
    batch = batch_of(decoder, frozen, [[5, 9, 2, 7, 4, 8, 1, 3]])
    sown = sow(net, batch)
    with torch.no_grad():
        hidden, _ = frozen.forward(sown.inputs.double(), sown.position, sown.visible, hook=net.hook(sown.is_soft))
        wanted = frozen.logits(hidden)
        tokens = torch.zeros(sown.position.shape, dtype=torch.int64)
        cache = tuned.new_cache(1, tokens.shape[1])
        got = tuned.score(tokens, sown.position, sown.visible, cache, inputs=sown.inputs.double())
    assert torch.allclose(got.logits, wanted, atol=1e-5)  # the factors are kept in float32


def batch_of(target: Adapter, frozen: FrozenTarget, texts: list[list[int]], step: int = 0) -> Batch:
    """Texts as a batch, all of each taught but its first token."""
    tokens = torch.tensor(texts)
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    visible = torch.ones(len(texts), tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        last, _ = frozen.forward(frozen.embed(tokens), position, visible)
    is_taught = torch.ones_like(tokens, dtype=torch.bool)
    is_taught[:, 0] = False
    return Batch(tokens, is_taught, last.float(), last.float(), frozen, step)


@pytest.mark.parametrize("kind", ["ppd", "bita", "space", "gated-lora"])
def test_training_makes_the_loss_fall_and_drafts_be_accepted(kind: str, tiny: Path, vocab: int) -> None:
    """Some dozens of steps on one text of the target's own: what comes next in it is guessed then."""
    target = load_model(tiny, "float32")
    frozen = FrozenTarget(target, dtype=torch.float32)
    row = Row([65, 66], 2, 0, 12)
    drive(make_run(Autoregressive(), target=target), [row])
    torch.manual_seed(0)
    chosen = load_kind(kind)
    net = chosen(chosen.made_for(32, vocab, 3))
    net.begin(frozen)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    losses = []
    for step in range(14):
        lesson = net.loss(batch_of(target, frozen, [row.tokens], step))
        optimiser.zero_grad()
        lesson.loss.backward()
        optimiser.step()
        losses.append(float(lesson.loss.detach()))
        assert torch.all(lesson.hits <= lesson.counts) and lesson.counts[0] > lesson.counts[-1]
    assert losses[-1] < losses[0] - 0.5
    if kind != "space":  # whose target is another one then
        again = Row([65, 66], 2, 0, 12)
        drive(
            make_run(replace(METHODS[kind], budget=0), target=target, models={"draft": HeadModel(net, target)}), [again]
        )
        assert again.written == row.written and again.usage.num_accepted > 0


def test_groups_in_training_see_their_text_and_themselves(decoder: Adapter) -> None:
    """Every group of a training batch is what the run hangs behind the same token."""
    frozen = FrozenTarget(decoder, dtype=torch.float64)
    head = new_head("bita", decoder, depth=2, ensemble=2)
    text = [5, 9, 2, 7, 4, 8, 1, 3]
    batch = batch_of(decoder, frozen, [text])
    sown = sow(head.net.double(), batch)  # type: ignore[arg-type]
    with torch.no_grad():
        hidden, _ = frozen.forward(sown.inputs.double(), sown.position, sown.visible)
        laws = frozen.logits(sown.masks(hidden)).mean(-2)
    for at, place in enumerate(sown.place[0].tolist()):
        wanted = recomputed(decoder, head.net, text[: place + 2], 2)  # type: ignore[arg-type]
        assert torch.allclose(laws[0, at], wanted, atol=1e-6)


def test_a_plan_keeps_to_its_budget_and_takes_the_likeliest() -> None:
    net = new_head("ppd", ToyModel(), depth=3).net
    assert isinstance(net, ProbeNet)
    chain = _plan([-1, 0, 1], [0.9, 0.75, 0.7], 50, 5, net)
    assert chain == [(0, 2), (2, 3)]  # the walk ends at the last node with chance 0.7
    assert _plan([], [], 50, 2, net) == [(-1, 2)]
    assert _plan([], [], 3, 9, net) == [(-1, 1)], "With 3 tokens left the next step can draft one."
    assert _plan([-1], [0.5], 2, 9, net) == []


def test_a_unit_is_written_unchecked_only_where_the_model_is_sure() -> None:
    target = PeriodicModel(period=4)
    head = new_head("space", target)
    row = Row([0, 1], 2, 0, 26)
    drive(make_run(Lud(draft_len=3), target=target, models={"draft": head}), [row])
    assert row.written == [at % 4 for at in range(2, 28)] and row.usage.target_nfe < 10
    toy = ToyModel()
    models = {"draft": new_head("space", toy)}
    plain = [row.written for row in write(Autoregressive(), target=toy)]
    never = write(Lud(threshold=1.5), target=toy, models=models)
    assert [row.written for row in never] == plain
    assert all(row.usage.num_steps == row.usage.num_emitted for row in never)
    always = write(Lud(threshold=0.01), target=toy, models=models)
    assert [row.written for row in always] != plain
    assert all(row.usage.num_accepted == row.usage.num_proposed > 0 for row in always)
    assert Lud().guarantee is Guarantee.APPROXIMATE and Lud(threshold=1.5).guarantee is Guarantee.EXACT
    with pytest.raises(ConfigError, match="chain"):
        Lud(budget=4)


def test_masks_stand_beside_rows_of_other_methods() -> None:
    """One forward for soft tokens, trees and chains; every row writes what it writes alone."""
    target = ToyModel()
    head = new_head("ppd", target)
    run = make_run(Mixed(Autoregressive()), target=target, models={})
    rows = make_rows()
    wanted = [Wanted(Ppd(), {"draft": head}), Wanted(PromptLookup()), None]
    for row, one in zip(rows, wanted, strict=False):
        row.wanted = one
    run._is_mixed = True
    drive(run, rows)
    assert [row.written for row in rows] == [list(text) for text in world.reference("greedy")]
    assert rows[0].usage.num_proposed > 0


def test_a_row_drafts_as_it_does_alone() -> None:
    target = ToyModel()
    models = {"draft": new_head("ppd", target)}
    method = Ppd(budget=0, draft_len=3)
    together = write(method, SETTINGS["temperature 0.7"], target=target, models=models)
    for index in range(len(PROMPTS)):
        alone = make_rows()[index]
        write(method, SETTINGS["temperature 0.7"], [alone], target=target, models=models)
        assert alone.sources == together[index].sources
        assert alone.usage.num_proposed == together[index].usage.num_proposed


@pytest.mark.parametrize("method", [Ppd(accept_rule="rejection", budget=0), Space(accept_rule="rejection")])
def test_chains_go_with_the_rejection_rule(method: Probed) -> None:
    rows = write(method, SETTINGS["temperature 0.7"])
    assert sum(row.usage.num_proposed for row in rows)


def test_other_methods_are_told_where_such_a_drafter_works() -> None:
    target = ToyModel()
    models = {"draft": new_head("ppd", target)}
    with pytest.raises(CapabilityError, match=r"inside the target's own forward.*\n?.*"):
        write(OptTree(), target=target, models=models)
    with pytest.raises(ConfigError, match="needs 'bita'"):
        write(Bita(), target=target, models=models)
    with pytest.raises(ConfigError, match="needs 'space'"):
        write(Lud(), target=target, models={"draft": ToyModel()})


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [("ppd", {"ensemble": 0}, "ensemble is 0"), ("bita", {"prompts": -1}, "prompts"), ("space", {"rank": 0}, "rank")],
)
def test_bad_settings_are_refused(kind: str, settings: dict[str, int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        new_head(kind, ToyModel(), **settings)

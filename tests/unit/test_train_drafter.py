"""Training drafters: texts and states that survive a stop, the frozen target against its own forwards, and the loop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import outpace
from outpace.errors import CapabilityError, ConfigError, StorageError
from outpace.heads import losses
from outpace.heads.files import open_head, read_config
from outpace.heads.find import find_head, head_name
from outpace.models.opening import open_model
from outpace.train import checkpoint
from outpace.train.drafter import Plan, Writing, train_drafter
from outpace.train.drafter.batches import Shape, draftable, plan_epoch, split_texts
from outpace.train.drafter.frozen import FrozenTarget
from outpace.train.drafter.states import States, forward_states
from outpace.train.drafter.texts import Text, read_texts, write_texts
from outpace.train.drafter.trainer import DrafterTrainer
from outpace.types import Adapter, Outputs

PLAN = Plan(steps=6, rows=2, length=48, check_every=2, warmup=2)


@pytest.fixture(scope="module")
def target(tiny: Path) -> Adapter:
    return open_model(str(tiny), "float32", "cpu", None)


@pytest.fixture(scope="module")
def written(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty texts of the tiny model, some of them drawn."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lm = outpace.load(tiny, is_compiled=False)
    write_texts(lm, ["the quick", "a dog", [7, 8, 9]], path, Writing(count=30, max_tokens=20, rows=8))
    return path


@pytest.fixture
def texts(written: Path, vocab: int) -> list[Text]:
    return read_texts(written, vocab)


def test_texts_are_the_targets_own_and_go_on_where_they_were_stopped(tiny: Path, written: Path, tmp_path: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    told = [json.loads(line) for line in lines]
    assert len({one["id"] for one in told}) == 30
    assert {one["t"] for one in told} == {0.0, 0.8}
    lm = outpace.load(tiny, is_compiled=False)
    for one in told[:4]:
        seed = 3 * int(one["id"].split("-")[1])
        again = [
            lm.generate(one["prompt"], max_tokens=20, temperature=one["t"], seed=seed + i).tokens for i in range(3)
        ]
        assert one["answer"] in again
    part = tmp_path / "texts.jsonl"
    part.write_bytes(b"".join(lines[:11]) + lines[11][:15])  # killed while it wrote
    write_texts(lm, ["the quick", "a dog", [7, 8, 9]], part, Writing(count=30, max_tokens=20, rows=8))
    assert sorted(part.read_bytes().splitlines()) == sorted(written.read_bytes().splitlines())


def test_texts_of_another_target_are_refused(cycle: Path, written: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    for name in ("texts.jsonl", "texts.target.json"):
        (tmp_path / name).write_bytes((written.parent / name).read_bytes())
    with pytest.raises(ConfigError, match="another target"):
        write_texts(outpace.load(cycle), ["a"], path, Writing(count=40))
    with pytest.raises(ConfigError, match="holds token"):
        read_texts(path, 20)
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ConfigError, match="Line 1"):
        read_texts(path, 20)


def test_states_are_those_of_each_text_alone(target: Adapter, texts: list[Text], tmp_path: Path) -> None:
    outputs = Outputs((1, 3), False)
    kept = States(target, "tiny", texts, outputs, 24, tmp_path)
    kept.fill(is_stopping=iter([False, True]).__next__)
    assert kept.missing == 0  # one piece is the least that is done
    anew = States(target, "tiny", texts, outputs, 24, None)
    for index in (0, 7, 29):
        tokens = (texts[index].prompt + texts[index].answer)[:24]
        alone = forward_states(target, [tokens], Outputs((1, 3), True))[0]
        for found in (kept.read([index, 3])[0], anew.read([3, index])[1]):
            torch.testing.assert_close(found.float(), alone.float(), rtol=0.01, atol=0.02)


def test_states_go_on_after_a_stop_and_a_full_disk(
    target: Adapter, texts: list[Text], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outpace.train.drafter.states._PIECE", 8)
    new = lambda: States(target, "tiny", texts, Outputs((), True), 24, tmp_path)  # noqa: E731
    new().fill(is_stopping=iter([False, False, True]).__next__)
    assert new().missing == len(texts) - 16
    for name in ("states.bin", "states.index.jsonl"):  # killed while it wrote
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"[12, 3")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", _full)
        with pytest.raises(StorageError, match="No space left"):
            new().fill()
    done = new()
    assert done.missing == len(texts) - 16
    done.fill()
    whole = States(target, "tiny", texts, Outputs((), True), 24, tmp_path / "whole")
    whole.fill()
    assert (tmp_path / "states.bin").read_bytes() == (tmp_path / "whole" / "states.bin").read_bytes()
    with pytest.raises(ConfigError, match="other texts"):
        States(target, "tiny", texts[1:], Outputs((), True), 24, tmp_path)
    with pytest.raises(ConfigError, match="layers differs"):
        States(target, "tiny", texts, Outputs((2,), True), 24, tmp_path)


def _full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_the_frozen_target_computes_what_the_target_does(tiny: Path, texts: list[Text]) -> None:
    model = open_model(str(tiny), "float64", "cpu", None)
    ids = torch.tensor([3, 17, 40])
    frozen = FrozenTarget(model, ids, torch.float64)
    tokens = torch.tensor([texts[0].prompt + texts[0].answer])
    size = tokens.shape[1]
    inputs = model.embed(tokens).clone().requires_grad_()
    visible = torch.ones(1, size, size, dtype=torch.bool).tril()
    called: list[tuple[str, int]] = []

    def hook(name: str, layer: int, x: Tensor, out: Tensor) -> Tensor:
        called.append((name, layer))
        return out

    last, entered = frozen.forward(inputs, torch.arange(size)[None], visible, hook=hook)
    own = model.score(tokens, torch.arange(size)[None], None, model.new_cache(1, size), None, Outputs((0, 1, 2), True))
    assert own.last is not None and len(called) == 7 * 3
    torch.testing.assert_close(last, own.last)
    for layer in range(3):
        torch.testing.assert_close(entered[layer], own.taps[layer])
    torch.testing.assert_close(frozen.logits(last), own.logits[..., ids])
    later, _ = frozen.forward(entered[1], torch.arange(size)[None], visible, first=1)
    torch.testing.assert_close(later, last)
    last[0, 5].sum().backward()
    assert inputs.grad is not None and bool(inputs.grad[0, :6].any()) and not bool(inputs.grad[0, 6:].any())


def test_a_compiled_target_is_not_taken(cycle: Path) -> None:
    lm = outpace.load(cycle)
    if lm.target.path == "compiled":
        with pytest.raises(CapabilityError, match="plain"):
            FrozenTarget(lm.target)


class Toy:
    """A frozen target that is one matrix."""

    ids: Tensor | None = None

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.matrix)


@pytest.mark.parametrize("piece", [1 << 17, 130])
@pytest.mark.parametrize("is_soft", [False, True])
def test_losses_and_gradients_are_those_of_torch(piece: int, is_soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_PIECE", piece)
    draw = torch.Generator().manual_seed(0)
    toy = Toy(torch.randn(50, 8, generator=draw))
    hidden = torch.randn(300, 8, generator=draw).requires_grad_()
    label = torch.randint(0, 50, (300,), generator=draw)
    weight, other = torch.rand(2, 300, generator=draw)
    law = torch.randn(300, 50, generator=draw).softmax(-1) if is_soft else None
    logits = toy.logits(hidden)
    hard = F.cross_entropy(logits, label, reduction="none")
    soft = F.cross_entropy(logits, law, reduction="none") if law is not None else torch.zeros(300)
    right = logits.argmax(-1) == label

    compared = losses.compare(toy.logits(hidden), label, law)
    torch.testing.assert_close(compared.hard, hard)
    torch.testing.assert_close(compared.soft, soft)
    assert torch.equal(compared.right, right)
    if law is not None:
        torch.testing.assert_close(compared.kept, torch.minimum(law, logits.softmax(-1)).sum(-1))
    expected = torch.autograd.grad((hard * weight + soft * other).sum(), hidden, retain_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad((compared.hard * weight + compared.soft * other).sum(), hidden), expected
    )

    loss, was_right = losses.guess(toy, hidden, label, law)  # type: ignore[arg-type]
    wanted = soft if is_soft else hard
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(was_right, right)
    torch.testing.assert_close(
        torch.autograd.grad((loss * weight).sum(), hidden), torch.autograd.grad((wanted * weight).sum(), hidden)
    )


def test_an_epoch_shows_every_text_once_in_full_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(10, 100, (400,), generator=draw).tolist()
    texts = [Text(f"{i // 2}-{i % 2}", (1,) * 5, (2,) * size) for i, size in enumerate(sizes)]
    learn, held = split_texts(texts, 64)
    assert not {texts[i].group for i in learn} & {texts[i].group for i in held} and len(learn) + len(held) == 400
    plan = plan_epoch(texts, learn, Shape(rows=4, length=64), 0)
    assert sorted(i for batch in plan for i in batch) == learn
    assert plan != plan_epoch(texts, learn, Shape(rows=4, length=64), 1)
    lengths = [[min(64, 5 + sizes[i]) for i in batch] for batch in plan]
    assert all(len(batch) * max(batch) <= 4 * 64 for batch in lengths)
    assert sum(map(sum, lengths)) > 0.85 * len(plan) * 4 * 64


def test_the_draftable_tokens_are_the_most_frequent_and_the_ends() -> None:
    texts = [Text("0-0", (9,), (5, 5, 5, 3, 3, 8, 2))]
    found = draftable(texts, 20, 3, [19])
    assert found is not None and found.tolist() == [3, 5, 19]
    assert draftable(texts, 20, 20, [19]) is None and draftable(texts, 20, 0, [19]) is None


def test_a_stopped_run_resumes_to_the_same_loss(
    tiny: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = tmp_path / "texts.jsonl"  # more texts come in between
    grown.write_bytes(b"".join(written.read_bytes().splitlines(keepends=True)[:25]))
    given = {"texts": grown, "plan": replace(PLAN, draft_vocab=100), "settings": {"depth": 2}}
    assert train_drafter("medusa", str(tiny), tmp_path / "whole", **given) == 0
    over = DrafterTrainer.is_over
    monkeypatch.setattr(DrafterTrainer, "is_over", lambda self: "stopped" if self.step == 3 else over(self))
    assert train_drafter("medusa", str(tiny), tmp_path / "part", **given) == 0
    monkeypatch.undo()
    grown.write_bytes(written.read_bytes())
    with pytest.raises(ConfigError, match="other settings"):
        train_drafter("medusa", str(tiny), tmp_path / "part", **{**given, "settings": {"depth": 3}}, resume=True)
    assert train_drafter("medusa", str(tiny), tmp_path / "part", **given, has_cache=False, resume=True) == 0
    whole, part = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "part"))
    assert len(whole["losses"]) == 6 and whole["losses"] == part["losses"]
    assert all(torch.equal(weight, part["network"][name]) for name, weight in whole["network"].items())
    curves = [json.loads(line) for line in (tmp_path / "part" / "curves.jsonl").read_text().splitlines()]
    assert [one["step"] for one in curves] == [2, 4, 6]
    assert "outpace" not in (tmp_path / "part" / "card.md").read_text().split("\n")[0]
    opened = open_head(tmp_path / "part", open_model(str(tiny), "auto", "cpu", None))
    assert opened.ids is not None and len(opened.ids) == 100


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_what_was_trained_is_found_and_drafts(cycle: Path, store: Path) -> None:
    lm = outpace.load(cycle)
    with pytest.raises(ConfigError, match="No drafter of the kind 'medusa'") as error:
        lm.generate("a", method="medusa")
    assert "outpace train drafter --kind medusa" in error.value.hint
    plan = replace(PLAN, steps=30, check_every=30, matrix_rate=0.05, other_rate=0.05)
    writing = Writing(count=12, max_tokens=40)
    assert train_drafter("medusa", str(cycle), prompts=[" 日語", "é🙂"], writing=writing, plan=plan) == 0
    directory = store / "drafters" / head_name(str(cycle), "medusa")
    assert find_head(str(cycle), "medusa") == directory
    config = read_config(directory)
    assert config.accepted > 3.8 and config.vocabulary and config.depth == 4
    plain, drafted = (lm.generate(" 日", method=name, max_tokens=40) for name in ("autoregressive", "medusa"))
    assert drafted.tokens == plain.tokens and drafted.usage.target_nfe < plain.usage.target_nfe / 3


def test_a_run_that_no_longer_gains_ends(tiny: Path, written: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=50, check_every=1, patience=2, matrix_rate=1e-9, other_rate=1e-9)
    assert train_drafter("medusa", str(tiny), tmp_path / "run", texts=written, plan=plan) == 0
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 3
    limited = replace(plan, patience=0, limit_min=1e-9)
    assert train_drafter("medusa", str(tiny), tmp_path / "run", texts=written, plan=limited, resume=True) == 0
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 3

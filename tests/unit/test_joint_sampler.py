"""Several places behind one pass: one by one where the layer knows all, marginals where it is mute."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor

from outpace.bench.joint import Contexts, contexts_of, divergence
from outpace.errors import CapabilityError, ModelError
from outpace.methods.diffusion import joint_sampler
from outpace.methods.diffusion.joint_sampler import JointSampler
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.models.sampler_layer import SamplerConfig, SamplerLayer, config_of, corrected, read_sampler
from outpace.sampling import Sampling
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.gtest import PROMPT, canvas_law, g_test, small_model, text_counts
from outpace.testing.toy import ToyModel
from outpace.testing.world import make_rows, write
from outpace.train.data import DataMixture
from outpace.train.joint import JointTrainer, opened
from outpace.train.recipes import JointRecipe
from outpace.types import Adapter

WARM = Sampling(temperature=0.8)


def stored(folder: Path, vocab: int, hidden: int, seed: int = 0, *, is_mute: bool = False) -> str:
    torch.manual_seed(seed)
    net = SamplerLayer(SamplerConfig(vocab=vocab, hidden=hidden, width=8, heads=2, ffn=8))
    if not is_mute:
        torch.nn.init.normal_(net.out.weight)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(net)))
    save_file({name: weight.contiguous() for name, weight in net.state_dict().items()}, folder / "model.safetensors")
    return str(folder)


def hidden_of(target: ToyModel) -> int:
    return int(target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1])


@pytest.mark.parametrize(("attention", "is_shifted"), [("full", False), ("full", True), ("block", False)])
def test_one_place_behind_a_pass_is_masked_diffusion(attention: str, is_shifted: bool, tmp_path: Path) -> None:
    target = toy_canvas(attention, is_shifted)
    layer = stored(tmp_path, target.capabilities.vocab_size, hidden_of(target))
    plain = [row.written for row in write(MaskedDiffusion(block=4), WARM, make_rows(max_tokens=8), target=target)]
    for sampler in ("none", layer):
        method = JointSampler(block=4, per_pass=1, sampler=sampler)
        assert [row.written for row in write(method, WARM, make_rows(max_tokens=8), target=target)] == plain


def by_hand(target: ToyModel, prompt: list[int], layer: SamplerLayer, per_pass: int, length: int) -> list[int]:
    """Greedy, one block, the surest place first: full pass, then the layer, in a plain loop over lists."""
    mask = target.capabilities.mask_id
    assert mask is not None
    text = [*prompt, *[mask] * length]

    def surest(laws: Tensor, places: list[int]) -> tuple[int, int]:
        laws = laws.clone()
        laws[:, mask] = float("-inf")
        probs = laws.softmax(-1)
        best = max(range(len(places)), key=lambda at: (float(probs[at].max()), -at))
        return places[best], int(probs[best].argmax())

    while mask in text:
        places = [at for at in range(len(prompt), len(text)) if text[at] == mask]
        position = torch.arange(len(text))[None]
        ask = torch.tensor([places])
        scores = target.score(
            torch.tensor([text]),
            position,
            None,
            target.new_cache(1, len(text)),
            ask,
            JointSampler(sampler="x").needs.outputs,
        )
        assert scores.last is not None
        laws, said = scores.logits[0], [-1] * len(places)
        for number in range(min(per_pass, len(places))):
            if number:
                laws = corrected(layer, target, scores.last, torch.tensor([said]), ask)[0]
            left = [at for at, token in enumerate(said) if token < 0]
            place, token = surest(laws[left], [places[at] for at in left])
            text[place] = said[places.index(place)] = token
    return text[len(prompt) :]


@pytest.mark.parametrize("per_pass", [2, 3, 6])
def test_the_layer_is_asked_after_every_place(per_pass: int, tmp_path: Path) -> None:
    target = toy_canvas("full", False)
    where = stored(tmp_path, target.capabilities.vocab_size, hidden_of(target))
    layer = read_sampler(Path(where))
    found = write(
        JointSampler(block=6, per_pass=per_pass, sampler=where), Sampling(), make_rows(max_tokens=6), target=target
    )
    assert [row.written for row in found] == [
        by_hand(target, list(row.tokens[: -len(row.written)]), layer, per_pass, 6) for row in found
    ]
    assert all(row.usage.target_nfe >= math.ceil(6 / per_pass) for row in found)


def pair_counts(target: ToyModel, sampler: str, rows: int = 2500) -> Tensor:
    return text_counts(JointSampler(block=2, per_pass=2, sampler=sampler), target, 2, WARM, rows)


def test_a_layer_that_knows_all_draws_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = small_model("full")
    where = stored(tmp_path, 4, 4)
    mask = target.capabilities.mask_id
    assert mask is not None
    prompt = [2 if token == mask else token for token in PROMPT]

    def knowing(layer: SamplerLayer, one: Adapter, last: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        del layer, last
        canvas = torch.tensor([[*prompt, *tokens[0].tolist()]])
        position = torch.arange(canvas.shape[1])[None]
        return one.score(
            canvas.masked_fill(canvas < 0, mask), position, None, one.new_cache(*canvas.shape), places
        ).logits

    exact = canvas_law(target, WARM)
    assert g_test(pair_counts(target, "none"), exact) < 1e-6  # marginals are told apart
    monkeypatch.setattr(joint_sampler, "corrected", knowing)
    assert g_test(pair_counts(target, where), exact) > 1e-3


def test_a_mute_layer_draws_marginals(tmp_path: Path) -> None:
    target = small_model("full")
    where = stored(tmp_path, 4, 4, is_mute=True)
    assert torch.equal(pair_counts(target, where, 200), pair_counts(target, "none", 200))


def test_the_divergence_is_the_enumerated_one(tmp_path: Path) -> None:
    target, mask = small_model("full"), small_model("full").capabilities.mask_id
    assert mask is not None
    text = torch.tensor([[2, 0, mask, mask]])

    def law(tokens: Tensor, place: int) -> Tensor:
        logits = target.score(tokens, torch.arange(4)[None], None, target.new_cache(1, 4)).logits[0, place].clone()
        logits[mask] = float("-inf")
        return logits.log_softmax(-1)

    first, second, wanted = law(text, 2), law(text, 3), 0.0
    for token in (token for token in range(4) if token != mask):
        after = law(torch.tensor([[2, 0, token, mask]]), 3)
        kept = second.isfinite()
        gap = float((second[kept].exp() * (second - after)[kept]).sum())
        wanted += float(first[token].exp()) * gap
    many = Contexts(text.expand(4000, -1), torch.tensor([[2, 3]]).expand(4000, -1), torch.arange(2).expand(4000, -1))
    found = divergence(target, None, many, 0)
    assert float(found.mean()) == pytest.approx(wanted, abs=5 * float(found.std()) / 4000**0.5)
    mute = read_sampler(Path(stored(tmp_path, 4, 4, is_mute=True)))
    torch.testing.assert_close(divergence(target, mute.double(), many, 0), found, atol=1e-5, rtol=1e-5)
    one = Contexts(many.canvas, many.places, many.order[:, :1])
    assert float(divergence(target, None, one, 0).abs().max()) < 1e-6


def test_a_trained_layer_is_nearer_to_one_by_one_than_marginals_are() -> None:
    target = small_model("full", noise=0.1)
    mask = target.capabilities.mask_id
    assert mask is not None
    stream = np.random.default_rng(0).choice([0, 1, 2], 8000).astype(np.uint16)
    recipe = JointRecipe(
        name="toy",
        summary="A toy.",
        objective="joint",
        steps=60,
        gpu_steps=60,
        warmup=5,
        rows=64,
        length=10,
        block=4,
        most=2,
        matrix_rate=2e-2,
        other_rate=1e-2,
    )
    torch.manual_seed(0)
    trainer = JointTrainer(
        recipe=recipe,
        network=SamplerLayer(SamplerConfig(vocab=4, hidden=4, width=16, heads=2, ffn=32)),
        target=target,
        mixture=DataMixture((stream,), (1.0,), 0),
        tokenizer=Tokenizer(BPE()),
        device=torch.device("cpu"),
        seed=0,
        steps=60,
    )
    for _ in range(60):
        trainer.advance()
    texts = torch.from_numpy(stream[:3000].astype(np.int64)).view(-1, 10)
    for count in (2, 3):  # places behind one full pass
        one = contexts_of(texts, 4, count, True, mask, 3)
        plain, joint = (divergence(target, layer, one, 0).mean() for layer in (None, trainer.network.eval()))
        assert float(joint) < 0.6 * float(plain)


def test_blocks_are_opened_as_decoding_opens_them() -> None:
    tokens = torch.arange(5, 5 + 4 * 40).view(4, 40)
    for seed in range(8):
        found = opened(tokens, 8, 3, 1, seed)
        for row in range(4):
            places, canvas = found.places[row].tolist(), found.canvas[row]
            last = int((canvas != 1).nonzero().max())
            assert places == sorted(set(places)) and all(canvas[place] == 1 for place in places)
            assert all(int(canvas[at]) in (1, int(tokens[row, at])) for at in range(40))
            assert places[-1] - places[0] < 8 and (last < places[-1] + 8)
            assert 1 <= int(found.written[row].sum()) <= 3 and not bool(found.written[row].all())


def test_other_layers_are_refused(tmp_path: Path) -> None:
    target = toy_canvas("full", False)
    wrong = stored(tmp_path / "wrong", 99, hidden_of(target))
    with pytest.raises(CapabilityError, match="99 tokens"):
        write(JointSampler(sampler=wrong), WARM, make_rows(max_tokens=4), target=target)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no sampler layer"):
        read_sampler(tmp_path)
    (Path(wrong) / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no whole sampler layer"):
        read_sampler(Path(wrong))

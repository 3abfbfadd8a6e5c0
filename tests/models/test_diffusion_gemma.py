"""DiffusionGemma's layout: a small random checkpoint, the forward of transformers, and its sampler's rule by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.methods.diffusion.eb_sampler import EbSampler
from outpace.methods.diffusion.freedave import FreeDave
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.models.diffusion_gemma import DiffusionGemma, noisy, open_diffusion_gemma
from outpace.models.opening import open_model
from outpace.models.unmasking import check_unmasking
from outpace.sampling import Sampling
from outpace.testing.world import drive, make_rows, make_run, write

transformers = pytest.importorskip("transformers")
VOCAB, CANVAS = 40, 16
PROMPTS = [[2, 5, 6, 7], [2, 9], [2, 5, 11, 30, 31, 8, 4]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers, one with a sliding window, with experts and a picture tower, as saved."""
    found = pytest.importorskip("transformers.models.diffusion_gemma.configuration_diffusion_gemma")
    text = found.DiffusionGemmaTextConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        num_global_key_value_heads=1,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=8,
        max_position_embeddings=128,
    )
    tower = transformers.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    ids = {"image_token_id": 37, "boi_token_id": 38, "eoi_token_id": 39}
    config = found.DiffusionGemmaConfig(text_config=text, vision_config=tower, canvas_length=CANVAS, **ids)
    torch.manual_seed(0)
    model = transformers.DiffusionGemmaForBlockDiffusion(config)
    with torch.no_grad():  # fresh weights are so small that all laws are flat
        model.model.decoder.embed_tokens.weight.mul_(20)
    where = tmp_path_factory.mktemp("diffusion-gemma")
    model.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def target(checkpoint: Path) -> DiffusionGemma:
    found = open_model(str(checkpoint), "float32", "cpu")
    assert isinstance(found, DiffusionGemma)
    return found


def laws(target: DiffusionGemma, text: list[int], begin: int) -> Tensor:
    """What transformers says of a canvas in which random tokens stand for what is open, [C, V]."""
    canvas = noisy(torch.tensor(text[begin:]), VOCAB, begin)
    assert int(canvas.max()) < VOCAB
    with torch.no_grad():
        found: Tensor = target.model(input_ids=torch.tensor([text[:begin]]), decoder_input_ids=canvas[None]).logits[0]
    return found.double()


def test_the_card_of_the_layout(target: DiffusionGemma) -> None:
    offered = target.capabilities
    assert (offered.attention, offered.mask_id, offered.vocab_size) == ("full", VOCAB, VOCAB + 1)
    assert (offered.is_renoised, offered.num_layers, target.canvas_length) == (True, 2, CANVAS)
    assert check_unmasking(target, None) == ""


def test_noise_is_the_rows_own_and_anew_with_every_token() -> None:
    canvas = torch.tensor([VOCAB, 3, VOCAB, VOCAB])
    first, again = noisy(canvas, VOCAB, 4), noisy(canvas, VOCAB, 4)
    assert torch.equal(first, again)
    assert int(first[1]) == 3
    other = noisy(torch.tensor([VOCAB, 3, 7, VOCAB]), VOCAB, 4)
    assert int(other[2]) == 7
    assert not torch.equal(first[[0, 3]], other[[0, 3]])
    many = noisy(torch.full((4000,), VOCAB), VOCAB, 1)
    assert len(many.unique()) == VOCAB


@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_greedy_text_by_the_samplers_rule_in_a_plain_loop(target: DiffusionGemma, gamma: float) -> None:
    rows = make_rows(PROMPTS, max_tokens=12)
    write(EbSampler(gamma=gamma, block=12), Sampling(), rows, target=target)
    steps = []
    for row, prompt in zip(rows, PROMPTS, strict=True):
        text, count = [*prompt, *[VOCAB] * 12], 0
        while VOCAB in text:
            found = laws(target, text, len(prompt))
            places = [at for at in range(12) if text[len(prompt) + at] == VOCAB]
            entropy = {at: float(-(found[at].softmax(-1) * found[at].log_softmax(-1)).sum()) for at in places}
            total = 0.0
            for at in sorted(places, key=lambda at: entropy[at]):  # the k surest whose sum but the last is within gamma
                if total > gamma:
                    break
                total += entropy[at]
                text[len(prompt) + at] = int(found[at].argmax())
            count += 1
        assert row.written == text[len(prompt) :]
        assert row.usage.num_steps == count
        steps.append(count)
    assert max(steps) <= 12 if gamma else steps == [12] * 3


def test_rows_alone_seeds_and_given_pieces(target: DiffusionGemma) -> None:
    warm, method = Sampling(temperature=0.9), MaskedDiffusion(block=8, per_step=2)
    together = write(method, warm, make_rows(PROMPTS, max_tokens=8), target=target)
    for index in range(len(PROMPTS)):
        alone = write(method, warm, [make_rows(PROMPTS, max_tokens=8)[index]], target=target)[0]
        assert alone.written == together[index].written
    row = make_rows(PROMPTS[:1], max_tokens=4)[0]
    row.canvas = [-1, 9, -1, 12]
    write(method, warm, [row], target=target)
    assert (row.written[1], row.written[3]) == (9, 12)
    assert all(token < VOCAB for token in row.written)


def test_what_it_does_not_give_is_refused(target: DiffusionGemma) -> None:
    with pytest.raises(CapabilityError, match="no bound on its likelihood"):
        LanguageModel(target, None, end_tokens=(), name="x", dtype="float32", device="cpu").score([1, 2, 3])
    with pytest.raises(ConfigError, match="The canvas has 20 places, the model's 16"):
        write(MaskedDiffusion(block=20), Sampling(), make_rows(PROMPTS, max_tokens=20), target=target)
    for method, said in (
        (MaskedDiffusion(block=8, cache="dual"), "cache=none"),
        (FreeDave(block=8, min_lead=0), "copies"),
    ):
        with pytest.raises(CapabilityError) as caught:
            drive(make_run(method, Sampling(), target=target), make_rows(PROMPTS, max_tokens=8))
        assert said in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(("change", "said"), [("lacks", "lacks 1 tensors"), ("more", "holds unknown 1 tensors")])
def test_files_that_are_not_whole_are_refused(checkpoint: Path, tmp_path: Path, change: str, said: str) -> None:
    where = tmp_path / "broken"
    shutil.copytree(checkpoint, where)
    held = load_file(where / "model.safetensors")
    if change == "lacks":
        del held["model.decoder.self_conditioning.up_proj.weight"]
    else:
        held["model.decoder.layers.0.extra.weight"] = torch.zeros(2)
    save_file(held, where / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        open_diffusion_gemma(where, torch.float32, torch.device("cpu"))

"""Codebooks: the choice of codes by hand, training against the engine, the plain model, and what is forced."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace import LanguageModel
from outpace.bench.codes import activity, main, ranked, topic_codes, toy_texts
from outpace.bench.corrected import opened
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.models.codebooks import CodedTransformer, chosen_codes, summed_codes
from outpace.models.loading import load_model
from outpace.testing.toy import ToyModel
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives_codes import coded_loss, coded_modules, start_codes

SHAPE = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=20, context=64)
TEXT = [3, 7, 7, 12, 5, 9, 4, 18, 2, 11, 6, 13]


def plain() -> Llama:
    made = Llama(SHAPE, seed=1).requires_grad_(False)
    for weight in made.parameters():
        weight.data *= 8 if weight.ndim == 2 else 1
    return made.eval()


def coded(codes: int = 40, chosen: int = 3) -> Llama:
    made = Llama(replace(SHAPE, codes=codes, chosen=chosen), seed=2)
    start_codes(made, plain(), torch.tensor([TEXT * 4]), seed=0)
    return made.eval()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> CodedTransformer:
    found = opened(coded(), tmp_path_factory.mktemp("coded"))
    assert isinstance(found, CodedTransformer)
    return found


def test_codes_are_chosen_by_their_direction_and_forced_ones_are_in_the_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    states, codes = (torch.randn(size, 6, generator=generator, dtype=torch.float64) for size in (5, 9))
    for state, chosen in zip(states, chosen_codes(states, codes, 3), strict=True):
        cosines = [float(state @ code / state.norm() / code.norm()) for code in codes]
        ranked = sorted(range(9), key=lambda at: -cosines[at])
        assert chosen.tolist() == ranked[:3]
        assert torch.allclose(summed_codes(state, codes, 3), codes[ranked[:3]].sum(0))
        for forced in ([ranked[8]], [ranked[0]], [ranked[1], ranked[7]], ranked[4:7]):
            rest = [at for at in ranked if at not in forced][: 3 - len(forced)]
            want = codes[[*rest, *forced]].sum(0)
            assert torch.allclose(summed_codes(state, codes, 3, torch.tensor(forced)), want)


def law_of(target: Any, text: list[int]) -> torch.Tensor:
    cache, size = target.new_cache(1, 40), len(text)
    return target.score(torch.tensor([text]), torch.arange(size)[None], None, cache).logits[0]


def test_the_engine_computes_what_training_computed(target: CodedTransformer) -> None:
    network = coded()
    with torch.no_grad():
        want = network(torch.tensor([TEXT]))[0]
    assert (law_of(target, TEXT) - want).abs().max() < 1e-3
    assert float(want.std()) > 0.1


def test_where_every_state_is_a_code_the_model_is_the_plain_one(tmp_path: Path) -> None:
    """One code per place, each what the plain layer says there: nothing is lost."""
    network = coded(codes=len(TEXT), chosen=1)
    start_codes(network, plain(), torch.tensor([TEXT]), seed=0)
    found = law_of(opened(network, tmp_path), TEXT)
    assert (found - plain()(torch.tensor([TEXT]))[0]).abs().max() < 1e-3
    for module in coded_modules(network):
        module.codes.data += 1.0
    assert (found - law_of(opened(network, tmp_path / "other"), TEXT)).abs().max() > 0.1


def test_fine_tuning_lowers_the_loss_and_reaches_codes_and_weights() -> None:
    network, tokens = coded(), torch.tensor([TEXT * 2])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses, before = list[float](), {name: weight.clone() for name, weight in network.named_parameters()}
    for _ in range(15):
        loss = coded_loss(network, tokens)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(not torch.equal(before[name], weight) for name, weight in network.named_parameters())


@pytest.mark.parametrize("method", ["jacobi", "prompt-lookup"])
def test_drafts_obey_forced_codes(target: CodedTransformer, method: str) -> None:
    lm = LanguageModel(target)
    given: dict[str, Any] = {"max_tokens": 24, "temperature": 0.9, "seed": 1}
    plain_text, law = lm.generate(TEXT, **given).tokens, "codes:force=0.3+1.7+1.9"
    forced = lm.generate(TEXT, law=law, **given).tokens
    assert lm.generate(TEXT, law=law, method=method, **given).tokens == forced != plain_text
    assert lm.generate(TEXT, law="codes:", **given).tokens == plain_text
    other = target.forcing({0: [3], 1: [7, 9]})
    other.layers.forced = {}
    assert torch.equal(law_of(other, TEXT), law_of(target, TEXT))  # the model that others use stays as it is


def test_recorded_codes_are_those_of_each_place(target: CodedTransformer) -> None:
    active = activity(target, TEXT)
    assert active.shape == (2, len(TEXT), 40) and bool((active.sum(-1) == 3).all())
    assert torch.equal(active[:, :5], activity(target, TEXT[:5])) and target.layers.seen is None


@pytest.mark.parametrize(
    ("force", "reason"),
    [
        *(("3", "names no code"), ("a.b", "names no code"), ("9.1", "has no codes"), ("0.99", "has no codes")),
        *(("0.1+0.1", "are forced"), ("0.1+0.2+0.3+0.4", "are forced")),
    ],
)
def test_codes_that_cannot_be_forced_are_refused(target: CodedTransformer, force: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LanguageModel(target).generate(TEXT, law=f"codes:force={force}", max_tokens=2)


def test_a_model_without_codebooks_is_refused() -> None:
    lm = LanguageModel(ToyModel(vocab_size=20))
    with pytest.raises(CapabilityError, match="no codebooks"):
        lm.generate(TEXT, law="codes:force=0.1")
    with pytest.raises(CapabilityError, match="no codebooks"):
        topic_codes(lm, "dog", ["a dog"])


@pytest.mark.parametrize("told", [{"size": 40, "chosen": 0}, {"size": 40, "chosen": 41}, {"size": 39, "chosen": 3}, 7])
def test_files_that_contradict_their_codebooks_are_refused(tmp_path: Path, told: Any) -> None:
    opened(coded(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"codebooks": told}))
    with pytest.raises(ModelError):
        load_model(tmp_path, "float32", "cpu")


def test_the_measurement_refuses_a_plain_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories/train.txt.gz").write_bytes(gzip.compress(b"A dog ran.\n<|endoftext|>\n"))
    assert main(["stories-draft", "--data", str(tmp_path)]) == 2
    assert "no codebooks" in capsys.readouterr().err


def test_codes_are_ranked_by_where_they_are_chosen() -> None:
    active = torch.zeros(2, 6, 4, dtype=torch.bool)
    is_topic = torch.tensor([True, True, True, False, False, False])
    active[1, :3, 2] = True  # always there, never elsewhere
    active[0, :, 1] = True  # everywhere
    active[0, 3:, 3] = True  # elsewhere alone
    found = ranked([(active[:, :2], is_topic[:2]), (active[:, 2:], is_topic[2:])])
    assert found[0][:2] == (1, 2) and len(found) == 8
    want = 3.5 / 4 * math.log(3.5 / 0.5)
    assert found[0][2] == pytest.approx(want)
    assert {(layer, code): score for layer, code, score in found}[0, 1] == pytest.approx(0.0)


def test_topics_of_the_toy_last_and_the_toy_refuses_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    topics = (toy_texts(200, 1) - 2) // 4
    same = float((topics[:, 1:] == topics[:, :-1]).double().mean())
    assert same == pytest.approx(0.85 + 0.15 / 8, abs=0.03) and set(topics.unique().tolist()) == set(range(8))
    assert main(["--steps", "0"]) == 2
    assert "No steps" in capsys.readouterr().err

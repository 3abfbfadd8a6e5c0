"""A language model beside an encoder-decoder: beams over the sums of scores, n-best lists, models without positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pairs import SOURCES, VOCAB, pair_logits, saved_pair
from torch import Tensor

import outpace
from outpace.api.engine import LanguageModel
from outpace.api.fusing import fuse, read_nbest, rescore_nbest
from outpace.errors import CapabilityError, ConfigError
from outpace.models.opening import open_model

START, END = 0, 3


@pytest.fixture(scope="module")
def plain(model_root: Path) -> tuple[LanguageModel, Any]:
    """A random causal model without positions, and transformers' own of the same files."""
    torch.manual_seed(4)
    config = hf.SmolLM3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        no_rope_layers=[0, 0],
        initializer_range=0.3,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=1,
    )
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(model_root / "no-positions")
    lm = LanguageModel(open_model(str(model_root / "no-positions"), "float64", "cpu", None))
    assert set(lm.target.spec.rope_index) == {-1}  # type: ignore[attr-defined]
    lm.end_tokens = (START,)  # what its texts begin with
    return lm, model.double()


@pytest.fixture(scope="module")
def pair(model_root: Path) -> tuple[LanguageModel, Any]:
    directory, model = saved_pair("marian", model_root)
    return LanguageModel(open_model(str(directory), "float64", "cpu", None), end_tokens=[END]), model


@torch.no_grad()
def law(model: Any, tokens: list[int]) -> Tensor:
    """[V] log-probabilities of what follows."""
    found: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double().log_softmax(-1)
    return found


def fused_law(pair: Any, other: Any, source: list[int], text: list[int], weight: float) -> Tensor:
    own = pair_logits(pair, source, [2, *text]).logits[0, -1].log_softmax(-1)
    return own + weight * law(other, [START, *text])


def test_a_model_without_positions_is_transformers_own(plain: Any) -> None:
    lm, model = plain
    text = [7, 9, 9, 40, 12, 7]
    scored = lm.score(text)
    for at in range(1, len(text)):
        assert scored.log_probs[at] == pytest.approx(float(law(model, text[:at])[text[at]]), abs=1e-5)


@pytest.mark.parametrize("weight", [0.4, -0.3])
def test_beams_as_many_as_tokens_find_the_best_of_all_texts(pair: Any, plain: Any, weight: float) -> None:
    source = SOURCES[0]
    fused = fuse(pair[0], plain[0], weight)
    options = {"beams": VOCAB, "n_best": 3, "early_stopping": "never", "length_penalty": 0.0}
    found = fused.generate(source, method="beam-search", options=options, max_tokens=2)
    first = fused_law(pair[1], plain[1], source, [], weight)
    scores = {(END,): float(first[END])}
    for token in range(VOCAB):
        if token != END:
            then = first[token] + fused_law(pair[1], plain[1], source, [token], weight)
            scores |= {(token, last): float(then[last]) for last in range(VOCAB)}
    best = sorted(scores, key=lambda text: -scores[text])[:3]
    assert [tuple(one.tokens) for one in found] == best
    assert [one.score for one in found] == pytest.approx([scores[text] for text in best], abs=1e-5)


def test_weight_zero_is_beams_without_it_and_drafts_leave_the_search(pair: Any, plain: Any) -> None:
    options: dict[str, Any] = {"beams": 4, "n_best": 4}
    asked: dict[str, Any] = {"method": "beam-search", "max_tokens": 12}
    alone = pair[0].generate(SOURCES, options=options, **asked)
    zero = fuse(pair[0], plain[0], 0.0).generate(SOURCES, options=options, **asked)
    assert [(one.tokens, one.score) for one in zero] == [(one.tokens, one.score) for one in alone]
    fused = fuse(pair[0], plain[0], 0.5)
    plainly = fused.generate(SOURCES, options=options, **asked)
    drafted = fused.generate(SOURCES, options={**options, "drafter": "prompt-lookup"}, **asked)
    assert [one.tokens for one in plainly] == [one.tokens for one in drafted]
    assert [one.tokens for one in plainly] != [one.tokens for one in alone]
    for one in plainly:  # each text's score, from whole forwards of both models
        source = next(source for source in SOURCES if source == one.prompt_tokens)
        parts = [
            float(fused_law(pair[1], plain[1], source, one.tokens[:at], 0.5)[token])
            for at, token in enumerate(one.tokens)
        ]
        assert one.score == pytest.approx(sum(parts) / len(one.tokens), abs=1e-5)


def test_an_nbest_list_is_ranked_anew(plain: Any) -> None:
    lm = plain[0]

    class Words:
        bos_id = START

        def encode(self, text: str, is_special: bool = True) -> list[int]:
            return [int(word) for word in text.split()]

    spoken = lm.ending_with([END])
    spoken.tokenizer = Words()
    lines = ["0 ||| 7 9 ||| f= 1 ||| -1.5", "0 ||| 40 12 ||| f= 2 ||| -1.0", "7 ||| 5 ||| -3"]
    candidates = read_nbest("\n".join(lines), "list")
    told = [sum(float(law(plain[1], ids[:at])[ids[at]]) for at in range(1, len(ids)))
            for ids in ([START, 7, 9, END], [START, 40, 12, END], [START, 5, END])]  # fmt: skip
    for weight in (0.0, 0.7, -0.7):
        found = rescore_nbest(spoken, candidates, weight)
        sums = [-1.5 + weight * told[0], -1.0 + weight * told[1]]
        assert [one.text for one in found] == (["7 9", "40 12"] if sums[0] > sums[1] else ["40 12", "7 9"]) + ["5"]
        assert [one.score for one in found] == pytest.approx(
            [*sorted(sums, reverse=True), -3 + weight * told[2]], abs=1e-4
        )
    assert str(candidates[0]) == "0 ||| 7 9 ||| f= 1 ||| -1.5000"
    for line in ("0 ||| a", "0 ||| a ||| high", "0 |||  ||| 1", "0 ||| a ||| nan"):
        with pytest.raises(ConfigError, match="Line 1 of list is no candidate"):
            read_nbest(line, "list")


def test_models_that_do_not_fit_are_refused(pair: Any, plain: Any) -> None:
    with pytest.raises(CapabilityError, match="tokens, the target"):
        fuse(pair[0], outpace.load("stories-draft"), 0.2)
    with pytest.raises(CapabilityError, match="both models write from left to right"):
        fuse(plain[0], pair[0], 0.2)
    with pytest.raises(ConfigError, match="weight of the language model is nan"):
        fuse(pair[0], plain[0], float("nan"))

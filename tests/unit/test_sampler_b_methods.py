"""prophet, ccd, ete, lrd and adablock on toy canvases: what they reduce to, batches, ends of text, bad settings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import outpace
from outpace.api.engine import LanguageModel
from outpace.canvas.rules import Ranked
from outpace.canvas.rules.lrd import mixture
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.adablock import AdaBlock, delimiter_ids
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.diffusion.ccd import CoherentDecoding
from outpace.methods.diffusion.ete import ExploreThenExploit
from outpace.methods.diffusion.lrd import LatentRefinement
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.prophet import Prophet
from outpace.testing.spelling import toy_tokenizer
from outpace.testing.toy import ToyModel
from outpace.text.tokenizer import Tokenizer
from outpace.trace.bits import RoundLog, fewest_rounds_for
from outpace.types import Scores

INF = math.inf
END = 3
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [2, 9]]
SPELLINGS = ("a", "b", "c", "d", ".", "e", "f!", '."', "g", "h", "i", "j", "k")  # 4 and 7 are delimiters


class NotingToy(ToyModel):
    """A toy that notes the soft inputs that it gets."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.weights[3] *= 0.15  # not all logits at the rails, so that some laws are sure and some are wide
        self.inputs: list[Tensor | None] = []
        self.tokens: list[Tensor] = []
        self.scores: list[Tensor] = []

    def score(self, tokens: Tensor, *given: Any, inputs: Tensor | None = None, **more: Any) -> Scores:
        scores = super().score(tokens, *given, inputs=inputs, **more)
        self.inputs.append(inputs)
        self.tokens.append(tokens)
        self.scores.append(scores.logits.clone())
        return scores


@dataclass(frozen=True)
class Thresholded(CanvasMethod):
    """Confidence-threshold decoding, to compare with."""

    threshold: float = 0.6

    @property
    def rule(self) -> Ranked:
        return Ranked(threshold=self.threshold)


MODELS: dict[str, dict[str, Any]] = {
    "full": {"attention": "full"},
    "full shifted": {"attention": "full", "logits_shift": True},
    "block": {"attention": "block", "block_size": 8},
    "block shifted": {"attention": "block", "block_size": 8, "logits_shift": True},
}


def language_model(model: str, end_tokens: tuple[int, ...] = (), sharpness: float = 8.0) -> LanguageModel:
    toy = NotingToy(**MODELS[model], sharpness=sharpness)
    return LanguageModel(toy, toy_tokenizer(SPELLINGS), end_tokens=end_tokens)


def write(lm: LanguageModel, method: CanvasMethod, prompts: Any = PROMPTS, **settings: Any) -> list[Any]:
    return lm.generate(prompts, method=method, **{"max_tokens": 16, "seed": 5, **settings})


@functools.cache
def plain(model: str, temperature: float = 0.0, cache: str = "auto") -> list[Any]:
    return write(language_model(model), MaskedDiffusion(block=4, cache=cache), temperature=temperature)


NEUTRAL: dict[str, Callable[..., CanvasMethod]] = {
    "prophet": lambda **given: Prophet(early=INF, middle=INF, late=INF, **given),
    "prophet canvas": lambda **given: Prophet(early=INF, middle=INF, late=INF, region="canvas", **given),
    "ccd": lambda **given: CoherentDecoding(history=1, **given),
    "ete": lambda **given: ExploreThenExploit(threshold=1.0, explore=0, reach=0, **given),
    "lrd": lambda **given: LatentRefinement(mix=0.0, **given),
    "adablock": lambda **given: AdaBlock(delimiter_threshold=2.0, threshold=1.0, **given),
    "adablock unsure": lambda **given: AdaBlock(delimiter_threshold=1.0, threshold=1.0, **given),
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_are_plain_decoding(name: str, model: str, temperature: float) -> None:
    if name == "adablock unsure" and model.startswith("block"):
        pytest.skip("fixed blocks lie at multiples there, adaptive ones where the last one ended")
    lm = language_model(model)
    wanted = plain(model, temperature)
    found = write(lm, NEUTRAL[name](block=4), temperature=temperature)
    assert [r.tokens for r in found] == [r.tokens for r in wanted]
    assert [r.usage.target_nfe for r in found] == [r.usage.target_nfe for r in wanted]


@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_are_plain_decoding_under_approximate_caches(name: str, cache: str) -> None:
    if name == "adablock unsure":
        pytest.skip("reads the laws of its window, which a cache then cannot hold")
    lm = language_model("full")
    wanted = plain("full", cache=cache)
    found = write(lm, NEUTRAL[name](block=4, cache=cache))
    assert [(r.tokens, r.usage.positions_scored) for r in found] == [
        (r.tokens, r.usage.positions_scored) for r in wanted
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "method",
    [
        ExploreThenExploit(block=4, threshold=0.6, explore=0, reach=0),
        AdaBlock(block=4, threshold=0.6, delimiter_threshold=2.0),
        LatentRefinement(block=4, mix=0.0, threshold=0.6),
    ],
    ids=lambda method: method.name,
)
def test_with_a_threshold_they_are_threshold_decoding(method: CanvasMethod, model: str) -> None:
    lm = language_model(model)
    wanted, found = write(lm, Thresholded(block=4), temperature=0.8), write(lm, method, temperature=0.8)
    assert [(r.tokens, r.usage.target_nfe) for r in found] == [(r.tokens, r.usage.target_nfe) for r in wanted]
    assert wanted[0].usage.target_nfe < 16  # the threshold is reached at all


ACTIVE: dict[str, CanvasMethod] = {
    "prophet": Prophet(block=4, early=0.8, middle=0.6, late=0.4),
    "prophet canvas": Prophet(block=4, early=0.8, middle=0.6, late=0.4, region="canvas"),
    "ccd": CoherentDecoding(block=8),
    "ccd long": CoherentDecoding(block=8, history=3, top=6),
    "ete": ExploreThenExploit(block=8, threshold=0.8, candidates=1),
    "ete near": ExploreThenExploit(block=4, threshold=0.6, reach=2, explore=2, candidates=1),
    "ete candidates": ExploreThenExploit(block=8, threshold=0.7, candidates=3),
    "lrd": LatentRefinement(block=8, mix=0.4, rounds=2, settle=0.3),
    "prophet last": Prophet(block=8, early=0.8, middle=0.6, late=0.4, region="canvas", end="last"),
    "ete last": ExploreThenExploit(block=8, threshold=0.6, candidates=2, end="last"),
    "lrd last": LatentRefinement(block=8, mix=0.4, rounds=2, settle=0.3, end="last"),
    "adablock": AdaBlock(block=4, delimiters=".", delimiter_threshold=0.2, threshold=0.6, window=0.5),
}


@pytest.mark.parametrize("model", ["full", "block shifted"])
@pytest.mark.parametrize("name", ACTIVE)
def test_a_row_in_a_batch_is_the_row_alone(name: str, model: str) -> None:
    lm = language_model(model)
    together = write(lm, ACTIVE[name], temperature=0.8)
    alone = [write(lm, ACTIVE[name], prompt, temperature=0.8) for prompt in PROMPTS]
    assert [r.tokens for r in together] == [r.tokens for r in alone]  # type: ignore[attr-defined]
    assert all(len(r.tokens) == 16 for r in together)


@pytest.mark.parametrize("name", ACTIVE)
def test_fewer_forwards_than_tokens(name: str) -> None:
    found = write(language_model("full"), ACTIVE[name], max_tokens=24)
    assert min(r.usage.target_nfe for r in found) < 24


@pytest.mark.parametrize("model", ["full", "block shifted"])
@pytest.mark.parametrize("name", ACTIVE)
def test_an_end_token_ends_the_row(name: str, model: str) -> None:
    lm = language_model(model, end_tokens=(END,))
    given: dict[str, Any] = {"logit_bias": {END: 3.5}, "temperature": 0.8, "max_tokens": 16}
    found = [write(lm, ACTIVE[name], [prompt], seed=seed, **given)[0] for prompt in PROMPTS for seed in range(2)]
    ended = [r for r in found if r.finish_reason == "eos"]
    assert ended
    assert all(r.tokens[-1] == END and END not in r.tokens[:-1] and len(r.tokens) < 16 for r in ended)
    assert all(END not in r.tokens for r in found if r.finish_reason != "eos")
    assert all(lm.target.capabilities.mask_id not in r.tokens for r in found)


@pytest.mark.parametrize("name", ACTIVE)
def test_filling_in_keeps_what_is_given(name: str) -> None:
    lm = language_model("full")
    canvas = [-1, -1, -1, 8, 9, -1, -1, -1, -1, 2]
    found = write(lm, ACTIVE[name], [1, 2, 3], canvas=canvas)
    tokens = found.tokens  # type: ignore[attr-defined]
    assert len(tokens) == 10 and all(given in (-1, token) for given, token in zip(canvas, tokens, strict=True))
    assert lm.target.capabilities.mask_id not in tokens


@pytest.mark.parametrize("name", ["stories-block", "stories-mask"])
def test_soft_inputs_and_copies_on_the_shipped_models(name: str) -> None:
    lm = outpace.load(name)
    prompts = ["Once upon a time", "Tom and his friend"]
    for method in (ExploreThenExploit(block=8, candidates=2, threshold=0.7), LatentRefinement(block=8, rounds=2)):
        together = lm.generate(prompts, method=method, max_tokens=8, temperature=0.7)
        alone = [lm.generate(prompt, method=method, max_tokens=8, temperature=0.7) for prompt in prompts]
        assert [r.tokens for r in together] == [r.tokens for r in alone]
    plain = lm.generate(prompts, method=MaskedDiffusion(block=8), max_tokens=8, temperature=0.7)
    unmixed = LatentRefinement(block=8, mix=1e-9, settle=0.0, threshold=1.0)  # soft inputs, but those of plain masks
    assert [r.tokens for r in lm.generate(prompts, method=unmixed, max_tokens=8, temperature=0.7)] == [
        r.tokens for r in plain
    ]


# Explore, then exploit


def test_exploring_needs_fewer_rounds_and_no_run_beats_the_bound() -> None:
    lm, width = language_model("full"), 8
    counts = {}
    for name, method in {
        "threshold": ExploreThenExploit(block=width, threshold=0.8, explore=0, reach=0),
        "across": ExploreThenExploit(block=width, threshold=0.8, explore=0),
        "explore": ExploreThenExploit(block=width, threshold=0.8, candidates=1),
        "candidates": ExploreThenExploit(block=width, threshold=0.8, candidates=4),
    }.items():
        log = RoundLog()
        found = write(lm, method, max_tokens=32, watch=log)
        assert [len(rounds) for rounds in log.rounds] == [r.usage.target_nfe for r in found]
        assert [sum(len(values) for values in rounds) for rounds in log.rounds] == [32] * len(PROMPTS)
        reach = width if name == "threshold" else 32
        for rounds in log.rounds:
            assert 1 <= fewest_rounds_for(rounds, 0.8, reach) <= len(rounds)
            # What the bound rests on: a round writes sure tokens only, or the surest one and the place explored.
            unsure = [sum(value < math.log(0.8) - 1e-9 for value in values) for values in rounds]
            forced = [len(values) for values, few in zip(rounds, unsure, strict=True) if few]
            assert max(unsure) <= (1 if method.explore == 0 else 2)
            assert name == "candidates" or max(forced) <= 1 + method.explore
        counts[name] = sum(len(rounds) for rounds in log.rounds)
    assert counts["across"] <= counts["threshold"]
    assert counts["explore"] < counts["threshold"]
    assert counts["candidates"] < counts["threshold"]


def test_trying_one_candidate_is_writing_it_unseen() -> None:
    """One copy holds what the plain window holds, so exploring late writes the same tokens, one round later."""
    lm, prompt = language_model("block shifted"), PROMPTS[0]
    plain = ExploreThenExploit(block=8, threshold=0.8, candidates=1)

    class Late(ExploreThenExploit):
        @property
        def rule(self) -> Any:
            from outpace.canvas.rules.ete import Explore

            @dataclass(frozen=True)
            class Single(Explore):
                def _tentative(self, reading: Any, index: int) -> Any:
                    found = super()._tentative(reading, index)
                    return type(found)(found.place, found.tokens[:1], found.log_probs[:1])

            return Single(0.8, 1, 2)

    late = Late(block=8, threshold=0.8, candidates=2)
    assert write(lm, late, prompt).tokens == write(lm, plain, prompt).tokens  # type: ignore[attr-defined]


def test_copies_of_a_whole_text_are_refused() -> None:
    lm, method = language_model("block"), ExploreThenExploit(block=8, threshold=0.7, cache="none")
    with pytest.raises(ConfigError, match="Without a cache"):
        write(lm, method, [PROMPTS[0]], max_tokens=96)
    cached = ExploreThenExploit(block=8, threshold=0.7)
    assert write(lm, method, [PROMPTS[0]])[0].tokens == write(lm, cached, [PROMPTS[0]])[0].tokens


# Latent refinement


def test_masks_carry_the_mixture_of_what_was_predicted() -> None:
    lm = language_model("full")
    toy: Any = lm.target
    method = LatentRefinement(block=4, mix=0.3, refine=0.0, rounds=2, settle=0.0, top_p=0.8)
    write(lm, method, [PROMPTS[0]], max_tokens=4)
    table, mask = toy.weights[0], toy.capabilities.mask_id
    assert toy.inputs[0] is None
    for number in (1, 2):
        logits = toy.scores[number - 1][0].clone()
        logits[:, mask] = -INF
        share, ids, weights = mixture(logits.softmax(-1), 0.3, 0.8, 64)
        for place in range(4):
            parts = zip(ids[place], weights[place], strict=True)
            wanted = (1 - share[place]) * table[mask] + share[place] * sum(w * table[v] for v, w in parts)
            assert torch.allclose(toy.inputs[number][0, 7 + place], wanted, rtol=0, atol=1e-12)
        assert torch.equal(toy.inputs[number][0, :7], table[toy.tokens[number][0, :7]])


def test_mixing_changes_what_is_said() -> None:
    lm = language_model("full")
    plain = write(lm, MaskedDiffusion(block=8))
    mixed = write(lm, LatentRefinement(block=8, mix=1.0, rounds=20, settle=0.0, threshold=1.0))
    assert [r.tokens for r in plain] != [r.tokens for r in mixed]
    # Two steps at least compare laws in each block; nothing is written in the first.
    assert all(17 < r.usage.target_nfe for r in mixed)


def test_soft_masks_save_forwards_at_their_defaults() -> None:
    lm = outpace.load("stories-block")
    asked: dict[str, Any] = {"max_tokens": 48, "seed": 1, "ignore_eos": True}
    prompts = ["Once upon a time", "Tom and his friend", "The little dog"]
    written = [lm.generate(prompts, method=each, **asked) for each in (MaskedDiffusion(), LatentRefinement())]
    plain, soft = (sum(result.usage.target_nfe for result in each) for each in written)
    assert soft < 0.95 * plain


def test_a_model_without_embeddings_is_refused() -> None:
    class Closed(ToyModel):
        @property
        def embed(self) -> Any:  # type: ignore[override]
            raise AttributeError("embed")

    lm = LanguageModel(Closed(attention="full"))
    with pytest.raises(CapabilityError, match="embed"):
        write(lm, LatentRefinement())
    assert len(write(lm, LatentRefinement(mix=0.0))) == len(PROMPTS)


# Adaptive blocks


def test_blocks_end_behind_delimiters_and_vary() -> None:
    lm = language_model("full")
    method = AdaBlock(block=4, delimiters=".", delimiter_threshold=0.15, threshold=1.0, window=0.5)
    pieces: list[list[list[int]]] = [[] for _ in PROMPTS]
    notes = []

    def watch(rows: Any, outcome: Any) -> None:
        notes.append(outcome.proposal.note)
        for row, emitted in zip(rows, outcome.emitted, strict=True):
            if emitted:
                pieces[[len(prompt) for prompt in PROMPTS].index(row.num_prompt)].append(emitted)

    found = write(lm, method, max_tokens=32, watch=watch)
    blocks = [piece for row in pieces for piece in row]
    assert [[token for block in row for token in block] for row in pieces] == [r.tokens for r in found]
    assert len({len(block) for block in blocks}) > 2
    delimited = [block for block in blocks if len(block) != 4]
    assert delimited and sum(block[-1] in (4, 7) for block in delimited) > len(delimited) / 2
    assert notes[0] == "blocks 7-?, 2-?" and any("-?" not in note for note in notes)


def test_delimiters_are_found_in_the_tokenizer() -> None:
    tokenizer = toy_tokenizer(SPELLINGS)
    assert delimiter_ids(tokenizer, ".") == (4, 7)
    assert delimiter_ids(tokenizer, "!") == ()  # "f!" holds a letter
    lines = toy_tokenizer(("a", "\n", ".\n", "b"))
    assert delimiter_ids(lines, "\\n") == delimiter_ids(lines, "\n") == (1, 2)


@pytest.mark.parametrize("tokenizer", [None, toy_tokenizer(SPELLINGS)], ids=["no tokenizer", "no such token"])
def test_without_delimiters_blocks_are_fixed(tokenizer: Tokenizer | None) -> None:
    lm, notes = LanguageModel(ToyModel(attention="full"), tokenizer), []
    method = AdaBlock(block=4, delimiters="?", threshold=1.0)
    found = write(lm, method, watch=lambda rows, outcome: notes.append(outcome.proposal.note))
    assert [r.tokens for r in found] == [r.tokens for r in write(lm, MaskedDiffusion(block=4))]
    assert set(notes) == {"fixed blocks"}


# Settings


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (Prophet, {"early": -1.0}),
        (Prophet, {"region": "answer"}),
        (Prophet, {"order": "best"}),
        (CoherentDecoding, {"history": 0}),
        (CoherentDecoding, {"top": 0}),
        (ExploreThenExploit, {"threshold": 0.0}),
        (ExploreThenExploit, {"threshold": 1.5}),
        (ExploreThenExploit, {"reach": -2}),
        (ExploreThenExploit, {"explore": -1}),
        (ExploreThenExploit, {"candidates": 0}),
        (ExploreThenExploit, {"candidates": 2, "explore": 2}),
        (LatentRefinement, {"mix": 1.5}),
        (LatentRefinement, {"top_p": 0.0}),
        (LatentRefinement, {"threshold": 2.0}),
        (LatentRefinement, {"candidates": 0}),
        (LatentRefinement, {"rounds": -1}),
        (LatentRefinement, {"settle": -0.1}),
        (LatentRefinement, {"order": "best"}),
        (AdaBlock, {"delimiters": ""}),
        (AdaBlock, {"delimiter_threshold": 0.0}),
        (AdaBlock, {"window": 0.0}),
        (AdaBlock, {"threshold": 1.5}),
    ],
)
def test_bad_settings_are_refused(method: type[CanvasMethod], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        method(**settings)
    assert caught.value.hint


@pytest.mark.parametrize("method", [Prophet, CoherentDecoding, ExploreThenExploit, LatentRefinement, AdaBlock])
def test_settings_survive_the_command_line(method: type[CanvasMethod]) -> None:
    spelled = {name: str(value) for name, value in method().to_dict().items()}
    assert method.from_settings(spelled) == method()

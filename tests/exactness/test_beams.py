"""Searches against slow ones: every text forwarded whole, lists in place of tensors, and all texts there are."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.bench.distinct import distinct
from outpace.errors import ConfigError, ModelError
from outpace.methods.search.beam_search import BeamSearch
from outpace.methods.search.diverse_beam_search import DiverseBeamSearch
from outpace.methods.search.searched import Searched
from outpace.models.generation import GenerationConfig
from outpace.run.loop import Run
from outpace.run.row import DEAD_END, NO_MORE, Row
from outpace.sampling import Sampling
from outpace.testing.grammar import ToyGrammar
from outpace.testing.toy import ToyEncoderDecoder, ToyModel
from outpace.testing.world import PROMPTS, drive, make_rows, make_run
from outpace.types import Adapter, Guarantee

END, LIMIT = 3, 9
Law = Callable[[list[int]], list[float]]
Found = list[tuple[float, list[int]]]
NEVER = float("-inf")


def law_of(model: Adapter, prompt: Sequence[int], grammar: ToyGrammar | None = None) -> Law:
    """The log-probabilities behind a written text, from a forward over all of it."""

    def law(written: list[int]) -> list[float]:
        text = [*prompt, *written]
        cache = model.new_cache(1, len(text))
        logits = model.score(torch.tensor([text]), torch.arange(len(text)).unsqueeze(0), None, cache).logits[0, -1]
        values = logits.double().log_softmax(-1).tolist()
        if grammar is not None:
            state = grammar.start()
            assert all(state.push(token) for token in written)
            allowed = state.allowed().tolist()
            allowed[END] = state.is_complete
            values = [value if may else NEVER for value, may in zip(values, allowed, strict=True)]
        return list(values)

    return law


def slow_search(law: Law, method: Searched, limit: int = LIMIT, ends: Sequence[int] = (END,)) -> Found:
    """Beam search on lists, text by text; `groups` of beams as the paper's algorithm 1 goes through them."""
    rules = method.rules
    part, groups = method.beams // rules.num_groups, range(rules.num_groups)
    running: list[Found] = [[(0.0, [])] for _ in groups]
    done: list[Found] = [[] for _ in groups]
    is_open = [True for _ in groups]
    for size in range(1, limit + 1):
        taken = Counter[int]()
        for group in (group for group in groups if is_open[group]):
            grown = [
                (score + value - rules.diversity * taken[token], [*text, token])
                for score, text in running[group]
                for token, value in enumerate(law(text))
                if value > NEVER
            ]
            grown = sorted(grown, key=lambda one: -one[0])[: part * max(2, 1 + len(ends))]
            has_ended = [text[-1] in ends or size == limit for _, text in grown]
            new = [(s / size**rules.length_penalty, t) for (s, t), e in list(zip(grown, has_ended))[:part] if e]  # noqa: B905
            done[group] = sorted(done[group] + new, key=lambda one: -one[0])[:part]
            running[group] = [one for one, ended in zip(grown, has_ended, strict=True) if not ended][:part]
            taken.update(text[-1] for _, text in running[group])
            reach = limit if rules.early_stopping == "never" and rules.length_penalty > 0 else size
            is_full = len(done[group]) == part
            is_open[group] = bool(running[group]) and not (
                is_full
                and (
                    rules.early_stopping == "true"
                    or running[group][0][0] / reach**rules.length_penalty <= done[group][-1][0]
                )
            )
        if not any(is_open):
            break
    return sorted(itertools.chain.from_iterable(done), key=lambda one: -one[0])


def write(lm: LanguageModel, method: Searched, prompts: Any = PROMPTS, **more: Any) -> list[Result]:
    results: list[Result] = lm.generate([list(one) for one in prompts], method=method, **{"max_tokens": LIMIT, **more})
    return results


def same(results: Sequence[Result], wanted: Found) -> None:
    assert [one.tokens for one in results] == [text for _, text in wanted[: len(results)]]
    assert [one.score for one in results] == pytest.approx([score for score, _ in wanted[: len(results)]], abs=1e-9)
    assert [one.sample for one in results] == list(range(len(results)))


SEARCHES = [
    BeamSearch(beams=4, n_best=4),
    BeamSearch(beams=3, n_best=2, length_penalty=0.0, early_stopping="true"),
    BeamSearch(beams=4, n_best=3, length_penalty=1.7, early_stopping="never"),
    BeamSearch(beams=2, n_best=2, length_penalty=-0.5),
    BeamSearch(beams=1),
    DiverseBeamSearch(beams=6, groups=3, n_best=6),
    DiverseBeamSearch(beams=4, groups=2, diversity=2.0, n_best=4, length_penalty=0.5, early_stopping="true"),
    DiverseBeamSearch(beams=4, groups=4, diversity=1.0, n_best=3, early_stopping="never"),
]


@pytest.mark.parametrize("method", SEARCHES, ids=str)
def test_a_search_is_the_slow_one(method: Searched) -> None:
    """Token for token and score for score, in a ragged batch, with drafts and without."""
    model = ToyModel(sharpness=1.2)
    lm = LanguageModel(model, None, end_tokens=[END])
    wanted = [slow_search(law_of(model, prompt), method) for prompt in PROMPTS]
    assert any(text[-1] == END for found in wanted for _, text in found[: method.n_best])
    for drafter, width in (("", 0), ("token-recycling", 0), ("prompt-lookup", 0)):
        chosen = type(method)(**{**method.to_dict(), "drafter": drafter, "tree_width": width})
        results = write(lm, chosen)
        for row, found in enumerate(wanted):
            same(results[row * method.n_best : (row + 1) * method.n_best], found)


def test_one_group_is_beam_search() -> None:
    lm = LanguageModel(ToyModel(sharpness=1.2), None, end_tokens=[END])
    alone, grouped = (write(lm, one) for one in (BeamSearch(n_best=4), DiverseBeamSearch(groups=1, n_best=4)))
    assert [(one.tokens, one.score) for one in alone] == [(one.tokens, one.score) for one in grouped]


def test_groups_write_more_kinds_of_texts() -> None:
    """The share of distinct bigrams among a prompt's texts rises with the penalty."""
    assert distinct([[1, 2, 1, 2], [2]], 2) == 2 / 3 and distinct([[1]], 2) == 0
    lm, shares = LanguageModel(ToyModel(), None), []
    for method in (BeamSearch(n_best=4), DiverseBeamSearch(groups=4, n_best=4, diversity=3.0)):
        results = write(lm, method, max_tokens=12)
        texts = [[one.tokens for one in results[4 * row : 4 * row + 4]] for row in range(len(PROMPTS))]
        shares.append(sum(distinct(own, 2) for own in texts) / len(texts))
    assert shares[0] < shares[1]


def test_drafts_save_forwards() -> None:
    """A tree of the target's own likeliest tokens holds most beams: fewer forwards, the same texts."""
    model, counts, texts = ToyModel(), [], []
    for method in (BeamSearch(beams=2), BeamSearch(beams=2, drafter="draft-model", draft_len=3, tree_width=4)):
        rows, run = make_rows(), make_run(method, target=model, models={"draft": model})
        drive(run, rows)
        counts.append(run.num_steps)
        texts.append([(row.written, round(row.score or 0.0, 9)) for row in rows])
    assert texts[0] == texts[1] and 2 * counts[1] <= counts[0]


def test_an_encoder_runs_once_for_all_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[list[int]]] = []
    encode = ToyEncoderDecoder.encode

    def counted(self: Any, sources: Any, cache: Any) -> None:
        seen.append([list(source) for source in sources])
        encode(self, sources, cache)

    monkeypatch.setattr(ToyEncoderDecoder, "encode", counted)
    lm = LanguageModel(ToyEncoderDecoder(), None, end_tokens=[END])
    lm.target.start_token = 1
    found = lm.generate([[5, 6], [7]], method="beam-search", max_tokens=LIMIT)
    assert seen == [[[5, 6], [7]]]
    alone = [lm.generate(source, method="beam-search", max_tokens=LIMIT) for source in ([5, 6], [7])]
    assert [(one.tokens, round(one.score, 9)) for one in found] == [(one.tokens, round(one.score, 9)) for one in alone]


@pytest.mark.parametrize("is_open", [True, False])
def test_constrained_searches_find_the_best_of_all_texts(is_open: bool) -> None:
    """As many beams as there are texts: what is found are the best of all that obey, told by enumeration."""
    grammar = ToyGrammar(vocab_size=4, avoid=3, goal=8 if is_open else 6)
    model, limit, prompt = ToyModel(vocab_size=4, sharpness=1.5), 4, [1, 2]
    law, found = law_of(model, prompt, grammar), []
    for size in range(1, limit + 1):
        for text in itertools.product(range(4), repeat=size):
            laws, score = list(text), 0.0
            for at in range(size):
                if score > NEVER:
                    score += law(laws[:at])[laws[at]] if END not in laws[:at] and _obeys(grammar, laws[:at]) else NEVER
            state = grammar.start()
            is_final = all(state.push(token) for token in text) and state.is_final
            if score > NEVER and (text[-1] == END or is_final or size == limit):
                found.append((score / size, laws))
    found.sort(key=lambda one: -one[0])
    lm = LanguageModel(model, None, end_tokens=[END])
    method = BeamSearch(beams=64, n_best=6, early_stopping="never")
    results = write(lm, method, [prompt], constraint=grammar, max_tokens=limit)
    same(results, found)
    for result in write(lm, BeamSearch(beams=4, n_best=4), [[1], [2, 0, 1]], constraint=grammar, max_tokens=limit):
        state = grammar.start()
        assert all(token == END or state.push(token) for token in result.tokens)


def _obeys(grammar: ToyGrammar, text: list[int]) -> bool:
    state = grammar.start()
    return all(state.push(token) for token in text) and not state.is_final


@pytest.mark.parametrize(
    ("law", "obeys"),
    [
        ({"regex": "(yes|no|maybe)( sir)?"}, lambda text: text.removesuffix(" sir") in ("yes", "no", "maybe")),
        ({"json_schema": {"enum": ["red", "green", 7]}}, lambda text: json.loads(text) in ("red", "green", 7)),
        ({"grammar": 'start: ("a" | "b") ("a" | "b") "."'}, lambda text: text in ("aa.", "ab.", "ba.", "bb.")),
    ],
    ids=["regex", "json", "grammar"],
)
def test_every_text_of_a_search_obeys(stories: LanguageModel, law: Any, obeys: Callable[[str], bool]) -> None:
    for method in (BeamSearch(n_best=3), DiverseBeamSearch(groups=2, n_best=3, drafter="token-recycling")):
        found = stories.generate("Tom said", method=method, max_tokens=10, **law)
        assert isinstance(found, list) and len({tuple(one.tokens) for one in found}) >= 2  # a text may be spelled twice
        assert all(obeys(one.text) or one.finish_reason == "length" for one in found)
        assert any(obeys(one.text) for one in found)


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    pytest.importorskip("llguidance")
    return load("stories", dtype="float32", is_checked=False)


def test_fewer_texts_than_asked_for_are_said_to_be_fewer() -> None:
    """One text obeys: nothing may stand but a 2 (0 is divisible by 2, and 1 is suppressed)."""
    lm = LanguageModel(ToyModel(vocab_size=3), None)
    grammar = ToyGrammar(vocab_size=3, avoid=3, goal=2)
    found = write(lm, BeamSearch(n_best=2), [[1]], constraint=grammar, suppress_tokens=[1])
    assert found[0].tokens == [2] and found[0].finish_reason == "eos"
    assert not found[1].tokens and found[1].finish_reason == "error" and NO_MORE in found[1].notes
    assert DEAD_END not in found[1].notes


def test_records_and_streams_are_the_texts_own() -> None:
    """Log-probabilities add up to the score; nothing is handed over before a row ends; stops are seen."""
    lm = LanguageModel(ToyModel(sharpness=1.2), None, end_tokens=[END])
    for drafter in ("", "token-recycling"):
        method = BeamSearch(n_best=3, length_penalty=0.0, drafter=drafter)
        for result in write(lm, method, record=("log_probs", "margins"), top_log_probs=2):
            assert sum(result.log_probs) == pytest.approx(result.score, abs=1e-9) and not result.margins
            assert len(result.log_probs) == len(result.sources) == len(result.tokens) == len(result.top_log_probs)
            usage = result.usage
            assert usage.num_emitted == len(result.tokens) and usage.num_accepted == result.sources.count("draft")
    stopped = write(lm, BeamSearch(n_best=4), stop_tokens=[5, 6])
    assert {one.finish_reason for one in stopped} >= {"stop", "eos"}
    assert all(not {5, 6, END} & set(one.tokens[:-1]) for one in stopped)


@pytest.mark.parametrize(
    ("options", "more", "word"),
    [
        ({"beams": 0}, {}, "beams must be 1 or more"),
        ({"beams": 2, "n_best": 3}, {}, "n_best is 3"),
        ({"early_stopping": "soon"}, {}, "early_stopping"),
        ({"length_penalty": float("inf")}, {}, "length_penalty"),
        ({}, {"temperature": 0.7}, "temperature is 0.7"),
        ({}, {"num_samples": 3}, "n_best=3"),
        ({"drafter": "beam-search"}, {}, "does not draft"),
        ({"drafter": "masked-diffusion"}, {}, "does not draft"),
    ],
    ids=str,
)
def test_senseless_searches_are_refused_in_a_sentence(options: Any, more: Any, word: str) -> None:
    lm = LanguageModel(ToyModel(), None)
    with pytest.raises(ConfigError) as caught:
        lm.generate([1], method="beam-search", options=options, **more)
    assert word in f"{caught.value} {caught.value.hint}" and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="3 equal groups"):
        DiverseBeamSearch(beams=4, groups=3)


def test_a_file_that_asks_for_beams_gets_them() -> None:
    lm = LanguageModel(ToyModel(sharpness=1.2), None, end_tokens=[END])
    asked = {"num_beams": 3, "length_penalty": 0.3, "early_stopping": True, "max_new_tokens": LIMIT}
    lm.generation = GenerationConfig.read(asked)
    found, prompt = lm.generate(PROMPTS[0]), list(PROMPTS[0])
    method = BeamSearch(beams=3, length_penalty=0.3, early_stopping="true")
    wanted = write(lm, method, [prompt])[0]
    assert (found.method, found.tokens, found.score) == ("beam-search", wanted.tokens, wanted.score)
    assert found.guarantee == Guarantee.EXACT.value and found.settings["early_stopping"] == "true"
    assert "obeyed: max_new_tokens=9, early_stopping=True, length_penalty=0.3, num_beams=3." in found.notes[0]
    for own in ({"method": "autoregressive"}, {"temperature": 0.8}, {"num_samples": 2}):
        result: Any = lm.generate(prompt, **own)
        result = result[0] if isinstance(result, list) else result
        assert result.method == "autoregressive"
        assert "not obeyed: early_stopping=True, length_penalty=0.3, num_beams=3" in result.notes[0]
    lm.generation = GenerationConfig.read(
        {**asked, "num_return_sequences": 2, "num_beam_groups": 3, "diversity_penalty": 1.5}
    )
    several = lm.generate(prompt)
    assert [one.method for one in several] == ["diverse-beam-search"] * 2
    own = DiverseBeamSearch(beams=3, groups=3, diversity=1.5, n_best=2, length_penalty=0.3, early_stopping="true")
    assert [one.tokens for one in several] == [one.tokens for one in write(lm, own, [prompt])]
    lm.generation = GenerationConfig.read({"length_penalty": 0.3, "num_return_sequences": 2, "do_sample": True})
    assert "length_penalty" in str(lm.generate(prompt).notes) and len(lm.generate(prompt, sampling="model")) == 2


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, but num_beams is 2"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups is 3"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty"),
    ],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused(keys: Any, word: str) -> None:
    with pytest.raises(ModelError) as caught:
        GenerationConfig.read(keys)
    assert word in str(caught.value) and "--generation-config none" in caught.value.hint


def test_rows_of_a_group_have_one_source() -> None:
    rows = [Row([1], 1, key, 4, source=[key], group=0, place=key) for key in (1, 2)]
    run = Run(ToyEncoderDecoder(), BeamSearch(beams=2), Sampling(), capacity=32)
    with pytest.raises(ConfigError, match="different sources"):
        run.join(rows)

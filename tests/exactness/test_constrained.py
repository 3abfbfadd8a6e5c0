"""Under a constraint every method writes what plain decoding writes under it, and nothing that it forbids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import outpace
from outpace import LanguageModel, constrain
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.registry import load_method, method_names
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.row import BROKEN, DEAD_END, DISOBEYED, FORBIDDEN, Row
from outpace.sampling import Sampling, row_key
from outpace.testing import world
from outpace.testing.grammar import ToyGrammar, ToyState
from outpace.testing.gtest import PROMPT, g_test, small_model, text_counts
from outpace.testing.world import END, PROMPTS, drive, make_rows, make_run, with_stop, write
from outpace.types import FinishReason, Guarantee

REGEX = r"[A-Z][a-z ,]{5,40}\. (The|She|He) [a-z ]+\."
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
GRAMMAR = 'start: "The " noun " and the " noun " " verb "."\nnoun: "cat" | "dog" | "little bird"\nverb: /[a-z]{3,9}/'
ALL = [load_method(name)() for name in method_names()]
# Searches write the likeliest texts, and have tests of their own, as have models of one pass.
CAUSAL = [
    method
    for method in ALL
    if method.needs.attention == "causal" and method.family != "search" and not method.needs.is_one_pass
]
EXACT = [method for method in CAUSAL if method.guarantee is Guarantee.EXACT]
# Those without a small network of their own, of which none is known for `stories`.
ON_STORIES = [method for method in EXACT if not (method.needs.head or method.name in ("pard", "s2d"))]
RULES = [DraftModel(draft_len=4, accept_rule="rejection"), DraftModel(draft_len=3, tree_width=2)]


def names(method: Method) -> str:
    return method.name


def obeys(grammar: ToyGrammar, row: Row) -> bool:
    """Whether a toy row's text is a sentence if it ended by itself, and the beginning of one in any case."""
    state, ends = grammar.start(), row.written[-1:] == [END] and row.finish is FinishReason.EOS and row.end_tokens
    is_begun = all(state.push(token) for token in (row.written[:-1] if ends else row.written))
    return is_begun and (state.is_complete or row.finish is not FinishReason.EOS)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", EXACT, ids=names)
def test_toy_rows_are_plain_decodings(method: Method, temperature: float) -> None:
    grammar = ToyGrammar(goal=90)
    settings = Sampling(temperature=temperature, constraint=grammar)
    wanted = write(Autoregressive(), settings, make_rows(end_tokens=(END,)))
    rows = write(method, settings, make_rows(end_tokens=(END,)))
    assert [(row.written, row.finish) for row in rows] == [(row.written, row.finish) for row in wanted]
    assert all(obeys(grammar, row) for row in rows)


@pytest.mark.parametrize("method", CAUSAL + RULES, ids=str)
def test_whatever_the_method_promises_its_text_obeys(method: Method) -> None:
    grammar = ToyGrammar(goal=80)
    for ends in ((), (END,)):
        for row in write(method, Sampling(temperature=1.3, constraint=grammar), make_rows(end_tokens=ends)):
            assert obeys(grammar, row) and row.finish in (FinishReason.EOS, FinishReason.LENGTH)


@pytest.fixture(scope="module")
def stories() -> Iterator[LanguageModel]:
    pytest.importorskip("llguidance")
    yield outpace.load("stories")


KINDS = {"regex": {"regex": REGEX}, "json": {"json_schema": SCHEMA}, "grammar": {"grammar": GRAMMAR}}
PLAIN: dict[tuple[str, float], Any] = {}


def fulfils(kind: str, text: str) -> bool:
    if kind == "json":
        value = json.loads(text)
        return [type(value[key]) for key in ("name", "age", "ok")] == [str, int, bool] and len(value) == 3
    return (
        re.fullmatch(REGEX if kind == "regex" else r"The (cat|dog|little bird) and the .* [a-z]{3,9}\.", text)
        is not None
    )


@pytest.mark.parametrize("method", ON_STORIES, ids=names)
def test_stories_under_a_grammar(stories: LanguageModel, method: Method) -> None:
    prompts, number = ["Once upon a time", "Lily said that the cat and the dog"], ON_STORIES.index(method)
    # Each method meets every kind and both temperatures, every second one in the other pairing.
    for place, (kind, asked) in enumerate(KINDS.items()):
        temperature = (0.0, 0.8)[(place + number) % 2]
        settings = {"temperature": temperature, "seed": 3, "max_tokens": 60, **asked}
        key = (kind, temperature)
        if key not in PLAIN:
            PLAIN[key] = stories.generate(prompts, **settings)
        drafted = stories.generate(prompts, method=method, **settings)
        for ours, plain in zip(drafted, PLAIN[key], strict=True):
            assert (ours.tokens, ours.text, ours.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
            assert ours.finish_reason == "length" or (ours.finish_reason == "eos" and fulfils(kind, ours.text))
        assert any(result.finish_reason == "eos" for result in drafted) or kind != "grammar"


@pytest.mark.parametrize("method", ["autoregressive", "draft-model"])
def test_batches_samples_and_streams_each_have_their_own_state(stories: LanguageModel, method: str) -> None:
    asked = {"json_schema": json.dumps(SCHEMA), "temperature": 0.9, "seed": 8, "max_tokens": 50, "method": method}
    prompts = ["Once", "The dog wrote this:", "Tom and Mia went to the park. They had"]
    batch = stories.generate(prompts, num_samples=2, **asked)
    assert len({result.text for result in batch}) > 3
    for index, prompt in enumerate(prompts):
        alone = stories.generate(prompt, **asked)
        assert alone.tokens == batch[2 * index].tokens
        stream, pieces = stories.stream(prompt, **asked), []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as ended:
                result = ended.value
                break
        assert "".join(pieces) == result.text == alone.text
        assert result.finish_reason != "eos" or fulfils("json", result.text)


def test_records_stops_and_minimum_length(stories: LanguageModel) -> None:
    asked = {"regex": REGEX, "temperature": 0.8, "seed": 1, "max_tokens": 40}
    plain = stories.generate("Once upon a time", record=["log_probs", "margins"], **asked)
    ours = stories.generate("Once upon a time", method="draft-model", record=["log_probs", "margins"], **asked)
    assert ours.tokens == plain.tokens and len(ours.margins) == len(ours.log_probs) == len(ours.tokens)
    assert ours.margins == pytest.approx(plain.margins, abs=1e-3)
    assert ours.log_probs == pytest.approx(plain.log_probs, abs=1e-3)
    free = stories.generate("Once upon a time" + plain.text[:0], record=["log_probs"], max_tokens=1)
    assert max(plain.log_probs[0], free.log_probs[0]) == free.log_probs[0]  # the model's own law, not the masked one
    stop = plain.text[4:8]
    ended = stories.generate("Once upon a time", stop=[stop], method="draft-model", **asked)
    assert (ended.finish_reason, ended.text) == ("stop", plain.text[: plain.text.index(stop)])
    assert any("ends before" in note for note in ended.notes)
    longer = stories.generate("Once upon a time", min_tokens=60, **{**asked, "regex": "(a|b){3}"})
    assert len(longer.text) == 3 and longer.finish_reason == "eos"  # nothing may follow, whatever min_tokens says


def test_end_tokens_are_allowed_where_the_text_is_complete_only(stories: LanguageModel) -> None:
    end = stories.end_tokens[0]
    eager = {"logit_bias": {end: 1e4}, "max_tokens": 30}
    result = stories.generate("Once", regex="ab+", **eager)
    assert (result.text, result.finish_reason, result.tokens[-1]) == ("ab", "eos", end)
    held = stories.generate("Once", regex="ab+", min_tokens=6, **eager)
    assert len(held.tokens) == 7 and held.tokens[-1] == end and held.text.startswith("abb")
    ignored = stories.generate("Once", regex="ab+", ignore_eos=True, **eager)
    assert ignored.finish_reason == "length" and end not in ignored.tokens and ignored.notes == []
    cut = stories.generate("Once", regex="a{50}", ignore_eos=True, max_tokens=3)
    assert cut.finish_reason == "length" and any("before what its constraint asks" in note for note in cut.notes)
    final = stories.generate("Once", regex="abc", ignore_eos=True, max_tokens=9)
    assert (final.text, final.finish_reason) == ("abc", "eos") and end not in final.tokens


def test_the_prompt_does_not_count_and_a_continuation_begins_anew(stories: LanguageModel) -> None:
    head = stories.generate("Once", regex="a{4}", max_tokens=1)
    tail = stories.generate(head.prompt_tokens + head.tokens, regex="a{4}", max_tokens=9)
    assert tail.text == "aaaa"


def test_padding_of_the_vocabulary_is_never_written(tiny: Any) -> None:
    pytest.importorskip("llguidance")
    lm = outpace.load(tiny)
    vocab = lm.target.capabilities.vocab_size
    padded = constrain.compile(lm.tokenizer, regex="[a-z ]+", vocab_size=vocab + 9)
    assert not padded.start().allowed()[vocab:].any()
    with pytest.raises(ConfigError, match=f"made for {vocab + 9} tokens, but the model has {vocab}"):
        lm.generate("the", constraint=padded)
    given = lm.generate("the", constraint=constrain.compile(lm.tokenizer, regex="[a-z ]+"), max_tokens=8)
    assert given.tokens == lm.generate("the", regex="[a-z ]+", max_tokens=8).tokens
    with pytest.raises(ConfigError, match="Two constraints"):
        lm.generate("the", constraint=padded, regex="a")
    with pytest.raises(ConfigError, match="constraint is a str"):
        lm.generate("the", constraint="a")
    with pytest.raises(ConfigError, match="need a tokenizer"):
        LanguageModel(lm.target).generate([1, 2], regex="a")


def test_a_canvas_refuses_constraints() -> None:
    lm = LanguageModel(world.target_for("full"))
    with pytest.raises(ConfigError, match=r"out of order.*constraint"):
        lm.generate([1, 2], method="masked-diffusion", constraint=ToyGrammar())


# Rows that come and go


@pytest.mark.parametrize("method", [Autoregressive(), PromptLookup(), *RULES[1:]], ids=str)
def test_rows_leave_rejoin_and_join_late_where_they_stand(method: Method) -> None:
    settings = Sampling(temperature=0.7, constraint=ToyGrammar(goal=90))
    wanted = [row.written for row in write(Autoregressive(), settings)]
    rows, run = make_rows(), make_run(method, settings)
    drive(run, rows[:3], steps=2)
    run.leave([rows[0], rows[2]])
    drive(run, [rows[3]], steps=1)
    drive(run, [rows[2], rows[0]])
    assert [row.written for row in rows] == wanted


def test_a_row_that_broke_the_constraint_before_is_refused() -> None:
    rows = make_rows(max_tokens=20)
    run = make_run(Autoregressive())
    drive(run, rows, steps=8)
    with pytest.raises(ConfigError, match="breaks the constraint"):
        make_run(Autoregressive(), Sampling(constraint=ToyGrammar(avoid=2))).join(rows)


def test_end_tokens_are_each_rows_own() -> None:
    """min_tokens holds back a row's own end tokens, not those of the first row."""
    settings = Sampling(temperature=1.3, min_tokens=7)
    for method in (Autoregressive(), PromptLookup(), DraftModel(draft_len=3)):
        rows = make_rows()
        for row, end in zip(rows, (3, 2, 4, 0), strict=True):
            row.end_tokens = (end,)
        write(method, settings, rows)
        for index, row in enumerate(rows):
            alone = make_rows()[index]
            alone.end_tokens = row.end_tokens
            write(Autoregressive(), settings, [alone])
            assert row.written == alone.written
            assert row.end_tokens[0] not in row.written[:7]
        assert any(other in row.written[:7] for row in rows for other in (3, 2, 4, 0))


# Dead ends


class DeadEnd(ToyGrammar):
    """Nothing is allowed from a sum of 20 on, and no text is complete."""

    __slots__ = ()

    def start(self) -> ToyState:
        return DeadState(self, [])


class DeadState(ToyState):
    is_complete = property(lambda self: False)
    is_final = property(lambda self: False)

    def allowed(self) -> torch.Tensor:
        return super().allowed() & (sum(self.tokens) < 20)

    def fork(self) -> ToyState:
        return DeadState(self.grammar, list(self.tokens))


@pytest.mark.parametrize("method", CAUSAL + RULES, ids=str)
def test_a_dead_end_ends_its_row_with_an_error(method: Method) -> None:
    settings = Sampling(temperature=0.8, constraint=DeadEnd())
    for row in write(method, settings):
        assert row.finish is FinishReason.ERROR and row.notes == [DEAD_END]
        assert sum(row.written) >= 20 > sum(row.written[:-1])
        assert len(row.sources) == len(row.written) == row.usage.num_emitted


def test_a_dead_end_is_told_apart_from_broken_logits() -> None:
    rows = make_rows()
    target = world.NanRow(world.target_for("causal"), row=1, rows=len(rows))
    write(PromptLookup(), Sampling(constraint=ToyGrammar(goal=90)), rows, target=target)
    assert rows[1].finish is FinishReason.ERROR and rows[1].notes == [FORBIDDEN]
    assert all(row.notes == [] for row in rows if row is not rows[1])
    free = make_rows()
    write(PromptLookup(), rows=free, target=world.NanRow(world.target_for("causal"), row=1, rows=len(rows)))
    assert free[1].notes == [BROKEN]
    starved = write(Autoregressive(), Sampling(constraint=ToyGrammar(), bad_words=[(token,) for token in range(13)]))
    assert all(row.notes == [FORBIDDEN] and row.written == [] for row in starved)


def test_a_method_that_ignores_the_constraint_cannot_break_it() -> None:
    class Blind(Autoregressive):
        def accept(self, proposal: Any, scores: Any, view: Any, state: Any) -> Any:
            view.sampler.settings = Sampling()
            return super().accept(proposal, scores, view, state)

    rows = write(Blind(), Sampling(constraint=ToyGrammar()))
    assert any(row.notes == [DISOBEYED] for row in rows)
    assert all(obeys(ToyGrammar(), row) for row in rows)


def test_a_stop_string_wins_over_the_constraints_end() -> None:
    settings = Sampling(constraint=ToyGrammar())
    plain = write(Autoregressive(), settings)[0]
    text = world.toy_decode(plain.written)
    row = with_stop(make_rows()[0], text[-3:-1])
    write(PromptLookup(), settings, [row])
    assert row.text is not None and row.text.text == text[: text.index(text[-3:-1])]
    assert row.finish is FinishReason.STOP


@pytest.mark.parametrize("method", [RULES[0], *(m for m in CAUSAL if m.guarantee is Guarantee.DISTRIBUTION)], ids=names)
def test_a_ratio_rule_follows_the_constrained_law(method: Method) -> None:
    """The law of plain constrained decoding: at each token, the model's own law over what is allowed."""
    target, grammar = small_model(), ToyGrammar(4, 3, 1000)
    settings = Sampling(temperature=0.7, constraint=grammar)
    law = torch.zeros(4, 4, dtype=torch.float64)
    for first in range(4):
        for second in range(4):
            chance, state = 1.0, grammar.start()
            for index, token in enumerate((first, second)):
                text = torch.tensor([[*PROMPT, *(first, second)[:index]]])
                place = torch.arange(text.shape[1]).unsqueeze(0)
                logits = target.score(text, place, None, target.new_cache(1, 9)).logits[0, -1]
                allowed = [t for t in range(4) if (sum((first, second)[:index]) + t) % 3 != 0]
                weights = {t: float((logits[t] / 0.7).exp()) for t in allowed}
                chance *= weights.get(token, 0.0) / sum(weights.values())
                state.push(token)
            law[first, second] = chance
    drafter = small_model(seed=4, like=target)
    counts = text_counts(method, target, 2, settings, 2000, {"draft": drafter})
    assert g_test(counts, law.flatten()) > 1e-4
    assert g_test(counts, law.flip(0).flatten()) < 1e-4  # it can fail


def test_a_second_key_writes_another_text() -> None:
    settings = Sampling(temperature=1.3, constraint=ToyGrammar(goal=90))
    first = write(Autoregressive(), settings)
    second = write(Autoregressive(), settings, make_rows(keys=[row_key(99, i) for i in range(len(PROMPTS))]))
    assert [row.written for row in first] != [row.written for row in second]

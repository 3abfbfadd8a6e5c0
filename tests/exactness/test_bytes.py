"""Exact byte laws: by enumeration on Markov chains and toy models, healed prompts by brute force, ensembles by hand."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.api.healing import _covers, _Options, heal
from outpace.api.starting import prepare
from outpace.cache import Cache
from outpace.errors import CapabilityError, ConfigError
from outpace.models.byte_covers import CoverRules
from outpace.models.byte_model import ByteModel, ByteNames, Voice, cover_rules
from outpace.models.token_laws import TokenLaws
from outpace.testing import ToyModel
from outpace.testing.gtest import g_test
from outpace.text.byte_index import END, ByteIndex
from outpace.text.speller import Speller
from outpace.text.tokenizer import Tokenizer
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Counter, Outputs, Scores

SIZE = 8  # characters of every text of the chains
START = 0  # the token that texts begin behind, and end with
WORDS = (None, b"a", b"b", b"ab", b"ba", b"aab", b"bb", b"babb")  # by token
MERGES = (("a", "b"), ("b", "b"), ("a", "ab"), ("b", "a"))
Encode = Callable[[bytes], list[int]]


class TableModel(Adapter):
    """A model whose laws are a function of the tokens so far."""

    def __init__(self, law: Callable[[tuple[int, ...]], Tensor], vocab_size: int = len(WORDS)) -> None:
        self.capabilities, self.law, self.dtype = Capabilities(vocab_size, 64), law, torch.float64

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        return Cache([torch.zeros(rows, capacity, 1, dtype=torch.int64)], 1, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        cache.stage(position)
        held, size = cache.lengths[0], tokens.shape[1]
        cache.buffers[0][0, held : held + size, 0] = tokens[0]
        before = cache.buffers[0][0, :held, 0].tolist()
        sight = torch.ones(size, size, dtype=torch.bool).tril() if visible is None else visible[0]
        asked = range(size) if ask is None else ask[0].tolist()
        return Scores(torch.stack([self.law((*before, *tokens[0][sight[at]].tolist())) for at in asked]).unsqueeze(0))


def longest_match(text: bytes) -> list[int]:
    found, at = list[int](), 0
    while at < len(text):
        size = next(size for size in range(4, 0, -1) if text[at : at + size] in WORDS[1:] and at + size <= len(text))
        found.append(WORDS.index(text[at : at + size]))
        at += size
    return found


def byte_pairs(text: bytes) -> list[int]:
    parts = [chr(byte) for byte in text]
    for left, right in MERGES:
        at = 0
        while at < len(parts) - 1:
            if (parts[at], parts[at + 1]) == (left, right):
                parts[at : at + 2] = [left + right]
            at += 1
    return [WORDS.index(part.encode()) for part in parts]


def chain(text: bytes) -> float:
    """Return the probability of a text of `SIZE` characters under a Markov chain."""
    chance = 0.3 if text[:1] == b"a" else 0.7
    for before, after in itertools.pairwise(text):
        stays = 0.25 if before == ord("a") else 0.6
        chance *= stays if before == after else 1 - stays
    return chance


TEXTS = [bytes(letters) for letters in itertools.product(b"ab", repeat=SIZE)]


@functools.cache
def tokenised(encode: Encode) -> TableModel:
    """Return the exact law of the chain's texts as a tokenizer writes them."""
    spelled = [(tuple([START, *encode(text), START]), chain(text)) for text in TEXTS]

    @functools.cache
    def law(ids: tuple[int, ...]) -> Tensor:
        sums = torch.zeros(len(WORDS), dtype=torch.float64)
        for tokens, chance in spelled:
            if tokens[: len(ids)] == ids and len(tokens) > len(ids):
                sums[tokens[len(ids)]] += chance
        # Behind tokens that are never written, any law will do: nothing may depend on it.
        return (sums / sums.sum()).log() if sums.sum() > 0 else torch.zeros_like(sums).log_softmax(0)

    return TableModel(law)


def rules_of(encode: Encode, model: Adapter | None = None, is_all: bool = False) -> CoverRules:
    laws = TokenLaws(tokenised(encode) if model is None else model)
    return CoverRules(ByteIndex(WORDS, [START]), laws, (START,), encode, is_all)


@pytest.mark.parametrize("encode", [longest_match, byte_pairs])
def test_the_estimator_is_the_chain_and_naive_prompting_is_not(encode: Encode) -> None:
    worst = 0.0
    for size in range(SIZE):
        for text in map(bytes, itertools.product(b"ab", repeat=size)):
            true = [sum(chain(one) for one in TEXTS if one.startswith(text + byte)) for byte in (b"a", b"b")]
            found = rules_of(encode).read(text)
            law = found.law().exp()
            assert law[ord("a")] == pytest.approx(true[0] / sum(true), abs=1e-12)
            assert law[END] == pytest.approx(0, abs=1e-12)
            grown = functools.reduce(lambda one, byte: one.extend(byte), text, rules_of(encode).begin())
            assert torch.allclose(grown.law().exp(), law, atol=1e-12)  # byte by byte, or at once
            assert grown.log_prob() == pytest.approx(math.log(sum(true)), abs=1e-12)
            naive = tokenised(encode).law((START, *encode(text))).exp()
            first = sum(float(naive[token]) for token, word in enumerate(WORDS) if word and word[:1] == b"a")
            worst = max(worst, abs(first - true[0] / sum(true)))
    assert worst > 0.3


def test_model_runs_grow_with_the_length_of_the_text() -> None:
    def runs(size: int) -> int:
        rules = rules_of(longest_match)
        found = rules.begin()
        for byte in (b"abbabaab" * 2)[:size]:
            found = found.extend(byte)
        found.law()
        return rules.laws.num_prefixes

    counts = [runs(size) for size in range(SIZE)]
    assert counts == sorted(counts) and all(count <= size + 1 for size, count in enumerate(counts))
    jumped = rules_of(longest_match)
    jumped.read(b"abbabaab"[:7]).law()
    assert jumped.laws.num_forwards <= 2 + 2  # weights, and laws: what is shared, and a tree, each


def toy(seed: int = 0) -> ToyModel:
    return ToyModel(len(WORDS), 2, seed=seed, hidden=4, sharpness=1.5, max_positions=64)


@functools.cache
def _toy_law(model: ToyModel, ids: tuple[int, ...]) -> Tensor:
    tokens = torch.tensor([ids])
    logits = model.score(tokens, torch.arange(len(ids)).unsqueeze(0), None, model.new_cache(1, 32)).logits
    return logits[0, -1].log_softmax(-1)


def brute_covers(model: ToyModel, text: bytes, encode: Encode | None) -> dict[tuple[int, ...], float]:
    """Return the probability of every cover of a text, by trying all sequences of tokens."""
    found = dict[tuple[int, ...], float]()
    waiting = [((START,), b"", 1.0)]
    while waiting:
        ids, written, chance = waiting.pop()
        law = _toy_law(model, ids).exp()
        for token, word in enumerate(WORDS):
            longer = written + (word or b"")
            if word is None or not (longer.startswith(text) or text.startswith(longer)):
                continue
            both, weight = (*ids, token), chance * float(law[token])
            if len(longer) > len(text):
                found[both] = weight  # its last token writes on, and may be any
            elif encode is not None and list(both[1:]) != encode(longer):
                continue
            elif longer == text:
                found[both] = weight
            else:
                waiting.append((both, longer, weight))
    return found


def written(ids: Sequence[int]) -> bytes:
    return b"".join(WORDS[token] or b"" for token in ids)


def brute_law(model: ToyModel, text: bytes, encode: Encode | None) -> Tensor:
    """Return the next byte's law given a cover of the text, and the covers' probability at 257."""
    sums = torch.zeros(END + 2, dtype=torch.float64)
    for ids, chance in brute_covers(model, text, encode).items():
        sums[END + 1] += chance
        if len(written(ids)) > len(text):
            sums[written(ids)[len(text)]] += chance
            continue
        for token, more in enumerate(_toy_law(model, ids).exp().tolist()):
            sums[END if token == START else (WORDS[token] or b"")[0]] += chance * more
    return sums


@pytest.mark.parametrize("is_all", [False, True])
@pytest.mark.parametrize("text", [b"a", b"ab", b"bab", b"abba", b"babab"])
def test_next_bytes_are_brute_force_marginals(text: bytes, is_all: bool) -> None:
    model = toy()
    sums = brute_law(model, text, None if is_all else byte_pairs)
    found = functools.reduce(lambda one, byte: one.extend(byte), text, rules_of(byte_pairs, model, is_all).begin())
    assert torch.allclose(found.law().exp(), sums[: END + 1] / sums[END + 1], atol=1e-12)
    assert math.exp(found.log_prob()) == pytest.approx(float(sums[END + 1]), abs=1e-12)
    jumped = rules_of(byte_pairs, model, is_all).read(text)
    assert torch.allclose(jumped.law(), found.law(), atol=1e-9)


def test_all_covers_are_the_law_of_what_the_model_writes() -> None:
    """A chain of next bytes is the probability of the bytes, when every cover counts."""
    rules = rules_of(byte_pairs, toy(), is_all=True)
    total, found = 0.0, rules.begin()
    for byte in b"abbaba":
        total += float(found.law()[byte])
        found = found.extend(byte)
    assert found.log_prob() == pytest.approx(total, abs=1e-12)
    few = CoverRules(rules.index, rules.laws, (START,), byte_pairs, is_all=True, width=2).read(b"abbaba")
    assert len(few.prefixes) == 2 and few.log_prob() < found.log_prob()


def toy_tokenizer() -> Tokenizer:
    vocab = {"<s>" if word is None else word.decode(): token for token, word in enumerate(WORDS)}
    merges = [*MERGES, ("bab", "b")]
    engine = Engine(models.BPE({**vocab}, [pair for pair in merges if "".join(pair) in vocab and pair[0] in vocab]))
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens(["<s>"])
    return Tokenizer(engine, {"bos_token": "<s>", "eos_token": "<s>"})


@functools.cache
def toy_writer() -> LanguageModel:
    return LanguageModel(toy(), toy_tokenizer(), end_tokens=(START,), name="toy")


@pytest.mark.parametrize("text", ["ab", "bab", "abba"])
def test_a_healed_prompt_follows_the_law_of_its_covers(text: str) -> None:
    lm = toy_writer()
    spells = Speller(lm.tokenizer, len(WORDS))
    rules, _ = cover_rules(lm.target, lm.tokenizer, lm.end_tokens)
    covers = _covers(rules, spells, (START, *lm.encode(text)))
    assert covers is not None
    options = _Options.of(covers)
    brute = brute_covers(lm.target, text.encode(), lambda part: lm.encode(part.decode()))
    found = {
        (*covers.prefixes[owner].ids, *([token] if token >= 0 else [])): float(chance)
        for owner, token, chance in zip(options.owners, options.tokens, options.logits.softmax(0), strict=True)
    }
    assert found == pytest.approx({ids: chance / sum(brute.values()) for ids, chance in brute.items()}, abs=1e-12)
    # What is drawn follows it.
    prompt, counts = [START, *lm.encode(text)], dict.fromkeys(found, 0)
    plan = prepare(lm, prompt, {"is_healed": True, "temperature": 1.0, "num_samples": 3000})
    heal(lm, plan)
    for row in plan.rows:
        counts[tuple(row.tokens)] += 1
    assert g_test(torch.tensor(list(counts.values())), torch.tensor(list(found.values()), dtype=torch.float64)) > 1e-3
    greedy = prepare(lm, prompt, {"is_healed": True})
    heal(lm, greedy)
    assert tuple(greedy.rows[0].tokens) == max(found, key=lambda ids: found[ids])


def test_a_healed_text_goes_on_from_the_prompt_whatever_drafts() -> None:
    lm = load("stories", dtype="float64", is_compiled=False)
    for prompt in ("Once upon a ti", "She went to the ", "On"):
        given = {"max_tokens": 12, "is_healed": True, "temperature": 0.8, "seed": 3, "record": ["log_probs", "margins"]}
        plain = lm.generate(prompt, **given)
        whole = lm.tokenizer.decode([*plain.prompt_tokens, *plain.tokens])
        assert prompt + plain.text == whole and len(plain.tokens) <= 12
        assert len(plain.log_probs) == len(plain.margins) == len(plain.sources) == len(plain.tokens)
        assert lm.generate(prompt, method="prompt-lookup", **given).tokens == plain.tokens
        assert "".join(lm.stream(prompt, **given)) == plain.text
        scored = lm.score([*plain.prompt_tokens, *plain.tokens]).log_probs[len(plain.prompt_tokens) :]
        assert scored == pytest.approx(plain.log_probs, abs=1e-9)
    assert lm.generate("Once upon a ti", max_tokens=4, is_healed=True).text.startswith("me")
    assert lm.generate("Once upon a ti", max_tokens=1, is_healed=True, stop=["m"]).text == ""
    streamed = list(lm.stream("Once upon a ti", max_tokens=1, is_healed=True))
    assert streamed == ["me"]


def test_an_engine_heals_as_a_call_does() -> None:
    import outpace
    from outpace.engine.face import Ask

    lm = load("stories", dtype="float64", is_compiled=False)
    engine = outpace.Engine(lm)
    try:
        for given in ({"max_tokens": 6}, {"max_tokens": 1}, {"max_tokens": 6, "stop": ["m"]}):
            asked = {**given, "is_healed": True, "temperature": 0.8, "seed": 5}
            found = engine.generate(Ask(prompt="Once upon a ti", arguments=asked))[0]
            wanted = lm.generate("Once upon a ti", **asked)
            assert (found.tokens, found.text, found.finish_reason) == (
                wanted.tokens,
                wanted.text,
                wanted.finish_reason,
            )
    finally:
        engine._worker.close(1.0)


# Byte models


def spelled_writer(words: Sequence[bytes | None], seed: int) -> Voice:
    model = ToyModel(len(words), 2, seed=seed, hidden=4, sharpness=1.5, max_positions=64)
    rules = CoverRules(ByteIndex(words, [START]), TokenLaws(model), (START,), lambda text: None, is_all=True)
    return Voice(rules)


OTHERS = (None, b"a", b"b", b"aa", b"abb", b"bba")


def byte_law(model: Adapter, text: bytes) -> Tensor:
    tokens, places = torch.tensor([list(text)]), torch.arange(len(text)).unsqueeze(0)
    return model.score(tokens, places, None, model.new_cache(1, 32)).logits[0, -1].exp()


@pytest.mark.parametrize("text", [b"a", b"bab", b"abbab"])
def test_ensembles_are_averages_and_products_of_byte_laws(text: bytes) -> None:
    first, second = spelled_writer(WORDS, 1), spelled_writer(OTHERS, 2)
    one, two = (byte_law(ByteModel([voice]), text) for voice in (first, second))
    alone = brute_law(first.rules.laws.target, text, None)
    assert torch.allclose(one, alone[: END + 1] / alone[END + 1], atol=1e-12)
    both = [Voice(first.rules, 0.3), Voice(second.rules, 0.7)]
    assert torch.allclose(byte_law(ByteModel(both), text), 0.3 * one + 0.7 * two, atol=1e-12)
    product = one**0.3 * two**0.7
    assert torch.allclose(byte_law(ByteModel(both, is_product=True), text), product / product.sum(), atol=1e-12)


def test_byte_models_draft_for_byte_models() -> None:
    """Any model drafts for any other: both are laws over the same 257 tokens, whatever their tokenizers."""
    target, drafter = (ByteModel([spelled_writer(*one)]) for one in ((WORDS, 1), (OTHERS, 2)))
    lm = LanguageModel(target, target.tokenizer, end_tokens=(END,), name="toy")
    given = {"max_tokens": 12, "temperature": 1.0, "seed": 2, "num_samples": 3, "ignore_eos": True}
    plain = [one.tokens for one in lm.generate("ab", **given)]
    for options in ({"draft_len": 3}, {"draft_len": 2, "tree_width": 2}):
        drafted = lm.generate("ab", method="draft-model", options=options, models={"draft": drafter}, **given)
        assert [one.tokens for one in drafted] == plain
        assert any(one.usage.num_accepted for one in drafted)


def test_two_models_with_different_tokenizers_write_one_text() -> None:
    lm = load("bytes:stories@0.7+stories-draft@0.3", dtype="float64", is_compiled=False)
    result = lm.generate("Once upon a ti", max_tokens=24)
    assert result.text.startswith("me") and len(result.tokens) == 24
    assert load("bytes:stories", dtype="float64", is_compiled=False).target.voices[0].weight == 1


def test_names_of_byte_models() -> None:
    assert ByteNames.read("bytes:a@1+b@3") == ByteNames(("a", "b"), (0.25, 0.75))
    assert ByteNames.read("bytes:a*b") == ByteNames(("a", "b"), (0.5, 0.5), True)
    assert ByteNames.read("bytes:a@2*b@0.5").weights == (2.0, 0.5)
    for wrong in ("bytes:", "bytes:a+", "bytes:a+b*c", "bytes:a@0", "bytes:a@x+b", "bytes:@2"):
        with pytest.raises(ConfigError):
            ByteNames.read(wrong)


def test_what_cannot_be_had_is_refused_in_a_sentence() -> None:
    lm = toy_writer()
    for wrong in ({"method": "beam-search"}, {"regex": "a+"}, {"search": "best-of"}):
        with pytest.raises(ConfigError, match=r"search|constraint"):
            lm.generate("ab", is_healed=True, **wrong)
    with pytest.raises(CapabilityError, match="causal"):
        load("translate").generate("Hallo", is_healed=True)
    with pytest.raises(CapabilityError, match="causal"):
        load("stories-mask").next_bytes("a")
    with pytest.raises(ConfigError, match="covers"):
        lm.next_bytes("a", covers="some")
    with pytest.raises(ConfigError, match="width"):
        lm.next_bytes("a", width=-1)
    with pytest.raises(CapabilityError, match="No tokens"):
        lm.next_bytes("xyz", covers="all")
    with pytest.raises(ConfigError, match="card"):
        load("bytes:stories", card={"logits_shift": False})


def test_the_figures_of_cut_words(capsys: pytest.CaptureFixture[str]) -> None:
    from outpace.bench import cut_words

    assert cut_words.main(["--models", "stories", "--count", "12"]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| stories")]
    naive, exact = (float(line[2]) for line in lines)
    assert exact < naive

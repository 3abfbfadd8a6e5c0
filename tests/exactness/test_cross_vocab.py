"""Drafters of another vocabulary: psi by hand and by brute force, laws by G-test, and the shipped pair respelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models

from outpace.accept import rejection
from outpace.accept.nodes import chance_of, left_over
from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.draft.psi import Borders, StringLaw
from outpace.draft.strings import Lexicon
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.misfit import check_partner
from outpace.methods.speculative.cross_vocab import CrossVocab
from outpace.methods.speculative.draft_model import DraftModel
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing import ToyModel, check_method
from outpace.testing.certify import PROMPTS
from outpace.testing.gtest import PROMPT, g_test, small_model, text_law
from outpace.testing.respelled import respell
from outpace.testing.spelling import plain_spellings, toy_tokenizer
from outpace.testing.world import drive, make_rows, target_for, write
from outpace.text.speller import Speller
from outpace.text.tokenizer import Tokenizer
from outpace.types import Decision, Proposal, Sampled, Scores, View
from outpace.zoo import path

TARGET = ("a", "b", "ab", "ba")
DRAFT = ("b", "a", "bb", "aba")
Table = Callable[[tuple[int, ...]], list[float]]


def words(target: Sequence[str], draft: Sequence[str]) -> Lexicon:
    return Lexicon(*(Speller(toy_tokenizer(tuple(each)), len(each)) for each in (target, draft)))


def string_law(lexicon: Lexicon, table: Table, most: int = 1000) -> torch.Tensor:
    """Let the shipped code ask a table for the drafter's laws."""
    law = StringLaw(Borders(lexicon), most)
    while law.front:
        paths = []
        for node in law.front:
            path: list[int] = []
            while node >= 0:
                path, node = [law.tokens[node], *path], law.parents[node]
            paths.append(table(tuple(path)))
        law.follow(torch.tensor(paths, dtype=torch.float64))
    return law.log_probs().exp()


def decided(written: str, target: Sequence[str]) -> int | None:
    """The longest token that a string begins with, once no longer one can come."""
    if any(token.startswith(written) and token != written for token in target):
        return None
    return max((i for i, token in enumerate(target) if written.startswith(token)), key=lambda i: len(target[i]))


def all_sequences(table: Table, target: Sequence[str], draft: Sequence[str]) -> list[tuple[float, int]]:
    """Every sequence of drafter tokens up to where it decides: its probability, and what it decides."""
    found, open_ones = [], [((), "", 1.0)]
    while open_ones:
        path, written, weight = open_ones.pop()
        for token, chance in enumerate(table(path)):
            longer = written + draft[token]
            ends = decided(longer, target)
            if ends is None:
                open_ones.append(((*path, token), longer, weight * chance))
            else:
                found.append((weight * chance, ends))
    return found


def a_table(path: tuple[int, ...]) -> list[float]:
    weights = [1 + (3 * i + sum((token + 2) * 7**at for at, token in enumerate(path))) % 11 for i in range(4)]
    return [weight / sum(weights) for weight in weights]


def test_psi_by_hand() -> None:
    # The target spells a, b and ab; the drafter letters. After a the drafter says b with 3/4.
    laws = {(): [0.6, 0.4], (0,): [0.25, 0.75]}
    psi = string_law(words(("a", "b", "ab"), ("a", "b")), laws.__getitem__)
    # b is decided at once (0.4); a needs another letter: aa decides a (0.6 / 4), ab decides ab (0.6 * 3 / 4).
    assert psi.tolist() == pytest.approx([0.15, 0.4, 0.45])


@pytest.mark.parametrize("target", [TARGET, ("a", "b", "abb", "bab", "abab"), ("ab", "b", "a", "aaa", "bbb", "bbab")])
def test_psi_is_the_sum_over_all_sequences(target: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.draft.psi._NEGLIGIBLE", 0.0)
    psi = [0.0] * len(target)
    for weight, token in all_sequences(a_table, target, DRAFT):
        psi[token] += weight
    assert sum(psi) == pytest.approx(1, abs=1e-12)
    assert string_law(words(target, DRAFT), a_table).tolist() == pytest.approx(psi, abs=1e-12)
    # Followed less far it is another law, and no less one.
    cut = string_law(words(target, DRAFT), a_table, most=1)
    assert float(cut.sum()) == pytest.approx(1, abs=1e-12) and cut.tolist() != pytest.approx(psi, abs=1e-3)


def test_string_level_rejection_keeps_the_law() -> None:
    """Every sequence of the drafter is weighed, through the shipped psi and the shipped parts of the rule."""
    psi = string_law(words(TARGET, DRAFT), a_table)
    for target in ([0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.05, 0.25]):
        law = torch.tensor(target, dtype=torch.float64)
        rest, _ = left_over(law, psi)
        written = torch.zeros(4, dtype=torch.float64)
        for weight, token in all_sequences(a_table, TARGET, DRAFT):
            kept = float(chance_of(law[token], psi[token]).clamp(max=1))
            written[token] += weight * kept
            written += weight * (1 - kept) * rest
        assert written.tolist() == pytest.approx(target, abs=1e-12)


def test_the_highest_byte_has_borders_too() -> None:
    engine = Engine(models.BPE({"a": 0, "ÿ": 1, "ÿÿ": 2, "ÿÿÿ": 3}, [("ÿ", "ÿ"), ("ÿÿ", "ÿ")]))  # ÿ stands for 255
    engine.decoder = decoders.ByteLevel()
    both = Speller(Tokenizer(engine), 3), Speller(Tokenizer(engine), 4)
    psi = string_law(Lexicon(*both), lambda path: [0.5, 0.25, 0.125, 0.125])
    # One y: then a (1/2) decides y, anything else yy. Two or three at once: yy.
    assert psi.tolist() == pytest.approx([0.5, 0.125, 0.375])


def drafter_and_target() -> tuple[ToyModel, ToyModel]:
    target = small_model()
    drafter = ToyModel(len(DRAFT), 2, hidden=4, sharpness=1.3, max_positions=64, seed=8)
    return target, drafter


def counts_of(method: CrossVocab, settings: Sampling, length: int, rows: int) -> torch.Tensor:
    target, drafter = drafter_and_target()
    texts = [Row(list(PROMPT), len(PROMPT), row_key(0, i), length) for i in range(rows)]
    spelled = {"target": toy_tokenizer(TARGET), "draft": toy_tokenizer(DRAFT)}
    run = Run(target, method, settings, capacity=24, models={"draft": drafter}, tokenizers=spelled)
    run.join(texts)
    while run.rows:
        run.step()
    assert sum(row.usage.num_accepted for row in texts) > rows / 4
    table = torch.tensor([row.written for row in texts])
    cells = (table * 4 ** torch.arange(length - 1, -1, -1)).sum(-1)
    return torch.bincount(cells, minlength=4**length)


@pytest.mark.parametrize("mode", ["slrs", "tli"])
@pytest.mark.parametrize("settings", [Sampling(temperature=0.8), Sampling(temperature=1.2, top_k=3)], ids=["t", "k"])
def test_sampled_texts_follow_the_law(mode: str, settings: Sampling) -> None:
    counts = counts_of(CrossVocab(mode=mode, draft_len=3, paths=2), settings, 3, 1500)
    assert g_test(counts, text_law(small_model(), 3, settings)) > 1e-3


def test_the_g_test_sees_a_wrong_law(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(proposal: Proposal, scores: Scores, view: View) -> Decision:
        law = None if proposal.law is None else Sampled(torch.full_like(proposal.law.probs, 0.25))
        return rejection(replace(proposal, law=law), scores, view)

    monkeypatch.setattr("outpace.methods.speculative.drafted.rejection", flat)
    settings = Sampling(temperature=0.8)
    counts = counts_of(CrossVocab(mode="slrs", draft_len=3, paths=2), settings, 3, 1500)
    assert g_test(counts, text_law(small_model(), 3, settings)) < 1e-6


@pytest.mark.parametrize("method", [CrossVocab(mode="tli", accept_rule="match"), CrossVocab(mode="slrs")], ids=str)
def test_contract(method: CrossVocab) -> None:
    check_method(method, every=3)


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(respell(path("stories-draft"), tmp_path_factory.mktemp("respelled") / "permuted", 0))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(respell(path("stories-draft"), tmp_path_factory.mktemp("respelled") / "pieces", 1500))


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return load("stories", dtype="float32")


def tell(lm: LanguageModel, method: object, **options: object) -> list[Result]:
    prompts = [PROMPTS[0], PROMPTS[3], PROMPTS[7]]
    found: list[Result] = lm.generate(prompts, method=method, max_tokens=60, seed=3, **options)
    return found


def accepted(results: Sequence[Result]) -> list[int]:
    return [result.usage.num_accepted for result in results]


@pytest.mark.parametrize("mode", ["slem", "slrs", "tli"])
def test_greedy_text_is_plain_decodings_and_takes_fewer_steps(stories: LanguageModel, pieces: str, mode: str) -> None:
    plain = tell(stories, "autoregressive")
    ours = tell(stories, CrossVocab(draft=pieces, mode=mode))
    assert [result.tokens for result in ours] == [result.tokens for result in plain]
    assert sum(accepted(ours)) > 0.3 * sum(len(result.tokens) for result in ours)
    assert sum(result.usage.num_steps for result in ours) < 0.7 * sum(result.usage.num_steps for result in plain)


def test_matching_modes_write_plain_decodings_sample(stories: LanguageModel, pieces: str) -> None:
    plain = tell(stories, "autoregressive", temperature=0.8, top_k=50)
    for method in (
        CrossVocab(draft=pieces),
        *(CrossVocab(draft=pieces, mode=m, accept_rule="match") for m in ("slrs", "tli")),
    ):
        ours = tell(stories, method, temperature=0.8, top_k=50)
        assert [result.tokens for result in ours] == [result.tokens for result in plain]
        assert min(accepted(ours)) > 0


@pytest.mark.parametrize("mode", ["slem", "tli"])
def test_the_same_words_under_other_ids_are_drafted_alike(stories: LanguageModel, permuted: str, mode: str) -> None:
    """Nothing is lost on the way through text: the drafts are those of draft-model, at every step."""
    direct = tell(stories, DraftModel(draft="stories-draft"))
    ours = tell(stories, CrossVocab(draft=permuted, mode=mode))
    assert accepted(ours) == accepted(direct)
    assert [r.usage.num_proposed for r in ours] == [r.usage.num_proposed for r in direct]


@pytest.mark.parametrize("mode", ["slem", "slrs", "tli"])
def test_the_end_of_a_text_is_drafted(stories: LanguageModel, permuted: str, mode: str) -> None:
    prompts = ["Once upon a time there was a cat. The end.", "They all lived happily ever after."]
    last: list[str] = []
    results = stories.generate(
        prompts,
        method=CrossVocab(draft=permuted, mode=mode, accept_rule="match"),
        max_tokens=120,
        watch=lambda rows, outcome: last.extend(row.sources[-1] for row in rows if row.finish is not None),
    )
    assert "eos" in [result.finish_reason for result in results] and "draft" in last


@pytest.mark.parametrize(
    ("mode", "spellings", "context"),
    [
        ("slem", tuple("aAbBcCdDeEfFgGhHiIjJkKlLmM"), 50),
        ("slrs", tuple("aAbBcCdDeEfFgGhHiIjJkKlLmM"), 50),
        ("tli", (*plain_spellings(13), "a", "A"), 30),
    ],
)
def test_past_the_drafters_context_it_goes_on_plainly(mode: str, spellings: tuple[str, ...], context: int) -> None:
    """The drafter's context ends halfway, and its first cache, sized for the target's tokens, sooner still."""
    drafter, target = ToyModel(len(spellings), max_positions=context, seed=2), target_for("causal")
    spelled = {"target": toy_tokenizer(plain_spellings(13)), "draft": toy_tokenizer(spellings)}
    rows, method = make_rows(max_tokens=40), CrossVocab(mode=mode, accept_rule="match")
    run = drive(Run(target, method, Sampling(), capacity=70, models={"draft": drafter}, tokenizers=spelled), rows)
    assert [row.written for row in rows] == [
        row.written for row in write(Autoregressive(), rows=make_rows(max_tokens=40))
    ]
    assert run.counters["draft"].nfe > 10


def test_pairs_that_cannot_be_brought_together() -> None:
    target, drafter = small_model(), ToyModel(4, 2)
    letters, others = toy_tokenizer(("a", "b", "ab", "ba")), toy_tokenizer(("x", "y", "z", "xy"))

    def start(method: CrossVocab, draft: Tokenizer) -> None:
        spelled = {"target": letters, "draft": draft}
        Run(target, method, Sampling(), capacity=64, models={"draft": drafter}, tokenizers=spelled).join(
            make_rows([[1]])
        )

    with pytest.raises(CapabilityError, match="share no token") as caught:
        start(CrossVocab(mode="tli"), others)
    assert "slem" in caught.value.hint
    with pytest.raises(CapabilityError, match="sums over at most 3"):
        start(CrossVocab(mode="slrs", max_vocab=3), others)
    start(CrossVocab(), others)
    with pytest.raises(CapabilityError, match="more than join bytes"):
        start(CrossVocab(), Tokenizer(Engine(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))))


@pytest.mark.parametrize(
    "settings", [{"mode": "x"}, {"accept_rule": "x"}, {"accept_rule": "rejection"}, {"draft_len": 0}, {"paths": 0}]
)
def test_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CrossVocab.from_settings(settings)


def test_a_method_of_one_vocabulary_names_this_one() -> None:
    with pytest.raises(CapabilityError) as caught:
        check_partner("draft", ToyModel(9).capabilities, target_for("causal").capabilities)
    assert "cross-vocab" in caught.value.hint

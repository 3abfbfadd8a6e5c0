"""Ouroboros by hand: the draft with its phrases, the harvest of the target's answers, and longer accepted drafts."""

from __future__ import annotations

import pytest
import torch

from outpace.api.engine import LanguageModel, load
from outpace.draft.harvest import harvest
from outpace.draft.phrases import PhrasePool
from outpace.errors import ConfigError
from outpace.methods.speculative.drafted import Paced
from outpace.methods.speculative.ouroboros import Ouroboros
from outpace.testing import check_method
from outpace.testing.toy import ToyModel
from outpace.testing.world import PeriodicModel, make_rows, make_run, write
from outpace.types import Outcome, Proposal, Scores
from outpace.zoo import path as zoo_path


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(zoo_path("stories"))


def test_the_harvest_by_hand() -> None:
    # Root, drafts n0 n1 n2, a phrase n3 n4 on n2's end: the target answers 10 to the root, 11 to n0, and so on.
    answered, parents = [10, 11, 12, 13, 20, 21], [-1, 0, 1, 2, 3]
    # n0 was right, 11 replaced n1; behind it come the answers to the rejected drafts, then those to the phrase.
    assert list(harvest(answered, parents, [0])) == [[11, 12, 13, 20, 21]]
    # All drafts were right: 13 followed them, and the phrase as the target corrects it comes after it.
    assert list(harvest(answered, parents, [0, 1, 2])) == [[13, 20, 21]]
    assert list(harvest([10, 11, 12, 13], [-1, 0, 1], [])) == [[10, 11, 12, 13]]
    # Two phrases after two drafts, and a rival n4 of the drafts.
    assert list(harvest([10, 11, 12, 20, 21, 30], [-1, 0, 1, 1, -1], [0, 1])) == [[12, 20], [12, 21], [10, 30]]


def test_observing_a_step_fills_the_pool_and_forgets_rejected_drafts() -> None:
    method = Ouroboros(draft_len=3, ngram=3, has_history=False)
    rows = make_rows([(1, 2, 3, 4)], 20)
    run = make_run(method)
    run.join(rows)
    run.step()
    state: Paced = run.batch.state
    pool = state.drafter.state.pool[0] = PhrasePool(2, 8)
    # Three drafts 5 6 7, and the phrases "8 9" and "8 0" on their end.
    carry = type(run.last.proposal.carry)([[0, 1, 2]]) if run.last is not None and run.last.proposal is not None else 0
    parent = torch.tensor([[-1, 0, 1, 2, 3, 3]])
    made = Proposal(torch.tensor([[5, 6, 7, 8, 9, 0]]), [6], parent, carry=carry)
    answered = torch.tensor([[5, 11, 12, 8, 4, 3, 2]])  # the target wanted 11 in place of 6
    text = rows[0].tokens
    state.drafter.run.sync([[*text, 5, 6, 7]], run.batch.sampler)
    state.drafter.cache.lengths = [len(text) + 2]  # root, 5 and 6 were forwarded by the drafter
    text += [5, 11]
    scores = Scores(torch.nn.functional.one_hot(answered, 13).double())
    state = method.observe(Outcome([[5, 11]], [1], [[0, -1]], made, None, scores), run.batch.view(1, None), state)
    state.drafter.run.sync([text], run.batch.sampler)
    assert state.drafter.cache.lengths == [len(text) - 1]  # root and 5 stay
    # Runs 11 12 8 4 3 and 11 12 8 4 2, in phrases of two tokens.
    assert pool.find(11, 9) == [(12, 8)] and pool.find(12, 9) == [(8, 4)] and pool.find(8, 9) == [(4, 2), (4, 3)]
    assert pool.find(5, 9) == [] and pool.find(4, 9) == []


def test_a_step_that_another_drafter_proposed_leaves_the_state_valid() -> None:
    method = Ouroboros()
    run = make_run(method)
    run.join(make_rows())
    run.step()
    before = list(run.batch.state.drafter.cache.lengths)
    foreign = Proposal(torch.zeros(4, 2, dtype=torch.int64), [2] * 4, origin="other")
    for row in run.rows:
        row.tokens += [1, 2]
    scores = Scores(torch.zeros(4, 3, 13))
    view = run.batch.view(1, None)
    state = method.observe(Outcome([[1, 2]] * 4, [1] * 4, [[0, -1]] * 4, foreign, None, scores), view, run.batch.state)
    assert state.drafter.cache.lengths == before
    assert method.propose(view, state).tokens.shape[0] == 4


def test_a_draft_ends_in_a_tree_of_phrases() -> None:
    seen: list[Proposal] = []
    run = make_run(
        Ouroboros(draft_len=2, is_adaptive=False, phrases=2, rivals=0, ngram=4),
        target=PeriodicModel(6),
        models={"draft": PeriodicModel(6)},
    )
    run.watch = lambda _, outcome: seen.append(outcome.proposal) if outcome.proposal is not None else None
    rows = make_rows([(0, 1, 2, 3, 4, 5, 0, 1, 2)], 12)
    run.join(rows)
    while run.rows:
        run.step()
    assert rows[0].written == [(3 + i) % 6 for i in range(12)]
    first = seen[0]
    assert first.parent is not None
    # The drafter writes 3 4; what followed 4 in the text, 5 0 1, lengthens the draft: five drafts, all right.
    assert first.tokens[0, :5].tolist() == [3, 4, 5, 0, 1] and first.parent[0, :5].tolist() == [-1, 0, 1, 2, 3]
    assert rows[0].usage.num_steps == 2 and rows[0].usage.num_accepted == 10


def test_phrases_save_forwards_of_the_drafter() -> None:
    spent = {}
    for window in (0, 4):
        rows = make_rows([(0, 1, 2, 3, 4, 5) * 2], 32)
        method = Ouroboros(draft_len=8, is_adaptive=False, window=window, ngram=4, phrases=0, rivals=0)
        write(method, rows=rows, target=PeriodicModel(6), models={"draft": PeriodicModel(6)})
        spent[window] = rows[0].usage.draft_nfe / (32 - rows[0].usage.num_steps)
    # Three phrase tokens and one of the drafter's own per forward: two forwards for a draft of eight.
    assert max(spent.values()) <= 0.26


@pytest.mark.parametrize(
    "method",
    [
        Ouroboros(draft_len=3, window=0, ngram=3, phrases=1, rivals=0, is_adaptive=False),
        Ouroboros(draft_len=2, window=3, guesses=2, phrases=4, has_history=False),
    ],
    ids=str,
)
def test_the_contract_holds_for_other_settings(method: Ouroboros) -> None:
    check_method(method, every=3)


def test_a_broken_or_short_drafter_only_costs_time() -> None:
    class Broken(PeriodicModel):
        def score(self, *arguments: object, **others: object) -> Scores:
            found = super().score(*arguments, **others)  # type: ignore[arg-type]
            return Scores(torch.full_like(found.logits, float("nan")))

    plain = make_rows([(1, 2, 3)], 16)
    write(Ouroboros(), rows=plain)
    for drafter in (Broken(), ToyModel(max_positions=9)):
        rows = make_rows([(1, 2, 3)], 16)
        write(Ouroboros(), rows=rows, models={"draft": drafter})
        assert rows[0].written == plain[0].written


PROMPTS = [
    "Once upon a time, there was a little girl named Lily. One day, Lily",
    "One day, Tom went to the park with his mom. They saw a big",
    "Ben and Mia are friends. They like to play with",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\ndef mul(a, b):\n",
    "import os\nimport sys\n\n\nclass Node:\n    def __init__(self, name):\n        self.name = name\n",
]


def totals(lm: LanguageModel, method: str, **settings: object) -> tuple[float, float]:
    """Return drafts accepted per step, and draft forwards per draft accepted, greedily and sampled."""
    steps = accepted = forwards = 0
    for temperature in (0.0, 0.7):
        arguments = {"max_tokens": 64, "ignore_eos": True, "temperature": temperature}
        for result in lm.generate(PROMPTS, method=method, options=settings, **arguments):
            steps += result.usage.num_steps
            accepted += result.usage.num_accepted
            forwards += result.usage.draft_nfe
    return accepted / steps, forwards / accepted


def test_accepted_drafts_are_longer_than_those_of_plain_drafting(lm: LanguageModel) -> None:
    fixed = {"draft_len": 4, "is_adaptive": False}
    for plain_settings, settings, factor in (
        ({}, {}, 1.25),
        (fixed, {**fixed, "rivals": 0}, 1.0),  # as in the paper: phrases at the end of the same drafts only
    ):
        ours, our_cost = totals(lm, "ouroboros", **settings)
        plain, plain_cost = totals(lm, "draft-model", **plain_settings)
        assert ours > factor * plain, (settings, ours, plain)
        assert our_cost < plain_cost, (settings, our_cost, plain_cost)


def test_what_verification_yields_lengthens_the_drafts(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every other source of phrases off, more is accepted per step than where the answers are thrown away."""
    settings = {"draft_len": 4, "ngram": 3, "is_adaptive": False, "window": 0, "has_history": False}
    ours, _ = totals(lm, "ouroboros", **settings)
    monkeypatch.setattr("outpace.methods.speculative.ouroboros.harvest", lambda *_: iter(()))
    without, _ = totals(lm, "ouroboros", **settings)
    plain, _ = totals(lm, "draft-model", draft_len=4, is_adaptive=False)
    assert without == pytest.approx(plain) and ours > 1.05 * without


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"draft_len": 0}, "draft_len is 0"), ({"phrases": -1}, "phrases is -1"), ({"window": -1}, "window is -1"),
     ({"guesses": 0}, "guesses is 0"), ({"rivals": -1}, "rivals is -1"), ({"ngram": 2}, "ngram is 2")],
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Ouroboros(**settings)  # type: ignore[arg-type]

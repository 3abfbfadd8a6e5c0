"""Alignment sampling and conditional verification: thresholds and drafts by hand."""

import math

import pytest
import torch

from outpace.accept.conditional import conditional_verification
from outpace.cache import Cache
from outpace.draft.alignment import AlignmentLaws
from outpace.errors import ConfigError
from outpace.methods.speculative.alignment import Alignment
from outpace.sampling import Sampler, Sampling, gumbel, node_key
from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, make_rows, make_run, write
from outpace.types import Decision, Guarantee, Proposal, Scores, Stream, View

LAW = torch.tensor([0.5, 0.3, 0.2, 0.0]).double()
ENTROPY = 0.5 * math.log(2) + 0.3 * math.log(10 / 3) + 0.2 * math.log(5)  # 1.0297 nats


def verify(
    tokens: list[int],
    threshold: float,
    slack: float,
    parent: list[int] | None = None,
    settings: Sampling = Sampling(),  # noqa: B008
) -> Decision:
    """Verify drafts where the target's law is `LAW` after every node."""
    view = View([[0, 1]], [2], [9], 0, Cache([torch.zeros(1, 1, 1, 1)], 2), Sampler(settings, [7]))
    proposal = Proposal(torch.tensor([tokens]), [len(tokens)], None if parent is None else torch.tensor([parent]))
    return conditional_verification(proposal, Scores(LAW.log().expand(1, len(tokens) + 1, 4)), view, threshold, slack)


def test_the_threshold_by_hand() -> None:
    assert pytest.approx(1.0297, abs=1e-4) == ENTROPY
    # 0.3 - 0.1 * 1.0297 = 0.197: a token of probability 0.2 passes. With a slack of 0.05 it is 0.249, and 0.3 passes.
    assert verify([2], 0.3, 0.1).path is not None
    for token, slack, is_kept in ((2, 0.1, True), (2, 0.05, False), (1, 0.05, True), (1, 0.0, True), (0, 0.0, True)):
        decision = verify([token], 0.3, slack)
        assert decision.num.tolist() == [2 if is_kept else 1], (token, slack)
        # Behind it the target's own token follows: the likeliest, at temperature 0.
        assert decision.tokens[0, : 1 + is_kept].tolist() == ([token, 0] if is_kept else [0])
        assert decision.is_recovered is not None and decision.is_recovered.tolist() == [not is_kept]


def test_no_more_is_asked_than_the_likeliest_token_has() -> None:
    assert verify([0], 0.9, 0.0).num.tolist() == [2]  # 0.5 would not do, but nothing has more
    assert verify([1], 0.9, 0.0).num.tolist() == [1]


def test_what_cannot_be_drawn_never_passes() -> None:
    assert verify([3], 0.3, 1.0).num.tolist() == [1]  # 0.3 - 1.03 is below 0
    assert verify([2], 0.3, 1.0).num.tolist() == [2]
    cut = Sampling(temperature=1.0, top_k=2)  # leaves 0.625 and 0.375
    assert verify([2], 0.3, 1.0, settings=cut).num.tolist() == [1]
    assert verify([1], 0.3, 0.0, settings=cut).num.tolist() == [2]


def test_the_longest_path_wins_and_then_the_likeliest() -> None:
    decision = verify([1, 0, 2], 0.2, 0.0, [-1, -1, 0])  # 1 2 is longer than 0
    assert decision.num.tolist() == [3] and decision.tokens[0].tolist()[:2] == [1, 2]
    assert decision.path is not None and decision.path[0].tolist()[:3] == [0, 2, -1]
    assert verify([1, 0], 0.2, 0.0, [-1, -1]).tokens[0].tolist()[:2] == [0, 0]
    assert verify([1, 0, 2], 0.25, 0.0, [-1, -1, 0]).tokens[0].tolist()[:1] == [0]  # 2 fails, so 1 is no longer longer


def test_the_laws_that_were_saved() -> None:
    laws = AlignmentLaws(2)
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, 3.0, 1.0, 2.0], [0.0, 0.0, 5.0, 1.0]])
    laws.save(100, logits)  # far beyond what was held
    place, greedy = torch.arange(7, 10), Sampler(Sampling(), [5])
    key = node_key([5], Stream.TARGET, place.unsqueeze(0))[0]
    assert laws.sample(100, place, greedy) == [[1, 3], [0, 1], [2, 3]]
    assert laws.sample(50, place[:1], greedy) == [[-1, -1]]
    for temperature in (0.5, 2.0):
        sampler = Sampler(Sampling(temperature=temperature), [5])
        for row, kept in enumerate(([1, 3], [0, 1], [2, 3])):
            noisy = logits[row, kept].double() / temperature + gumbel(key[row], torch.tensor(kept))
            wanted = [kept[int(noisy.argmax())], kept[int(noisy.argmin())]]
            assert laws.sample(100, place, sampler)[row] == wanted
    other = laws.copy()
    other.save(101, logits[:1])
    assert laws.sample(101, place[:1], greedy) == [[0, 1]] and other.sample(101, place[:1], greedy) == [[1, 3]]


# The target goes by the position: 0 1 2 3 4 5 0 1 2 ... The prompt says 9 where the target would have said 3.
FAULTY = [0, 1, 2, 3, 4, 5, 0, 1, 2, 9, 4, 5, 0, 1]


def first_step(method: Alignment) -> tuple[list[int], list[int] | None, list[int]]:
    """Return tokens and parents of the first step, and what it wrote."""
    rows = make_rows([FAULTY], 20)
    run = make_run(method, target=PeriodicModel(6))
    run.join(rows)
    run.step()
    assert run.last is not None and run.last.proposal is not None
    proposal = run.last.proposal
    parents = None if proposal.parent is None else proposal.parent[0].tolist()
    return proposal.tokens[0].tolist(), parents, rows[0].written


def test_what_the_target_expected_stands_beside_what_the_prompt_said() -> None:
    # 4 5 0 1 was followed by 2 9 4 5; the target agrees with all but 9, for which it expected 3.
    strict = Alignment(draft_len=4, samples=1, threshold=1.0)
    assert first_step(strict) == ([2, 9, 4, 5, 3], [-1, 0, 1, 2, 0], [2, 3, 4])
    assert first_step(Alignment(draft_len=4, samples=0, threshold=1.0)) == ([2, 9, 4, 5], None, [2, 3])


@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=0.7)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_more_than_one_draft_is_accepted_per_step_of_a_copy(settings: Sampling, threshold: float) -> None:
    rows = make_rows([[0, 1, 2, 3, 4, 5] * 3, FAULTY], 48)
    write(Alignment(threshold=threshold), settings, rows, target=PeriodicModel(6))
    for row in rows:
        assert row.written == [(row.num_prompt + i) % 6 for i in range(48)]
        assert row.usage.num_accepted / row.usage.num_steps > 1


def test_the_guarantee_follows_the_threshold() -> None:
    assert Alignment().guarantee is Guarantee.APPROXIMATE
    assert Alignment(threshold=0.99).guarantee is Guarantee.APPROXIMATE
    assert Alignment(threshold=1.0).guarantee is Guarantee.EXACT


@pytest.mark.parametrize(
    "settings",
    [{"draft_len": 0}, {"samples": 8}, {"samples": -1}, {"threshold": 0.0}, {"threshold": 1.1}, {"slack": -0.1},
     {"min_ngram": 5}],
    ids=str,
)  # fmt: skip
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Alignment(**settings)


@pytest.mark.parametrize(
    "method",
    [Alignment(threshold=1.0), Alignment(threshold=1.0, samples=0), Alignment(threshold=0.5, slack=0.1)],
    ids=str,
)
def test_variants_fulfil_the_contract(method: Alignment) -> None:
    check_method(method, every=3)

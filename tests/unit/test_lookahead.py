"""Lookahead decoding by hand: the window's mask, its update, the pool, and that only candidate phrases are accepted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from outpace.api.engine import load
from outpace.cache import Cache
from outpace.draft.phrases import PhrasePool
from outpace.draft.window import GuessWindow, answers, branches, first_windows, learn, phrases_only
from outpace.errors import ConfigError
from outpace.methods.parallel.lookahead import Lookahead
from outpace.run.commit import fit
from outpace.run.layout import lay_out
from outpace.sampling import Sampler, Sampling
from outpace.testing import check_method
from outpace.testing.toy import ToyModel
from outpace.testing.world import PeriodicModel, make_rows, make_run, write
from outpace.types import NO_OUTPUTS, Outputs, Scores
from outpace.zoo import path as zoo_path

# W = 3, N = 4; the root, 1, is column 0 of level 0.
WINDOW = GuessWindow(((11, 12), (20, 21, 22), (30, 31, 32)), age=2)


def cache() -> Cache:
    return ToyModel().new_cache(1, 8)


def test_the_mask_of_a_window_by_hand() -> None:
    proposal = branches([[]], [WINDOW], cache(), "x")
    assert proposal.tokens.tolist() == [[11, 12, 20, 21, 22, 30, 31, 32]]
    layout = lay_out([[1]], [7], proposal)
    assert layout.position.tolist() == [[7, 8, 9, 8, 9, 10, 9, 10, 11]]
    assert layout.visible is not None
    assert layout.visible[0].int().tolist() == [
        # 1  11 12 20 21 22 30 31 32
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize(("width", "ngram"), [(1, 3), (1, 5), (2, 3), (4, 5), (7, 4)])
def test_the_mask_follows_the_papers_rule(width: int, ngram: int) -> None:
    levels = ((0,) * (width - 1), *((0,) * width for _ in range(ngram - 2)))
    layout = lay_out([[1]], [0], branches([[]], [GuessWindow(levels)], cache(), "x"))
    cells = [(level, column) for level in range(ngram - 1) for column in range(width)]  # the root is the first
    for number, (level, column) in enumerate(cells):
        assert layout.position[0, number] == level + column
        for other, (above, before) in enumerate(cells):
            sees = before <= column if above == 0 else above <= level and before == column
            assert layout.visible is None or bool(layout.visible[0, number, other]) == sees


def test_a_window_moves_one_place_and_gives_its_ngrams() -> None:
    answered = [40, 41, 42]
    assert WINDOW.phrases(1, answered) == [(1, (20, 30, 40)), (11, (21, 31, 41)), (12, (22, 32, 42))]
    assert WINDOW.advance(answered) == GuessWindow(((21, 22), (30, 31, 32), (40, 41, 42)), 3)
    made_up = GuessWindow(WINDOW.levels, age=1)  # level 1 is made up still
    assert made_up.phrases(1, answered) == [] and made_up.advance(answered).age == 2


def test_a_pool_forgets_what_was_not_seen_for_longest() -> None:
    pool = PhrasePool(2, 2)
    for phrase in ((1, 1), (2, 2), (1, 1), (3, 3)):
        pool.add(0, phrase)
    assert pool.find(0, 9) == [(3, 3), (1, 1)] and pool.find(0, 1) == [(3, 3)] and pool.find(7, 9) == []
    other = pool.copy()
    other.add(0, (4, 4))
    assert pool.find(0, 9) == [(3, 3), (1, 1)] and other.find(0, 9) == [(4, 4), (3, 3)]


def test_a_text_is_read_once_however_it_grows() -> None:
    text, whole, grown = [1, 2, 3, 1, 2, 4, 1, 5], PhrasePool(2, 9), PhrasePool(2, 9)
    whole.read(text)
    for size in range(len(text) + 1):
        grown.read(text[:size])
    assert whole.find(1, 9) == grown.find(1, 9) == [(2, 4), (2, 3)]
    assert whole.find(4, 9) == [(1, 5)] and whole.find(5, 9) == []


def test_a_window_that_was_cut_gives_no_answers() -> None:
    small = GuessWindow(((2,), (3, 4)), age=5)
    for reach, length in ((9, 6), (6, 6), (5, 5), (2, 2), (0, 0)):
        proposal = fit(branches([[(7, 8), (7, 9)]], [small], cache(), "x"), reach, 0)
        assert proposal.length == [length] and proposal.tokens.shape[1] == length
        assert answers(proposal, Scores(torch.zeros(1, 7, 13))) == ([[0, 0]] if length == 6 else [None])


def test_windows_start_with_tokens_of_the_text_whoever_sits_beside() -> None:
    texts = [[5, 6, 7], [1]]
    both = first_windows(texts, Sampler(Sampling(), [3, 4]), 3, 4)
    assert both[0] is not None and both[1] is not None
    assert [len(level) for level in both[0].levels] == [len(level) for level in both[1].levels] == [2, 3, 3]
    assert set(both[0].tokens) <= {5, 6, 7} and set(both[1].tokens) == {1} and both[0].age == 0
    assert first_windows(texts, Sampler(Sampling(), [3, 4]), 0, 4) == [None, None]
    assert first_windows(texts[:1], Sampler(Sampling(), [3]), 3, 4) == both[:1]
    assert first_windows(texts[:1], Sampler(Sampling(), [9]), 3, 4) != both[:1]


def test_candidates_come_first_and_windows_answer_apart() -> None:
    small = GuessWindow(((2,), (3, 4)), age=5)  # W = 2, N = 3
    proposal = branches([[(7, 8), (7, 9)], []], [small, small], cache(), "x")
    assert proposal.tokens.tolist() == [[7, 8, 9, 2, 3, 4], [2, 3, 4, 0, 0, 0]]
    assert proposal.parent is not None
    assert proposal.parent[0].tolist() == [-1, 0, 0, -1, -1, 3]
    assert proposal.parent[1, :3].tolist() == [-1, -1, 0] and proposal.length == [6, 3]
    logits = torch.nn.functional.one_hot(torch.arange(14).view(2, 7), 14).double()  # entry i of row b answers 7 b + i
    part, scores = phrases_only(proposal, Scores(logits))
    assert (part.tokens.shape, part.length, scores.logits.shape) == ((2, 3), [3, 0], (2, 4, 14))
    found = answers(proposal, Scores(logits))
    assert found == [[5, 6], [9, 10]]
    proposal.length = [5, 3]  # cut: the first window is not whole
    assert answers(proposal, Scores(logits)) == [None, [9, 10]]
    pools = [PhrasePool(2, 4), PhrasePool(2, 4)]
    moved = learn([small, small], pools, [1, 6], [None, [9, 10]])
    assert moved == [small, GuessWindow(((4,), (9, 10)), 6)]
    assert pools[0].find(1, 4) == [] and pools[1].find(6, 4) == [(3, 9)] and pools[1].find(2, 4) == [(4, 10)]


class Stepping(PeriodicModel):
    """After token t always comes t + 5, modulo the vocabulary's 13."""

    def score(
        self, tokens: Tensor, position: Tensor, visible: Tensor | None, cache: Cache, ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS, inputs: Tensor | None = None, skip: Sequence[int] = (),
    ) -> Scores:  # fmt: skip
        self.target.score(tokens, position, visible, cache, ask)
        asked = tokens if ask is None else tokens.gather(1, ask)
        return Scores(60.0 * torch.nn.functional.one_hot((asked + 5) % 13, 13).double())


def test_the_window_alone_finds_the_ngrams_of_a_predictable_text() -> None:
    rows = make_rows([(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)], 60)
    run = make_run(Lookahead(window=5, ngram=4, guesses=2, has_history=False), target=Stepping(), capacity=128)
    run.join(rows)
    roots, accepted = [], []
    while run.rows:
        roots.append(rows[0].tokens[-1])
        run.step()
        assert run.last is not None
        accepted.append(run.last.accepted[0])
    assert rows[0].written == [(12 + 5 * (i + 1)) % 13 for i in range(60)]
    assert accepted[:3] == [0, 0, 0]  # two steps make the levels answers, the third completes n-grams
    # Column 0 gives the phrase of every root: where one comes back, all three drafts are right.
    known = [at for at in range(3, len(roots) - 1) if roots[at] in roots[2:at]]
    assert known and all(accepted[at] == 3 for at in known)
    assert rows[0].usage.num_steps < 30


def test_window_nodes_are_no_drafts() -> None:
    """On a text of one token the made-up window is all right from the start, yet nothing of it is accepted."""

    class Same(Stepping):
        def score(self, tokens: Tensor, *arguments: object, **others: object) -> Scores:
            found = super().score(tokens, *arguments, **others)  # type: ignore[arg-type]
            return Scores(torch.nn.functional.one_hot(torch.full(found.logits.shape[:2], 4), 13).double())

    run = make_run(Lookahead(has_history=False), target=Same())
    rows = make_rows([(4, 4, 4)], 12)
    run.join(rows)
    run.step()
    assert rows[0].usage.num_proposed == 4 + 2 * 5 and rows[0].written == [4]


@pytest.mark.parametrize(
    "method",
    [
        Lookahead(window=1, ngram=3, guesses=1),
        Lookahead(window=7, ngram=5, guesses=3, has_history=False),
    ],
    ids=str,
)
def test_the_contract_holds_for_other_sizes(method: Lookahead) -> None:
    check_method(method, every=3)


def test_stories_take_fewer_steps_than_tokens() -> None:
    lm = load(zoo_path("stories"))
    prompts = ["Once upon a time", "One day, a girl named Lily went to the park."]
    for settings in ({}, {"has_history": False}):
        results = lm.generate(prompts, method="lookahead", options=settings, max_tokens=64, ignore_eos=True)
        plain = lm.generate(prompts, max_tokens=64, ignore_eos=True)
        assert [result.tokens for result in results] == [result.tokens for result in plain]
        assert sum(result.usage.num_steps for result in results) * 1.2 < 128


def test_near_the_end_of_the_context_windows_are_cut() -> None:
    rows = make_rows([(1, 2, 3, 4)], 12)
    write(Lookahead(), rows=rows, target=ToyModel(max_positions=16))
    plain = make_rows([(1, 2, 3, 4)], 12)
    write(Lookahead(), rows=plain)
    assert rows[0].written == plain[0].written


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"window": 0}, "window is 0"), ({"guesses": 0}, "guesses is 0"), ({"ngram": 2}, "ngram is 2")],
)
def test_bad_settings_are_named(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Lookahead(**settings)  # type: ignore[arg-type]

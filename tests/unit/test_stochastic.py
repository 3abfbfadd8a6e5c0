"""Sampled trees: what is drawn, from which law, and what the methods made of them accept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth, draft_sampled
from outpace.errors import ConfigError
from outpace.methods.base import Method
from outpace.methods.speculative.block_verification import BlockVerification
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.multi_candidate import MultiCandidate
from outpace.methods.speculative.rsd import Rsd
from outpace.methods.speculative.sampled import SampledTree
from outpace.methods.speculative.spectr import SpecTr
from outpace.methods.speculative.traversal import Traversal
from outpace.methods.speculative.typical import Typical
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing import check_method
from outpace.testing.gtest import PROMPT, g_test, small_model, text_law
from outpace.testing.toy import ToyModel
from outpace.testing.world import SETTINGS, make_rows, make_run, reference, write
from outpace.types import Proposal, Stream, View

VARIANTS: list[SampledTree] = [
    MultiCandidate(branches=(2, 2, 1)),
    MultiCandidate(branches=(3, 1), has_replacement=True),
    MultiCandidate(branches=(1, 1, 1)),
    SpecTr(num_drafts=1, draft_len=3),
    Traversal(branches=(2, 2), has_replacement=True),
    Rsd(branches=(3, 2, 1)),
    Rsd(beam=1, draft_len=3),
    Typical(branches=(4, 2), epsilon=0.3),
]
ALL: list[SampledTree] = [MultiCandidate(), SpecTr(), BlockVerification(), Traversal(), Rsd(), Typical(), *VARIANTS]


@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_contract(method: Method) -> None:
    check_method(method, every=3)


@pytest.mark.parametrize("method", ALL, ids=str)
def test_greedy_is_plain_decoding(method: Method) -> None:
    for name in ("greedy", "repetition penalty", "frequency penalty", "bad words"):
        rows = write(method, SETTINGS[name])
        assert [tuple(row.written) for row in rows] == list(reference(name)), name
        assert sum(row.usage.num_accepted for row in rows) > 10, name


def draft(shape: Growth, rows: int, settings: Sampling, model: ToyModel | None = None, room: int = 20) -> Proposal:
    model = model or small_model(seed=4)
    sampler = Sampler(settings, [row_key(5, i) for i in range(rows)])
    view = View([list(PROMPT) for _ in range(rows)], [len(PROMPT)] * rows, [room] * rows, 0, Cache([], 1), sampler)
    drafter = Drafter(model, model.new_cache(rows, 40))
    return draft_sampled(drafter, view, drafter.reach(view, shape.levels), shape, origin="test")


def siblings(proposal: Proposal) -> list[Tensor]:
    """Return the tokens of each family, [B, children]; the shape is the same in every row."""
    assert proposal.parent is not None
    parent = proposal.parent[0]
    return [proposal.tokens[:, parent == above] for above in parent.unique()]


@pytest.mark.parametrize("settings", [Sampling(temperature=1.0), Sampling()], ids=["sampled", "greedy"])
def test_siblings_never_repeat_without_replacement(settings: Sampling) -> None:
    for shape in (Growth((3, 2), False), Growth((4, 4), False), Growth((9, 1), False)):
        for family in siblings(draft(shape, 200, settings)):
            ordered = family.sort(-1).values
            assert not bool((ordered[:, 1:] == ordered[:, :-1]).any())
    proposal = draft(Growth((3, 3, 3), False, beam=3), 200, settings)
    assert proposal.parent is not None
    for tokens, parent in zip(proposal.tokens.tolist(), proposal.parent.tolist(), strict=True):
        assert len({*zip(parent, tokens, strict=True)}) == 9


def test_siblings_do_repeat_with_replacement() -> None:
    family = siblings(draft(Growth((3,)), 400, Sampling(temperature=1.0)))[0]
    law = text_law(small_model(seed=4), 1, Sampling(temperature=1.0))
    both = (family[:, 0] == family[:, 1]).double().mean()
    assert abs(float(both - (law**2).sum())) < 4 * (0.25 / 400) ** 0.5
    counts = (family[:, 0] * 16 + family[:, 1] * 4 + family[:, 2]).bincount(minlength=64)
    assert g_test(counts, (law[:, None, None] * law[:, None] * law).flatten()) > 1e-3


def test_a_stochastic_beam_samples_texts_without_replacement() -> None:
    """Its k texts are the first k of all texts, drawn one after the other without replacement."""
    settings, drafter = Sampling(temperature=1.0), small_model(seed=4)
    proposal = draft(Growth((2, 2), False, beam=2), 6_000, settings)
    assert proposal.parent is not None
    last = proposal.tokens[:, 2:] + 4 * proposal.tokens.gather(1, proposal.parent[:, 2:])
    law = text_law(drafter, 2, settings)
    pair = law.unsqueeze(1) * law / (1 - law).unsqueeze(1)
    pair.fill_diagonal_(0)
    counts = (last[:, 0] * 16 + last[:, 1]).bincount(minlength=256)
    assert g_test(counts, pair.flatten()) > 1e-3


def test_a_beam_keeps_what_is_likely() -> None:
    proposal = draft(Growth((3, 3), False, beam=3), 1, Sampling())
    drafter = small_model(seed=4)
    assert proposal.law is None and proposal.parent is not None
    last = proposal.tokens[0, 3:] + 4 * proposal.tokens[0].gather(0, proposal.parent[0, 3:])
    first = text_law(drafter, 1, Sampling(temperature=1.0)).topk(3).indices
    assert proposal.tokens[0, :3].tolist() == first.tolist()
    joint = text_law(drafter, 2, Sampling(temperature=1.0)).view(4, 4)
    outside = [token for token in range(4) if token not in first.tolist()]
    joint[outside] = 0
    assert last.tolist() == joint.flatten().topk(3).indices.tolist()


def test_drafts_are_penalised_on_their_own_path() -> None:
    settings = Sampling(temperature=1.0, presence_penalty=50.0)
    proposal = draft(Growth((2, 1, 1)), 100, settings)
    assert proposal.parent is not None
    for start in (0, 1):  # no chain writes a token twice
        chain = proposal.tokens[:, [start, start + 2, start + 4]].sort(-1).values
        assert not bool((chain[:, 1:] == chain[:, :-1]).any())


def test_rows_with_less_room_draft_fewer_levels() -> None:
    method = SpecTr(num_drafts=2, draft_len=4)
    rows = make_rows(max_tokens=9)
    rows[1].max_tokens = 3
    run = make_run(method, SETTINGS["temperature 0.7"])
    run.join(rows)
    run.step()
    assert run.last is not None and run.last.proposal is not None
    assert run.last.proposal.length == [8, 4, 8, 8]


def test_a_drafter_that_fails_is_ignored() -> None:
    class Broken(ToyModel):
        def score(self, *args: Any, **kwargs: Any) -> Any:
            scores = super().score(*args, **kwargs)
            return replace(scores, logits=scores.logits * float("nan"))

    method = MultiCandidate(branches=(2, 1))
    rows = write(method, SETTINGS["temperature 0.7"], models={"draft": Broken()})
    assert all(row.usage.num_accepted == 0 and len(row.written) == 16 for row in rows)
    assert all("ignored" in row.notes[0] for row in rows)


def test_drafting_reads_its_own_noise_only() -> None:
    class Listening(Sampler):
        def noise(self, stream: Stream, position: Tensor, visit: int = 0) -> Tensor:
            asked.append((stream, position))
            return super().noise(stream, position, visit)

    asked: list[tuple[Stream, Tensor]] = []
    model = small_model(seed=4)
    for shape in (Growth((3, 2)), Growth((3, 2), False), Growth((3, 3), False, beam=3)):
        asked.clear()
        view = View([[1, 2]], [1], [9], 0, Cache([], 1), Listening(Sampling(temperature=1.0), [7]))
        draft_sampled(Drafter(model, model.new_cache(1, 20)), view, [2], shape, origin="test")
        places = torch.cat([place.flatten() for _, place in asked])
        assert {stream for stream, _ in asked} == {Stream.DRAFT}
        assert len(places.unique()) == len(places) and int(places.min()) >= 2 << 32


@dataclass(frozen=True)
class Accepted:
    """Accepted drafts per step of many rows."""

    mean: float
    error: float


def accepted(method: Method, drafter_seed: int = 4, rows: int = 700, steps: int = 3) -> Accepted:
    target = small_model()
    models = {"draft": small_model(seed=drafter_seed, like=target)}
    run = make_run(method, Sampling(temperature=1.0), target=target, models=models)
    texts = make_rows([PROMPT] * rows, 40)
    run.join(texts)
    counts = []
    for _ in range(steps):
        run.step()
        assert run.last is not None
        counts += run.last.accepted
    seen = torch.tensor(counts, dtype=torch.float64)
    return Accepted(float(seen.mean()), float(seen.std()) / len(seen) ** 0.5)


def test_acceptance() -> None:
    """Rows 68, 208 and 295: more candidates beat one; trees without replacement beat independent ones of their size."""
    chain = accepted(DraftModel(draft_len=2, is_adaptive=False, accept_rule="rejection"))
    two, three = (accepted(SpecTr(num_drafts=number, draft_len=2)) for number in (2, 3))
    independent = accepted(MultiCandidate(branches=(2, 2), has_replacement=True))  # 6 nodes, as all that follow
    without, beam = accepted(Rsd(branches=(2, 2))), accepted(Rsd(beam=3, draft_len=2))
    narrow = accepted(MultiCandidate(branches=(3, 1)))
    pairs = [
        (two, chain),
        (three, two),
        (independent, chain),
        (without, independent),
        (beam, independent),
        (narrow, three),
    ]
    for index, (more, less) in enumerate(pairs):
        assert more.mean - less.mean > 2 * (more.error**2 + less.error**2) ** 0.5, (index, more, less)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (MultiCandidate, {"branches": ()}, "branches"),
        (MultiCandidate, {"branches": (2, 0)}, "branches"),
        (Traversal, {"branches": (40, 40)}, "1640 nodes"),
        (SpecTr, {"num_drafts": 0}, "num_drafts is 0"),
        (SpecTr, {"num_drafts": 300, "draft_len": 9}, "2700 nodes"),
        (BlockVerification, {"draft_len": 0}, "draft_len is 0"),
        (Rsd, {"beam": 0}, "beam is 0"),
        (Rsd, {"beam": 600, "draft_len": 2}, "1200 nodes"),
        (Typical, {"epsilon": 1.5}, "epsilon is 1.5"),
    ],
)
def test_bad_settings_are_named(kind: type[Method], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**settings)


@pytest.mark.parametrize("method", [MultiCandidate(branches=(3, 2, 2)), Rsd(beam=5), BlockVerification(draft_len=9)])
def test_a_tree_larger_than_the_cache_is_cut(method: Method) -> None:
    for row in make_rows():
        capacity = len(row.tokens) + row.max_tokens
        (written,) = write(method, SETTINGS["greedy"], [row], capacity=capacity)
        assert len(written.written) == row.max_tokens
    shape = Growth((3, 2, 1))
    assert [shape.levels_within(slots) for slots in (0, 2, 3, 8, 9, 50)] == [1, 1, 2, 2, 3, 3]

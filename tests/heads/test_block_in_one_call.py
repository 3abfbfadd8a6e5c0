"""A block drafter in two calls: its pass against the eager one, its tree against the one drafted level by level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import outpace
from outpace.draft import grow
from outpace.draft.grow import draft_best
from outpace.draft.reading import Drafter
from outpace.heads.context import ContextDrafter
from outpace.heads.model import HeadModel, new_head
from outpace.heads.net import load_kind
from outpace.kernels import load_library
from outpace.kernels.branches import Pairs, best_branches
from outpace.methods.registry import load_method
from outpace.run import state
from outpace.run.tree import TokenTree
from outpace.sampling import Sampler, Sampling, Stream, row_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import make_rows, make_run, write
from outpace.types import Adapter, Scores, View

pytestmark = pytest.mark.skipif(load_library() is None, reason="no compiler is found here")

PROMPTS = [(1, 2, 3), (4, 5, 6, 7, 8, 9, 1), (7,)]
SHAPES: list[dict[str, Any]] = [
    {},
    {"blocks": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "window": 3, "anchor_drafts": False, "adds_state": False},
    {"is_causal": True, "mask_id": 5, "qk_norm": False, "window": 4, "ffn": 40, "head_dim": 32, "heads": 2},
]


class Straight(ToyModel):
    """A toy in float32 whose output is a matrix, as that of real targets."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32

    def embed(self, tokens: Tensor) -> Tensor:
        return super().embed(tokens).float()

    def head(self, hidden: Tensor) -> Tensor:
        return (hidden.double() @ self.weights[3]).float()

    def score(self, *args: Any, **named: Any) -> Scores:
        found = super().score(*args, **named)
        last = None if found.last is None else found.last.float()
        return dataclasses.replace(found, taps={k: tap.float() for k, tap in found.taps.items()}, last=last)


def random_head(kind: str, target: Adapter, ids: Tensor | None = None, **settings: Any) -> HeadModel:
    more = {} if ids is None else {"draft_vocab": len(ids)}
    net = load_kind(kind)(load_kind(kind).made_for(8, 13, 3, depth=3, **settings, **more))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator) + (weight.dim() == 1))
    return HeadModel(net, target, ids)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["dflash", "jetspec", "dspark", "domino"])
def test_the_pass_is_the_eager_one_beside_ragged_neighbours(
    kind: str, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = Straight(), 0
    model = random_head(kind, target, torch.tensor([1, 2, 3, 5, 7, 9, 11]), **shape)
    assert model.compiled is not None
    at_once = ContextDrafter._look_at_once

    def checked(self: ContextDrafter, net: Any, reading: Any, last: Tensor) -> Tensor:
        nonlocal seen
        twin = state.rows(self, range(len(last)))
        made, expected = at_once(self, net, reading, last), twin._look_eagerly(net, reading, last)
        drafting = [row for row, count in enumerate(reading.counts) if count or self.cache.lengths[row]]
        torch.testing.assert_close(made[drafting], expected[drafting], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(self.feature, twin.feature, rtol=1e-5, atol=1e-6)
        extent = max(n + count for n, count in zip(self.cache.lengths, reading.counts, strict=True))
        for ours, theirs in zip(self.cache.buffers, twin.cache.buffers, strict=True):
            for row, count in enumerate(reading.counts):
                end = self.cache.lengths[row] + count
                torch.testing.assert_close(ours[row, :end], theirs[row, :end], rtol=1e-4, atol=1e-5)
        seen += len(drafting) * (extent > 0)
        return made

    monkeypatch.setattr(ContextDrafter, "_look_at_once", checked)
    run = make_run(load_method(kind)(), target=target, models={"draft": model})
    run.join(make_rows(PROMPTS[:2], 6))
    run.step()
    run.join(make_rows(PROMPTS[2:], 6))
    while run.rows:
        run.step()
    assert seen > 10


def test_what_is_of_another_form_stays_eager() -> None:
    assert random_head("dflash2", Straight()).compiled is None
    assert random_head("dflash", Straight(), bias=True).compiled is None
    assert random_head("dflash", ToyModel()).compiled is None  # its output is squashed, and its numbers float64
    assert random_head("domino", Straight()).pairs is None


def test_bytes_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = outpace.load("stories", dtype="bfloat16")
    model = new_head("dspark", lm.target, depth=4)
    assert model.compiled is not None
    found: list[tuple[Tensor, Tensor]] = []
    at_once = ContextDrafter._look_at_once

    def both(self: ContextDrafter, net: Any, reading: Any, last: Tensor) -> Tensor:
        twin = state.rows(self, range(len(last)))
        twin.feature = twin.feature.to(torch.bfloat16)
        found.append((at_once(self, net, reading, last), twin._look_eagerly(net, reading, last)))
        return found[-1][0]

    monkeypatch.setattr(ContextDrafter, "_look_at_once", both)
    run = make_run(load_method("dspark")(budget=6), target=lm.target, models={"draft": model})
    run.join(make_rows([tuple(lm.encode("Once upon a time there was a little dog"))], 6))
    while run.rows:
        run.step()
    for ours, eager in found:
        error = (ours.float() - eager.float()).square().mean().sqrt()
        assert float(error) < 0.05 * float(eager.float().square().mean().sqrt())
    assert found


def test_a_target_may_embed_in_another_type_than_it_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = outpace.load("stories", dtype="bfloat16")
    embed = lm.target.embed
    monkeypatch.setattr(lm.target, "embed", lambda tokens: embed(tokens).float())  # as quantised ones do
    prompt = make_rows([tuple(lm.encode("Once upon a time"))], 8)
    plain = make_rows([tuple(lm.encode("Once upon a time"))], 8)
    model = new_head("dspark", lm.target, depth=3)
    write(load_method("dspark")(budget=4), rows=prompt, target=lm.target, models={"draft": model})
    write(load_method("autoregressive")(), rows=plain, target=lm.target)
    assert prompt[0].written == plain[0].written and prompt[0].usage.num_proposed > 0


# --- trees ---------------------------------------------------------------------------------------------------------


class Laid(Drafter):
    """Laws that are given, with what the token before a place adds."""

    laws: Tensor
    pairs: Pairs
    anchors: Tensor
    columns: Tensor | None

    @property
    def ids(self) -> Tensor | None:
        return self.columns

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        return self._law(self.laws[:, 0], self.anchors)

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        found = torch.zeros(*nodes.shape, self.laws.shape[-1])
        for row, paths in enumerate(tree.paths(nodes)):
            for column, path in enumerate(paths):
                if is_real[row, column]:
                    token = path[-1] if self.columns is None else int(torch.searchsorted(self.columns, path[-1]))
                    found[row, column] = self._law(self.laws[row, len(path)], self.pairs.shorts[token])
        return found

    def _law(self, law: Tensor, short: Tensor) -> Tensor:
        return law + short @ self.pairs.adds.transpose(1, 2).flatten(0, 1)[: law.shape[-1]].T


RISING = [0.01 * 1.5**i for i in range(12)]
CASES: list[dict[str, Any]] = [
    {}, {"width": 3}, {"by_slot": True}, {"floor": 0.01}, {"floor": RISING}, {"min_gain": 0.3}, {"budget": 1},
    {"budget": 40},
    {"temperature": 0.7}, {"temperature": 1.3, "by_slot": True, "size": 1000}, {"size": 1000, "budget": 200},
    {"size": 3}, {"rank": 0}, {"levels": [0, 4, 1]}, {"hidden": True}, {"spoilt": True}, {"ids": True},
    {"temperature": 0.7, "ids": True, "size": 333},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_tree_is_the_one_drafted_level_by_level(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Ties are many, and go to the lower token; a plain top-k takes any of them.
    monkeypatch.setattr(
        grow, "likeliest", lambda law, count: law.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    )
    given = {"budget": 12, "size": 130, "rank": 3, "levels": [4, 3, 4], "temperature": 0.0, **case}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: (2 * torch.randn(*shape, generator=generator)).round() / 2  # noqa: B023, E731
        size, rank = given["size"], given["rank"]
        drafter = Laid(ToyModel(2000), ToyModel(2000).new_cache(3, 64))
        drafter.laws, drafter.anchors = 2 * draw(3, 4, size), draw(3, rank)
        drafter.pairs = Pairs.of(draw(size, rank), draw(size, rank))
        drafter.columns = torch.arange(size) * 2 + 1 if "ids" in given else None
        if "hidden" in given:
            drafter.laws[:, :, ::3] = -torch.inf
            drafter.laws[2] = -torch.inf
        if "spoilt" in given:
            drafter.laws[1, 0, 5], drafter.laws[0, 1, 7] = torch.nan, torch.inf
        settings = Sampling(temperature=given["temperature"])
        view = View(
            [[1, 2], [3], [4, 5, 6]],
            [1] * 3,
            [50] * 3,
            0,
            drafter.cache,
            Sampler(settings, [row_key(seed, i) for i in range(3)]),
        )
        how = {name: given[name] for name in ("width", "by_slot", "min_gain") if name in given}
        floor = given.get("floor", 0.0)
        spread = 0.5
        slow = draft_best(drafter, view, given["levels"], given["budget"], spread=spread, floor=floor, **how)
        place = torch.tensor(view.lengths).unsqueeze(1) + torch.arange(4)
        keys = view.sampler.noise(Stream.TARGET, place) if settings.temperature else None
        fast = TokenTree(
            *best_branches(
                drafter.laws,
                drafter.pairs,
                drafter.anchors,
                given["levels"],
                [floor] * given["budget"] if isinstance(floor, float) else floor,
                ids=drafter.columns,
                keys=keys,
                temperature=settings.temperature,
                spread=spread,
                **{"min_gain": -1.0, **how},
            )
        )
        assert fast.length == slow.length and (sum(fast.length) > 0)
        assert fast.score is not None and slow.score is not None
        for row, count in enumerate(fast.length):
            assert fast.tokens[row, :count].tolist() == slow.tokens[row, :count].tolist()
            assert fast.parent[row, :count].tolist() == slow.parent[row, :count].tolist()
            torch.testing.assert_close(fast.score[row, :count], slow.score[row, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [Sampling(), Sampling(temperature=0.8), Sampling(temperature=1.0, top_k=4)], ids=str
)
@pytest.mark.parametrize("method", ["dspark", "dflash", "trained-drafter", "opt-tree", "dyspec"])
def test_the_text_is_plain_decodings_own(method: str, settings: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    target, calls = Straight(), 0
    model = random_head("dflash" if method == "dflash" else "dspark", target, torch.tensor([1, 2, 3, 5, 7, 9, 11]))
    options = {"budget": 6} if method in ("dspark", "dflash") else {}

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return best_branches(*args, **named)

    monkeypatch.setattr("outpace.heads.context.best_branches", counted)
    plain, rows = make_rows(PROMPTS, 10), make_rows(PROMPTS, 10)
    write(load_method("autoregressive")(), settings, rows=plain, target=target)
    write(load_method(method)(**options), settings, rows=rows, target=target, models={"draft": model})
    assert [row.written for row in rows] == [row.written for row in plain]
    assert (calls > 0) == (not settings.top_k)

"""A drafter of few tokens: its drafts are those of one that spreads the same logits over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from outpace.draft.grow import draft_best, draft_shape
from outpace.draft.model import draft_chain
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth, draft_sampled
from outpace.methods.autoregressive import Autoregressive
from outpace.run.tree import TokenTree
from outpace.schedule.tree_size import RankTree
from outpace.testing.toy import ToyModel
from outpace.testing.world import SETTINGS, ends_under, make_rows, make_run
from outpace.types import Proposal, View

IDS = torch.tensor([0, 2, 3, 4, 6, 7, 9, 12])
SHAPE = RankTree.regular((3, 2, 1))


class Few(Drafter):
    """Answers for some tokens alone."""

    @property
    def ids(self) -> Tensor | None:
        return IDS

    def some(self, logits: Tensor) -> Tensor:
        return logits[..., IDS]

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        return self.some(super().texts(view, reach))

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        return self.some(super().nodes(tree, nodes, is_real))

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        return self.some(super().token(token, place, running))


class Spread(Few):
    """The same, -inf for all other tokens."""

    @property
    def ids(self) -> Tensor | None:
        return None

    def some(self, logits: Tensor) -> Tensor:
        return torch.full_like(logits, float("-inf")).index_copy_(-1, IDS, logits[..., IDS])


def best(drafter: Drafter, view: View, reach: list[int]) -> Proposal:
    return draft_best(drafter, view, reach, 9).proposal("")


def shape(drafter: Drafter, view: View, reach: list[int]) -> Proposal:
    return draft_shape(drafter, view, reach, *RankTree.stack([SHAPE] * len(reach)))[0].proposal("")


def sampled(growth: Growth) -> Callable[[Drafter, View, list[int]], Proposal]:
    return lambda drafter, view, reach: draft_sampled(drafter, view, reach, growth, origin="")


BUILDERS: dict[str, Callable[[Drafter, View, list[int]], Proposal]] = {
    "chain": lambda drafter, view, reach: draft_chain(drafter, view, reach, origin="", min_confidence=0.1),
    "uncoupled": lambda drafter, view, reach: draft_chain(drafter, view, reach, origin="", is_coupled=False),
    "best": best,
    "shape": shape,
    "replaced": sampled(Growth((2, 2, 1))),
    "distinct": sampled(Growth((3, 2, 1), has_replacement=False)),
    "beam": sampled(Growth((1, 1, 1), has_replacement=False, beam=3)),
}


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_drafts_are_those_of_spread_logits(builder: str, name: str) -> None:
    settings, rows = SETTINGS[name], make_rows(end_tokens=ends_under(SETTINGS[name]))
    run = make_run(Autoregressive(), settings)
    run.join(rows)
    view, model, reach = run.batch.view(0, None), ToyModel(seed=4), [3, 0, 3, 2]
    few, whole = (BUILDERS[builder](kind(model, model.new_cache(4, 64)), view, reach) for kind in (Few, Spread))
    assert few.length == whole.length and max(few.length) > 0
    assert (few.parent is None) == (whole.parent is None)
    is_node = torch.arange(few.tokens.shape[1]) < torch.tensor(few.length).unsqueeze(1)
    assert torch.equal(few.tokens[is_node], whole.tokens[is_node])
    if few.parent is not None and whole.parent is not None:
        assert torch.equal(few.parent[is_node], whole.parent[is_node])
    assert set(few.tokens[is_node].tolist()) <= set(IDS.tolist()) or settings.names_tokens
    assert (few.law is None) == (whole.law is None)
    if few.law is not None and whole.law is not None:
        torch.testing.assert_close(few.law.probs[is_node], whole.law.probs[is_node], rtol=0, atol=1e-15)


def test_only_where_tokens_are_named_logits_are_spread() -> None:
    """Were they always spread, the test above would compare a thing with itself."""
    named = {name for name, settings in SETTINGS.items() if settings.names_tokens}
    assert {"logit bias", "grammar", "repetition penalty", "forced and suppressed"} <= named
    assert not {"greedy", "temperature 0.7", "top-k", "top-p", "min-p", "typical-p"} & named
    assert (
        not replace(SETTINGS["greedy"]).names_tokens and replace(SETTINGS["greedy"], suppress_tokens=(1,)).names_tokens
    )

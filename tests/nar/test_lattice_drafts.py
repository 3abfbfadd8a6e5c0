"""Drafts in trees from graphs and CTC: the text of plain decoding, greedy and drawn, in fewer steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from outpace.draft.lattice import Versions, merged
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.registry import load_method
from outpace.methods.speculative.lattice_drafts import LatticeDrafts
from outpace.models.nar.files import KINDS
from outpace.models.nar.model import NarModel
from outpace.models.one_pass import OnePassModel, end_law
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.checks import run_contract
from outpace.testing.one_pass import toy_network
from outpace.testing.toy import ToyEncoderDecoder
from outpace.testing.world import drive, make_run
from outpace.types import Adapter

SOURCES = [[1, 5, 9, 2, 7, 11], [4, 4, 8], [12, 1, 10, 6, 2]]
LAWS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.9), "top-k": Sampling(temperature=1.2, top_k=4)}
END = 3


class Teacher(OnePassModel):
    """Prefers what a lattice finds second best, and is not always sure."""

    def __init__(self, drafter: NarModel) -> None:
        super().__init__(13, 64, 64, 0)
        self.dtype, self.drafter = torch.float64, drafter

    @torch.no_grad()
    def write(self, sources: Sequence[list[int]]) -> list[Tensor]:
        run = self.drafter.begin(sources)
        every = self.drafter.net.texts(self.drafter.net.finish(run), run.is_place, 2)
        return [self._laws(texts[-1]) for texts in every]

    def _laws(self, text: list[int]) -> Tensor:
        laws = torch.full((len(text), 13), -2.0, dtype=torch.float64)
        laws[range(len(text)), text] = 1.5
        return torch.cat([laws, end_law(13, END, torch.float64)])


def decoded(method: Method, target: Adapter, models: dict[str, Adapter], law: Sampling) -> tuple[list[list[int]], int]:
    """Return each row's text and the steps that all took."""
    rows = [Row([0], 1, row_key(5, at), 14, (END,), source=list(source)) for at, source in enumerate(SOURCES)]
    drive(make_run(method, law, target=target, models=models, capacity=160), rows)
    return [row.written for row in rows], sum(row.usage.num_steps for row in rows)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
@pytest.mark.parametrize("kind", ["dag", "ctc"])
def test_the_text_is_that_of_plain_decoding(kind: str, law: Sampling) -> None:
    drafter = toy_network(kind)
    for target in (ToyEncoderDecoder(), Teacher(drafter)):
        plain, slow = decoded(Autoregressive(), target, {}, law)
        found, fast = decoded(LatticeDrafts(), target, {"draft": drafter}, law)
        assert found == plain
        assert fast <= slow


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_drafts_without_a_word_changed(kind: str) -> None:
    drafter, target = toy_network(kind), ToyEncoderDecoder()
    plain, _ = decoded(Autoregressive(), target, {}, LAWS["sampled"])
    assert decoded(LatticeDrafts(), target, {"draft": drafter}, LAWS["sampled"])[0] == plain


def test_several_texts_take_fewer_steps_than_one() -> None:
    drafter = toy_network("dag", seed=1)
    several, few = decoded(LatticeDrafts(), Teacher(drafter), {"draft": drafter}, LAWS["greedy"])
    one, more = decoded(LatticeDrafts(texts=1), Teacher(drafter), {"draft": drafter}, LAWS["greedy"])
    assert several == one
    assert few < more


def test_the_contract_holds() -> None:
    failures = run_contract(load_method("lattice-drafts"))
    assert not failures, failures


def test_a_tree_holds_each_beginning_once_and_the_first_text_whole() -> None:
    tokens, parents = merged([[5, 6, 7], [5, 8, 7], [9], [5, 6, 4]], nodes=6)
    assert (tokens, parents) == ([5, 6, 7, 8, 7, 9], [-1, 0, 1, 0, 3, -1])


def test_texts_that_were_left_wait_behind_those_that_agree() -> None:
    versions = Versions([[5, 6, 7, 8], [5, 9, 7, 8]], 4, frozenset())
    assert versions.tree(2, 9) == ([5, 6, 9], [-1, 0, 0])
    versions.write([5, 9])
    assert versions.tree(2, 9) == ([7, 8], [-1, 0])  # the second text leads, the first agrees again behind one token
    fork = versions.copy()
    fork.write([7])
    assert versions.tree(1, 9) == ([7], [-1])

"""Several drafts of a text from one forward per token: the model reads a mixture of their last tokens.

Paper: Shen, Fan, Pratt, Park, Wallingford, Kakade, Holtzman, Krishna, Farhadi, Kusupati (2024), arXiv 2405.18400,
    Superposed Decoding.
Guarantee: approximate; one draft without n-grams is greedy decoding, token for token.
Cost: one forward of one position per token of all drafts together, whatever `k`; with `index`, a look into a datastore
    per draft and token.
Differences: n-grams are those of a datastore (`outpace index`), the longest that occurs, of up to `order` tokens; where
    it knows none, the model's law stands alone. A draft that has ended stays, and no longer counts in the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from outpace.draft.datastore import Datastore, open_datastore
from outpace.papers import Paper
from outpace.search.base import Found, Search
from outpace.search.table import Leaf, Table
from outpace.setting import setting

__all__ = ["PAPERS", "Superposed"]

PAPER = Paper(
    "Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass",
    "Shen, Fan, Pratt, Park, Wallingford, Kakade, Holtzman, Krishna, Farhadi, Kusupati",
    2024,
    "2405.18400",
    209,
    "",
    'outpace generate "Once upon a time" --search superposed -o k=3',
)
PAPERS = (PAPER,)
_FLOOR = 1e-3  # probability of what the n-grams have not seen behind a context that they know


@dataclass(frozen=True)
class Superposed(Search):
    """Superposed decoding.

    Attributes:
        k: drafts.
        index: a datastore of `outpace index`, whose n-grams weigh in; "" = none.
        alpha: their weight, from 0 to 1, in the exponent.
        order: tokens of the longest context that is looked up.

    Raises:
        ConfigError: a number out of range, or a file that is no datastore.
    """

    k: int = setting(3, least=1)
    index: str = ""
    alpha: float = setting(0.54, least=0, most=1)
    order: int = setting(5, least=1)

    name: ClassVar[str] = "superposed"
    summary: ClassVar[str] = "Several drafts of a text from one forward per token, which reads a mixture of them."
    paper: ClassVar[Paper] = PAPER
    takes_likeliest: ClassVar[bool] = True

    @property
    def num_rows(self) -> int:
        """One row is read for all drafts."""
        return 1

    @property
    def num_texts(self) -> int:
        """All drafts."""
        return self.k

    def reduced(self) -> Search:
        """Return the search of one draft, without n-grams."""
        return replace(self, k=1, index="")

    def search(self, table: Table) -> Found:
        """Read the mixture, and let all drafts grow by a token of theirs."""
        store = open_datastore(self.index) if self.index else None
        if store is not None:
            store.check(table.run.target.capabilities.vocab_size, None)
        root = table.sample(0)
        cache, drafts = root.cache.rows([0]), [(0.0, root)]
        while live := [one for one in drafts if not one[1].is_over]:
            yield
            best = max(score for score, _ in live)
            weights = torch.tensor([math.exp(score - best) for score, _ in live], dtype=torch.float64)
            logits = table.mixed(cache, [leaf for _, leaf in live], (weights / weights.sum()).tolist())
            grown = [(score, leaf, -1) for score, leaf in drafts if leaf.is_over]
            for (score, leaf), law in zip(live, logits, strict=True):
                grown += [(score + more, leaf, token) for token, more in self._likely(law, leaf, store)]
            grown.sort(key=lambda one: -one[0])
            best_ones = grown[: self.k]
            drafts = [(score, leaf if token < 0 else table.then(leaf, token)) for score, leaf, token in best_ones]
        return table.best([leaf for _, leaf in drafts], [score for score, _ in drafts], self.k)

    def _likely(self, law: torch.Tensor, leaf: Leaf, store: Datastore | None) -> list[tuple[int, float]]:
        """Return the likeliest tokens behind a draft, with their log-probabilities, n-grams weighed in."""
        values, ids = law.topk(min(self.k if store is None else 8 * self.k, len(law)))
        found = [
            (token, value) for token, value in zip(ids.tolist(), values.tolist(), strict=True) if value > -math.inf
        ]
        if store is None:
            return found
        known = _followers(store, leaf.row.tokens, self.order)
        if known:
            floor = math.log(_FLOOR)
            found = [(one, (1 - self.alpha) * p + self.alpha * known.get(one, floor)) for one, p in found]
        return sorted(found, key=lambda one: -one[1])[: self.k]


def _followers(store: Datastore, text: Sequence[int], order: int) -> dict[int, float]:
    """Return the log-probability of each token behind the longest ending of a text that a datastore knows."""
    after = store.follow(store.find(text, 1, order), 1, 256)
    total = float(after.count.sum())
    return {int(one): math.log(n / total) for one, n in zip(after.tokens, after.count.tolist(), strict=True)}

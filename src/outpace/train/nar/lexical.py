"""What the raw texts say about each word, told to a network that learns from a teacher's texts.

A teacher writes frequent words where its reference has rare ones. A table learnt by word alignment on the raw pairs
still knows the rare ones; early on each place is drawn towards the table's law for the source word that it translates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.models.nar.network import Pass
from outpace.papers import Paper
from outpace.setting import check, setting

from .alignment import Aligner, Lexicon
from .objectives import Objective, loss_of

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch, PairBatches

    from .network import TrainedNar

__all__ = ["LexicalPrior", "Table"]

PAPERS = (
    Paper(
        "Understanding and Improving Lexical Choice in Non-Autoregressive Translation",
        "Ding et al.",
        2020,
        "2012.14583",
        98,
        "The second prior, a network of its own trained on the raw texts.",
        "outpace train nar-ctc-lexical",
    ),
)
_FIRST = 1e-3  # share of the training at which the weight begins to fall
_ALIGNER = Aligner(sharpness=4.0)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The prior, made from raw pairs.

    Attributes:
        lexicon: p(target token | source token).
        ids, law: the likeliest translations of each source token and their shares, [words, most]; -1 = there is none.
    """

    lexicon: Lexicon
    ids: Tensor
    law: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalPrior(Objective):
    """The likelihood, and early on the divergence of each place's law from the law of its source word.

    Paper: Ding et al. (2020), arXiv 2012.14583, section 3. Differences: which source word a place translates is
    found from the symbol that it should say, so that it works for all kinds; the likeliest translations alone count;
    the divergence's weight is `weight` times that of the paper, which falls by log(1 / (2 progress)) to 0 midway.

    Attributes:
        weight: of the divergence.
        most: translations of a source word.
        heat: power 1 / heat of the table's law; the authors' counts are sharper than this table, and take 2.
        table: set by `prepared`.
    """

    weight: float = setting(0.3, least=0)
    most: int = setting(8, least=1)
    heat: float = setting(1.0, above=0)
    table: Table | None = None
    wants_raw: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)

    def prepared(self, raw: PairBatches) -> LexicalPrior:
        """Return the objective with a table learnt from raw pairs."""
        lexicon, _ = _ALIGNER.one_way(raw.sources, raw.targets)
        ids, law = lexicon.best(self.most)
        heated = law ** (1 / self.heat)
        shares = heated / heated.sum(1, keepdims=True).clip(min=1e-300)
        return replace(self, table=Table(lexicon, torch.from_numpy(ids), torch.from_numpy(shares).float()))

    def weight_at(self, progress: float) -> float:
        """Return the divergence's weight after a share of the training."""
        return self.weight * max(0.0, -log(2 * max(progress, _FIRST)))

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of one pass.

        Raises:
            ConfigError: there is no table.
        """
        if self.table is None:
            raise ConfigError("The lexical prior has no table.", "Call `prepared` with the raw pairs.")
        net, weight = network.net, self.weight_at(network.progress)
        run = network.begin(batch)
        outputs = net.finish(run)
        likelihood = loss_of(network, run, outputs)
        if not weight:
            return likelihood
        with torch.no_grad():
            wanted = net.aligned(outputs, run)
        return likelihood + weight * self.divergence(outputs[0], wanted, run, net.config.vocab_size)

    def divergence(self, log_probs: Tensor, wanted: Tensor, run: Pass, vocab: int) -> Tensor:
        """Return the mean divergence KL(prior | law) in nats over the places whose token the table knows.

        Args:
            log_probs: [B, L, V + extra symbols].
            wanted: [B, L], what each place should say; below 0 or from `vocab` on: nothing.
            run: the pass.
            vocab: V.
        """
        assert self.table is not None
        table, words = self.table, self.table.lexicon.words
        said = torch.where((wanted >= 0) & (wanted < vocab), wanted, words)  # what no table knows
        places = run.is_place.sum(1)
        at = table.lexicon.links(run.sources, run.is_real, said, places, _ALIGNER)
        source = run.sources.gather(1, at).clamp(max=words - 1)
        ids, law = table.ids.to(source.device)[source], table.law.to(source.device)[source]
        is_known = (ids == said[:, :, None]).any(-1)
        own = log_probs.gather(2, ids.clamp(min=0))
        each = (torch.special.xlogy(law, law) - law * own).sum(-1)
        return torch.where(is_known, each, 0.0).sum() / is_known.sum().clamp(min=1)

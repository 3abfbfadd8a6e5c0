"""Training a sampler layer: what a masked model says of open places before and after some of them are written.

Source: Enabling Approximate Joint Sampling in Diffusion LMs (2025), arXiv 2509.22738. The frozen model reads a text
twice, with a block half open and with some more of it written; the layer reads the first pass and the tokens, and
learns the laws of the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.loading import load_model
from outpace.models.sampler_layer import SamplerConfig, SamplerLayer, config_of, corrected
from outpace.types import Adapter, Outputs

from .data import EOS_ID, DataMixture, find_data, mix, read_documents
from .export import Export, load_tokenizer
from .loop import Loop, beside
from .recipes import JointRecipe

__all__ = ["JointTrainer", "Openings", "build_joint", "opened", "told"]

_LAST = Outputs(has_last=True)


@dataclass(frozen=True, slots=True)
class Openings:
    """Texts with an open block, of which some places are about to be written.

    Attributes:
        canvas: [B, L] int64, the mask token at open places and behind the block.
        places: [B, A] int64, the open places of the block.
        written: [B, A] bool, those about to be written.
    """

    canvas: Tensor
    places: Tensor
    written: Tensor


def opened(tokens: Tensor, block: int, most: int, mask: int, seed: int) -> Openings:
    """Return texts [B, L] with an open block each, a function of the seed.

    Args:
        tokens: the texts.
        block: places of a block; the same number of them is open in every text of the batch.
        most: places about to be written, at most.
        mask: the mask token.
        seed: decides all.
    """
    draws = np.random.default_rng(seed)
    rows, length = tokens.shape
    asked = int(draws.integers(2, block + 1))
    first = torch.from_numpy(draws.integers(4, length - block + 1, rows))
    inside = torch.from_numpy(draws.random((rows, block)).argsort(1)[:, :asked].copy()).sort(1).values
    places = first[:, None] + inside
    at = torch.arange(length)
    canvas = tokens.masked_fill(at >= first[:, None] + block, mask).scatter(1, places, mask)
    count = torch.from_numpy(draws.integers(1, min(most, asked - 1) + 1, rows))
    rank = torch.from_numpy(draws.random((rows, asked))).argsort(1).argsort(1)
    return Openings(canvas, places, rank < count[:, None])


@torch.no_grad()
def told(target: Adapter, canvas: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a masked model says of places [B, A] of canvases [B, L]: logits [B, A, V], and its last states."""
    position = torch.arange(canvas.shape[1]).expand_as(canvas)
    with torch.autocast(canvas.device.type, enabled=False):
        scores = target.score(canvas, position, None, target.new_cache(*canvas.shape), places, _LAST)
    assert scores.last is not None and target.capabilities.mask_id is not None
    return scores.logits.float().index_fill(-1, torch.tensor(target.capabilities.mask_id), float("-inf")), scores.last


@dataclass(slots=True, kw_only=True)
class JointTrainer(Loop):
    """A sampler layer while it trains.

    Attributes:
        target: the masked model, which is not trained.
        mixture: the data.
    """

    recipe: JointRecipe
    network: SamplerLayer
    target: Adapter
    mixture: DataMixture

    def loss(self) -> Tensor:
        """Return the mean divergence of the layer's laws from those of a second pass, in nats per open place."""
        recipe, mask = self.recipe, self.target.capabilities.mask_id
        assert mask is not None
        tokens = self.mixture.batch(self.step, recipe.rows, recipe.length)
        seed = self.seed * 1_000_003 + self.step
        found = opened(tokens, recipe.block, recipe.most, mask, seed)
        logits, last = told(self.target, found.canvas, found.places)
        # Most rows are written as the text goes on, a quarter as the model's own marginals say.
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view_as(found.places)
        is_text = torch.arange(recipe.rows)[:, None] % 4 > 0
        said = torch.where(is_text, tokens.gather(1, found.places), drawn)
        canvas = found.canvas.scatter(1, found.places, torch.where(found.written, said, mask))
        wanted, _ = told(self.target, canvas, found.places)
        said = torch.where(found.written, said, -1)
        ours = corrected(self.network, self.target, last, said, found.places).float().log_softmax(-1)
        theirs = wanted.log_softmax(-1)
        is_ruled = theirs.isinf()
        each = F.kl_div(
            ours.masked_fill(is_ruled, 0.0), theirs.masked_fill(is_ruled, -60.0), reduction="none", log_target=True
        )
        return each.sum(-1)[~found.written].mean()

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step."""
        return self.recipe.rows * self.recipe.length

    def described(self) -> Export:
        """Return the layer as it is now, as its files tell it."""
        streams = zip(self.recipe.sources, self.mixture.streams, strict=True)
        return Export(
            weights=self.network.state_dict(),
            config=config_of(self.network),
            generation={"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
            context=self.recipe.length,
            seen=f"{self.step * self.tokens_per_step:,} tokens",
            data=[f"{one.name} ({one.origin}, {one.licence}), {len(stream):,} tokens." for one, stream in streams],
            licence=("For research: it stands beside its model, and the texts keep the licences above.",),
        )


def build_joint(recipe: JointRecipe, out: Path, data: Path | None, *, steps: int, seed: int) -> JointTrainer:
    """Read the texts and the masked model, and make the layer of a run.

    Raises:
        ConfigError: a text is missing.
        ModelError: the parent is no masked model.
    """
    parent = beside(recipe.parent or "", out)
    target, tokenizer = load_model(parent, "float32"), load_tokenizer(parent)
    offered, network = target.capabilities, None
    if offered.mask_id is None:
        raise ModelError(f"{parent} has no mask token.", "Name a masked model as the recipe's parent.")
    torch.manual_seed(seed)
    hidden = target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    network = SamplerLayer(SamplerConfig(vocab=offered.vocab_size, hidden=hidden, width=recipe.width))
    documents = read_documents(recipe.sources, find_data(data))
    return JointTrainer(
        recipe=recipe,
        network=network,
        target=target,
        mixture=mix(recipe.sources, documents, tokenizer, seed),
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        seed=seed,
        steps=steps,
    )

"""Training a network over shuffled places: every row in a random order of its own.

Source: Pannatier et al. (2024), sigma-GPTs, arXiv 2404.09562, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from outpace.models.any_order import AnyOrderConfig, AnyOrderNet, config_of

from .data import EOS_ID, DataMixture, find_data, mix, read_documents, train_tokenizer
from .export import Export
from .loop import Loop, inherited
from .recipes import OrderRecipe

__all__ = ["OrderTrainer", "build_any_order", "random_orders"]


@dataclass(slots=True, kw_only=True)
class OrderTrainer(Loop):
    """A network over shuffled places while it trains.

    Attributes:
        mixture: The data.
    """

    recipe: OrderRecipe
    network: AnyOrderNet
    mixture: DataMixture

    def loss(self) -> Tensor:
        """Return the mean negative log-likelihood of the step's rows, each in its order, in nats per token."""
        tokens = self.mixture.batch(self.step, self.recipe.rows, self.recipe.length).to(self.device)
        order = random_orders(self.recipe.rows, self.recipe.length, self.seed * 1_000_003 + self.step).to(self.device)
        laws = self.network(tokens, order)
        found: Tensor = -laws.float().gather(2, tokens.gather(1, order).unsqueeze(2)).mean()
        return found

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step."""
        return self.recipe.rows * self.recipe.length

    def described(self) -> Export:
        """Return the network as it is now, as its files tell it."""
        streams = zip(self.recipe.sources, self.mixture.streams, strict=True)
        return Export(
            weights=self.network.state_dict(),
            config=config_of(self.network),
            generation={"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
            context=self.recipe.length,
            seen=f"{self.step * self.tokens_per_step:,} tokens",
            data=[f"{one.name} ({one.origin}, {one.licence}), {len(stream):,} tokens." for one, stream in streams],
            licence=("For research: a small network that knows nothing; the texts keep the licences above.",),
        )


def random_orders(rows: int, places: int, seed: int) -> Tensor:
    """Return orders [rows, places] int64, each a permutation of the places, a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, places, generator=generator).argsort(1)


def build_any_order(recipe: OrderRecipe, out: Path, data: Path | None, *, steps: int, seed: int) -> OrderTrainer:
    """Read the texts and make the network of a run.

    Raises:
        ConfigError: a text is missing.
    """
    documents = read_documents(recipe.sources, find_data(data))
    tokenizer, _ = inherited(recipe, out, lambda: train_tokenizer(chain.from_iterable(documents), recipe.vocab))
    torch.manual_seed(seed)
    config = AnyOrderConfig(
        vocab=recipe.vocab, places=recipe.length, width=recipe.width, layers=recipe.layers, heads=recipe.heads
    )
    return OrderTrainer(
        recipe=recipe,
        network=AnyOrderNet(config),
        mixture=mix(recipe.sources, documents, tokenizer, seed),
        tokenizer=tokenizer,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        seed=seed,
        steps=steps,
    )

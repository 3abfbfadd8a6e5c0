"""Training an LSTM language model: DropConnect between hidden states, and averaging that begins by itself.

Source: Merity, Keskar and Socher (2017), arXiv 1708.02182: sections 2 (DropConnect on hidden-to-hidden weights), 3
(NT-ASGD, algorithm 1) and 4 (locked dropout, dropout of words, tied embeddings).
Differences: rows begin with states of zeros, in place of those of the row before, so that a step stays a pure function
of weights, number and seed; rows are of one length; activations are not penalised; a linear ramp of the rate over the
first steps; averaging begins after four fifths of the steps at the latest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.models.recurrent import RecurrentConfig, RecurrentNet, config_of
from outpace.papers import Paper

from .data import EOS_ID, DataMixture, Tokens, encode_stream, find_data, mix, read_documents, train_tokenizer
from .export import Export
from .loop import Loop, inherited, log
from .recipes import RecurrentRecipe
from .sources import held_out_stories

__all__ = ["PAPERS", "RecurrentTrainer", "build_recurrent", "dropped_states", "has_stalled"]

PAPERS = (
    Paper(
        "Regularizing and Optimizing LSTM Language Models",
        "Merity et al.",
        2017,
        "1708.02182",
        181,
        "Penalties on activations, and states carried from row to row.",
        "outpace train stories-lstm",
    ),
)


def dropped_states(net: RecurrentNet, tokens: Tensor, recipe: RecurrentRecipe, seed: int) -> Tensor:
    """Return the last states [B, T, width] of texts [B, T], with what a training step leaves out.

    The masks are a function of the seed alone; what stays is scaled up by what was left out.
    """
    generator = torch.Generator().manual_seed(seed)

    def mask(share: float, *shape: int) -> Tensor:
        kept = torch.rand(shape, generator=generator) >= share
        return (kept / (1 - share)).to(tokens.device)

    rows, table = len(tokens), net.embed_tokens.weight
    x = F.embedding(tokens, table * mask(recipe.word_drop, len(table), 1))
    x = x * mask(recipe.input_drop, rows, 1, x.shape[-1])
    for index, cell in enumerate(net.cells):
        weights: dict[str, Tensor] = dict(cell.named_parameters())
        weights["weight_hh_l0"] = weights["weight_hh_l0"] * mask(recipe.weight_drop, *weights["weight_hh_l0"].shape)
        x, _ = torch.func.functional_call(cell, weights, (x,))
        share = recipe.output_drop if index + 1 == len(net.cells) else recipe.layer_drop
        x = x * mask(share, rows, 1, x.shape[-1])
    return x


def has_stalled(looks: list[float], patience: int) -> bool:
    """Return whether the latest look is worse than the best of those more than `patience` looks ago (NT-ASGD)."""
    return len(looks) > patience and looks[-1] > min(looks[:-patience])


@dataclass(slots=True, kw_only=True)
class RecurrentTrainer(Loop):
    """An LSTM while it trains.

    Attributes:
        mixture: The data.
        held: Tokens that are looked at now and then, and never trained on.
        looks: Held-out loss of each look, in nats per token.
        averaged: Steps whose weights are in the average; 0 = it has not begun.
        mean: The average.
    """

    recipe: RecurrentRecipe
    network: RecurrentNet
    mixture: DataMixture
    held: Tokens
    looks: list[float] = field(default_factory=list)
    averaged: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take plain gradient descent, as the paper does."""
        self.network.to(self.device)
        parameters = self.network.parameters()
        self.optimisers = [torch.optim.SGD(parameters, lr=self.recipe.rate, weight_decay=self.recipe.weight_decay)]
        self.peaks = [self.recipe.rate]

    def loss(self) -> Tensor:
        """Return the mean negative log-likelihood of the step's rows, in nats per token."""
        tokens = self.mixture.batch(self.step, self.recipe.rows, self.recipe.length + 1).to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # states add up rounding
            states = dropped_states(self.network, tokens[:, :-1], self.recipe, self.seed * 1_000_003 + self.step)
            return F.cross_entropy(self.network.head(states).flatten(0, 1), tokens[:, 1:].flatten())

    def advance(self) -> float:
        """Do one step; take its weights into the average once that has begun, and look where a look is due."""
        value = Loop.advance(self)
        if self.averaged:
            self.averaged += 1
            for name, weight in self.network.state_dict().items():
                self.mean[name] += (weight - self.mean[name]) / self.averaged
        elif self.step % self.recipe.look_every == 0:
            self.looks.append(self.look())
            log.info("step %d held-out loss %.4f", self.step, self.looks[-1])
            if has_stalled(self.looks, self.recipe.patience) or self.step >= 0.8 * self.steps:
                self.averaged, self.mean = 1, {n: w.clone() for n, w in self.network.state_dict().items()}
                log.info("step %d: averaging begins", self.step)
        return value

    def _set_rates(self) -> None:
        factor = min((self.step + 1) / self.recipe.warmup, 1.0)
        for group in self.optimisers[0].param_groups:
            group["lr"] = self.recipe.rate * factor

    @torch.no_grad()
    def look(self) -> float:
        """Return the held-out loss, in nats per token, of rows of the length that is trained."""
        size = self.recipe.length
        rows = torch.stack(
            [
                torch.from_numpy(self.held[at : at + size + 1].astype("int64"))
                for at in range(0, len(self.held) - size - 1, size)
            ][:64]
        ).to(self.device)
        logits = self.network.head(self.network(rows[:, :-1]))
        return float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the average and the looks besides."""
        return Loop.state(self) | {"looks": self.looks, "averaged": self.averaged, "mean": self.mean}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        Loop.restore(self, state)
        self.looks, self.averaged, self.mean = list(state["looks"]), state["averaged"], state["mean"]

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step."""
        return self.recipe.rows * self.recipe.length

    def described(self) -> Export:
        """Return the network as it is now, averaged where that has begun, as its files tell it."""
        streams = zip(self.recipe.sources, self.mixture.streams, strict=True)
        return Export(
            weights=self.mean if self.averaged else self.network.state_dict(),
            config=config_of(self.network),
            generation={"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
            context=self.network.config.places,
            seen=f"{self.step * self.tokens_per_step:,} tokens",
            facts=(f"- weights of {self.averaged:,} steps averaged",) if self.averaged else (),
            data=[f"{one.name} ({one.origin}, {one.licence}), {len(stream):,} tokens." for one, stream in streams],
            licence=("For research: a small network that knows nothing; the texts keep the licences above.",),
        )


def build_recurrent(
    recipe: RecurrentRecipe, out: Path, data: Path | None, *, steps: int, seed: int
) -> RecurrentTrainer:
    """Read the texts and make the network of a run.

    Raises:
        ConfigError: a text is missing.
    """
    folder = find_data(data)
    documents = read_documents(recipe.sources, folder)
    tokenizer, _ = inherited(recipe, out, lambda: train_tokenizer(chain.from_iterable(documents), recipe.vocab))
    torch.manual_seed(seed)
    config = RecurrentConfig(vocab=recipe.vocab, width=recipe.width, hidden=recipe.hidden, layers=recipe.layers)
    return RecurrentTrainer(
        recipe=recipe,
        network=RecurrentNet(config),
        mixture=mix(recipe.sources, documents, tokenizer, seed),
        held=encode_stream(tokenizer, held_out_stories(folder)[-20:]),
        tokenizer=tokenizer,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        seed=seed,
        steps=steps,
    )

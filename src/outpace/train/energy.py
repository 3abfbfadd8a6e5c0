"""Training an energy of whole texts (`outpace.models.energy`) by noise-contrastive estimation on a model's samples.

    outpace train stories-energy --data data
    python -m outpace.bench.energies runs/stories-energy --data data

Source: Deng et al. (2020), arXiv 2004.11714, equation 3: a network tells real texts from samples of a language model
behind the same beginnings; at the optimum its log-odds are what the model's log-probability lacks.

Differences: the body is a masked model of six layers, where the paper takes BERT or RoBERTa; samples are drawn once;
the energy that is written is calibrated: scaled so that it tells pairs best which it was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from outpace.api.engine import LanguageModel, load
from outpace.errors import ModelError
from outpace.models.energy import FILE

from .data import EOS_ID, MASK_ID, find_data, mix, read_documents
from .export import Export, load_network, load_tokenizer
from .loop import Loop, beside, log
from .network import Llama, hf_config
from .recipes import EnergyRecipe

__all__ = ["EnergyNet", "EnergyTrainer", "build_energy", "odds_loss", "sampled"]

_AT_ONCE = 64  # texts that the model writes side by side


class EnergyNet(nn.Module):
    """A body that sees a text as a whole, and what weighs its mean state.

    Args:
        body: not causal.
    """

    def __init__(self, body: Llama) -> None:
        super().__init__()
        self.body, self.energy = body, nn.Linear(body.shape.hidden, 1)
        nn.init.zeros_(self.energy.weight)  # the untrained energy is 0 for every text
        nn.init.zeros_(self.energy.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return minus the energies [B] of texts [B, T]."""
        odds: Tensor = self.energy(self.body.hidden(tokens).mean(1))
        return odds[:, 0]


def odds_loss(real: Tensor, sample: Tensor) -> Tensor:
    """Return the mean loss in nats of telling real texts from samples, given minus the energies [B] of both."""
    return (F.softplus(-real.float()) + F.softplus(sample.float())).mean() / 2


def sampled(lm: LanguageModel, texts: Tensor, begun: Tensor, seed: int) -> Tensor:
    """Return texts [N, T] that begin as given ones do and go on as the model does at temperature 1.

    Args:
        lm: the model.
        texts: [N, T] ids.
        begun: [N] tokens of each that stay.
        seed: of the draws.
    """
    found, (count, length) = texts.clone(), texts.shape
    for size in sorted({*begun.tolist()}):
        rows = torch.nonzero(begun == size)[:, 0]
        for at in range(0, len(rows), _AT_ONCE):
            some = rows[at : at + _AT_ONCE]
            results = lm.generate(
                texts[some, :size].tolist(),
                max_tokens=length - size,
                temperature=1.0,
                ignore_eos=True,
                seed=seed * count + int(some[0]),
            )
            found[some, size:] = torch.tensor([one.tokens for one in results])
    return found


def calibrated(real: Tensor, sample: Tensor) -> float:
    """Return the factor in [0, 1], in steps of 0.05, by which minus the energies [B] tell unseen pairs best."""
    factors = [at / 20 for at in range(21)]
    return min(factors, key=lambda factor: float(odds_loss(factor * real, factor * sample)))


@dataclass(slots=True, kw_only=True)
class EnergyTrainer(Loop):
    """An energy while it trains.

    Attributes:
        real, sample: [N, T] texts of the data, and the model's behind the same beginnings.
        held: [2, M, T] further ones, which are not trained on; the energy that is written is calibrated by them.
    """

    recipe: EnergyRecipe
    network: EnergyNet
    real: Tensor
    sample: Tensor
    held: Tensor

    def loss(self) -> Tensor:
        """Return the loss of the step's pairs, in nats per text."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        picked = torch.randint(len(self.real), (recipe.rows,), generator=generator)
        size = int(torch.randint(recipe.least, recipe.length + 1, (1,), generator=generator))
        texts = torch.cat([one[picked, :size] for one in (self.real, self.sample)])
        real, sample = self.network(texts).chunk(2)
        return odds_loss(real, sample)

    def keep(self, out: Path) -> None:
        """Write a checkpoint, the body as a model, and what weighs its states beside it."""
        Loop.keep(self, out)
        with torch.no_grad():
            real, sample = (torch.cat([self.network(part) for part in side.split(64)]) for side in self.held)
        factor, accuracy = calibrated(real, sample), float(torch.cat([real > 0, sample < 0]).float().mean())
        log.info("held-out pairs: %.1f%% told, energies times %.2f", 100 * accuracy, factor)
        weights = {name: factor * weight.detach() for name, weight in self.network.energy.state_dict().items()}
        (out / FILE).write_bytes(save(weights, metadata={"format": "pt"}))

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step, at the most."""
        return 2 * self.recipe.rows * self.recipe.length

    def described(self) -> Export:
        """Return the energy as it is now, as its files tell it."""
        body, source = self.network.body, self.recipe.sources[0]
        return Export(
            weights=body.state_dict(),
            config=hf_config(body.shape, eos_id=EOS_ID, mask_id=MASK_ID),
            generation={"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
            context=body.shape.context,
            facts=(f"- tells {source.name} from samples of `{self.recipe.noise}`; it writes nothing by itself",),
            seen=f"{self.step * self.recipe.rows:,} pairs of texts",
            data=[f"{source.name} ({source.origin}, {source.licence}), {len(self.real):,} pieces; as many samples."],
            licence=("For research: it stands beside its model, and the texts keep the licence above.",),
        )


def build_energy(recipe: EnergyRecipe, out: Path, data: Path | None, *, steps: int, seed: int) -> EnergyTrainer:
    """Read the texts, let the language model write beside them, and make the network of a run.

    Raises:
        ConfigError: a text is missing.
        ModelError: the parent sees no text as a whole.
    """
    parent = beside(recipe.parent or "", out)
    tokenizer, body = load_tokenizer(parent), load_network(parent)
    if body.shape.causal or body.shape.block:
        raise ModelError(f"{parent} does not see a text as a whole.", "Name a masked model as the recipe's parent.")
    body.shape = replace(body.shape, shifted=False)  # states are read, and each is its own token's
    texts = mix(recipe.sources, read_documents(recipe.sources, find_data(data)), tokenizer, seed)
    count = recipe.pairs + recipe.held
    real = texts.batch(0, count, recipe.length)
    begun = torch.tensor(recipe.begun).repeat(count)[:count]
    lm = load(str(beside(recipe.noise, out)))
    log.info("%s writes %d texts", recipe.noise, count)
    sample = sampled(lm, real, begun, seed)
    return EnergyTrainer(
        recipe=recipe,
        network=EnergyNet(body.train()),
        real=real[: recipe.pairs],
        sample=sample[: recipe.pairs],
        held=torch.stack([real, sample])[:, recipe.pairs :],
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        seed=seed,
        steps=steps,
    )

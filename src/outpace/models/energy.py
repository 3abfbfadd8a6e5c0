"""An energy of whole texts: a masked model's body reads a text in both directions, and a vector weighs its mean state.

Source: Deng, Bakhtin, Ott, Szlam, Ranzato (2020), Residual Energy-Based Models for Text Generation, arXiv 2004.11714,
section 3: the energy is one number behind a bidirectional network; learned by noise-contrastive estimation against a
language model's samples, minus it is the log-odds that a text is real, and p(text) exp(-energy) / Z is likelier.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from outpace.errors import ConfigError, ModelError
from outpace.models.loading import load_model
from outpace.types import Adapter, Outputs

__all__ = ["FILE", "Energy", "read_energy"]

FILE = "energy.safetensors"  # "weight" [1, hidden] and "bias" [1], beside the body's files


class Energy:
    """The energy of texts.

    Args:
        body: a model that sees its canvas as a whole and gives last hidden states.
        weight, bias: [hidden] and a number: minus the energy of a mean state.
    """

    def __init__(self, body: Adapter, weight: Tensor, bias: float) -> None:
        self.body, self.weight, self.bias = body, weight.to(body.device, torch.float32), bias
        self._outputs = Outputs(has_last=True, has_logits=False)

    def __call__(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Return the energy of each text of token ids, in nats: smaller is likelier. A forward per text.

        Raises:
            ConfigError: a text that is empty or longer than the body reads, or of another vocabulary.
        """
        return [self._of(list(text)) for text in texts]

    def _of(self, text: list[int]) -> float:
        offered = self.body.capabilities
        if not 0 < len(text) <= offered.max_positions:
            raise ConfigError(
                f"The text has {len(text)} tokens, but the energy reads from 1 to {offered.max_positions}.",
                "Ask for fewer tokens.",
            )
        if max(text) >= offered.vocab_size:
            raise ConfigError(
                f"The energy knows {offered.vocab_size} tokens, fewer than the model.", "Train one on its samples."
            )
        tokens = torch.tensor([text], device=self.body.device)
        place = torch.arange(len(text), device=self.body.device).unsqueeze(0)
        scores = self.body.score(tokens, place, None, self.body.new_cache(1, len(text)), None, self._outputs)
        assert scores.last is not None  # it was asked for
        return -float(scores.last[0].float().mean(0) @ self.weight) - self.bias


@lru_cache(maxsize=2)
def read_energy(directory: str | Path) -> Energy:
    """Return the energy that `outpace train stories-energy` wrote.

    Raises:
        ModelError: there is none.
    """
    hint = "Name a directory that outpace train stories-energy wrote."
    try:
        tables = load_file(Path(directory) / FILE)
        weight, bias = tables["weight"][0], float(tables["bias"][0])
    except (OSError, SafetensorError, LookupError) as error:
        raise ModelError(f"{directory} holds no energy.", hint) from error
    return Energy(load_model(Path(directory), "float32"), weight, bias)

"""Diffusion of vectors of several tokens each, which an autoencoder has made and turns back into tokens.

Paper: Cosmos, "Compressed and Smooth Latent Space for Text Diffusion Modeling" (2025), arXiv 2506.21170. The
autoencoder sees the whole text, and is trained to read vectors with noise and gaps, so that near vectors mean the same.
Differences: K neighbouring tokens are joined before layers mix the vectors, where the paper's resampler has free
queries; vectors are normalised each, not by the corpus; no alignment with a pre-trained encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.nar.network import Pass

from .compressor import Compressor, whole_chunks
from .network import Diffusion, DiffusionConfig
from .process import noised

__all__ = ["Latents", "LatentsConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentsConfig(DiffusionConfig):
    """Sizes of a model that diffuses vectors of several tokens.

    Attributes:
        chunk: K, tokens of a vector; divides `length`.
        mixing: layers of the autoencoder, on either side, in which vectors see each other.
        spoilt: share of a vector's numbers that are dropped while the autoencoder learns.
        blur: standard deviation of the noise on its vectors then.
        stage: "chunks" trains the autoencoder, "latents" all but it.

    Raises:
        ConfigError: a text that the vectors do not fill, or choices that vectors do not have.
    """

    chunk: int = 4
    mixing: int = 1
    spoilt: float = 0.1
    blur: float = 0.3
    stage: Literal["chunks", "latents"] = "latents"

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        DiffusionConfig.__post_init__(self)
        whole_chunks(self.length, self.chunk, self.dims)
        if (self.space, self.times, self.objective) != ("embedding", "equal", "cross-entropy") or self.is_joined:
            raise ConfigError(
                "Vectors of several tokens are diffused at equal times, and have no bound on a likelihood.",
                "Leave space, times, objective and is_joined out.",
            )
        if self.stage not in ("chunks", "latents"):
            raise ConfigError(f"There is no stage {self.stage!r}.", "Say chunks or latents.")


class Latents(Diffusion):
    """A text of L / K vectors, denoised as a whole."""

    Config = LatentsConfig
    kind: ClassVar[str] = "latents"
    config: LatentsConfig

    def __init__(self, config: LatentsConfig) -> None:
        super().__init__(config)
        self.compressor = Compressor(config)
        self.said = nn.Linear(config.width, config.dims)
        del self.token_embed  # tokens are the autoencoder's
        self.compressor.requires_grad_(config.stage == "chunks")

    @property
    def size(self) -> int:
        """Vectors of a text."""
        return self.config.length // self.config.chunk

    def clean(self, tokens: Tensor) -> Tensor:
        """Return the vectors [B, L / K, D] of tokens [B, L], each of squared length D."""
        return F.layer_norm(self.compressor.encode(tokens).mean, (self.config.dims,))

    def mean(self, log_probs: Tensor, is_rounded: bool = False) -> Tensor:
        """Return vectors as the network said them, or, rounded, those of the tokens that they mean."""
        return self.clean(self.told(log_probs).argmax(-1)) if is_rounded else log_probs

    def told(self, said: Tensor) -> Tensor:
        """Return log-probabilities [B, L, V] of the tokens that vectors [B, L / K, D] mean: one pass, of any length."""
        return self.compressor.decode(said)

    def denoise(self, run: Pass, state: Tensor, gamma: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the clean vectors [B, L / K, D], and the last states; arguments as those of `Diffusion.denoise`."""
        hidden = self._body(run, self._inputs(state, gamma, before), gamma)
        found = self.said(hidden)
        return (found if found.dtype == torch.float64 else found.float()), hidden

    def loss(self, run: Pass) -> Tensor:
        """Return the loss [B] of the stage: nats of the autoencoder, or squared errors, a vector counting as one."""
        tokens = self.padded(run)
        if self.config.stage == "chunks":
            vectors = self.clean(tokens)
            spoilt = F.dropout(vectors + self.config.blur * torch.randn_like(vectors), self.config.spoilt)
            return -self.told(spoilt).gather(-1, tokens[..., None])[..., 0].sum(1)
        with torch.no_grad():
            clean = self.clean(tokens)
        time = torch.rand(len(tokens), 1, device=tokens.device).expand(-1, self.size)
        gamma = self.schedule(time.to(clean.dtype))
        state, before = noised(clean, gamma, torch.randn_like(clean)), None
        if torch.rand(()) < 0.5:
            with torch.no_grad():
                before = self.denoise(run, state, gamma)[0]
        return (self.denoise(run, state, gamma, before)[0] - clean).square().mean(-1).sum(-1)

"""What compiled kernels offer a decoder: three protocols, so that models name no kernels.

The room `outpace.kernels` comes after this one and fulfils them; whoever opens a model hands it in. Knows shapes and
weights. Knows no layers, no masks and no file format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.models.spec import Spec
from outpace.models.weights import Packer, Weights
from outpace.types import NO_OUTPUTS, Outputs, Scores

__all__ = ["CompiledDecoder", "Kernels", "Shelf"]


class CompiledDecoder(Protocol):
    """A decoder's weights in a form of their own, and a faster forward over them."""

    @property
    def code_bits(self) -> int:
        """Bits of a weight in the layers, where weights are codes; 0 = they are plain numbers."""
        ...

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward, as `Adapter.score` does, with room in the cache made."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, V] of last hidden states [N, hidden]."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., hidden] of tokens."""
        ...

    def trim_head(self, ids: Tensor) -> CompiledDecoder:
        """Return a decoder whose logits are those of some tokens."""
        ...

    def cross(self, states: Tensor) -> list[Tensor]:
        """Return per layer the keys and values [N, 2 * K * D] of an encoder's states [N, hidden]."""
        ...


class Shelf(Protocol):
    """Where the packed weights of a model are kept between starts."""

    def find(self) -> tuple[list[Weights], list[str]] | None:
        """Return the weights, side by side, and the notes that were put there; None where there are none."""
        ...

    def put(self, sides: Sequence[Weights], notes: Sequence[str]) -> str:
        """Keep the weights of a compiled decoder, or of an encoder and a decoder.

        Return what a user should know if that fails, else an empty text.
        """
        ...


class Kernels(Protocol):
    """What compiles a decoder; the module `outpace.kernels` is one."""

    def supports(self, spec: Spec) -> bool:
        """Return whether decoders of this shape can be compiled."""
        ...

    def new_packer(self, spec: Spec, dtype: torch.dtype) -> Packer | None:
        """Return what packs quantised matrices as they are read, or None where kernels cannot serve."""
        ...

    def open_shelf(self, spec: Spec, dtype: torch.dtype, sources: Iterable[Path], variant: str) -> Shelf | None:
        """Return where a model's packed weights are kept; None where they are not.

        Args:
            spec, dtype: of the decoder.
            sources: all files that its weights are made of, settings included.
            variant: what else decides how they are read.
        """
        ...

    def compile_decoder(
        self, spec: Spec, weights: Weights, dtype: torch.dtype, release: bool = False
    ) -> CompiledDecoder | None:
        """Return the compiled decoder, None where it cannot be made; `release` frees every matrix once it is packed."""
        ...

    def note(self) -> str:
        """Return what was built, or why nothing was."""
        ...

    def warnings(self) -> list[str]:
        """Return what a user should put right."""
        ...

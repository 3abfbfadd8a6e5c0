"""The shape of an encoder-decoder: two stacks of layers, of which the second looks at the states of the first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from outpace.errors import ModelError
from outpace.models.spec import Spec, spec_capabilities
from outpace.types import Capabilities

__all__ = ["PairSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSpec:
    """What an encoder and a decoder compute.

    Attributes:
        encoder: of full attention; its head is never used.
        decoder: with cross-attention; causal, or of full attention where all places are read at once.
        start_token: the first token of every decoded text, which the model never writes.
    """

    encoder: Spec
    decoder: Spec
    start_token: int

    def __post_init__(self) -> None:
        if self.encoder.attention != "full" or self.decoder.attention == "block" or not self.decoder.has_cross:
            raise ModelError("An encoder sees all of its source, and a decoder what is before it and the encoder.")
        if self.encoder.hidden_size != self.decoder.hidden_size:
            raise ModelError(
                f"The encoder's states have {self.encoder.hidden_size} numbers, the decoder's "
                f"{self.decoder.hidden_size}."
            )
        if not 0 <= self.start_token < self.decoder.vocab_size:
            raise ModelError(f"The decoder starts with token {self.start_token}, which its vocabulary does not hold.")

    @property
    def capabilities(self) -> Capabilities:
        """What a model of these shapes offers."""
        words = self.encoder.vocab_size
        offered = spec_capabilities(self.decoder)
        return replace(offered, source_vocab=0 if words == self.decoder.vocab_size else words)

    @property
    def max_source(self) -> int:
        """The longest source, in tokens."""
        return self.encoder.max_positions

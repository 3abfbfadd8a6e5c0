"""The network over shuffled places behind the contract, and its files: `config.json` with its type, and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError, ModelError
from outpace.models.any_order import AnyOrderConfig, AnyOrderNet
from outpace.text.files import read_object
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Outputs, Scores

__all__ = ["ATTENTION", "AnyOrderModel", "open_any_order", "read_any_order"]

ATTENTION = "any-order"
_NEEDS_PLACES = "This network writes places in any order: its inputs say which place comes next."


class AnyOrderModel(Adapter):
    """A network over shuffled places; `score` takes `laid` inputs with a mask, and keeps nothing in its cache.

    Args:
        net: the network.
    """

    def __init__(self, net: AnyOrderNet) -> None:
        config = net.config
        self.net = net.eval().requires_grad_(False)
        self.capabilities = Capabilities(
            config.vocab, config.places, attention=ATTENTION, has_rollback=False, num_layers=config.layers
        )
        weight = net.embed_tokens.weight
        self.device, self.dtype, self.path = weight.device, weight.dtype, "any order"

    def laid(self, tokens: Tensor, place: Tensor, following: Tensor) -> Tensor:
        """Return the soft inputs [B, T, width] of tokens, their own places, and the places asked next, each [B, T]."""
        return self.net.laid(tokens, place, following)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache, which stays so."""
        return Cache([torch.zeros(rows, capacity, dtype=torch.int8, device=self.device)], 1, counter, [0] * rows)

    def embed(self, tokens: Tensor) -> Tensor:
        """Refuse: a token alone is no input."""
        raise CapabilityError(_NEEDS_PLACES, "Use any-subset or sigma-gpt.")

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V]."""
        logits: Tensor = self.net.head(hidden)
        return logits

    @torch.no_grad()
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
        """Run one forward; see `outpace.types.Adapter`.

        Raises:
            CapabilityError: soft inputs (`laid`) or the mask are missing, or an output that it does not have.
        """
        self.check(outputs, skip)
        if inputs is None or visible is None:
            raise CapabilityError(_NEEDS_PLACES, "Use any-subset or sigma-gpt.")
        cache.stage(position)  # nothing is ever kept, so that there is room for any forward
        cache.counter.add(tokens.numel(), self.capabilities.num_layers)
        laws = self.net.read(inputs.to(self.dtype), visible.unsqueeze(1))
        return Scores(laws if ask is None else laws.gather(1, ask.unsqueeze(-1).expand(-1, -1, laws.shape[-1])))


def read_any_order(directory: Path) -> AnyOrderNet:
    """Return the network of a directory, in float32.

    Raises:
        ModelError: a file is missing or damaged, or its tensors are not those that its sizes tell.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(directory / "config.json")
    names = {field.name for field in fields(AnyOrderConfig)}
    try:
        net = AnyOrderNet(AnyOrderConfig(**{name: value for name, value in config.items() if name in names}))
        weights = load_file(directory / "model.safetensors")
        net.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{directory} holds no whole any-order model: {reason}", "Fetch its files again.") from error
    return net.eval()


def open_any_order(directory: Path, dtype: torch.dtype, device: torch.device) -> AnyOrderModel:
    """Return the adapter of a directory's network.

    Raises:
        ModelError: it cannot be read.
    """
    return AnyOrderModel(read_any_order(directory).to(device, dtype))

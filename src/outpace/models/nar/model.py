"""A network of the family behind the contract: one pass when a row joins, its outputs kept beside its laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.models.kernel_contract import Kernels
from outpace.models.one_pass import OnePassModel, end_law

from .compiled import compile_net
from .network import NarNet, Pass

__all__ = ["NarModel", "outputs_of", "replace_laws"]


class NarModel(OnePassModel):
    """A one-pass network as the loop sees it.

    A cache's `extra` holds what `OnePassModel` says, then `is_place` [B, L], then what `NarNet.finish` gave.

    Args:
        net: the network.
    """

    def __init__(self, net: NarNet) -> None:
        config = net.config
        super().__init__(config.vocab_size, config.max_source, config.max_positions, config.start_token)
        self.capabilities = replace(self.capabilities, kind=type(net).kind)
        self.net, self.end = net.eval(), int(config.end_token)
        weight = net.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype

    def compile(self, kernels: Kernels) -> bool:
        """Run the layers on compiled kernels from now on, if they serve this network; return whether they do."""
        self.net.fast = compile_net(self.net, kernels)
        if self.net.fast is None:
            return False
        self.path = "compiled"
        return True

    def begin(self, sources: Sequence[list[int]]) -> Pass:
        """Encode sources, and lay out their places."""
        ids = [torch.tensor(source, device=self.device) for source in sources]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(source) for source in sources], device=self.device)
        return self.net.begin(padded, torch.arange(padded.shape[1], device=self.device) < lengths[:, None])

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the network once, and keep the laws of each row's likeliest text, and what they were read from."""
        self.check_sources(sources)
        run = self.begin(sources)
        outputs = self.net.finish(run)
        cache.extra = [run.is_place, run.is_place, run.is_place, *outputs]
        replace_laws(cache, [self.ended(law) for law in self.net.laws(outputs, run.is_place)])

    def ended(self, law: Tensor, said: Tensor | None = None) -> Tensor:
        """Return the laws [N + 1, V] of a text with its end: a text stops at the first end token it says itself.

        Args:
            law: [L, V], of its places.
            said: [L] int64, what was drawn there; None = the likeliest tokens.
        """
        ends = ((law.argmax(-1) if said is None else said) == self.end).nonzero()
        whole = law[: int(ends[0])] if len(ends) else law
        end = end_law(self.capabilities.vocab_size, self.end, self.dtype).to(self.device)
        return torch.cat([whole.to(self.dtype), end])

    def write(self, sources: Sequence[list[int]]) -> list[Tensor]:
        """Return the laws of the likeliest texts; see `OnePassModel`."""
        run = self.begin(sources)
        return [self.ended(law) for law in self.net.laws(self.net.finish(run), run.is_place)]


def outputs_of(cache: Cache) -> tuple[Tensor, list[Tensor]]:
    """Return what a pass gave for the rows of a cache: is_place [B, L], and `NarNet.finish`'s tensors."""
    _, _, is_place, *outputs = cache.extra
    return is_place, outputs


def replace_laws(cache: Cache, laws: Sequence[Tensor]) -> None:
    """Make other texts those of a cache's rows: per row the logits [N, V], the end's last."""
    lengths = torch.tensor([[len(law)] for law in laws], device=laws[0].device)
    cache.extra = [torch.nn.utils.rnn.pad_sequence(list(laws), batch_first=True), lengths, *cache.extra[2:]]

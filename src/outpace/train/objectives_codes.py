"""Codebook features: a language model whose feed-forward layers say sums of a few codes, fine-tuned from a plain one.

Source: Tamkin, Taufeeque and Goodman (2023), Codebook Features, arXiv 2310.17230: the next token's cross-entropy, its
gradients passed straight through the choice of codes, and the codes drawn to what they stand for. The first codes are
what the plain model says at random places, so that fine-tuning starts near it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .network import CodedFeedForward, FeedForward, Llama
from .objectives import causal_loss

__all__ = ["GAP_SHARE", "coded_loss", "coded_modules", "start_codes"]

GAP_SHARE = 0.2  # of what the codes miss, in the loss


def coded_modules(network: Llama) -> list[CodedFeedForward]:
    """Return a network's layers with codebooks."""
    return [module for module in network.modules() if isinstance(module, CodedFeedForward)]


def coded_loss(network: Llama, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of the next token in nats, and a share of what the codes miss; `tokens` [B, T + 1]."""
    told = causal_loss(network, tokens)
    return told + GAP_SHARE * torch.stack([module.gap for module in coded_modules(network)]).mean()


@torch.no_grad()
def start_codes(network: Llama, parent: Llama, tokens: Tensor, seed: int) -> None:
    """Take a plain network's weights, and as codes parts of what its layers say at places drawn from texts.

    Args:
        network: With codebooks.
        parent: Without, and else of its shape.
        tokens: Texts, int64 [B, T], of at least as many places as there are codes.
        seed: Of the draw.
    """
    network.load_state_dict(parent.state_dict(), strict=False)
    said = list[Tensor]()
    layers = [module for module in parent.modules() if isinstance(module, FeedForward)]
    hooks = [
        layer.register_forward_hook(lambda _module, _given, found: said.append(found.flatten(0, 1))) for layer in layers
    ]
    parent(tokens)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(seed)
    for module, found in zip(coded_modules(network), said, strict=True):
        places = torch.randperm(len(found), generator=generator)[: len(module.codes)]
        module.codes.copy_(found[places] / module.chosen)

"""What a causal model makes of every token of some texts: its last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.errors import CapabilityError
from outpace.types import Adapter, Outputs

__all__ = ["check_states", "text_states"]


def check_states(target: Adapter) -> None:
    """Refuse a model whose states cannot be had.

    Raises:
        CapabilityError: it is not causal, or gives no hidden states.
    """
    offered = target.capabilities
    if offered.attention != "causal" or offered.is_encoder_decoder or not offered.has_hidden:
        raise CapabilityError("Retrieval reads the hidden states of a causal model.", "Use stories, say.")


@torch.no_grad()
def text_states(target: Adapter, texts: Sequence[Sequence[int]], chunk: int = 256) -> list[Tensor]:
    """Return the last hidden state at every token of each text, [N, F] float32 each; texts end with the context.

    Raises:
        CapabilityError: the model gives none.
    """
    check_states(target)
    found, asked = list[Tensor](), Outputs(has_last=True, has_logits=False)
    for text in texts:
        ids, pieces = list(text[: target.capabilities.max_positions]), list[Tensor]()
        cache = target.new_cache(1, len(ids) + chunk)
        for at in range(0, len(ids), chunk):
            piece = torch.tensor([ids[at : at + chunk]], device=cache.device)
            place = torch.arange(at, at + piece.shape[1], device=cache.device).unsqueeze(0)
            last = target.score(piece, place, None, cache, None, asked).last
            assert last is not None  # it was asked for
            cache.keep([range(piece.shape[1])])
            pieces.append(last[0].float().cpu())
        found.append(torch.cat(pieces) if pieces else torch.zeros(0, 0))
    return found

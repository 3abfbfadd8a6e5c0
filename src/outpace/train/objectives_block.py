"""Block diffusion: noisy and clean copies of a row in one forward, under the mask of BD3LM.

Source: Arriola et al. (2025, arXiv 2503.09573, section 3.1); the shift and the complementary views are those of
Fast-dLLM v2 (Wu et al., 2025, arXiv 2509.26328). Sets of a block behind a causal text: Gat et al. (2025, arXiv
2509.04185), all masks of a block at once as in SDLM (Liu et al., 2025, arXiv 2509.24007).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .data import MASK_ID
from .network import Sight, cut_pieces
from .objectives import DenoisingBatch, fill_up

# The clipped schedule of BD3LM: blocks with almost no mask say little and weigh much.
LOWEST_RATE = 0.1


def block_visible(length: int, block: int, device: torch.device) -> Tensor:
    """Who sees whom in [noisy ; clean], bool [2 * length, 2 * length], true where row may look at column.

    A noisy position sees its own noisy block and all earlier clean ones; a clean one sees the clean blocks up to its
    own.
    """
    number = torch.arange(length, device=device).repeat(2) // block
    is_clean = torch.arange(2 * length, device=device) >= length
    rows, columns = number[:, None], number[None, :]
    from_clean, to_clean = is_clean[:, None], is_clean[None, :]
    same = (rows == columns) & (from_clean == to_clean)
    return same | ((rows > columns) & to_clean)


@cache
def block_pieces(length: int, block: int, device: torch.device) -> tuple[Sight, ...]:
    """`block_visible` cut into runs."""
    return cut_pieces(block_visible(length, block, device))


def block_rates(rows: int, blocks: int, generator: torch.Generator, highest: float = 1.0) -> Tensor:
    """Mask rates of all blocks, float32 [rows, blocks], stratified over [LOWEST_RATE, highest] and shuffled."""
    num = rows * blocks
    even = (torch.arange(num) + torch.rand((), generator=generator)) / num
    even = even[torch.randperm(num, generator=generator)]
    return (LOWEST_RATE + (highest - LOWEST_RATE) * even).view(rows, blocks)


def block_canvas(tokens: Tensor, block: int, step: int, seed: int, complementary: bool = False) -> DenoisingBatch:
    """Noisy and clean copies of `tokens` [B, T], T a multiple of `block`, with one mask rate for each block.

    The output before a position speaks of it. For the first position of a block that is the last one of the clean
    block before: no noise reaches it, so its cross-entropy, masked or not, counts 1, the expectation of mask / rate.
    With `complementary` the first half of the rows is shown twice, every token masked in exactly one of both views.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    if complementary:
        tokens = tokens[: max(len(tokens) // 2, 1)]
    batch, length = tokens.shape
    highest = 1 - LOWEST_RATE if complementary else 1.0
    rates = block_rates(batch, length // block, generator, highest).repeat_interleave(block, dim=1)
    is_masked = torch.rand((batch, length), generator=generator) < rates
    if complementary:
        tokens, rates = tokens.repeat(2, 1), torch.cat([rates, 1 - rates])
        is_masked = torch.cat([is_masked, ~is_masked])
    is_masked[:, 0] = False  # Nothing stands before it, so it is always given.
    return _ask(tokens, is_masked.to(tokens.device), rates.to(tokens.device), block)


def _ask(tokens: Tensor, is_masked: Tensor, rates: Tensor, block: int) -> DenoisingBatch:
    length = tokens.shape[1]
    places = torch.arange(length, device=tokens.device)
    is_first = (places % block == 0).expand_as(tokens)
    weights = torch.where(is_first, 1.0, is_masked / rates) / tokens.numel()
    weights[:, 0] = 0.0
    rows, columns = weights.nonzero(as_tuple=True)
    before = columns - 1 + length * (columns % block == 0)
    return DenoisingBatch(
        torch.cat([tokens.masked_fill(is_masked, MASK_ID), tokens], dim=1),
        *fill_up(rows * 2 * length + before, tokens[rows, columns], weights[rows, columns], tokens),
        pieces=block_pieces(length, block, tokens.device),
        positions=places.repeat(2),
    )


# Half of the blocks are shown without any of their tokens, as decoding begins each of them.
FRESH_SHARE = 0.5


@cache
def set_block_sight(length: int, block: int, device: torch.device) -> tuple[Sight, ...]:
    """Who sees whom in [blocks ; text]: the text is causal; a block's entries see the text before it and are causal."""
    place = torch.arange(length, device=device)
    causal = place[None, :] <= place[:, None]
    own = causal & (place[:, None] // block == place[None, :] // block)
    before = place[None, :] <= place[:, None] // block * block
    size = -(-64 // block) * block
    pieces = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        seen = stop - block + 1
        visible = torch.cat([own[start:stop, start:stop], before[start:stop, :seen]], 1)
        pieces.append(Sight(start, stop, ((start, stop), (length, length + seen)), visible))
    for start in range(0, length, size):
        stop = min(start + size, length)
        pieces.append(Sight(length + start, length + stop, ((length, length + stop),), causal[start:stop, :stop]))
    return tuple(pieces)


def set_block_canvas(tokens: Tensor, block: int, step: int, seed: int) -> DenoisingBatch:
    """A partly masked copy of each block behind the causal text, from `tokens` [B, T + 1], T a multiple of `block`.

    The text's outputs say the next token, as in plain training, and half of the loss is theirs. Of a block's copy, the
    tokens that are shown come first and the masks behind them, all at their own positions: under causal attention each
    mask then sees every token that is shown (Liu et al., 2025, arXiv 2512.22737, topological reordering). The mask for
    token i stands at position i - 1, where a causal network says token i.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch, length = len(tokens), tokens.shape[1] - 1
    # One draw for all rows, so that they share their positions.
    rates, is_fresh = torch.rand((2, length // block, 1), generator=generator)
    is_masked = torch.rand((length // block, block), generator=generator) < rates
    is_masked |= is_fresh < FRESH_SHARE
    key = is_masked.long()
    # Where nothing is shown the text itself says the first token, so that no other mask may count on a mask for it.
    key[:, 0] += is_masked.all(-1)
    order = torch.sort(key, dim=-1, stable=True).indices
    # Entry i of a block stands for token i + 1 of the text, since token i + 1 is what position i speaks of.
    place = (order + torch.arange(0, length, block).unsqueeze(1)).flatten()
    is_masked = is_masked.gather(1, order).flatten()
    text, answers = tokens[:, :-1], tokens[:, 1:]
    told = answers[:, place.to(tokens.device)]
    weights = torch.cat([is_masked / is_masked.sum().clamp(min=1), torch.full((length,), 1 / length)]) / batch / 2
    weights = weights.repeat(batch).to(tokens.device)
    outputs = weights.nonzero().squeeze(-1)
    return DenoisingBatch(
        torch.cat([torch.where(is_masked.to(tokens.device), MASK_ID, told), text], 1),
        *fill_up(
            outputs, torch.cat([told, answers], 1).flatten()[outputs], weights[outputs], tokens[:, 1:].repeat(1, 2)
        ),
        pieces=set_block_sight(length, block, tokens.device),
        positions=torch.cat([place + (~is_masked).long(), torch.arange(length)]).to(tokens.device),
    )

"""Likelihood bounds of diffusion models in bits: whole canvas (MDLM) and block by block (BD3LM).

Both use the discrete form of the bound: the number of masked places l is uniform on 1..L, which ones is uniform, and
the summed cross-entropy of the masked ones weighs L / l. Its expectation is that of masking each place at rate t with
weight 1/t, t ~ U(0, 1) (Ou et al., 2024, arXiv 2406.03736), with less noise. So each figure estimates, without bias, an
upper bound on the bits of the text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import MASK_ID
from .network import Llama
from .objectives_block import block_pieces

Ints = NDArray[np.int64]
# The diffusion models of the zoo are trained on rows of up to 512 tokens.
WINDOW = 512


@torch.inference_mode()
def masked_bits(network: Llama, stream: Ints, samples: int = 2, window: int = WINDOW) -> float:
    """Upper bound in bits on `stream`, cut into windows that know nothing of each other but the border token.

    Of a network with shifted logits the first token of the stream is given, as it is to a causal model.

    Args:
        network: With full attention.
        stream: Tokens, int64 [N].
        samples: Forwards for each window; their mask counts are stratified.
        window: Tokens scored together, at most the context less one.
    """
    generator = torch.Generator().manual_seed(0)
    shift = int(network.shape.shifted)
    tokens, total = torch.from_numpy(stream.astype(np.int64)), 0.0
    window = min(window, network.shape.context - shift)
    for start in range(0, len(tokens) - shift, window):
        piece = tokens[start : start + window + shift]
        size = len(piece) - shift
        for count in _counts(size, samples, generator):
            hidden = shift + torch.rand((size,), generator=generator).argsort()[:count]
            outputs = network.hidden(piece.index_fill(0, hidden, MASK_ID)[None])[0, hidden - shift]
            total += float(_nats(network, outputs, piece[hidden]).sum()) * size / count / samples
    return total / float(np.log(2))


@torch.inference_mode()
def masked_nats(network: Llama, rows: Tensor, samples: int = 2, seed: int = 0) -> Tensor:
    """Estimates of the upper bound in nats on each row, all rows in one forward per sample; float64 [samples, B].

    Args:
        network: With full attention; with shifted logits the first token of each row is given.
        rows: Tokens, int64 [B, T].
        samples: Maskings of each row; independent, so their spread tells the error.
        seed: Of the masks.
    """
    generator, shift = torch.Generator().manual_seed(seed), int(network.shape.shifted)
    batch, size = rows.shape[0], rows.shape[1] - shift
    found = []
    for _ in range(samples):
        counts = torch.randint(1, size + 1, (batch, 1), generator=generator)
        ranks = torch.rand((batch, size), generator=generator).argsort(1).argsort(1)
        is_masked = F.pad(ranks < counts, (shift, 0)).to(rows.device)
        row, place = is_masked.nonzero(as_tuple=True)
        outputs = network.hidden(rows.masked_fill(is_masked, MASK_ID))[row, place - shift]
        nats = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        nats[row, place] = _nats(network, outputs, rows[row, place])
        found.append(nats.sum(1).cpu() * size / counts[:, 0])
    return torch.stack(found)


def _counts(size: int, samples: int, generator: torch.Generator) -> Iterator[int]:
    """Mask counts, uniform on 1..size, one in each of `samples` equal parts of the range."""
    even = (torch.arange(samples) + torch.rand((samples,), generator=generator)) / samples
    yield from (even * size).long().clamp_max(size - 1).add(1).tolist()


def _nats(network: Llama, outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies [K] of `targets` [K] at hidden states [K, hidden]; the mask itself is never an answer."""
    logits = network.project(outputs).index_fill(-1, torch.tensor([MASK_ID], device=outputs.device), -torch.inf)
    return F.cross_entropy(logits, targets, reduction="none").double()


@torch.inference_mode()
def block_bits(network: Llama, stream: Ints, samples: int = 2, window: int = WINDOW) -> float:
    """Upper bound in bits on `stream` after its first token, each block given the clean ones before it.

    The first token of a block is said by the clean block before, which no noise reaches, so it counts once and is then
    shown to the rest of its block: by the chain rule that is a bound, and a lower one than with it masked at times.

    Windows overlap by half, so that every block but the first ones sees at least half a window.

    Args:
        network: With block attention and shifted logits.
        stream: Tokens, int64 [N].
        samples: Forwards for each window; the mask counts of each block are stratified over them.
        window: Tokens of a window, a multiple of two blocks.
    """
    generator = torch.Generator().manual_seed(0)
    block, total, done = network.shape.block, 0.0, 1
    padded = np.pad(stream.astype(np.int64), (0, -len(stream) % block))
    tokens = torch.from_numpy(padded)
    for start in range(0, len(tokens), window // 2):
        piece = tokens[start : start + window]
        fresh = torch.arange(start, start + len(piece))
        # What an earlier window has scored and what only fills the last block up does not count.
        counted = (fresh >= done) & (fresh < len(stream))
        for sample in range(samples):
            total += float(_block_nats(network, piece, sample, samples, generator)[counted].sum()) / samples
        done = start + len(piece)
        if done >= len(tokens):
            break
    return total / float(np.log(2))


def _block_nats(network: Llama, piece: Tensor, sample: int, samples: int, generator: torch.Generator) -> Tensor:
    """One estimate of the bound in nats for each position of `piece` [T], float64 [T]; 0 for the first."""
    block, length = network.shape.block, len(piece)
    num, rest = length // block, block - 1
    even = (sample + torch.rand((num, 1), generator=generator)) / samples
    counts = (even * rest).long().clamp_max(rest - 1).add(1)
    ranks = torch.rand((num, rest), generator=generator).argsort(1).argsort(1)
    is_masked = F.pad(ranks < counts, (1, 0)).flatten()
    weights = F.pad((ranks < counts) * (rest / counts), (1, 0), value=1.0).flatten()[1:]
    hidden = network.hidden(
        torch.cat([piece.masked_fill(is_masked, MASK_ID), piece])[None],
        pieces=block_pieces(length, block, piece.device),
        positions=torch.arange(length).repeat(2),
    )[0]
    places = torch.arange(1, length)
    asked = weights.nonzero()[:, 0]
    outputs = hidden[(places - 1 + length * (places % block == 0))[asked]]
    nats = torch.zeros(length, dtype=torch.float64)
    nats[asked + 1] = _nats(network, outputs, piece[asked + 1]) * weights[asked]
    return nats

"""What each kind of model is trained to minimise: one function of (network, batch) per objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import EOS_ID, MASK_ID
from .network import Llama, Sight, cut_pieces

TEACHER_SHARE = 0.9
# Rows with fewer masks than this share say little and weigh much.
LOWEST_RATE = 0.02


def causal_loss(network: Llama, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats; `tokens` int64 [B, T + 1]."""
    logits = network(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def sorted_loss(network: Llama, tokens: Tensor, exits: Sequence[int]) -> Tensor:
    """Mean cross-entropy of the next token after each of some layers, in nats.

    Source: Valipour et al. (2023, arXiv 2309.08968), sorted fine-tuning: nested models share head and final norm.

    Args:
        network: The nested models.
        tokens: The text, int64 [B, T + 1].
        exits: Layers passed, ascending.
    """
    states = network.exit_states(tokens[:, :-1], exits)
    losses = [F.cross_entropy(network.project(x).float().flatten(0, 1), tokens[:, 1:].flatten()) for x in states]
    return torch.stack(losses).mean()


class DenoisingBatch(NamedTuple):
    """What a denoiser is asked in one step: inputs, and which outputs must say which tokens.

    Attributes:
        inputs: int64 [B, S].
        outputs: Places in the flattened [B * S] outputs, int64 [K].
        targets: Token that each of them must say, int64 [K].
        weights: Weight of each cross-entropy, float32 [K]; 0 for the places that only fill up to a round number.
        pieces: Who sees whom; None for everything.
        positions: Position of each input, int64 [S]; None for 0 to S - 1.
    """

    inputs: Tensor
    outputs: Tensor
    targets: Tensor
    weights: Tensor
    pieces: tuple[Sight, ...] | None = None
    positions: Tensor | None = None


def mask_tokens(tokens: Tensor, step: int, seed: int, is_open: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mask each row of `tokens` [B, T] at its own rate t ~ U(0, 1): (masked copy [B, T], weights float32 [B, T]).

    The rates are stratified: one in each B-th of the unit interval, which lowers the variance of the bound at no cost.
    The weights are 1/t where a token is masked and 0 elsewhere, over the number of tokens: with them the summed
    cross-entropy is the bound of MDLM (Sahoo et al., 2024, arXiv 2406.07524, eq. 10) per token. With bool `is_open`
    [B, T] only those tokens are masked and counted, as LLaDA is fine-tuned (Nie et al., 2025, arXiv 2502.09992).
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch, length = tokens.shape
    offset = torch.rand((), generator=generator)
    rate = ((torch.arange(batch) + offset) / batch).clamp_min(max(1.0 / length, LOWEST_RATE)).unsqueeze(1)
    is_masked = (torch.rand((batch, length), generator=generator) < rate).to(tokens.device)
    if is_open is not None:
        is_masked &= is_open
    num = tokens.numel() if is_open is None else is_open.sum().clamp_min(1)
    weights = is_masked / rate.to(tokens.device) / num
    return torch.where(is_masked, MASK_ID, tokens), weights


def response_places(tokens: Tensor, markers: Sequence[Sequence[int]]) -> Tensor:
    """Which of `tokens` [B, T] answer a prompt: those after a marker, to the end of the document with it."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    closes = torch.zeros_like(tokens, dtype=torch.bool)
    for marker in markers:
        size = len(marker)
        found = (tokens.unfold(1, size, 1) == torch.tensor(list(marker), device=tokens.device)).all(-1)
        closes[:, size - 1 :] |= found

    def last(condition: Tensor) -> Tensor:
        """Where the condition held last before each place."""
        return F.pad(torch.where(condition, places, -1).cummax(1).values[:, :-1], (1, 0), value=-1)

    return last(closes) > last(tokens == EOS_ID)


def behind_prefix(tokens: Tensor, step: int, seed: int) -> Tensor:
    """Which of `tokens` [B, T] stand behind a given prefix: any length from 1 to T - 1, drawn for each row.

    Source: Han et al. (2024, arXiv 2401.17181), who find prefix-LM best among the objectives of text diffusion.
    """
    batch, length = tokens.shape
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step + 250_007)
    ends = torch.randint(1, length, (batch, 1), generator=generator)
    return (torch.arange(length) >= ends).to(tokens.device)


def hybrid_noise(
    masked: Tensor, weights: Tensor, share: float, vocab: int, step: int, seed: int, is_open: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Put random tokens in place of a share of the masks [B, T], and ask every token: any that is shown may be random.

    The hybrid of absorbing and uniform noise of Fathi et al. (2025, arXiv 2504.06416), of which only the abstract was
    read: tokens that are shown and true have the weight of an average token, which is our choice.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step + 750_019)
    chance = torch.rand(masked.shape, generator=generator).to(masked.device)
    drawn = torch.randint(MASK_ID + 1, vocab, masked.shape, generator=generator).to(masked.device)
    noisy = torch.where((masked == MASK_ID) & (chance < share), drawn, masked)
    num = masked.numel() if is_open is None else is_open.sum().clamp_min(1)
    shown = torch.ones_like(weights) / num if is_open is None else is_open / num
    return noisy, torch.where(weights > 0, weights, shown)


def whole_canvas(
    tokens: Tensor,
    step: int,
    seed: int,
    shifted: bool,
    is_open: Tensor | None = None,
    uniform: float = 0.0,
    vocab: int = 0,
) -> DenoisingBatch:
    """A masked copy of `tokens` [B, T] in which every position may see every other; `uniform` as in `hybrid_noise`.

    With `shifted` the output before a position speaks of it, as in a causal network (Gong et al., 2024, arXiv
    2410.17891). No output stands before the first position, so that one is then always shown.
    """
    masked, weights = mask_tokens(tokens, step, seed, is_open)
    if uniform:
        masked, weights = hybrid_noise(masked, weights, uniform, vocab, step, seed, is_open)
    shift = int(shifted)
    if shifted:
        masked[:, 0], weights[:, 0] = tokens[:, 0], 0.0
    rows, columns = weights.nonzero(as_tuple=True)
    return DenoisingBatch(
        masked,
        *fill_up(rows * tokens.shape[1] + columns - shift, tokens[rows, columns], weights[rows, columns], tokens),
    )


def fill_up(outputs: Tensor, targets: Tensor, weights: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the asked places to 5/8 of all, or to all where they are more, so that two shapes at most are compiled."""
    most = tokens.numel() * 5 // 8
    missing = (most if len(outputs) <= most else tokens.numel()) - len(outputs)
    return tuple(F.pad(part, (0, missing)) for part in (outputs, targets, weights))  # type: ignore[return-value]


def annealed(length: int, share: float, step: int, seed: int, device: torch.device) -> tuple[Sight, ...] | None:
    """Causal attention in which `share` of the entries above the diagonal are open; None from a share of 1 on.

    The open entries are drawn anew in each step (Gong et al., 2024, arXiv 2410.17891, section 3.2).
    """
    if share >= 1:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step + 500_009)
    is_open = torch.rand((length, length), generator=generator) < share
    visible = is_open | torch.ones((length, length), dtype=torch.bool).tril()
    return cut_pieces(visible.to(device), length)


def masked_loss(
    network: Llama,
    inputs: Tensor,
    outputs: Tensor,
    targets: Tensor,
    weights: Tensor,
    pieces: tuple[Sight, ...] | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy in nats at the asked places of a `DenoisingBatch`, whose fields are the arguments."""
    hidden = network.hidden(inputs, pieces=pieces, positions=positions).flatten(0, 1)
    logits = network.project(hidden.index_select(0, outputs)).float()
    # The mask itself is never an answer: it must not take probability from the words.
    logits = logits.index_fill(1, torch.tensor([MASK_ID], device=logits.device), -1e4)
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def reweighted_loss(network: Llama, tokens: Tensor, teacher: Llama) -> Tensor:
    """Cross-entropy in nats of the text under the product of the frozen parent's law and the network's.

    Args:
        network: The plugin, which the law `plugin` multiplies with the parent.
        tokens: The text, int64 [B, T + 1].
        teacher: The parent, which stays as it is.
    """
    with torch.no_grad():
        own = teacher(tokens[:, :-1]).float().log_softmax(-1)
    both: Tensor = own + network(tokens[:, :-1]).float().log_softmax(-1)
    return F.cross_entropy(both.flatten(0, 1), tokens[:, 1:].flatten())


def distilled_loss(network: Llama, tokens: Tensor, teacher: Llama) -> Tensor:
    """Cross-entropy against the teacher's distribution and, a little, against the text, in nats.

    Args:
        network: The student.
        tokens: The text, int64 [B, T + 1].
        teacher: The parent, whose next-token distributions the student learns.
    """
    with torch.no_grad():
        taught_probs: Tensor = teacher(tokens[:, :-1]).float().softmax(-1)
    logprobs: Tensor = network(tokens[:, :-1]).float().log_softmax(-1)
    taught = -(taught_probs * logprobs).sum(-1).mean()
    text = F.nll_loss(logprobs.flatten(0, 1), tokens[:, 1:].flatten())
    return TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * text

"""SequenceMatch: a language model that takes a token back, trained as an imitator of texts.

Source: Cundy and Ermon (2023), SequenceMatch: Imitation Learning for Autoregressive Sequence Modelling with
Backtracking, arXiv 2306.05426. The logits Q(s, a) of a text s are values of its next tokens, V(s) is their logsumexp,
and Q(s, a) - gamma V(s') is the reward of a token. Maximised is the chi-squared regulariser phi of the rewards of the
data less the mean of V(s) - gamma V(s') over states of the data and of the model itself. One more token, the backspace,
leads from a text to the text without its last token; data are given errors that it takes back.

Differences: the model's own states are one draw away from the data (a token that the model itself would write at a
place), and back, where the paper samples whole texts into a replay buffer; those same tokens are the errors that the
data take back.
With phi the identity and no states of the model, the loss is the cross-entropy of the data's tokens (`share=0`,
`strength=0`), whatever gamma is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .data import MASK_ID
from .network import Llama, Sight, cut_pieces

__all__ = ["BACKSPACE_ID", "BacktrackedBatch", "backtracked", "match_loss"]

BACKSPACE_ID = MASK_ID  # of all tokens of a causal model's vocabulary, the one that no text holds
GAMMA, STRENGTH, SHARE = 0.99, 0.03, 0.5


class BacktrackedBatch(NamedTuple):
    """A text in one copy, with one more column behind some of its places: an error drawn there.

    Attributes:
        inputs: The text and the errors, int64 [B, T + K].
        labels: What the data say next, int64 [B, T + K]: the next token, and behind an error the backspace.
        places: Places of the text that are drawn at, int64 [K].
        is_error: Which draws are errors, that is no token of the data, bool [B, K].
        pieces: Who sees whom.
        positions: Position of each input, int64 [T + K].
        ramp: Share of the square of rewards and of the model's own states that counts, float32 [].
    """

    inputs: Tensor
    labels: Tensor
    places: Tensor
    is_error: Tensor
    pieces: tuple[Sight, ...]
    positions: Tensor
    ramp: Tensor


def backtracked(
    network: Llama, tokens: Tensor, asked: int, step: int, seed: int, progress: float = 1.0
) -> BacktrackedBatch:
    """Return texts with errors that the network itself draws at `asked` places.

    Args:
        network: As it is now.
        tokens: Texts, int64 [B, T + 1].
        asked: Places that are drawn at, the same in all rows.
        step, seed: Fix every draw.
        progress: Share of the training that is done: it begins by likelihood, backspaces included, and from its half on
            all of the loss counts, so that no term meets a network that is far from it.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed * 1_000_003 + step)
    batch, size = len(tokens), tokens.shape[1] - 1
    places = torch.randperm(size, generator=generator, device=tokens.device)[:asked].sort().values
    with torch.no_grad():
        logits = network.project(network.hidden(tokens[:, :-1])[:, places]).float()
        logits[..., BACKSPACE_ID] = -torch.inf  # it would lead back to a state of the data, and is no error
        drawn = logits.softmax(-1).flatten(0, 1).multinomial(1, generator=generator).view(batch, -1)
    text = torch.arange(size, device=tokens.device)
    visible = torch.eye(size + len(places), dtype=torch.bool, device=tokens.device)
    visible[:size, :size] = text <= text[:, None]
    visible[size:, :size] = text <= places[:, None]
    following = tokens[:, 1:]
    return BacktrackedBatch(
        torch.cat([tokens[:, :-1], drawn], 1),
        torch.cat([following, torch.full_like(drawn, BACKSPACE_ID)], 1),
        places,
        drawn != following[:, places],
        cut_pieces(visible, len(visible)),
        torch.cat([text, places + 1]),
        torch.tensor(min(1.0, 2 * progress), device=tokens.device),
    )


def match_loss(
    network: Llama,
    inputs: Tensor,
    labels: Tensor,
    places: Tensor,
    is_error: Tensor,
    pieces: tuple[Sight, ...],
    positions: Tensor,
    ramp: Tensor,
    gamma: float = GAMMA,
    strength: float = STRENGTH,
    share: float = SHARE,
) -> Tensor:
    """Return what SequenceMatch minimises, of a `BacktrackedBatch`, whose fields the first arguments are.

    Args:
        network: The model.
        inputs, labels, places, is_error, pieces, positions, ramp: The batch.
        gamma: What the value of the next state counts.
        strength: Of the square of rewards in phi(r) = r - strength r^2; 0 = rewards count as they are.
        share: Of the model's own states in the mean of V(s) - gamma V(s'); 0 = the data's alone.
    """
    size = inputs.shape[1] - len(places)
    logits = network.project(network.hidden(inputs, pieces=pieces, positions=positions)).float()
    chosen = logits.gather(-1, labels.unsqueeze(-1))[..., 0]  # Q(s, a)
    value = logits.logsumexp(-1)  # V(s)
    # A token leads to the next place, a backspace to the place whose draw it takes back.
    after = torch.cat([value[:, 1:size], value[:, places]], 1)
    kept = torch.cat([chosen[:, : size - 1], chosen[:, size:]], 1)
    before = torch.cat([value[:, : size - 1], value[:, size:]], 1)
    weight = torch.cat([torch.ones_like(after[:, : size - 1]), is_error.to(after.dtype)], 1)
    weight = weight / weight.sum()
    reward = kept - gamma * after
    of_data = ((reward - ramp * strength * reward.square()) * weight).sum()
    data_flow = ((before - gamma * after) * weight).sum()
    # The model's own way leads to its draw and back: cut off at the draw, V there would grow without bound.
    model_flow = (1 - gamma) * (value[:, places] + value[:, size:]).mean() / 2
    share_now = ramp * share
    return (1 - share_now) * data_flow + share_now * model_flow - of_data

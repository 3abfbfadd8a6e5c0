"""Teaching a masked diffusion model to need fewer steps: it is taught, at one glance, what a teacher says later.

Self-distillation through time (Deschenaux, Gulcehre, 2024, arXiv 2410.21035): the teacher takes several ancestral steps
from the student's own masked text; the law that it wrote each place with is what the student learns for that place, and
for places still masked the teacher's last one. Consistency (CD4LM, arXiv 2601.02236): the teacher reads a less masked
view of the same text.

Residual context (RCD, Hu et al., 2026, arXiv 2601.22954), the second of its two stages: the frozen parent, which is the
first stage's model, says what it believes of masked places, and the student learns to read that in its inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from outpace.canvas.rules.lrd import residual

from .data import MASK_ID
from .network import Llama
from .objectives import LOWEST_RATE

__all__ = ["TaughtBatch", "ToldBatch", "cleaner_view", "matched_loss", "rolled_out", "told_before", "told_loss"]

CANDIDATES = 32  # tokens of a residual; the method's own number
_UNTOLD = 0.25  # share of rows without residuals, as in the first step of a block


class TaughtBatch(NamedTuple):
    """What a student is asked in one step.

    Attributes:
        inputs: int64 [B, T], masked.
        outputs: Places in the flattened [B * T] outputs, int64 [K].
        laws: The teacher's log-probabilities there, float32 [K, V].
        is_reverse: Whether the student's own law weighs the divergence, which makes it choose among what may stand
            there instead of covering it all.
    """

    inputs: Tensor
    outputs: Tensor
    laws: Tensor
    is_reverse: bool


def matched_loss(network: Llama, inputs: Tensor, outputs: Tensor, laws: Tensor, is_reverse: bool) -> Tensor:
    """Mean divergence in nats between student and teacher at the places of a `TaughtBatch`, whose fields these are."""
    own = _log_law(network, inputs, outputs)
    first, second = (own, laws) if is_reverse else (laws, own)
    return (first.exp() * (first - second)).sum(-1).mean()


def rolled_out(
    tokens: Tensor, teacher: Llama, rollout: int, stride: float, most: int, step: int, seed: int
) -> TaughtBatch:
    """What a teacher of shifted logits says in `rollout` steps of its own.

    Args:
        tokens: The text, int64 [B, T].
        teacher: The model as it was before this round; it writes from its own law.
        rollout: Its steps; one alone teaches what it says already.
        stride: Share of the whole text that each of them writes, on average.
        most: Places that the student is asked for, drawn from all masked ones, with repeats if there are fewer.
        step, seed: Fix every draw.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed * 1_000_003 + step)
    rate, inputs = _masked(tokens, generator)
    outputs = _chosen(inputs, most, generator)
    now, laws, is_open = inputs.clone(), torch.empty(0), torch.ones(len(outputs), dtype=torch.bool)
    for index in range(rollout):
        said = _quiet(teacher, now, outputs)
        laws = said if index == 0 else torch.where(is_open.unsqueeze(1), said, laws)
        # Each masked place is written with the chance that takes the text from one rate of masks to the next one.
        chance = (stride / (rate - index * stride).clamp_min(stride)).clamp_max(1.0)
        writes = (torch.rand(tokens.shape, generator=generator) < chance) & (now == MASK_ID)
        writes[:, 0] = False
        rows, columns = writes.nonzero(as_tuple=True)
        probs = _quiet(teacher, now, rows * tokens.shape[1] + columns - 1).exp()
        now[rows, columns] = torch.multinomial(probs, 1, generator=generator)[:, 0] if len(rows) else now[rows, columns]
        is_open = (now == MASK_ID).flatten()[outputs + 1]
    return TaughtBatch(inputs, outputs, laws, True)


def cleaner_view(tokens: Tensor, teacher: Llama, most: int, step: int, seed: int) -> TaughtBatch:
    """What a teacher of shifted logits says when part of the student's masks is lifted.

    Asked are places that both see masked. The arguments are those of `rolled_out`.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed * 1_000_003 + step)
    _, inputs = _masked(tokens, generator)
    share = torch.rand((len(tokens), 1), generator=generator)
    stays = (torch.rand(tokens.shape, generator=generator) < share) & (inputs == MASK_ID)
    stays[:, -1] = True  # so that there is always a place to ask
    inputs[:, -1] = MASK_ID
    cleaner = torch.where(stays, MASK_ID, tokens)
    outputs = _chosen(cleaner, most, generator)
    return TaughtBatch(inputs, outputs, _quiet(teacher, cleaner, outputs), False)


class ToldBatch(NamedTuple):
    """A masked text, and what an earlier step believed of its masks.

    Attributes:
        inputs: int64 [B, T], masked.
        outputs: Places in the flattened [B * T] outputs, int64 [K].
        answers: The tokens that stand there, int64 [K].
        share: How much of each input is told, float32 [B, T]; 0 where nothing is masked.
        ids, weights: The tokens that are told and their weights, [B, T, N].
    """

    inputs: Tensor
    outputs: Tensor
    answers: Tensor
    share: Tensor
    ids: Tensor
    weights: Tensor


def told_loss(
    network: Llama, inputs: Tensor, outputs: Tensor, answers: Tensor, share: Tensor, ids: Tensor, weights: Tensor
) -> Tensor:
    """Mean nats of the answers at the places of a `ToldBatch`, whose fields these are."""
    embed = network.model.embed_tokens
    told = (weights.unsqueeze(-1) * embed(ids)).sum(2)
    mixed = torch.lerp(embed(inputs), told, share.unsqueeze(-1))
    law = _log_law(network, inputs, outputs, mixed)
    return -law.gather(1, answers.unsqueeze(1)).mean()


@torch.no_grad()
def told_before(tokens: Tensor, teacher: Llama, stride: float, most: int, step: int, seed: int) -> ToldBatch:
    """What a teacher of shifted logits believes one step before a masked text, as residuals for that text.

    Args:
        tokens: The text, int64 [B, T].
        teacher: The parent, frozen.
        stride: Share of the shown places that the step before had not written yet.
        most: Places that are asked, drawn from all masked ones.
        step, seed: Fix every draw.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed * 1_000_003 + step)
    _, inputs = _masked(tokens, generator)
    earlier = torch.where(torch.rand(tokens.shape, generator=generator) < stride, MASK_ID, inputs)
    earlier[:, 0] = tokens[:, 0]
    outputs = _chosen(inputs, most, generator)
    is_told = (inputs == MASK_ID) & (torch.rand((len(tokens), 1), generator=generator) >= _UNTOLD)
    rows, columns = is_told.nonzero(as_tuple=True)
    probs = _quiet(teacher, earlier, rows * tokens.shape[1] + columns - 1).exp()
    shares, chosen, values = residual(probs, 1.0, CANDIDATES)
    share = torch.zeros(tokens.shape)
    ids = torch.zeros((*tokens.shape, chosen.shape[1]), dtype=torch.int64)
    weights = torch.zeros(ids.shape)
    share[rows, columns], ids[rows, columns], weights[rows, columns] = shares.float(), chosen, values.float()
    return ToldBatch(inputs, outputs, tokens.flatten()[outputs + 1], share, ids, weights)


def _masked(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return stratified rates [B, 1] and the text masked at them; the first place, which nothing says, is shown."""
    batch = len(tokens)
    rate = ((torch.arange(batch) + torch.rand((), generator=generator)) / batch).clamp_min(LOWEST_RATE).unsqueeze(1)
    inputs = torch.where(torch.rand(tokens.shape, generator=generator) < rate, MASK_ID, tokens)
    inputs[:, 0] = tokens[:, 0]
    return rate, inputs


def _chosen(masked: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return [most] outputs that speak of masked places; always as many, so that one shape is compiled."""
    found = (masked.flatten() == MASK_ID).nonzero()[:, 0] - 1
    order = torch.randperm(len(found), generator=generator)
    return found[order.repeat(-(-most // len(found)))[:most]]


@torch.no_grad()
def _quiet(teacher: Llama, inputs: Tensor, outputs: Tensor) -> Tensor:
    return _log_law(teacher, inputs, outputs)


def _log_law(network: Llama, inputs: Tensor, outputs: Tensor, mixed: Tensor | None = None) -> Tensor:
    read = network.hidden(inputs) if mixed is None else network.hidden(inputs, inputs=mixed)
    hidden = read.flatten(0, 1).index_select(0, outputs)
    logits = network.project(hidden).float()
    # The mask itself is never an answer, as in the model's own training.
    return logits.index_fill(1, torch.tensor([MASK_ID], device=logits.device), -1e4).log_softmax(-1)

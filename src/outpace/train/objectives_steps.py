"""Teaching a masked diffusion model to need fewer steps: it is taught, at one glance, what a teacher says later.

Self-distillation through time (Deschenaux, Gulcehre, 2024, arXiv 2410.21035): the teacher takes several ancestral steps
from the student's own masked text; the law that it wrote each place with is what the student learns for that place, and
for places still masked the teacher's last one. Consistency (CD4LM, arXiv 2601.02236): the teacher reads a less masked
view of the same text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .data import MASK_ID
from .network import Llama
from .objectives import LOWEST_RATE

__all__ = ["TaughtBatch", "cleaner_view", "matched_loss", "rolled_out"]


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


def _log_law(network: Llama, inputs: Tensor, outputs: Tensor) -> Tensor:
    hidden = network.hidden(inputs).flatten(0, 1).index_select(0, outputs)
    logits = network.project(hidden).float()
    # The mask itself is never an answer, as in the model's own training.
    return logits.index_fill(1, torch.tensor([MASK_ID], device=logits.device), -1e4).log_softmax(-1)

"""How likely a masked model finds a given text: a Monte Carlo estimate of a bound, with its standard error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.api.scoring import Scored, check_causal
from outpace.errors import CapabilityError, ConfigError
from outpace.types import Adapter, Capabilities

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["SAMPLES", "check_scored", "estimate_tokens"]

SAMPLES = 128  # as Nie et al. (2025) take
_AT_ONCE = 512  # positions in one forward


def check_scored(capabilities: Capabilities, samples: int | None = None) -> None:
    """Refuse a model under which a text has neither log-probabilities nor a bound on them.

    Raises:
        CapabilityError: it is neither causal nor a masked model that sees the whole text, or its noise is uniform.
        ConfigError: samples below 1, or any of a causal model, whose figures are exact.
    """
    if capabilities.is_renoised:
        reason = "This model learned from random tokens in place of masks: maskings give no bound on its likelihood."
        raise CapabilityError(reason, "Use a causal or a masked model.")
    is_masked = capabilities.attention == "full" and capabilities.mask_id is not None
    if not is_masked or capabilities.is_encoder_decoder:
        check_causal(capabilities)
        if samples is not None:
            raise ConfigError("A causal model's log-probabilities are exact: nothing is drawn.", "Leave out samples.")
    elif samples is not None and samples < 1:
        raise ConfigError(f"samples is {samples}.", "It must be 1 or more.")


@torch.no_grad()
def estimate_tokens(
    target: Adapter,
    ids: list[int],
    name: str = "model",
    tokenizer: Tokenizer | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Scored:
    """Return a lower bound on the log-probability of a text after its first token, estimated from masked copies of it.

    Of the L tokens behind the first, l ~ U{1..L} are masked, any l of them alike, and the summed log-probability of
    those weighs L / l (Nie et al., 2025, arXiv 2502.09992, eq. 6). Its mean over maskings is the bound; a model whose
    laws agree with each other reaches it. In the result `log_probs` are each token's share of the estimate, which sum
    to it: what the model thinks of it on average over what it was shown.

    Args:
        target: a masked model with full attention.
        ids: the text's tokens, at least one.
        name: shown in the result.
        tokenizer: tells the bytes.
        samples: maskings, drawn apart of each other.
        seed: of the maskings.

    Raises:
        ConfigError: the text holds the mask, which no model writes.
    """
    mask, size = target.capabilities.mask_id, len(ids) - 1
    if mask in ids:
        raise ConfigError("The text holds the mask token, which no text is made of.", "Leave it out.")
    shares = torch.zeros(samples, size, dtype=torch.float64)
    if size:
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, size + 1, (samples, 1), generator=generator)
        is_masked = torch.rand((samples, size), generator=generator).argsort(1).argsort(1) < counts
        rows = max(1, _AT_ONCE // len(ids))
        for part in torch.arange(samples).split(rows):
            shares[part] = _masked_log_probs(target, ids, is_masked[part]) * size / counts[part]
    sums = shares.sum(1)
    total = float(sums.mean())
    error = float(sums.std()) / math.sqrt(samples) if samples > 1 else None
    scored = Scored.told(name, ids, [None, *shares.mean(0).tolist()], total, tokenizer)
    scored.samples, scored.error = samples, error
    told = "of unknown error" if error is None else f"standard error {error:.4f} nats"
    scored.notes = [*target.notes, f"A lower bound, estimated from {samples} maskings ({told})."]
    return scored


def _masked_log_probs(target: Adapter, ids: list[int], is_masked: Tensor) -> Tensor:
    """Return the log-probability of each masked token given the shown ones, 0 for those; float64 [B, L].

    Args:
        target: the model.
        ids: L + 1 tokens, the first always shown.
        is_masked: bool [B, L].
    """
    num, size = is_masked.shape
    cache = target.new_cache(num, size + 1)
    text = torch.tensor(ids, device=cache.device)
    mask = torch.tensor([target.capabilities.mask_id], device=cache.device)
    hidden = torch.nn.functional.pad(is_masked, (1, 0)).to(cache.device)
    # Asked are the masked places; rows with fewer of them ask for shown ones too, which do not count. The first place
    # is never asked: under a shift nothing stands before it that speaks of it.
    order = hidden.int().argsort(dim=1, descending=True, stable=True)
    ask = order[:, : int(hidden.sum(1).max())].sort(1).values.clamp_min(1)
    places = torch.arange(size + 1, device=cache.device).expand(num, -1)
    logits = target.score(torch.where(hidden, mask, text), places, None, cache, ask).logits.double()
    law = logits.index_fill(-1, mask, -torch.inf).log_softmax(-1)
    found = law.gather(-1, text[ask].unsqueeze(-1)).squeeze(-1)
    spread = torch.zeros(num, size + 1, dtype=torch.float64, device=cache.device).scatter(1, ask, found)
    return torch.where(hidden, spread, 0.0)[:, 1:].cpu()

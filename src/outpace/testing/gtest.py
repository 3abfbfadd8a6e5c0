"""Statistical checks with fixed seeds: does what is sampled follow the law that it should?

The expected laws are enumerated here, text by text, from logits alone: no cache, sampler, acceptor or noise is shared
with the code under test. One batch holds all samples, so 100,000 texts take seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from outpace.methods.base import Method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.spelling import toy_tokenizers
from outpace.testing.toy import ToyModel
from outpace.types import Adapter

__all__ = ["canvas_law", "g_test", "small_model", "text_counts", "text_law"]

PROMPT = (1, 3, 0)


def _prompt(target: Adapter) -> tuple[int, ...]:
    """Return the prompt, without the mask token of a masked target."""
    return tuple(2 if token == target.capabilities.mask_id else token for token in PROMPT)


def small_model(attention: str = "causal", seed: int = 3, like: ToyModel | None = None, noise: float = 0.5) -> ToyModel:
    """Return a model of four tokens whose laws are neither flat nor sure."""
    return ToyModel(4, 2, attention, seed, hidden=4, sharpness=1.3, max_positions=64, like=like, noise=noise)


def g_test(counts: Tensor, probs: Tensor) -> float:
    """Return the p-value of a G-test (likelihood ratio) of counts against probabilities.

    Cells expecting fewer than 5 are pooled; a count in a cell of probability 0 gives p = 0.

    Args:
        counts: [cells].
        probs: [cells], summing to 1.
    """
    counts, expected = counts.double(), probs.double() * counts.sum()
    if bool((counts[probs == 0] > 0).any()):
        return 0.0
    is_rare = expected < 5
    pooled = torch.stack([counts[is_rare].sum(), expected[is_rare].sum()]).unsqueeze(1)
    seen, wanted = torch.cat([torch.stack([counts[~is_rare], expected[~is_rare]]), pooled], 1)
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    statistic = 2 * (torch.xlogy(seen, seen) - torch.xlogy(seen, wanted)).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic.clamp(min=0) / 2))


def text_counts(
    method: Method,
    target: Adapter,
    length: int,
    settings: Sampling,
    rows: int,
    models: Mapping[str, Adapter] | None = None,
    seed: int = 0,
) -> Tensor:
    """Write `rows` texts of `length` tokens after one prompt, in one batch; return [V ** length] counts."""
    texts = [Row(list(_prompt(target)), len(PROMPT), row_key(seed, i), length) for i in range(rows)]
    capacity = len(PROMPT) + length + method.needs.width + 1
    words = toy_tokenizers(method, target, models or {})
    # Chunks no longer than the prompt: side by side, every row holds cache slots for a whole one.
    run = Run(target, method, settings, capacity=capacity, models=models, tokenizers=words, chunk=len(PROMPT))
    run.join(texts)
    while run.rows:
        run.step()
    vocab = target.capabilities.vocab_size
    table = torch.tensor([row.written for row in texts])
    cells = (table * vocab ** torch.arange(length - 1, -1, -1)).sum(-1)
    return torch.bincount(cells, minlength=vocab**length)


def text_law(target: Adapter, length: int, settings: Sampling) -> Tensor:
    """Return plain decoding's law over texts of `length` tokens after the prompt, [V ** length]."""
    vocab = target.capabilities.vocab_size
    law = torch.ones(1, dtype=torch.float64)
    for depth in range(length):
        heads = [[*PROMPT, *text] for text in itertools.product(range(vocab), repeat=depth)]
        logits = _logits(target, heads)[:, -1]
        law = (law.unsqueeze(1) * torch.stack([_plain_law(row, settings) for row in logits])).flatten()
    return law


def canvas_law(target: Adapter, settings: Sampling) -> Tensor:
    """Return masked diffusion's law over a block of two, one token per step, [V * V].

    Both positions are drawn, the surer one is written (a tie: the first), the other is drawn anew, knowing it.
    """
    vocab, mask = target.capabilities.vocab_size, target.capabilities.mask_id
    assert mask is not None
    law = torch.zeros(vocab, vocab, dtype=torch.float64)

    def block(tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        logits = _logits(target, [[*_prompt(target), *tokens]])[0, -2:].clone()
        logits[:, mask] = float("-inf")
        return torch.stack([_plain_law(row, settings) for row in logits]), logits.softmax(-1)

    drawn, sure = block((mask, mask))
    for first, second in itertools.product(range(vocab), repeat=2):
        weight = drawn[0, first] * drawn[1, second]
        if weight == 0:
            continue
        if sure[0, first] >= sure[1, second]:
            law[first] += weight * block((first, mask))[0][1]
        else:
            law[:, second] += weight * block((mask, second))[0][0]
    return law.flatten()


def _logits(target: Adapter, texts: Sequence[Sequence[int]]) -> Tensor:
    """Score whole texts with nothing cached."""
    tokens = torch.tensor([list(text) for text in texts])
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    return target.score(tokens, position, None, target.new_cache(*tokens.shape)).logits


def _plain_law(logits: Tensor, settings: Sampling) -> Tensor:
    """Temperature, then top-k, then top-p, written as one would on a blackboard."""
    probs = (logits.double() / settings.temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda token: (-float(probs[token]), token))
    kept = order[: settings.top_k or None]
    total, mass, nucleus = float(probs[kept].sum()), 0.0, []
    for token in kept:
        if mass < settings.top_p:
            nucleus.append(token)
        mass += float(probs[token]) / total
    law = torch.zeros_like(probs)
    law[nucleus] = probs[nucleus]
    return law / law.sum()

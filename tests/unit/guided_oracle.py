"""Decoding with a causal guide, written out: no cache, no batch, every forward whole. Slow, and meant to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outpace.sampling import Sampler
from outpace.testing.toy import ToyModel

# Of one step: the diffusion model's laws, the guide's laws, the drawn tokens, their places, the visit -> agreement.
Agreement = Callable[[Tensor, Tensor, list[int], list[int], int], list[bool]]


def whole(model: ToyModel, tokens: Sequence[int]) -> Tensor:
    """Return the logits [T, V] of one forward without a cache, as the model aligns them."""
    every = torch.arange(len(tokens)).unsqueeze(0)
    ids = torch.tensor([list(tokens)])
    return model.score(ids, every, None, model.new_cache(1, len(tokens)), every).logits[0].clone()


def expected(guide: ToyModel, tokens: Sequence[int], places: Sequence[int]) -> Tensor:
    """Return what a causal model expects at each place [A, V]: one forward per place, over the text before it."""
    return torch.stack([whole(guide, tokens[:place])[-1] for place in places])


def decode(
    target: ToyModel,
    guide: ToyModel,
    prompt: Sequence[int],
    num: int,
    sampler: Sampler,
    agreement: Agreement,
    *,
    block: int = 0,
    reach: int = 0,
) -> tuple[list[int], int]:
    """Return what is written after the prompt, and in how many steps.

    Args:
        block: places per block, all of the canvas seen; 0 = a window of `reach` places that slides, nothing beyond it
            seen under full attention.
        reach: 0 = the whole canvas.
    """
    mask, size = target.capabilities.mask_id, target.capabilities.block_size
    assert mask is not None
    text = [*prompt, *[mask] * num]
    visit = steps = 0
    while mask in text[len(prompt) :]:
        base = next(place for place in range(len(prompt), len(text)) if text[place] == mask)
        border = (base // size + 1) * size if size else len(text)
        if block:
            start = base // size * size if size else len(prompt)
            stop = min(start + ((base - start) // block + 1) * block, border, len(text))
            seen = min(border, len(text))
        else:
            stop = min(base + reach if reach else len(text), border, len(text))
            seen = min(border, len(text)) if size else stop  # a model with blocks sees its own whole
        places = [place for place in range(base, stop) if text[place] == mask]
        logits = whole(target, text[:seen])[places]
        logits[:, mask] = float("-inf")
        drawn = sampler.pick(logits.unsqueeze(0), torch.tensor([places]), visit=visit)[0].tolist()
        filled = list(text)
        for place, token in zip(places, drawn, strict=True):
            filled[place] = token
        agrees = agreement(logits, expected(guide, filled, places), drawn, places, visit)
        count = 1
        while count < len(places) and agrees[count] and agrees[0]:
            count += 1
        for place, token in zip(places[:count], drawn, strict=False):
            text[place] = token
        visit, steps = visit + count, steps + 1
    return text[len(prompt) :], steps

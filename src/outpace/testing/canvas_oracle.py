"""Writing on a canvas as one would on a blackboard: the slow, plain reference of everything on canvases.

One text at a time, one token per step, a forward of everything that may be seen in every step, no cache, no batch. It
shares the model, the sampler's law and the noise with the code under test, and nothing of `outpace.canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.sampling import Sampling, node_key, uniform
from outpace.testing.toy import ToyModel
from outpace.types import Stream

__all__ = ["random_order_law", "unmask"]


def unmask(
    model: ToyModel,
    prompt: Sequence[int],
    rest: Sequence[int],
    settings: Sampling,
    key: int,
    block: int,
    order: str = "confidence",
    ends: Sequence[int] = (),
) -> list[int]:
    """Return what is written after the prompt, given pieces included.

    Args:
        model: scores a whole text.
        prompt: its first tokens.
        rest: what follows: given tokens, -1 where one is to be written.
        settings: temperature, top-k and top-p.
        key: of the row's noise.
        block: places per block, counted from the prompt, or from the model's own block under block attention.
        order: "confidence", "random" or "left".
        ends: tokens that end the text; between given pieces none may be written.
    """
    mask, own = model.capabilities.mask_id, model.capabilities.block_size
    assert mask is not None
    banned = [mask, *(ends if any(token >= 0 for token in rest) else ())]
    text = [*prompt, *(mask if token < 0 else token for token in rest)]
    start, visit = len(prompt), 0
    while mask in text:
        first = text.index(mask)
        origin = first // own * own if own else len(prompt)
        stop = origin + ((first - origin) // block + 1) * block
        stop = min(stop, (first // own + 1) * own if own else stop, len(text))
        while mask in text[first:stop]:
            seen = text[: (first // own + 1) * own] if own else text
            places = [place for place in range(first, min(stop, len(text))) if text[place] == mask]
            logits = _logits(model, seen)[places].clone()
            logits[:, banned] = float("-inf")
            drawn = [_draw(row, settings, key, place, visit) for row, place in zip(logits, places, strict=True)]
            best = _first(order, logits, drawn, key, places, visit)
            text[places[best]] = drawn[best]
            visit += 1
            if drawn[best] in ends and len(banned) == 1:
                text = text[: places[best] + 1]
                stop = min(stop, len(text))
    return text[start:]


def _logits(model: ToyModel, text: Sequence[int]) -> Tensor:
    tokens = torch.tensor([list(text)])
    return model.score(tokens, torch.arange(len(text)).unsqueeze(0), None, model.new_cache(1, len(text))).logits[0]


def _draw(logits: Tensor, settings: Sampling, key: int, place: int, visit: int) -> int:
    if settings.temperature == 0:
        return int(logits.argmax())
    noise = uniform(node_key([key], Stream.TARGET, torch.tensor([place]), visit), torch.arange(len(logits)))[0]
    return int((logits / settings.temperature - noise.log().neg().log()).argmax())


def _first(order: str, logits: Tensor, drawn: Sequence[int], key: int, places: Sequence[int], visit: int) -> int:
    """Return which of the places is written: the surest, the luckiest or the leftmost; a tie: the first."""
    if order == "left":
        return 0
    if order == "random":
        noise = uniform(node_key([key], Stream.ORDER, torch.tensor(list(places)), visit), torch.zeros(1).long())
        score = noise[:, 0].tolist()
    else:
        score = [float(row.softmax(-1)[token]) for row, token in zip(logits, drawn, strict=True)]
    return max(range(len(score)), key=lambda at: (score[at], -at))


def random_order_law(model: ToyModel, prompt: Sequence[int], temperature: float) -> Tensor:
    """Return the law of two places written in random order, [V * V]: the mean over both orders of products of laws."""
    mask, vocab = model.capabilities.mask_id, model.capabilities.vocab_size
    assert mask is not None

    def law(*tokens: int) -> Tensor:
        logits = _logits(model, [*prompt, *tokens])[-2:].clone()
        logits[:, mask] = float("-inf")
        return (logits / temperature).softmax(-1)

    total = torch.zeros(vocab, vocab, dtype=torch.float64)
    for token in (token for token in range(vocab) if token != mask):
        total[token] += law(mask, mask)[0, token] * law(token, mask)[1] / 2
        total[:, token] += law(mask, mask)[1, token] * law(mask, token)[0] / 2
    return total.flatten()

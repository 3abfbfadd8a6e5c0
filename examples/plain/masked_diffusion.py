"""Block-wise masked diffusion (LLaDA, Nie et al. 2025; the threshold is Fast-dLLM's, Wu et al. 2025), without a cache.

The text starts as masks and is written block by block. A step draws a token at every masked place of the block and
writes the surest; the others are drawn anew. What stands behind an end token is no part of the text any more.
The noise of a draw is keyed by the place and by how many tokens had been written before ("visit"), so a place that is
drawn again gets fresh noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sampling import Settings, draw, law, process, softmax

MaskedModel = Callable[[list[int]], np.ndarray]  # a text of T tokens, masks among them -> logits [T, V] at each place


def unmask(
    model: MaskedModel,
    mask: int,
    prompt: list[int],
    max_tokens: int,
    settings: Settings,
    block: int = 16,
    threshold: float = 0.9,
    per_step: int = 1,
    ahead: int = -1,
    seed: int = 0,
    sample: int = 0,
) -> tuple[list[int], int]:
    """Return the tokens written, and the number of forwards it took.

    Args:
        model: scores a whole text, every place seeing every other.
        mask: the mask token; never written.
        prompt: at least one id.
        max_tokens: most tokens to write, all of them masks at first.
        settings: temperature and cuts (what depends on the text so far is not applied on a canvas).
        block: places per block; the last one is shorter.
        threshold: places at least this sure are all written; above 1 = only `per_step`.
        per_step: places written per step at least, the surest; ties: the first.
        ahead: masks behind the block that the model sees; -1 = all.
        seed: with the sample number, decides every draw.
        sample: which text of several this is.
    """
    text, forwards, visit = [*prompt, *[mask] * max_tokens], 0, 0
    for start in range(len(prompt), len(prompt) + max_tokens, block):
        while True:
            ends = [place for place in range(len(prompt), len(text)) if text[place] in settings.end_tokens]
            text = text[: min(ends) + 1] if ends else text
            block_end = min(start + block, len(text))
            masked = [place for place in range(start, block_end) if text[place] == mask]
            if not masked:
                break
            seen = len(text) if ahead < 0 else min(start + block + ahead, len(text))
            logits = np.array(model(text[:seen]), dtype=np.float64)
            logits[:, mask] = -np.inf
            forwards += 1
            drawn, sure = {}, {}
            for place in masked:
                probs = law(process(logits[place], [], 0, Settings(logit_bias=settings.logit_bias)), settings)
                drawn[place] = draw(probs, seed, sample, place, visit=visit)
                sure[place] = softmax(logits[place])[drawn[place]]
            order = sorted(drawn, key=lambda place: (-sure[place], place))
            for rank, place in enumerate(order):
                if rank < per_step or sure[place] >= threshold:
                    text[place] = drawn[place]
                    visit += 1
    return text[len(prompt) :], forwards


def neighbour_model(vocab: int = 6) -> MaskedModel:
    """Return a toy: a place depends on the tokens left and right of it."""
    left, right = np.random.default_rng(0).normal(size=(2, vocab, vocab))

    def score(text: list[int]) -> np.ndarray:
        around = [text[0], *text, text[-1]]
        return np.stack([left[around[i]] + right[around[i + 2]] for i in range(len(text))])

    return score


if __name__ == "__main__":
    for level in (2.0, 0.3):
        print(*unmask(neighbour_model(), 5, [1, 2], 20, Settings(temperature=0.7), block=8, threshold=level))

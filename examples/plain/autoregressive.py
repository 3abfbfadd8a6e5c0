"""Plain decoding, one token at a time, the whole text scored anew for each: slow, short, and the reference for all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sampling import Settings, draw, law, process

Model = Callable[[list[int]], np.ndarray]  # a text of T tokens -> logits [T, V]; row t says what follows token t


def generate(
    model: Model, prompt: list[int], max_tokens: int, settings: Settings, seed: int = 0, sample: int = 0
) -> list[int]:
    """Return the tokens written after the prompt; an end token, if one is drawn, is the last.

    Args:
        model: scores a whole text.
        prompt: at least one id.
        max_tokens: most tokens to write.
        settings: temperature and the rest.
        seed: with the sample number, decides every draw.
        sample: which text of several this is.
    """
    text = list(prompt)
    while len(text) < len(prompt) + max_tokens:
        token = next_token(model(text)[-1], text, len(prompt), settings, seed, sample)
        text.append(token)
        if token in settings.end_tokens:
            break
    return text[len(prompt) :]


def next_token(
    logits: np.ndarray, text: list[int], num_prompt: int, settings: Settings, seed: int, sample: int
) -> int:  # fmt: skip
    """Return what follows `text`: the draw depends on its position, and on nothing that happened before."""
    return draw(law(process(logits, text, num_prompt, settings), settings), seed, sample, len(text))


def bigram_model(vocab: int = 5) -> Model:
    """Return a toy: what follows depends on the last token and the position's parity."""
    table = np.random.default_rng(0).normal(size=(2, vocab, vocab)) * 2

    def score(text: list[int]) -> np.ndarray:
        return np.stack([table[place % 2, token] for place, token in enumerate(text)])

    return score


if __name__ == "__main__":
    for temperature in (0.0, 0.7, 1.3):
        print(temperature, generate(bigram_model(), [1, 2], 20, Settings(temperature=temperature), seed=1))

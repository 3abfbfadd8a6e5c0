"""Jacobi decoding (Santilli et al. 2023): guess a window, score it, and take the model's answers as the next guess.

At a temperature the noise is a function of the position, so the fixed point is the plainly sampled text.
"""

from __future__ import annotations

from autoregressive import Model, bigram_model, generate, next_token
from sampling import Settings


def jacobi(
    model: Model,
    prompt: list[int],
    max_tokens: int,
    settings: Settings,
    window: int = 8,
    seed: int = 0,
    sample: int = 0,
) -> tuple[list[int], int]:
    """Return the tokens written, and the number of forwards it took.

    Args:
        model: scores a whole text.
        prompt: at least one id.
        max_tokens: most tokens to write.
        settings: temperature and the rest.
        window: places guessed at once.
        seed: with the sample number, decides every draw.
        sample: which text of several this is.
    """
    text, forwards = list(prompt), 0
    guess = [text[-1]] * window
    while len(text) < len(prompt) + max_tokens:
        logits = model(text + guess)[len(text) - 1 :]
        forwards += 1
        # The answer at each place, as if the guesses before it were right.
        answers = []
        for place in range(window + 1):
            so_far = text + guess[:place]
            answers.append(next_token(logits[place], so_far, len(prompt), settings, seed, sample))
        # As long as a guess agrees with its answer, the answer behind it is right too.
        right = 1
        while right <= window and guess[right - 1] == answers[right - 1]:
            right += 1
        for token in answers[:right]:
            text.append(token)
            if token in settings.end_tokens or len(text) == len(prompt) + max_tokens:
                return text[len(prompt) :], forwards
        # Slide: the answers behind what was written are the next guess, the last one repeated.
        guess = [answers[min(right + place, window)] for place in range(window)]
    return text[len(prompt) :], forwards


if __name__ == "__main__":
    print(generate(bigram_model(), [1, 2], 20, Settings()))
    print(*jacobi(bigram_model(), [1, 2], 20, Settings()))

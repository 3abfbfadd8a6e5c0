"""Speculative decoding of a chain, by two rules, with both models scoring whole texts (no caches).

`match`: draw the target's own token at each place and keep the draft while it agrees: the text is plain decoding's.
`rejection`: keep a draft with probability min(1, p / q), else draw from the positive part of p - q (Leviathan et al.
2023, algorithm 1): the law is plain decoding's.
"""

from __future__ import annotations

import numpy as np
from autoregressive import Model, bigram_model, generate
from sampling import ACCEPT, DRAFT, TARGET, Settings, draw, law, process, uniforms


def speculate(
    target: Model,
    drafter: Model,
    prompt: list[int],
    max_tokens: int,
    settings: Settings,
    draft_len: int = 4,
    rule: str = "match",
    seed: int = 0,
    sample: int = 0,
) -> tuple[list[int], int]:
    """Return the tokens written, and how many of them were drafts.

    Args:
        target, drafter: models that score whole texts.
        prompt: at least one id.
        max_tokens: most tokens to write.
        settings: temperature and the rest, for both models.
        draft_len: tokens drafted per round; fewer where the length limit is near (one place is for the target's own).
        rule: "match" or "rejection".
        seed: with the sample number, decides every draw.
        sample: which text of several this is.
    """
    text, accepted = list(prompt), 0
    while (room := len(prompt) + max_tokens - len(text)) > 0:
        # 1) Draft a chain. Under `match` with the target's noise, under `rejection` with its own.
        stream = TARGET if rule == "match" else DRAFT
        draft: list[int] = []
        draft_laws = []
        for _ in range(min(draft_len, room - 1)):
            so_far = text + draft
            draft_laws.append(law(process(drafter(so_far)[-1], so_far, len(prompt), settings), settings))
            draft.append(draw(draft_laws[-1], seed, sample, len(so_far), stream))
        # 2) Score text and draft at once.
        logits = target(text + draft)[len(text) - 1 :]
        # 3) Keep drafts, then write one token of the target's.
        kept, last = 0, -1
        for place in range(len(draft) + 1):
            so_far = text + draft[:place]
            probs = law(process(logits[place], so_far, len(prompt), settings), settings)
            if rule == "match":
                last = draw(probs, seed, sample, len(so_far))
                is_kept = place < len(draft) and last == draft[place]
            elif place < len(draft):
                uniform = uniforms(seed, sample, ACCEPT, len(so_far), [0])[0]
                is_kept = uniform * draft_laws[place][draft[place]] < probs[draft[place]]
                residual = np.maximum(probs - draft_laws[place], 0)
                last = draw(residual if residual.sum() > 0 else probs, seed, sample, len(so_far))
            else:
                last, is_kept = draw(probs, seed, sample, len(so_far)), False
            if not is_kept:
                break
            kept += 1
        # 4) Cut at an end token, wherever it stands.
        for index, token in enumerate([*draft[:kept], last]):
            text.append(token)
            accepted += index < kept
            if token in settings.end_tokens:
                return text[len(prompt) :], accepted
    return text[len(prompt) :], accepted


if __name__ == "__main__":
    model = bigram_model()
    for temperature in (0.0, 0.7):
        chosen = Settings(temperature=temperature)
        print(generate(model, [1, 2], 20, chosen, seed=1))
        print(*speculate(model, lambda text: 0.8 * model(text), [1, 2], 20, chosen, seed=1))

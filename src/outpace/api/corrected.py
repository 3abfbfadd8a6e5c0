"""Text whose last tokens are drawn again and again, each given what stands before it and behind it.

    python -m outpace.api.corrected "Once upon a time" --model runs/stories-windows --window 3 --iterations 2

Source: Gat et al. (2025), Corrector Sampling in Language Models, arXiv 2506.06215: resampling previous tokens. After
every new token, the tokens of a window are drawn anew from the first to the last, as often as asked; a text that is
longer than the window is final before it.

Guarantee: with no iterations, token for token what plain decoding writes under the same seed.
Cost: a forward for each token, and one for each token that is drawn again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outpace.api.prompt import read_prompts
from outpace.errors import CapabilityError, ConfigError
from outpace.papers import Paper
from outpace.sampling import Sampler, Sampling, row_key
from outpace.types import Adapter

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["PAPERS", "Corrector", "corrected", "main"]

MASK = "<|mask|>"  # as the tokenizers of this project spell it

PAPERS = (
    Paper(
        "Corrector Sampling in Language Models",
        "Gat et al.",
        2025,
        "2506.06215",
        48,
        "",
        "outpace train stories-windows",
    ),
)


class Corrector:
    """Texts of one length that are written and corrected side by side.

    Args:
        target: a causal model that was trained with windows.
        mask_id: the token that asks for another one.
        prompts: one of each row, all of one length.
        sampler: of as many rows.
        window: tokens that are not final yet, the newest included.
        most: tokens of the whole text.
    """

    def __init__(
        self, target: Adapter, mask_id: int, prompts: Sequence[Sequence[int]], sampler: Sampler, window: int, most: int
    ) -> None:
        self.target, self.mask_id, self.sampler, self.window = target, mask_id, sampler, window
        self.texts, self.prompt = [list(one) for one in prompts], len(prompts[0])
        self.cache = target.new_cache(len(prompts), most + self.prompt + window + 1)
        self.forwards = 0

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return len(self.texts[0])

    def extend(self) -> None:
        """Draw the next token of each row and append it."""
        for text, token in zip(self.texts, self._draw(self.length, 0), strict=True):
            text.append(token)

    def correct(self, visit: int, ends: Collection[int] = ()) -> None:
        """Draw every token of the window anew, the oldest first; an end that the first row draws cuts all rows."""
        for place in range(max(self.prompt, self.length - self.window), self.length):
            for text, token in zip(self.texts, self._draw(place, visit), strict=True):
                text[place] = token
            if self.texts[0][place] in ends:
                self.texts = [text[: place + 1] for text in self.texts]
                return

    @torch.no_grad()
    def law(self, place: int) -> Tensor:
        """Return the logits [B, V] of the tokens at a place, given what stands before it and what follows it.

        Entries of the texts before the place stay valid; no others do.
        """
        num_rows, is_inside = len(self.texts), place + 1 < self.length
        # The last token before a place with nothing behind it says what comes; else a mask behind the others does.
        self.cache.truncate([place if is_inside else place - 1] * num_rows)
        held = self.cache.lengths[0]
        asked = [self.mask_id] if is_inside else []
        rows = [[*text[held:place], *text[place + 1 :], *asked] for text in self.texts]
        places = [*range(held, place), *range(place + 1, self.length), *([place] if is_inside else [])]
        tokens = torch.tensor(rows, device=self.cache.device)
        size = len(places)
        visible = torch.ones(1, size, size, dtype=torch.bool, device=tokens.device).tril() if is_inside else None
        last = torch.full((num_rows, 1), size - 1, device=tokens.device)
        position = torch.tensor([places] * num_rows, device=tokens.device)
        visible = visible if visible is None else visible.expand(num_rows, -1, -1)
        logits = self.target.score(tokens, position, visible, self.cache, last).logits[:, 0]
        self.cache.keep([range(place - held)] * num_rows)
        self.forwards += 1
        if is_inside:  # the mask is never an answer
            logits = logits.index_fill(1, torch.tensor([self.mask_id], device=logits.device), float("-inf"))
        return logits

    def _draw(self, place: int, visit: int) -> list[int]:
        logits = self.law(place)
        before = [text[:place] for text in self.texts]
        history = self.sampler.history(before, [self.prompt] * len(before), logits.shape[-1])
        processed = self.sampler.process(logits, history)
        places = torch.full((len(before),), place, device=logits.device)
        found: list[int] = self.sampler.pick(processed, places, visit=visit).tolist()
        return found


def corrected(
    lm: LanguageModel,
    prompt: str | Sequence[int],
    *,
    window: int = 3,
    iterations: int = 1,
    max_tokens: int = 64,
    seed: int = 0,
    sample: int = 0,
    mask_id: int | None = None,
    **law: Any,
) -> list[int]:
    """Return the tokens written behind a prompt, the end token included where there is one.

    Args:
        lm: a causal model trained with windows (`outpace train stories-windows`).
        prompt: text or ids.
        window: tokens that are drawn anew, at most as many as in training.
        iterations: times that they are, after every new token.
        max_tokens: most tokens to write.
        seed, sample: fix every draw.
        mask_id: the token that asks; None = the tokenizer's mask.
        **law: fields of `outpace.Sampling`.

    Raises:
        ConfigError: a number out of range, or no mask.
        CapabilityError: the model does not write from left to right, or honours no masks between tokens.
    """
    offered = lm.target.capabilities
    if window < 2 or iterations < 0 or max_tokens < 1:
        raise ConfigError("A window has 2 tokens or more.", "Give window 2+, iterations 0+ and max_tokens 1+.")
    if offered.attention != "causal" or offered.is_encoder_decoder or not offered.has_tree:
        raise CapabilityError("The model cannot be asked for a token in the middle.", "Use a native causal model.")
    if mask_id is None and lm.tokenizer is not None:
        mask_id = lm.tokenizer.token_id(MASK)
    if mask_id is None or not 0 <= mask_id < offered.vocab_size:
        raise ConfigError(
            f"The model has no {MASK}, which asks for a token.", "Train one with windows, or give its id."
        )
    [ids], _ = read_prompts([prompt], lm.encode, offered)
    most = min(max_tokens, offered.max_positions - len(ids) - 1)
    sampler = Sampler(Sampling(**law), [row_key(seed, sample)], [lm.end_tokens])
    writer = Corrector(lm.target, mask_id, [ids], sampler, window, most)
    while writer.length < len(ids) + most:
        writer.extend()
        for visit in range(1, iterations + 1):
            writer.correct(visit, lm.end_tokens)
        if writer.texts[0][-1] in lm.end_tokens:
            break
    return writer.texts[0][len(ids) :]


def main(arguments: list[str] | None = None) -> int:
    """Write on from a prompt; return the exit status."""
    from outpace.failures import guarded

    parser = argparse.ArgumentParser(prog="python -m outpace.api.corrected", description=__doc__.split("\n")[0])
    parser.add_argument("prompt", help="the text that is written on")
    parser.add_argument("--model", required=True, help="a causal model trained with windows")
    parser.add_argument("--window", type=int, default=3, help="tokens that are drawn anew (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=1, help="times that they are (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="most tokens to write (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of every draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="fixes every draw")
    given = parser.parse_args(arguments)

    def work(_: list[str]) -> int:
        from outpace.api.engine import load

        lm = load(given.model)
        asked = {name: value for name, value in vars(given).items() if name not in ("prompt", "model")}
        found = corrected(lm, given.prompt, **asked)
        print(lm.tokenizer.decode(found) if lm.tokenizer is not None else found)
        return 0

    return guarded(work, [])


if __name__ == "__main__":
    sys.exit(main())

"""Text by a model that takes tokens back: a backspace removes the last token, from the text and from the cache.

    python -m outpace.api.backspaced "Once upon a time" --model runs/stories-backspace

Source: Cundy and Ermon (2023), SequenceMatch, arXiv 2306.05426: a backspace is an action like any token.

Guarantee: what the cache holds after a backspace is what a fresh reading of the text would give. With `backspaces=0`
the text is plain decoding's under the same seed, token for token, the backspace suppressed.
Cost: a forward for each token that is drawn, and one for each backspace.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
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

__all__ = ["PAPERS", "Backspacer", "backspaced", "main"]

BACKSPACE = "<|mask|>"  # the token of our causal vocabularies that no text holds

PAPERS = (
    Paper(
        "SequenceMatch: Imitation Learning for Autoregressive Sequence Modelling with Backtracking",
        "Cundy, Ermon",
        2023,
        "2306.05426",
        75,
        "A replay buffer of whole texts of the model's own.",
        "outpace train stories-backspace",
    ),
)


class Backspacer:
    """A text that is written, and taken back where the model says so.

    Args:
        target: a causal model with a backspace.
        backspace: that token.
        tokens: the prompt, of which nothing is taken back.
        sampler: of one row.
        most: tokens of the whole text.
        backspaces: how many are allowed.
    """

    def __init__(
        self, target: Adapter, backspace: int, tokens: Sequence[int], sampler: Sampler, most: int, backspaces: int
    ) -> None:
        self.target, self.backspace, self.sampler, self.left = target, backspace, sampler, backspaces
        self.text, self.prompt = list(tokens), len(tokens)
        self.cache = target.new_cache(1, max(most, len(tokens)) + len(tokens) + 1)
        self.taken = 0
        self._visits = Counter[int]()  # draws at a place, so that one drawn anew is not the same again

    @torch.no_grad()
    def law(self) -> Tensor:
        """Return the logits [1, V] of what comes next, reading only tokens that the cache does not hold."""
        self.cache.truncate([len(self.text) - 1])
        held = self.cache.lengths[0]
        tokens = torch.tensor([self.text[held:]], device=self.cache.device)
        size = tokens.shape[1]
        places = torch.arange(held, held + size, device=tokens.device).unsqueeze(0)
        last = torch.tensor([[size - 1]], device=tokens.device)
        logits = self.target.score(tokens, places, None, self.cache, last).logits[:, 0]
        self.cache.keep([range(size)])
        return logits

    def step(self) -> int:
        """Draw what comes next and do it; return it."""
        logits = self.law()
        if self.left == 0 or len(self.text) == self.prompt:
            logits = logits.index_fill(1, torch.tensor([self.backspace], device=logits.device), -torch.inf)
        place = len(self.text)
        history = self.sampler.history([self.text], [self.prompt], logits.shape[-1])
        processed = self.sampler.process(logits, history)
        token = int(
            self.sampler.pick(processed, torch.tensor([place], device=logits.device), visit=self._visits[place])
        )
        self._visits[place] += 1
        if token == self.backspace:
            self.text.pop()
            self.left, self.taken = self.left - 1, self.taken + 1
        else:
            self.text.append(token)
        return token


def backspaced(
    lm: LanguageModel,
    prompt: str | Sequence[int],
    *,
    backspaces: int = 1000,
    max_tokens: int = 64,
    seed: int = 0,
    sample: int = 0,
    backspace: int | None = None,
    **law: Any,
) -> tuple[list[int], int]:
    """Return the tokens written behind a prompt, the end token included where there is one, and tokens taken back.

    Args:
        lm: a causal model trained with a backspace (`outpace train stories-backspace`).
        prompt: text or ids.
        backspaces: how many are allowed; 0 = none.
        max_tokens: most tokens of the text.
        seed, sample: fix every draw.
        backspace: that token; None = the tokenizer's mask, as our recipe has it.
        **law: fields of `outpace.Sampling`; its temperature is above 0.

    Raises:
        ConfigError: a number out of range, no draws, or no backspace.
        CapabilityError: the model does not write from left to right, or its cache takes nothing back.
    """
    offered = lm.target.capabilities
    if backspaces < 0 or max_tokens < 1:
        raise ConfigError("A text has 1 token or more.", "Give max_tokens 1+ and backspaces 0+.")
    if not law.get("temperature", 0.0):
        raise ConfigError("Without draws, what is taken back comes again.", "Give a temperature above 0.")
    if offered.attention != "causal" or offered.is_encoder_decoder or not offered.has_rollback:
        raise CapabilityError("The model takes no token back.", "Use a native causal model.")
    if backspace is None and lm.tokenizer is not None:
        backspace = lm.tokenizer.token_id(BACKSPACE)
    if backspace is None or not 0 <= backspace < offered.vocab_size:
        raise ConfigError(f"The model has no {BACKSPACE}, which takes a token back.", "Train one with it.")
    [ids], _ = read_prompts([prompt], lm.encode, offered)
    most = min(max_tokens, offered.max_positions - len(ids) - 1)
    sampler = Sampler(Sampling(**law), [row_key(seed, sample)], [lm.end_tokens])
    writer = Backspacer(lm.target, backspace, ids, sampler, most, backspaces)
    while len(writer.text) < len(ids) + most and not (writer.text[len(ids) :] and writer.text[-1] in lm.end_tokens):
        writer.step()
    return writer.text[len(ids) :], writer.taken


def main(arguments: list[str] | None = None) -> int:
    """Write on from a prompt; return the exit status."""
    from outpace.failures import guarded

    parser = argparse.ArgumentParser(prog="python -m outpace.api.backspaced", description=__doc__.split("\n")[0])
    parser.add_argument("prompt", help="the text that is written on")
    parser.add_argument("--model", required=True, help="a causal model trained with a backspace")
    parser.add_argument("--backspaces", type=int, default=1000, help="most of them (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="most tokens to write (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of every draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="fixes every draw")
    given = parser.parse_args(arguments)

    def work(_: list[str]) -> int:
        from outpace.api.engine import load

        lm = load(given.model)
        asked = {name: value for name, value in vars(given).items() if name not in ("prompt", "model")}
        found, taken = backspaced(lm, given.prompt, **asked)
        print(lm.tokenizer.decode(found) if lm.tokenizer is not None else found)
        print(f"({taken} tokens taken back)", file=sys.stderr)
        return 0

    return guarded(work, [])


if __name__ == "__main__":
    sys.exit(main())

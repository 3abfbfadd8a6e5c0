"""Models that fill masks write from left to right: a mask behind the text is filled, and what comes first is kept.

    python -m outpace.api.appended "Once upon a time" --model stories-mask --span 8 --keep 2

Source: Patel et al. (2022), Bidirectional Language Models Are Also Few-shot Learners, arXiv 2209.14500: sequential
autoregressive prompting of mT5, whose encoder reads prompt, text and one sentinel, and whose decoder writes what the
sentinel stands for; of that, the first word is kept. A masked model reads prompt, text and as many masks as the span
has.

Cost: a whole reading of the text per round. With `keep` as large as `span` nothing is thrown away: a round is a block.
Differences: a number of tokens is kept, where the paper keeps a word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outpace.arguments import ids as read_ids
from outpace.errors import CapabilityError, ConfigError
from outpace.papers import Paper

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["PAPERS", "Appending", "append", "main"]

PAPERS = (
    Paper(
        "Bidirectional Language Models Are Also Few-shot Learners",
        "Patel et al.",
        2022,
        "2209.14500",
        200,
        "Bootstrapping of prompts from the model's own translations.",
        'python -m outpace.api.appended "Once upon a time" --model stories-mask --span 8 --keep 2',
    ),
)
_SENTINELS = ("<extra_id_0>", "<extra_id_1>")
_STRIDE = 1_000_003  # parts the noise of rounds whose decoder counts from its own beginning


@dataclass(frozen=True, slots=True)
class Appending:
    """How much is filled, and kept, in a round.

    Attributes:
        span: most tokens that are asked for.
        keep: how many of them stay, the first ones.
        sentinels: of an encoder-decoder, the token that asks, and the one that ends what it stands for; None = as its
            tokenizer has them.

    Raises:
        ConfigError: a number below 1, or more kept than asked for.
    """

    span: int = 8
    keep: int = 2
    sentinels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.span < 1 or not 1 <= self.keep <= self.span:
            raise ConfigError(f"Of {self.span} tokens {self.keep} are kept.", "Ask for 1 or more, and keep 1 to all.")


def append(
    lm: LanguageModel, prompt: str | Sequence[int], asked: Appending, *, max_tokens: int = 64, **arguments: Any
) -> Iterator[list[int]]:
    """Yield the tokens that each round keeps, until the model writes an end or `max_tokens` are there.

    A round depends on the text before it alone: a text that is given as the prompt, with what was kept of it as
    `written`, goes on as if it had never stopped.

    Args:
        lm: an encoder-decoder with sentinels, or a model that fills masks.
        prompt: text or ids.
        asked: how much is filled and kept.
        max_tokens: most tokens in all, `written` included.
        **arguments: of `LanguageModel.generate`; `written` are ids that earlier rounds kept.

    Raises:
        CapabilityError: the model fills no masks.
        ConfigError: its tokenizer names no sentinels and none were given, or the text does not fit.
    """
    written = read_ids("written", arguments.pop("written", ()))
    offered, ends = lm.target.capabilities, set(lm.end_tokens)
    given = lm.encode(prompt) if isinstance(prompt, str) else read_ids("the prompt", prompt)
    if not offered.is_encoder_decoder and not offered.is_canvas:
        raise CapabilityError("The model fills no masks: it writes from left to right by itself.", "Use generate.")
    sentinels = _sentinels(lm, asked) if offered.is_encoder_decoder else None
    while len(written) < max_tokens:
        if sentinels is not None:
            found = _from_sentinel(lm, [*given], written, asked.span, sentinels, arguments)
        else:
            canvas = {"canvas": [-1] * asked.span, "max_tokens": asked.span}
            found = list(lm.generate([*given, *written], **{**arguments, **canvas}).tokens)
        kept = found[: min(asked.keep, max_tokens - len(written))]
        end = next((at for at, token in enumerate(kept) if token in ends), len(kept))
        if kept[:end]:
            written += kept[:end]
            yield kept[:end]
        if end < len(kept) or not kept:
            return


def _from_sentinel(
    lm: LanguageModel, given: list[int], written: list[int], span: int, marks: tuple[int, int], arguments: Any
) -> list[int]:
    """Return what the first sentinel stands for behind a text, without what ends it, or with an end of the text."""
    framed = given[-1:] if given[-1:] and given[-1] in lm.end_tokens else []  # the tokenizer's, which stays the last
    body = given[: len(given) - len(framed)]
    seed = int(arguments.get("seed") or 0) + _STRIDE * len(written)
    more = {**arguments, "seed": seed, "max_tokens": span, "prefix": [marks[0]], "stop_tokens": [marks[1]]}
    found = list(lm.generate([*body, *written, marks[0], *framed], **more).tokens)
    return found[:-1] if found and found[-1] in (marks[1], *lm.end_tokens) else found


def _sentinels(lm: LanguageModel, asked: Appending) -> tuple[int, int]:
    if asked.sentinels is not None:
        return asked.sentinels
    known = None if lm.tokenizer is None else [lm.tokenizer.token_id(name) for name in _SENTINELS]
    if known is None or known[0] is None or known[1] is None:
        raise ConfigError(f"The tokenizer has no {_SENTINELS[0]}.", "Use a T5, or give the ids of two sentinels.")
    return known[0], known[1]


def main(arguments: list[str] | None = None) -> int:
    """Write on from a prompt, round by round; return the exit status."""
    from outpace.failures import guarded

    parser = argparse.ArgumentParser(prog="python -m outpace.api.appended", description=__doc__.split("\n")[0])
    parser.add_argument("prompt", help="the text that is written on")
    parser.add_argument("--model", default="stories-mask", help="a masked model, or a T5 (default: %(default)s)")
    parser.add_argument("--span", type=int, default=8, help="tokens asked for in a round (default: %(default)s)")
    parser.add_argument("--keep", type=int, default=2, help="of them, kept (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="most tokens in all (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 = the likeliest tokens")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random draw")
    parser.add_argument("--method", help="of a masked model (default: its own)")
    given = parser.parse_args(arguments)

    def work(_: list[str]) -> int:
        from outpace.api.engine import load

        asked = Appending(given.span, given.keep)
        lm = load(given.model)
        law = {"temperature": given.temperature, "seed": given.seed, "method": given.method}
        found = [
            token for kept in append(lm, given.prompt, asked, max_tokens=given.max_tokens, **law) for token in kept
        ]
        print(lm.tokenizer.decode(found) if lm.tokenizer is not None else found)
        return 0

    return guarded(work, [])


if __name__ == "__main__":
    sys.exit(main())

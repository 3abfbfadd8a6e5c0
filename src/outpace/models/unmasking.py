"""Does a masked model's output speak of the token at its position, or of the next one? A test on one sentence.

A wrong shift ruins every text and raises no error: all shapes fit. So a checkpoint is asked, before it writes, to
unmask a sentence whose words any language model knows. Masks stand in threes, and the token in the middle, at i, is
looked for in two outputs: at i (no shift) and at i - 1 (shift). Why threes: an output is trained only where it speaks
of a mask, and elsewhere it may say anything, even the token that the other setting would want. With i - 1, i and i + 1
masked, both outputs are trained, whichever setting is true.

Cost: one forward of `STRIDE` rows of the sentence, each with a mask triple at every sixth position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import ConfigError, ModelError
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter, Capabilities

__all__ = ["SENTENCE", "Unmasking", "check_unmasking", "unmask_test"]

SENTENCE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside with her dog. "
    "One day, they went to the park."
)
STRIDE = 6  # three masks every so many positions
LONGEST = 64  # tokens of the sentence that are used
FEWEST = 8  # positions below which nothing is concluded
HITS = 0.2  # of all positions: by how many hits one setting has to win
NATS = 1.0  # and by how much per token


@dataclass(frozen=True, slots=True)
class Unmasking:
    """What the test found, under the setting that the card declares and under the other one.

    Attributes:
        is_shifted: what the card declares.
        count: masked positions that were looked at.
        hits, other_hits: at how many of them the likeliest token was the true one.
        log_prob, other_log_prob: mean log-probability of the true token, in nats.
    """

    is_shifted: bool
    count: int
    hits: int
    other_hits: int
    log_prob: float
    other_log_prob: float

    @property
    def verdict(self) -> str:
        """Say "right" or "wrong" where one setting wins by hits and by likelihood alike, else "unclear"."""
        lead, gain = self.hits - self.other_hits, self.log_prob - self.other_log_prob
        if self.count < FEWEST or abs(lead) < HITS * self.count or abs(gain) < NATS or lead * gain < 0:
            return "unclear"
        return "right" if lead > 0 else "wrong"

    def figures(self) -> str:
        """Return both results as one clause."""
        names = {True: "shifted", False: "not shifted"}
        return (
            f"{names[self.is_shifted]}, {self.hits} of {self.count} masked tokens are found "
            f"({self.log_prob:.1f} nats each); {names[not self.is_shifted]}, {self.other_hits} "
            f"({self.other_log_prob:.1f} nats)"
        )


def unmask_test(target: Adapter, tokens: Sequence[int]) -> Unmasking:
    """Mask threes of positions of a text and look for the middle one, with the declared shift and without.

    Args:
        target: a masked model; one forward of up to 6 rows is run on a cache of its own.
        tokens: ids of an easy text; the first 64 are used.

    Raises:
        ConfigError: the model has no mask token, or the text is shorter than four tokens.
    """
    offered = target.capabilities
    tokens = list(tokens)[: most_tokens(offered)]
    if offered.mask_id is None or len(tokens) < 4:
        raise ConfigError(
            "The unmasking test needs a masked model and at least four tokens.",
            "Give it a longer text, or leave it out.",
        )
    device = target.device
    text = torch.tensor(tokens, device=device)
    rows, size = min(STRIDE, len(tokens) - 2), len(tokens)
    step = torch.arange(size, device=device) - torch.arange(rows, device=device)[:, None]
    is_asked = (step % rows == 0) & _inner(size, device)
    is_masked = is_asked | is_asked.roll(-1, 1) | is_asked.roll(1, 1)
    canvas = torch.where(is_masked, offered.mask_id, text)
    position = torch.arange(size, device=device).expand(rows, -1)
    visible = None
    if offered.attention == "causal-block":  # the sentence is one block
        visible = torch.ones(rows, size, size, dtype=torch.bool, device=device)
    logits = target.score(canvas, position, visible, target.new_cache(rows, size)).logits
    row, place = is_asked.nonzero(as_tuple=True)
    away = 1 if offered.logits_shift else -1  # the adapter has aligned its logits; the other setting lies next to them
    truth = text[place]
    declared, other = (_found(logits[row, at], truth) for at in (place, place + away))
    return Unmasking(offered.logits_shift, len(truth), declared[0], other[0], declared[1], other[1])


def most_tokens(offered: Capabilities) -> int:
    """Return how many tokens of a text can be unmasked at once."""
    own = offered.block_size if offered.attention == "causal-block" else LONGEST
    return min(LONGEST, offered.max_positions, own)


def _inner(size: int, device: torch.device | str) -> Tensor:
    """Return which positions can be asked, [size]: those with room for a mask on either side behind the first token."""
    place = torch.arange(size, device=device)
    return (place >= 2) & (place < size - 1)


def _found(logits: Tensor, truth: Tensor) -> tuple[int, float]:
    """Return hits and mean log-probability of the true tokens [N] under logits [N, V]."""
    law = logits.double().log_softmax(-1)
    hits = int((law.argmax(-1) == truth).sum())
    return hits, float(law.gather(1, truth[:, None]).mean())


def check_unmasking(target: Adapter, tokenizer: Tokenizer | None) -> str:
    """Refuse a masked model whose card is clearly wrong about the shift.

    Args:
        target: any model; a causal one passes unasked, and so does one of uniform noise, which knows no mask.
        tokenizer: its tokenizer; without one nothing can be asked.

    Returns:
        A note where the test could not tell, else "".

    Raises:
        ModelError: with the other setting the model finds clearly more of the masked tokens.
    """
    if target.capabilities.mask_id is None or target.capabilities.is_renoised:
        return ""
    if tokenizer is None:
        return "The shift of the logits was not tested: the model has no tokenizer."
    tokens = [token for token in tokenizer.encode(SENTENCE) if token < target.capabilities.vocab_size]
    if min(len(tokens), most_tokens(target.capabilities)) < 4:
        return "The shift of the logits was not tested: the tokenizer makes too few tokens of the sentence."
    found = unmask_test(target, tokens)
    if found.verdict == "wrong":
        raise ModelError(
            f"The model's outputs are taken for {'the next token' if found.is_shifted else 'their own token'}, "
            f"which is wrong for these weights: {found.figures()}.",
            hint=f'Load it with card={{"logits_shift": {not found.is_shifted}}} '
            f"(--card logits_shift={str(not found.is_shifted).lower()}).",
        )
    return "" if found.verdict == "right" else f"The test of the logits' shift could not tell: {found.figures()}."

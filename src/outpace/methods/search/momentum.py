"""Greedy decoding that pays for walking again where the text has been, the more the longer it does.

Paper: Lan, Su, Liu, Huang, Mao (2022), arXiv 2212.02175, Momentum Decoding.
Guarantee: approximate: another text than greedy decoding's, on purpose; greedy decoding's own with resistance 0.
Cost: 1 target forward per emitted token; the text is looked through once for each of the few likeliest tokens.
Differences: probabilities are those that penalties and bans leave. The table of the resistance is a setting; its
    default is that of the authors' code, in which circuits longer than the table count as its last entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Method, Paper
from outpace.methods.search.steered import likely, written
from outpace.setting import setting
from outpace.types import Decision, Guarantee, Proposal, Scores, View

__all__ = ["Momentum", "circuit"]


@dataclass(frozen=True)
class Momentum(Method):
    """Momentum decoding.

    Attributes:
        resistance: what a step of the table is subtracted as from a token's probability; 0 = greedy decoding.
        top_k: the likeliest tokens, among which one is taken.
        table: the resistance, in steps, of a token that closes a circuit of 1, 2, ... tokens.

    Raises:
        ConfigError: a number out of range.
    """

    resistance: float = setting(0.2, least=0, is_finite=True)
    top_k: int = setting(5, least=1)
    table: tuple[int, ...] = setting((1, 3, 4, 5, 6), least=0)

    name: ClassVar[str] = "momentum"
    family: ClassVar[str] = "search"
    summary: ClassVar[str] = "Greedy, but tokens pay for walking again where the text has been."
    draws: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        "Momentum Decoding: Open-ended Text Generation As Graph Exploration",
        "Lan, Su, Liu, Huang, Mao",
        2022,
        "2212.02175",
        236,
    )

    @property
    def guarantee(self) -> Guarantee:
        """Another text than greedy decoding's."""
        return Guarantee.APPROXIMATE

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: None) -> Decision:
        """Take the token of most probability less resistance, of equals the likelier one."""
        del proposal, state
        ids, probs = likely(scores.logits[:, 0], view, self.top_k)
        rows = zip(view.texts, ids.tolist(), probs.tolist(), strict=True)
        return written([self._pick(text, tokens, chances) for text, tokens, chances in rows], view)

    def _pick(self, text: Sequence[int], ids: Sequence[int], probs: Sequence[float]) -> int:
        if not probs[0]:
            return -1
        steps = (0, *self.table)
        alive = [(token, prob) for token, prob in zip(ids, probs, strict=True) if prob]
        merits = [prob - self.resistance * steps[circuit(text, token, len(self.table))] for token, prob in alive]
        return alive[merits.index(max(merits))][0]


def circuit(text: Sequence[int], token: int, most: int) -> int:
    """Return how many tokens, this one the last, repeat a part of the text if it is written next; at most `most`."""
    longest = 0
    for at, seen in enumerate(text):
        if seen == token and most:
            length = 1
            while length < most and length <= at and text[at - length] == text[-length]:
                length += 1
            longest = max(longest, length)
    return longest

"""What a model makes of bytes: the exact law of the next one, and how likely it finds a text whatever its tokens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from outpace.api.scoring import score_tokens
from outpace.arguments import refused
from outpace.errors import ConfigError
from outpace.models.byte_covers import KINDS, Covers
from outpace.models.byte_model import cover_rules
from outpace.text.byte_index import END

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["NextBytes", "next_bytes"]


@dataclass(slots=True)
class NextBytes:
    """The law of the byte behind a text, summed over its covers (`outpace.models.byte_covers`).

    Attributes:
        model: its name.
        num_bytes: of the text, in UTF-8.
        log_prob: natural log-probability that a text begins with these bytes.
        bits_per_byte: -log_prob / ln 2 / num_bytes; None for the empty text.
        probs: [256] probability of each byte, given the text.
        end: probability that the text ends here.
        num_covers: token prefixes that were summed over.
        num_prefixes: laws of the model that this took.
        num_forwards: forwards that these took.
        notes: what a user should know.
    """

    model: str
    num_bytes: int
    log_prob: float
    bits_per_byte: float | None
    probs: list[float]
    end: float
    num_covers: int
    num_prefixes: int
    num_forwards: int
    notes: list[str] = field(default_factory=list)

    def likeliest(self, count: int) -> list[tuple[bytes, float]]:
        """Return the likeliest bytes with their probabilities, the likeliest first; equals: the lower byte."""
        order = sorted(range(END), key=lambda byte: -self.probs[byte])
        return [(bytes([byte]), self.probs[byte]) for byte in order[:count]]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def next_bytes(lm: LanguageModel, text: str | bytes, covers: str, width: int) -> NextBytes:
    """Return the law of the byte behind a text; see `LanguageModel.next_bytes`."""
    if isinstance(text, str):
        text = text.encode()
    if not isinstance(text, bytes):
        raise refused("text", text, "text or bytes")
    if covers not in KINDS:
        raise ConfigError(f"covers is {covers!r}.", f"Use {' or '.join(KINDS)}.")
    if width < 0:
        raise ConfigError(f"width is {width}.", "width must be 0 or more (0 = all).")
    if lm.tokenizer is None:
        raise ConfigError("Exact bytes need a tokenizer.", "Load a model that has one.")
    rules, adds_space = cover_rules(lm.target, lm.tokenizer, lm.end_tokens, is_all=covers == "all", width=width)
    found = rules.read(b" " + text if adds_space else text)
    law = found.law().exp().tolist()
    total = found.log_prob() + _shared_log_prob(lm, found)
    bits = -total / math.log(2) / len(text) if text else None
    laws = rules.laws
    notes = [str(note) for note in (*lm.target.notes, *lm.notes)]
    counts = (len(found.prefixes), laws.num_prefixes, laws.num_forwards)
    return NextBytes(lm.name, len(text), total, bits, law[:END], law[END], *counts, notes)


def _shared_log_prob(lm: LanguageModel, covers: Covers) -> float:
    """Return what the weights of covers lack: the log-probability of the tokens that all prefixes begin with."""
    size = 0 if covers.rules.is_all or not covers.text else covers.num_shared
    if size <= len(covers.rules.opening):
        return 0.0
    scored = score_tokens(lm.target, list(covers.prefixes[0].ids[:size]))
    return math.fsum(value or 0.0 for value in scored.log_probs[len(covers.rules.opening) :])

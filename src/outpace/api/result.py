"""What a generation returns, in Python and as `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from outpace.run.row import Usage

__all__ = ["Result"]


@dataclass(slots=True)
class Result:
    """One finished sequence.

    Attributes:
        model, method: names.
        prompt_tokens: ids of the prompt.
        tokens: ids written; an end token that was written is the last of them.
        text: their text, cut before a stop string, without the end token.
        finish_reason: "eos", "stop", "length", "cancelled" or "error".
        usage: what it cost.
        timing: seconds: load_s, prefill_s, decode_s, and decode's share draft_s, score_s, accept_s, other_s.
            Rows of one batch share one clock.
        seed: the seed; with the sample number it fixes the noise.
        sample: sample number.
        notes: what a user should know, e.g. a slower path that was taken.
        log_probs: natural log-probability of each token under the model, when asked for.
        top_log_probs: per token, the likeliest ones under the model at its place, when asked for: (id, natural
            log-probability) each, likeliest first. Like `log_probs` they are the model's own law: before penalties,
            constraints, temperature and cuts.
        margins: how far each token was from being another one, when asked for.
        sources: per token: draft, recovered, bonus or plain.
        settings: the method's settings.
        filled: the text written in each gap, where gaps were to be filled.
    """

    model: str
    method: str
    prompt_tokens: list[int]
    tokens: list[int]
    text: str
    finish_reason: str
    usage: Usage
    timing: dict[str, float]
    seed: int
    sample: int = 0
    notes: list[str] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[list[tuple[int, float]]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    filled: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second of decoding, prefill apart."""
        return len(self.tokens) / self.timing["decode_s"] if self.timing.get("decode_s") else 0.0

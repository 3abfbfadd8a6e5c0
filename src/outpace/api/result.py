"""What a generation returns, in Python and as `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from outpace.run.row import Usage

__all__ = ["Result"]

_SHOWN = 200  # characters of the text


@dataclass(slots=True, repr=False)
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
        guarantee: what the method promises of the text: "exact", "greedy-exact" or "approximate".
        cached_tokens: prompt tokens found in a cache: an engine's, a conversation's or a `Recall`.
        score: how good the method thinks the text is, where it says so: of a search, its log-probability under the law,
            divided by its length to the power of the length penalty, or what a search's reward said.
        search: the search that found the text, its "name" and its settings; empty = there was none. `usage` is then
            that of all its texts.
        steps: of an engine's result, per step what was drafted and what of it was kept.
        prompt_log_probs: where an engine was asked: per prompt token its log-probability after those before it (None
            for the first), and the likeliest tokens in its place with theirs.
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
    guarantee: str = ""
    cached_tokens: int = 0
    score: float | None = None
    search: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[int, int]] = field(default_factory=list)
    prompt_log_probs: list[tuple[float | None, list[tuple[int, float]]]] = field(default_factory=list)

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN else self.text[: _SHOWN - 3] + "..."
        facts = {
            "text": repr(text),
            "finish": self.finish_reason,
            "tokens": f"{len(self.tokens)}, {self.tokens_per_second:,.1f} per second",
            "accepted": f"{self.accepted_per_step:.2f} drafts per step",
            "method": f"{self.method} ({self.guarantee or 'no guarantee'})",
            "notes": " ".join(self.notes),
        }
        return "\n".join([f"Result of {self.model!r}", *(f"  {key:<9}{it}" for key, it in facts.items() if it)])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second of decoding, prefill apart."""
        return len(self.tokens) / self.timing["decode_s"] if self.timing.get("decode_s") else 0.0

    @property
    def accepted_per_step(self) -> float:
        """Drafts kept per step, on average."""
        return self.usage.num_accepted / self.usage.num_steps if self.usage.num_steps else 0.0

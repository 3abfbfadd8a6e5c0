"""What a certificate does otherwise on a canvas: the reference, the evidence, and what rounding may do.

The reference is the method that `Method.reference` names: the same model, rule, schedule and cache policy, one token
per step. Evidence are guesses that were right and guesses that were wrong, forwards saved, and texts that end inside a
step. Below float64 a copy rounds as the row alone only where the kernels add in one order; there all tokens must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from outpace.api.engine import LanguageModel
from outpace.api.result import Result
from outpace.errors import ConfigError
from outpace.methods.base import Method
from outpace.testing.certificate import ENOUGH, Line
from outpace.testing.certify_texts import SETTINGS
from outpace.testing.proof import Work
from outpace.types import Outcome

__all__ = ["CanvasLine", "CanvasWork", "Guesses", "on_canvas"]


def on_canvas(settings: Sequence[str]) -> list[str]:
    """Return the settings that can hold where text is not written from left to right: no penalties, no grammars."""
    stateful = {"repetition_penalty", "presence_penalty", "frequency_penalty", "regex"}
    return [name for name in settings if not any(stateful & law.keys() for law in SETTINGS[name])]


@dataclass(slots=True)
class Guesses:
    """Watches a run (`watch=guesses`).

    Attributes:
        right: guessed states that the reference came to.
        wrong: others.
    """

    right: int = 0
    wrong: int = 0

    def __call__(self, rows: Sequence[Any], outcome: Outcome) -> None:
        """Note one step."""
        del rows
        for report in outcome.reports:
            if report.num_rounds:
                self.right += report.num_rounds - 1
                self.wrong += report.num_guesses - report.num_rounds + 1


@dataclass(slots=True)
class CanvasLine(Line):
    """What one setting saw.

    Attributes:
        steps, reference_steps: forwards of the method and of its reference, for the same texts.
    """

    steps: int = 0
    reference_steps: int = 0

    def look_for_missing(self) -> list[str]:
        """Set and return what evidence is still missing."""
        wanted = {
            f"{ENOUGH} right guesses": self.accepted >= ENOUGH,
            f"{ENOUGH} wrong guesses": self.rejected >= ENOUGH,
            "fewer forwards than the reference": 0 < self.steps < self.reference_steps,
            "a stop inside a text": self.stops_inside > 0,
        }
        self.missing = [what for what, is_there in wanted.items() if not is_there]
        return self.missing


@dataclass(slots=True)
class CanvasWork(Work):
    """What the lines of one certificate share, for a method on a canvas; `guesses` are those of each setting."""

    guesses: dict[str, Guesses] = field(default_factory=dict)

    def new_line(self, name: str, dtype: str) -> CanvasLine:
        """Return an empty line, which misses everything."""
        line = CanvasLine(name, dtype)
        line.look_for_missing()
        return line

    def _write(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        name: str,
        number: int,
        method: Method | None = None,
        **arguments: Any,
    ) -> list[Result]:
        block = getattr(self.method, "block", 0)
        size = int(arguments.pop("max_tokens", self.max_tokens))
        if block:  # a generation holds whole blocks
            size = max(block, size // block * block)
        if method is not None:
            arguments["watch"] = self.guesses.setdefault(name, Guesses())
        return Work._write(self, lm, prompts, name, number, method, max_tokens=size, **arguments)

    def count(self, line: Line, ours: Sequence[Result]) -> None:
        """Add what became of the guesses so far."""
        guesses = self.guesses[line.setting]
        line.accepted, line.rejected = guesses.right, guesses.wrong
        assert isinstance(line, CanvasLine)
        line.steps += sum(result.usage.num_steps for result in ours)

    def _compare(self, line: Line, plain: Sequence[Result], ours: Sequence[Result], where: str) -> None:
        Work._compare(self, line, plain, ours, where)
        assert isinstance(line, CanvasLine)
        if where == "in a ragged batch":
            line.reference_steps += sum(result.usage.num_steps for result in plain)

    def invariant(self, lm: LanguageModel) -> dict[str, Any]:
        """Compare with the reference in the working precision, where the kernels add in one order."""
        try:
            return self.compare_invariant(lm)
        except ConfigError as error:
            return {"is_identical": None, "note": f"not tried: {error}"}

"""Certificates: what was seen of a method beside its reference, and which of three verdicts follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from outpace.api.result import Result
from outpace.types import Guarantee

__all__ = ["ENOUGH", "Certificate", "Flip", "Line", "Verdict"]

ENOUGH = 50  # accepted, and rejected, drafts per setting


class Verdict(str, Enum):
    """What a certificate comes to."""

    CERTIFIED = "certified"
    DIFFERS = "differs"  # something is wrong
    TOO_LITTLE_SEEN = "too little seen"  # nothing is wrong, and nothing is proven
    APPROXIMATE = "approximate"  # nothing was promised

    @property
    def exit_status(self) -> int:
        """0 = certified, 3 = too little seen, 1 = differs, or no certificate can be given."""
        return {Verdict.CERTIFIED: 0, Verdict.TOO_LITTLE_SEEN: 3}.get(self, 1)


@dataclass(slots=True)
class Flip:
    """A token that rounding turned, below float64."""

    prompt: int
    index: int
    margin: float
    tolerance: float

    @property
    def is_numeric(self) -> bool:
        """Whether rounding explains it."""
        return self.margin <= self.tolerance


@dataclass(slots=True)
class Line:
    """What one setting saw, in one precision.

    Attributes:
        setting, dtype: names.
        rows: texts compared with plain decoding's.
        tokens: tokens compared.
        accepted, rejected, recovered, bonus: what became of drafts.
        stops_inside: stop strings and end tokens that fell on an accepted draft, so that more was dropped behind them.
        flips: tokens turned by rounding.
        faults: differences that nothing excuses.
        missing: evidence that was not found.
        takes_whole: the method takes the model's own text, so that no draft is ever rejected.
    """

    setting: str
    dtype: str
    rows: int = 0
    tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    recovered: int = 0
    bonus: int = 0
    stops_inside: int = 0
    flips: list[Flip] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    takes_whole: bool = False

    @property
    def verdict(self) -> Verdict:
        """Whether something differs; else whether enough was seen."""
        if self.faults or not all(flip.is_numeric for flip in self.flips):
            return Verdict.DIFFERS
        return Verdict.TOO_LITTLE_SEEN if self.missing else Verdict.CERTIFIED

    @property
    def holds(self) -> bool:
        """Whether everything agreed and enough was seen."""
        return self.verdict is Verdict.CERTIFIED

    def count(self, result: Result) -> None:
        """Add one text's drafts."""
        usage = result.usage
        self.accepted += usage.num_accepted
        self.rejected += usage.num_proposed - usage.num_accepted
        self.recovered += usage.num_recovered
        self.bonus += usage.num_bonus

    def look_for_missing(self) -> list[str]:
        """Set and return what evidence is still missing."""
        wanted = {
            f"{ENOUGH} accepted drafts": self.accepted >= ENOUGH,
            f"{ENOUGH} rejected drafts": self.takes_whole or self.rejected >= ENOUGH,
            "a recovered token": self.takes_whole or self.recovered > 0,
            "a bonus token": self.bonus > 0,
            "a stop inside an accepted run": self.stops_inside > 0,
        }
        self.missing = [what for what, is_there in wanted.items() if not is_there]
        return self.missing

    def render(self) -> list[str]:
        """Return the line as rows of text, for people."""
        cells = (self.rows, self.tokens, self.accepted, self.rejected, self.recovered, self.bonus)
        numbers = "".join(f"{cell:>10}" for cell in (*cells, self.stops_inside, len(self.flips)))
        out = [f"  {self.setting:17}{self.dtype:10}{numbers}   {_SHOWN[self.verdict]}"]
        for flip in self.flips:
            verdict = "rounding" if flip.is_numeric else "NOT EXPLAINED"
            out.append(
                f"    flip: prompt {flip.prompt}, token {flip.index}, margin {flip.margin:.3g}, "
                f"tolerance {flip.tolerance:.3g}: {verdict}"
            )
        out += [f"    {fault}" for fault in self.faults[:5]]
        return out + ([f"    not seen: {', '.join(self.missing)}"] if self.missing else [])


_SHOWN = {Verdict.CERTIFIED: "holds", Verdict.DIFFERS: "DIFFERS", Verdict.TOO_LITTLE_SEEN: "too little seen"}


@dataclass(slots=True)
class Certificate:
    """What was promised, what was seen, and whether it holds.

    Attributes:
        model, method, settings: what was tested.
        reference: what it was compared with, with its settings.
        guarantee: "exact", "distribution" or "approximate".
        lines: per setting and precision.
        checks: toy-law checks by name, "" = passed (methods that promise the law).
        invariant: batch-invariant mode: rows, is_identical (None = not tried), cost (time with over without), note.
        tolerance: dtype to the tolerance in logits, before temperature and penalties.
        missing: settings of the proof that were not begun, or that ended before enough was seen.
        dropped: parts that were left out, or cut off, for want of time.
        seconds: how long it took.
    """

    model: str
    method: str
    settings: dict[str, Any]
    guarantee: str
    lines: list[Line] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)
    invariant: dict[str, Any] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    reference: str = ""

    @property
    def verdict(self) -> Verdict:
        """What follows; an approximate method never gets a certificate, and one fault outweighs what was not seen."""
        if self.guarantee == Guarantee.APPROXIMATE.value:
            return Verdict.APPROXIMATE
        is_variant = self.invariant.get("is_identical") is False  # None = not asked of this method
        verdicts = {line.verdict for line in self.lines}
        if is_variant or any(self.checks.values()) or Verdict.DIFFERS in verdicts:
            return Verdict.DIFFERS
        return Verdict.TOO_LITTLE_SEEN if self.missing or Verdict.TOO_LITTLE_SEEN in verdicts else Verdict.CERTIFIED

    @property
    def holds(self) -> bool:
        """Whether the guarantee was put to the test and held."""
        return self.verdict is Verdict.CERTIFIED

    @property
    def exit_status(self) -> int:
        """0 = certified, 3 = too little seen, 1 = differs, or no certificate can be given."""
        return self.verdict.exit_status

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        lines = [{**asdict(line), "verdict": line.verdict.value} for line in self.lines]
        return {**asdict(self), "lines": lines, "verdict": self.verdict.value, "holds": self.holds}

    def render(self) -> str:
        """Return the certificate as text, for people."""
        options = " ".join(f"{name}={value}" for name, value in self.settings.items())
        against = f", compared with {self.reference}" if self.reference else ""
        out = [f"{self.method} on {self.model}: {self.guarantee}{against}", f"  {options}" if options else ""]
        if self.guarantee == Guarantee.APPROXIMATE.value:
            return "\n".join([out[0], "  approximate: no certificate. It may change the text; judge it by quality."])
        heads = ("rows", "tokens", "accepted", "rejected", "recovered", "bonus", "stops", "flips")
        out.append(f"  {'setting':17}{'dtype':10}" + "".join(f"{head:>10}" for head in heads))
        for line in self.lines:
            out += line.render()
        for name, reason in self.checks.items():
            out.append(f"  {name}: {reason or 'passed'}")
        if self.invariant:
            out.append(f"  batch-invariant mode: {_invariant_text(self.invariant)}")
        if self.dropped:
            out.append(f"  left out for want of time: {'; '.join(self.dropped)}")
        out.append(f"  {self._conclusion()} in {self.seconds:.0f} s")
        return "\n".join(line for line in out if line)

    def _conclusion(self) -> str:
        if self.verdict is Verdict.TOO_LITTLE_SEEN:
            why = f" ({', '.join(self.missing)})" if self.missing else ""
            return f"NOT CERTIFIED: nothing differs, but too little was seen{why}"
        return "CERTIFIED" if self.holds else "NOT CERTIFIED: it differs"


def _invariant_text(seen: dict[str, Any]) -> str:
    if "note" in seen:
        return str(seen["note"])
    verdict = "bit-identical to the reference" if seen["is_identical"] else "DIFFERS from the reference"
    return f"{seen['rows']} rows in {seen['dtype']} {verdict}; the reference takes {seen['cost']:.2f}x the time in it"

"""Certificates: what a method promises, put to the test on a real model and prompts.

An exact method is run beside its reference in float64, where nothing can pass for rounding: every token of every row
must agree, under greedy decoding, two temperatures, cuts and penalties, in a ragged batch and alone, with stop strings
and end tokens that fall inside accepted runs. A certificate that saw nothing proves nothing, so it also fails unless
each setting saw enough accepted and rejected drafts, a recovered and a bonus token, and a stop inside an accepted run.
The reference is plain decoding; on a canvas, the method that `Method.reference` names (see `canvas_certificate`).

Below float64 a forward of one token and a forward of several round differently, and a token may flip. A flip is listed
with plain decoding's margin and must lie under the tolerance: twice the largest difference between the logits of
forwards of one and of several tokens, measured here on the same texts (both rivals may move by it), divided by the
temperature, times the penalty. It ends the comparison of its row. A flip above the tolerance is a bug.

A method that promises the law only is enumerated and G-tested on toy laws, and its books are checked on the model.
An approximate method gets no certificate. Exit status: 0 = certified; 1 = failed, or no certificate can be given.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from outpace.engine import LanguageModel, load
from outpace.methods.base import Method
from outpace.result import Result
from outpace.testing.answers import check_drafts, check_texts
from outpace.testing.checks import run_contract
from outpace.testing.enumeration import check_rule
from outpace.types import Adapter, Guarantee

__all__ = ["PROMPTS", "Certificate", "Flip", "Line", "Work", "certify", "certify_model", "logit_drift"]

PROMPTS = (
    "Once upon a time, there was a little girl named Lily. Lily loved to play in the park. One day, Lily",
    "The cat sat on the mat. " * 6 + "The cat",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\ndef mul(a, b):\n",
    "One day, Tom",
    "Question: Tom has 3 apples and buys 4 apples. How many apples does Tom have? Answer: Tom has 3 + 4 = 7 apples.",
    "import os\nimport sys\n\n\nclass Node:\n    def __init__(self, name):\n        self.name = name\n",
    "I am happy. You are happy. We are happy. " * 4 + "I am",
    "Ben and Mia went to the beach. They saw a big, big",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1.3": {"temperature": 1.3},
    "cuts": {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    "penalties": {
        "temperature": 0.7,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.05,
    },
}
if importlib.util.find_spec("llguidance") is not None:  # constraints are an extra
    # Complete everywhere, so that a text may end at any token and stops keep their meaning.
    SETTINGS["grammar"] = {"temperature": 0.7, "regex": r"[A-Za-z ,.!?'\"\n]*"}
ENOUGH = 50  # accepted, and rejected, drafts per setting


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

    @property
    def holds(self) -> bool:
        """Whether everything agreed and enough was seen."""
        return not self.faults and not self.missing and all(flip.is_numeric for flip in self.flips)

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
            f"{ENOUGH} rejected drafts": self.rejected >= ENOUGH,
            "a recovered token": self.recovered > 0,
            "a bonus token": self.bonus > 0,
            "a stop inside an accepted run": self.stops_inside > 0,
        }
        self.missing = [what for what, is_there in wanted.items() if not is_there]
        return self.missing


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
    seconds: float = 0.0
    reference: str = ""

    @property
    def holds(self) -> bool:
        """Whether the guarantee was put to the test and held; never so for an approximate method."""
        if self.guarantee == Guarantee.APPROXIMATE.value:
            return False
        is_variant = self.invariant.get("is_identical") is False  # None = not asked of this method
        return all(line.holds for line in self.lines) and not any(self.checks.values()) and not is_variant

    @property
    def exit_status(self) -> int:
        """0 = certified, 1 = not."""
        return 0 if self.holds else 1

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "holds": self.holds}

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
            cells = (line.rows, line.tokens, line.accepted, line.rejected, line.recovered, line.bonus)
            numbers = "".join(f"{cell:>10}" for cell in (*cells, line.stops_inside, len(line.flips)))
            out.append(f"  {line.setting:17}{line.dtype:10}{numbers}   {'holds' if line.holds else 'FAILS'}")
            for flip in line.flips:
                verdict = "rounding" if flip.is_numeric else "NOT EXPLAINED"
                out.append(
                    f"    flip: prompt {flip.prompt}, token {flip.index}, margin {flip.margin:.3g}, "
                    f"tolerance {flip.tolerance:.3g}: {verdict}"
                )
            out += [f"    {fault}" for fault in line.faults[:5]]
            out += [f"    not seen: {', '.join(line.missing)}"] if line.missing else []
        for name, reason in self.checks.items():
            out.append(f"  {name}: {reason or 'passed'}")
        if self.invariant:
            out.append(f"  batch-invariant mode: {_invariant_text(self.invariant)}")
        out.append(f"  {'CERTIFIED' if self.holds else 'NOT CERTIFIED'} in {self.seconds:.0f} s")
        return "\n".join(line for line in out if line)


def _invariant_text(seen: dict[str, Any]) -> str:
    if "note" in seen:
        return str(seen["note"])
    verdict = "bit-identical to the reference" if seen["is_identical"] else "DIFFERS from the reference"
    return f"{seen['rows']} rows in {seen['dtype']} {verdict}; the reference takes {seen['cost']:.2f}x the time in it"


def certify(
    model: str,
    method: Method,
    prompts: Sequence[str] | None = None,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    seed: int = 0,
    limit_s: float = 600.0,
    on_line: Callable[[Line], None] | None = None,
) -> Certificate:
    """Load a model in float64 and in a working precision, and certify a method on it.

    Args:
        model: zoo name, directory or hub id.
        method: with its settings.
        prompts: texts; None = `PROMPTS`.
        dtype: the working precision in which flips are listed; "float64" leaves that part out, "auto" = bfloat16.
        device: where to compute.
        seed: of every draw.
        limit_s: no new round of texts is begun after this long.
        on_line: told about each line when it is done.
    """
    lower = "bfloat16" if dtype == "auto" else dtype
    if method.guarantee is Guarantee.APPROXIMATE:
        return Certificate(model, method.name, method.to_dict(), method.guarantee.value)
    lm = load(model, dtype="float64", device=device)
    rounded = load(model, dtype=lower, device=device) if lower != "float64" else None
    return certify_model(lm, method, prompts, rounded=rounded, seed=seed, limit_s=limit_s, on_line=on_line)


def certify_model(
    lm: LanguageModel,
    method: Method,
    prompts: Sequence[str | Sequence[int]] | None = None,
    *,
    rounded: LanguageModel | None = None,
    seed: int = 0,
    max_tokens: int = 48,
    max_rounds: int = 10,
    limit_s: float = 600.0,
    settings: Sequence[str] = tuple(SETTINGS),
    on_line: Callable[[Line], None] | None = None,
) -> Certificate:
    """Certify a method on a loaded model.

    Args:
        lm: the model in float64.
        method: with its settings.
        prompts: texts or ids; None = `PROMPTS`.
        rounded: the same model in its working precision, for flips and batch-invariant mode; None = leave out.
        seed: of every draw.
        max_tokens: tokens per text.
        max_rounds: rounds of texts per setting, other prompts and seeds each, until the evidence suffices.
        limit_s: no new round is begun after this long.
        settings: which of `SETTINGS`.
        on_line: told about each line when it is done.
    """
    began, method = time.perf_counter(), method.to_certify()
    certificate = Certificate(lm.name, method.name, method.to_dict(), method.guarantee.value)
    if method.guarantee is Guarantee.APPROXIMATE:
        return certificate
    if method.guarantee is Guarantee.EXACT:
        certificate.reference = _told(method.reference())
    given = PROMPTS if prompts is None else prompts
    ids = [lm.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in given]
    is_canvas = method.needs.attention == "canvas"
    if is_canvas:
        from outpace.testing.canvas_certificate import CanvasWork, on_canvas

        settings = on_canvas(settings)
    work = (CanvasWork if is_canvas else Work)(lm, method, ids, seed, max_tokens, max_rounds, began + limit_s)
    if method.guarantee is Guarantee.DISTRIBUTION:
        certificate.checks = _law_checks(method)
    for name in settings:
        certificate.lines.append(work.line(name))
        _tell(on_line, certificate.lines[-1])
    if rounded is not None and is_canvas:
        certificate.invariant = work.invariant(rounded)
    elif rounded is not None and method.guarantee is Guarantee.EXACT:
        drift = logit_drift(rounded.target, ids)
        dtype = _dtype(rounded)
        certificate.tolerance[dtype] = 2 * drift
        for name in settings:
            certificate.lines.append(work.rounded_line(rounded, name, 2 * drift))
            _tell(on_line, certificate.lines[-1])
        certificate.invariant = work.invariant(rounded)
    certificate.seconds = time.perf_counter() - began
    return certificate


def _told(reference: Method) -> str:
    """Return a method with the settings that are not its defaults, in words."""
    plain = type(reference)().to_dict()
    changed = [f"{name}={value}" for name, value in reference.to_dict().items() if value != plain[name]]
    return " ".join([reference.name, *changed])


def _tell(on_line: Callable[[Line], None] | None, line: Line) -> None:
    if on_line is not None:
        on_line(line)


def _law_checks(method: Method) -> dict[str, str]:
    """Enumerate the method's rule on toy laws, G-test its drafts and texts, and run the contract on it as it is set."""
    reasons = dict.fromkeys(("exact enumeration of the rule", "law of the drafts", "G-test of written texts"), "")
    for name, check in zip(list(reasons), (check_rule, check_drafts, check_texts), strict=True):
        try:
            check(method)
        except AssertionError as error:
            reasons[name] = str(error)
    failures = run_contract(method)
    return {**reasons, "contract of every method": "; ".join(failures.values())}


@dataclass(slots=True)
class Work:
    """What the lines of one certificate share."""

    lm: LanguageModel
    method: Method
    prompts: list[list[int]]
    seed: int
    max_tokens: int
    max_rounds: int
    deadline: float

    def line(self, name: str) -> Line:
        """Run one setting in float64, round after round, until there is enough evidence."""
        line = self.new_line(name, _dtype(self.lm))
        is_exact = self.method.guarantee is Guarantee.EXACT
        for number in range(self.max_rounds):
            batch, seed = [_variant(ids, number) for ids in self.prompts], self.seed + number
            # Every other round is short: near the length limit drafts are short, and more often accepted whole.
            length = self.max_tokens if number % 2 == 0 else max(2, self.max_tokens // 4)
            ours = self._write(self.lm, batch, name, seed, self.method, max_tokens=length)
            self.count(line, ours)
            if is_exact:
                plain = self._write(self.lm, batch, name, seed, max_tokens=length)
                self._compare(line, plain, ours, "in a ragged batch")
                if number == 0:
                    alone = self._write(self.lm, batch[:1], name, seed, self.method)
                    self._compare(line, plain[:1], alone, "alone")
            else:
                self._check_books(line, ours)
            if line.stops_inside < 2 and number % 2 == 0:
                self._stops(line, batch, ours, name, seed)
            is_late = time.perf_counter() > self.deadline
            if not line.look_for_missing() or line.faults or is_late:
                break
        return line

    def _write(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        name: str,
        seed: int,
        method: Method | None = None,
        **arguments: Any,
    ) -> list[Result]:
        chosen: dict[str, Any] = {"method": method or self.method.reference(), "max_tokens": self.max_tokens}
        chosen["seed"] = seed
        chosen |= {"ignore_eos": True, **SETTINGS[name], **arguments}
        results: list[Result] = lm.generate([list(ids) for ids in prompts], **chosen)
        return results

    def new_line(self, name: str, dtype: str) -> Line:
        """Return an empty line."""
        return Line(name, dtype)

    def count(self, line: Line, ours: Sequence[Result]) -> None:
        """Add what became of the drafts of these texts."""
        for result in ours:
            line.count(result)

    def _compare(self, line: Line, plain: Sequence[Result], ours: Sequence[Result], where: str) -> None:
        for row, (theirs, result) in enumerate(zip(plain, ours, strict=True)):
            line.rows += 1
            line.tokens += len(theirs.tokens)
            at = _first_difference(theirs.tokens, result.tokens)
            if at is not None:
                line.faults.append(f"Prompt {row}, {where}: token {at} differs from {_plain_name(self.method)}.")
            elif (theirs.text, theirs.finish_reason) != (result.text, result.finish_reason):
                line.faults.append(f"Prompt {row}, {where}: the text or the reason to finish differs.")

    def _check_books(self, line: Line, ours: Sequence[Result]) -> None:
        for row, result in enumerate(ours):
            line.rows += 1
            line.tokens += len(result.tokens)
            usage, sources = result.usage, result.sources
            counts = (usage.num_emitted, usage.num_accepted, usage.num_recovered, usage.num_bonus)
            wanted = (len(result.tokens), *(sources.count(kind) for kind in ("draft", "recovered", "bonus")))
            if counts != wanted or len(sources) != len(result.tokens):
                line.faults.append(f"Prompt {row}: the usage does not agree with the text.")

    def _stops(self, line: Line, batch: Sequence[list[int]], ours: Sequence[Result], name: str, seed: int) -> None:
        """End texts on an accepted draft, by a stop string and by an end token: nothing may follow it."""
        for ids, result in zip(batch, ours, strict=True):
            for j in (j for j, source in enumerate(result.sources) if source == "draft" and j > 0):
                arguments = self._ends_at(result, j)
                if arguments is None:
                    continue
                lm, changes = arguments
                ended = self._write(lm, [ids], name, seed, self.method, **changes)
                if self.method.guarantee is Guarantee.EXACT:
                    self._compare(line, self._write(lm, [ids], name, seed, **changes), ended, "at a stop")
                # What the model's own files ask of ends may hold this one back.
                is_free = not self.method.needs.has_mask and not lm.generation.law
                if is_free and ended[0].tokens != result.tokens[: j + 1]:
                    line.faults.append(f"A stop at token {j} left {len(ended[0].tokens)} tokens.")
                line.stops_inside += ended[0].sources[-1:] == ["draft"]
                break
            if line.stops_inside >= 2:
                return

    def _ends_at(self, result: Result, j: int) -> tuple[LanguageModel, dict[str, Any]] | None:
        """Return how to end a text at token j: by a string first seen there (even j), or by its token (odd j)."""
        tokens, tokenizer = result.tokens, self.lm.tokenizer
        if j % 2 == 0 and tokenizer is not None:
            head, whole = tokenizer.decode(tokens[: j + 1]), result.text
            for size in range(1, min(24, len(head)) + 1):
                stop = head[-size:]
                is_first = whole.startswith(head) and whole.find(stop) == len(head) - size
                if is_first and "\N{REPLACEMENT CHARACTER}" not in stop:
                    return self.lm, {"stop": [stop]}
            return None
        if tokens[j] in tokens[:j]:
            return None
        lm = copy.copy(self.lm)
        lm.end_tokens = (tokens[j],)
        return lm, {"ignore_eos": False}

    def rounded_line(self, lm: LanguageModel, name: str, tolerance: float) -> Line:
        """Run one setting below float64 and list the flips; no evidence is asked for, the float64 line has it."""
        line, chosen = Line(name, _dtype(lm)), SETTINGS[name]
        plain = self._write(lm, self.prompts, name, self.seed, record=("margins",))
        ours = self._write(lm, self.prompts, name, self.seed, self.method)
        penalty = chosen.get("repetition_penalty", 1.0)
        allowed = tolerance * max(penalty, 1 / penalty) / chosen.get("temperature", 1.0)
        for row, (theirs, result) in enumerate(zip(plain, ours, strict=True)):
            at = _first_difference(theirs.tokens, result.tokens)
            line.rows, line.tokens = line.rows + 1, line.tokens + (len(theirs.tokens) if at is None else at)
            line.count(result)
            if at is not None:
                line.flips.append(Flip(row, at, theirs.margins[at], allowed))
        return line

    def invariant(self, lm: LanguageModel) -> dict[str, Any]:
        """Compare plain and drafted decoding in batch-invariant mode, and measure what the mode costs."""
        if self.method.needs.has_tree and not getattr(lm.target, "is_invariant", False):
            return {"is_identical": None, "note": "drafts chains only; nothing was certified for this tree."}
        is_identical, rows, seconds = True, 0, {False: 0.0, True: 0.0}
        for name in ("greedy", "temperature 0.7"):
            for ids in self.prompts[:4]:
                ours = self._write(lm, [ids], name, self.seed, self.method, is_batch_invariant=True)
                for mode in seconds:
                    plain = self._write(lm, [ids], name, self.seed, is_batch_invariant=mode)
                    seconds[mode] += plain[0].timing["decode_s"]
                is_identical &= plain[0].tokens == ours[0].tokens
                rows += 1
        cost = seconds[True] / max(seconds[False], 1e-9)
        return {"is_identical": is_identical, "rows": rows, "dtype": _dtype(lm), "cost": cost}


def _plain_name(method: Method) -> str:
    name = method.reference().name
    return "plain decoding" if name == "autoregressive" else name


def _variant(ids: list[int], number: int) -> list[int]:
    """Return the prompt, shortened more in each round, so that greedy rounds differ."""
    return ids[: max(1, len(ids) - 2 * number)] if len(ids) > 2 else ids


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    if list(ours) == list(theirs):
        return None
    both = zip(ours, theirs, strict=False)
    return next((at for at, (a, b) in enumerate(both) if a != b), min(len(ours), len(theirs)))


def _dtype(lm: LanguageModel) -> str:
    buffers = lm.target.new_cache(1, 2).buffers
    return str(buffers[0].dtype).removeprefix("torch.") if buffers else lm.dtype


@torch.no_grad()
def logit_drift(target: Adapter, texts: Sequence[Sequence[int]], length: int = 48) -> float:
    """Return the largest difference between the logits of forwards of one, of eight and of all tokens of a text."""
    worst = 0.0
    for text in texts:
        ids = list(text)[:length]
        whole = _scored(target, ids, len(ids))
        for size in (1, 8):
            worst = max(worst, float((_scored(target, ids, size) - whole).abs().max()))
    return worst


def _scored(target: Adapter, ids: list[int], size: int) -> Tensor:
    """Score a text `size` tokens at a time."""
    cache, parts = target.new_cache(1, len(ids) + size), []
    device = cache.buffers[0].device if cache.buffers else torch.device("cpu")
    for at in range(0, len(ids), size):
        piece = torch.tensor([ids[at : at + size]], device=device)
        position = torch.arange(at, at + piece.shape[1], device=device).unsqueeze(0)
        parts.append(target.score(piece, position, None, cache).logits[0].double())
        cache.keep([range(piece.shape[1])])
    return torch.cat(parts)

"""Certificates: what a method promises, put to the test on a real model and prompts.

An exact method is run beside its reference in float64, where nothing can pass for rounding: every token of every row
must agree, under greedy decoding, temperatures below and above 1, cuts and penalties, in a ragged batch and alone, with
stop strings and end tokens that fall inside accepted runs. A certificate that saw nothing proves nothing, so each
setting must have seen enough accepted and rejected drafts, a recovered and a bonus token, and a stop inside an accepted
run. The reference is plain decoding; on a canvas, the method that `Method.reference` names (see `canvas_certificate`).

Below float64 a forward of one token and a forward of several round differently, and a token may flip. A flip is listed
with plain decoding's margin and must lie under the tolerance: twice the largest difference between the logits of
forwards of one and of several tokens, measured here on the same texts (both rivals may move by it), divided by the
temperature, times the penalty. It ends the comparison of its row. A flip above the tolerance is a bug.

A method that promises the law only is enumerated and G-tested on toy laws, and its books are checked on the model.
An approximate method gets no certificate. Exit status: 0 = certified; 1 = something differs, or no certificate can be
given; 3 = nothing differs, but too little was seen to tell.

Time goes to the proof first: one round of texts per setting, then more rounds where evidence is missing, then what is
below float64. How long texts are follows from the speed of the first steps (`plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.methods.base import Method
from outpace.testing.answers import check_drafts, check_texts
from outpace.testing.certificate import ENOUGH, Certificate, Flip, Line, Verdict
from outpace.testing.certify_texts import PROMPTS, SETTINGS, own_prompts
from outpace.testing.checks import run_contract
from outpace.testing.enumeration import check_rule
from outpace.testing.plan import Plan
from outpace.types import Adapter, Guarantee

__all__ = [
    "ENOUGH",
    "PROMPTS",
    "SETTINGS",
    "Certificate",
    "Flip",
    "Line",
    "Plan",
    "Verdict",
    "Work",
    "certify",
    "certify_model",
    "logit_drift",
    "own_prompts",
]

_PROOF_SHARE = 0.3  # of the time limit, for the first round of every setting
_SHORTEST = 20  # tokens per text of a first round, where time is short
_ROUND_COST = 7  # what a token of a round costs in steps of plain decoding alone, until it is measured
_PREFILL = 8  # tokens that a round's prompts cost about as much as
_BELOW = 0.15  # what a round below float64 takes beside one in it, until it is measured


def certify(
    model: str,
    method: Method,
    prompts: Sequence[str] | None = None,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    seed: int = 0,
    plan: Plan | None = None,
) -> Certificate:
    """Load a model in float64 and in a working precision, and certify a method on it.

    Args:
        model: zoo name, directory or hub id.
        method: with its settings.
        prompts: texts; None = `own_prompts`.
        dtype: the working precision in which flips are listed; "float64" leaves that part out, "auto" = bfloat16.
        device: where to compute.
        seed: of every draw.
        plan: the time limit, loading included, and who is told about progress; None = five minutes.
    """
    lower = "bfloat16" if dtype == "auto" else dtype
    if method.guarantee is Guarantee.APPROXIMATE:
        return Certificate(model, method.name, method.to_dict(), method.guarantee.value)
    plan = plan or Plan()
    lm = load(model, dtype="float64", device=device)
    plan.guess("loading", plan.elapsed_s)
    # The second copy is loaded when the proof is done, and not at all if there is no time for it.
    rounded = (lambda: load(model, dtype=lower, device=device)) if lower != "float64" else None
    return certify_model(lm, method, prompts, rounded=rounded, seed=seed, plan=plan)


def certify_model(
    lm: LanguageModel,
    method: Method,
    prompts: Sequence[str | Sequence[int]] | None = None,
    *,
    rounded: LanguageModel | Callable[[], LanguageModel] | None = None,
    seed: int = 0,
    max_tokens: int = 48,
    max_rounds: int = 10,
    settings: Sequence[str] = tuple(SETTINGS),
    plan: Plan | None = None,
) -> Certificate:
    """Certify a method on a loaded model.

    Args:
        lm: the model in float64.
        method: with its settings.
        prompts: texts or ids; None = `own_prompts`.
        rounded: the same model in its working precision, or what loads it, for flips and batch-invariant mode; None =
            leave out.
        seed: of every draw.
        max_tokens: most tokens per text; fewer where they would take too long.
        max_rounds: rounds of texts per setting, other prompts and seeds each, until the evidence suffices.
        settings: which of `SETTINGS`.
        plan: the time limit and who is told about progress; None = five minutes.
    """
    plan = plan or Plan()
    method = method.to_certify()
    certificate = Certificate(lm.name, method.name, method.to_dict(), method.guarantee.value)
    if method.guarantee is Guarantee.APPROXIMATE:
        return certificate
    if method.guarantee is Guarantee.EXACT:
        certificate.reference = _told(method.reference())
    given = own_prompts(lm) if prompts is None else prompts
    ids = [lm.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in given]
    is_canvas = method.needs.attention == "canvas"
    if is_canvas:
        from outpace.testing.canvas_certificate import CanvasWork, on_canvas

        settings = on_canvas(settings)
    if lm.tokenizer is None:  # nothing to read a grammar with
        settings = [name for name in settings if not any("regex" in law for law in SETTINGS[name])]
    work = (CanvasWork if is_canvas else Work)(lm, method, ids, seed, max_tokens, max_rounds, plan)
    if method.guarantee is Guarantee.DISTRIBUTION:
        plan.add(_LAWS, "laws")
        if not plan.do(_LAWS, lambda: certificate.checks.update(_law_checks(method))):
            certificate.missing.append(_LAWS)
    has_more = rounded is not None and (is_canvas or method.guarantee is Guarantee.EXACT)
    if has_more:
        _foresee_below(work, () if is_canvas else settings)
    lines = work.prove(settings)
    certificate.lines += [line for line in lines if line.rows]
    certificate.missing += [line.setting for line in lines if line.missing]
    if rounded is not None and has_more:
        _below(certificate, work, rounded, () if is_canvas else settings)
    certificate.dropped, certificate.seconds = list(plan.dropped), plan.elapsed_s
    return certificate


_LAWS = "checks on toy laws"


_LOADING, _INVARIANT = "loading in the working precision", "batch-invariant mode"


def _foresee_below(work: Work, flips: Sequence[str]) -> None:
    """List what is done below float64."""
    work.plan.add(_LOADING, "loading")
    for name in flips:
        work.plan.add(f"{name}, rounded", "below", work.max_tokens + _PREFILL)
    work.plan.add(_INVARIANT, "below", work.max_tokens)


def _below(
    certificate: Certificate,
    work: Work,
    rounded: LanguageModel | Callable[[], LanguageModel],
    flips: Sequence[str],
) -> None:
    """Do what is done below float64: flips, setting by setting, and batch-invariant mode."""
    plan, found = work.plan, list[LanguageModel]()
    plan.guess("below", _BELOW * (plan.rate("proof") or 0.0))  # by what the proof was seen to take

    def prepare() -> None:
        found.append(rounded if isinstance(rounded, LanguageModel) else rounded())
        if flips:
            drift = logit_drift(found[0].target, list(plan.each(work.prompts)))
            certificate.tolerance[_dtype(found[0])] = 2 * drift

    def look(name: str) -> None:
        (tolerance,) = certificate.tolerance.values()
        certificate.lines.append(work.rounded_line(found[0], name, tolerance))

    if not plan.do(_LOADING, prepare):
        for part in (*(f"{name}, rounded" for name in flips), _INVARIANT):
            plan.forget(part)
        plan.dropped[-1] = "all that is below float64"
        return
    for name in flips:
        plan.do(f"{name}, rounded", partial(look, name))
    plan.do(_INVARIANT, lambda: certificate.invariant.update(work.invariant(found[0])))


def _told(reference: Method) -> str:
    """Return a method with the settings that are not its defaults, in words."""
    plain = type(reference)().to_dict()
    changed = [f"{name}={value}" for name, value in reference.to_dict().items() if value != plain[name]]
    return " ".join([reference.name, *changed])


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
    """What the lines of one certificate share.

    Attributes:
        lm: the model in float64.
        method: with its settings.
        prompts: token ids.
        seed: of every draw.
        max_tokens: most tokens per text.
        max_rounds: most rounds of texts per setting.
        plan: the time limit.
    """

    lm: LanguageModel
    method: Method
    prompts: list[list[int]]
    seed: int
    max_tokens: int
    max_rounds: int
    plan: Plan

    def prove(self, settings: Sequence[str]) -> list[Line]:
        """Run settings in float64, round after round, until each has seen enough, something differs or time is up."""
        lines = [self.new_line(name, _dtype(self.lm)) for name in settings]
        self._foresee(lines, 0, self.max_tokens)
        length, late = self._affordable(self._probe(), len(lines)), set[str]()
        for number in range(self.max_rounds):
            open_lines = [line for line in lines if self._is_open(line, number) and line.setting not in late]
            self._foresee(open_lines, number, length)
            for line in open_lines:
                size = _length(line.setting, number, length)
                work = partial(self.round, line, number, size)
                if not self.plan.do(_part(line, number), work, is_needed=bool(line.missing)):
                    late.add(line.setting)
                    self.plan.forget(_part(line, number + 1))
                line.look_for_missing()
                if line is lines[0] and number == 0:  # from here on, lengths follow what a round was seen to take
                    length = self._affordable(self.plan.rate("proof") or 0.0, len(lines))
                    self._foresee(lines[1:], 0, length)
                if not self._is_open(line, number + 1):
                    self.plan.forget(_part(line, number + 1))
        return lines

    def _foresee(self, lines: Sequence[Line], number: int, length: int) -> None:
        """List a round of some settings, and the next one, which most need."""
        for line in lines:
            for ahead in range(number, min(number + 2, self.max_rounds)):
                self.plan.add(_part(line, ahead), "proof", _length(line.setting, ahead, length) + _PREFILL)

    def _is_open(self, line: Line, number: int) -> bool:
        """Whether a setting has laws that were not tried yet, or has not seen enough; one that differs is done."""
        return not line.faults and (number < len(SETTINGS[line.setting]) or bool(line.missing))

    def _probe(self) -> float:
        """Write a few tokens and return the seconds that a token of a round may take."""
        began, num = self.plan.elapsed_s, 3

        def work() -> None:
            self._write(self.lm, [min(self.prompts, key=len)], next(iter(SETTINGS)), 0, max_tokens=num)
            rate = _ROUND_COST * (self.plan.elapsed_s - began) / num
            self.plan.guess("proof", rate)
            self.plan.guess("below", _BELOW * rate)

        self.plan.add("first steps", "probe")
        self.plan.do("first steps", work)
        return self.plan.rate("proof") or 0.0

    def _affordable(self, rate: float, num: int) -> int:
        """Return how many tokens a text of a first round has, at `rate` seconds per token of a round."""
        share = _PROOF_SHARE * self.plan.limit_s / max(1, num)
        return min(self.max_tokens, max(_SHORTEST, int(share / rate) - _PREFILL if rate > 0 else self.max_tokens))

    def round(self, line: Line, number: int, length: int) -> None:
        """Write texts under a setting and compare them; what was compared stays if time runs out behind it."""
        name, batch = line.setting, [_variant(ids, number) for ids in self.prompts]
        is_exact = self.method.guarantee is Guarantee.EXACT
        ours = self._write(self.lm, batch, name, number, self.method, max_tokens=length)
        if is_exact:
            plain = self._write(self.lm, batch, name, number, max_tokens=length)
            self._compare(line, plain, ours, "in a ragged batch")
        else:
            self._check_books(line, ours)
        self.count(line, ours)
        if is_exact and number == 0:
            alone = self._write(self.lm, batch[:1], name, number, self.method, max_tokens=length)
            self._compare(line, plain[:1], alone, "alone")
        if line.stops_inside < 2 and number % 2 == 0:
            self._stops(line, batch, ours, number, length)

    def _write(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        name: str,
        number: int,
        method: Method | None = None,
        **arguments: Any,
    ) -> list[Result]:
        """Write a text per prompt, under the setting's law of this round."""
        laws = SETTINGS[name]
        chosen: dict[str, Any] = {"method": method or self.method.reference(), "max_tokens": self.max_tokens}
        chosen |= {"seed": self.seed + number, "ignore_eos": True, "is_cancelled": self.plan.tick}
        chosen |= {**laws[number % len(laws)], **arguments}
        results: list[Result] = lm.generate([list(ids) for ids in prompts], **chosen)
        return results

    def new_line(self, name: str, dtype: str) -> Line:
        """Return an empty line, which misses everything."""
        line = Line(name, dtype)
        line.look_for_missing()
        return line

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

    def _stops(self, line: Line, batch: Sequence[list[int]], ours: Sequence[Result], number: int, length: int) -> None:
        """End texts on an accepted draft, by a stop string and by an end token: nothing may follow it."""
        for ids, result in zip(batch, ours, strict=True):
            for j in (j for j, source in enumerate(result.sources) if source == "draft" and j > 0):
                arguments = self._ends_at(result, j)
                if arguments is None:
                    continue
                lm, changes = arguments
                changes["max_tokens"], name = length, line.setting
                ended = self._write(lm, [ids], name, number, self.method, **changes)
                if self.method.guarantee is Guarantee.EXACT:
                    self._compare(line, self._write(lm, [ids], name, number, **changes), ended, "at a stop")
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
        return self.lm.ending_with([tokens[j]]), {"ignore_eos": False}

    def rounded_line(self, lm: LanguageModel, name: str, tolerance: float) -> Line:
        """Run one setting below float64 and list the flips; no evidence is asked for, the float64 line has it."""
        line, last = Line(name, _dtype(lm)), len(SETTINGS[name]) - 1
        chosen = SETTINGS[name][last]
        plain = self._write(lm, self.prompts, name, last, record=("margins",))
        ours = self._write(lm, self.prompts, name, last, self.method)
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
        if self.method.needs.has_tree and not lm.target.is_invariant:
            return {"is_identical": None, "note": "drafts chains only; nothing was certified for this tree."}
        is_identical, rows, seconds = True, 0, {False: 0.0, True: 0.0}
        for name in ("greedy", "temperature 0.7"):
            for ids in self.prompts[:4]:
                ours = self._write(lm, [ids], name, 0, self.method, is_batch_invariant=True)
                for mode in seconds:
                    plain = self._write(lm, [ids], name, 0, is_batch_invariant=mode)
                    seconds[mode] += plain[0].timing["decode_s"]
                is_identical &= plain[0].tokens == ours[0].tokens
                rows += 1
        cost = seconds[True] / max(seconds[False], 1e-9)
        return {"is_identical": is_identical, "rows": rows, "dtype": _dtype(lm), "cost": cost}


def _part(line: Line, number: int) -> str:
    return f"{line.setting}, {line.dtype}, round {number + 1}"


def _length(name: str, number: int, length: int) -> int:
    """Return how long the texts of a round are, where those of the first have `length` tokens.

    Every other round is short: near the length limit drafts are short, and more often accepted whole.
    """
    if number % 2 == 0:
        return length
    return max(2, length // (2 if number < len(SETTINGS[name]) else 4))


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
    device = cache.device
    for at in range(0, len(ids), size):
        piece = torch.tensor([ids[at : at + size]], device=device)
        position = torch.arange(at, at + piece.shape[1], device=device).unsqueeze(0)
        parts.append(target.score(piece, position, None, cache).logits[0].double())
        cache.keep([range(piece.shape[1])])
    return torch.cat(parts)

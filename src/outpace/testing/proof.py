"""The proof behind a certificate: texts of a method beside those of its reference, in float64 and below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from outpace.api.engine import LanguageModel
from outpace.api.result import Result
from outpace.methods.base import Method
from outpace.testing.certificate import Flip, Line
from outpace.testing.certify_texts import SEARCHES, SETTINGS
from outpace.testing.plan import Plan
from outpace.types import Guarantee

__all__ = ["BELOW", "PREFILL", "Work", "dtype_of"]

_PROOF_SHARE = 0.3  # of the time limit, for the first round of every setting
_SHORTEST = 20  # tokens per text of a first round, where time is short
_ROUND_COST = 7  # what a token of a round costs in steps of plain decoding alone, until it is measured
PREFILL = 8  # tokens that a round's prompts cost about as much as
BELOW = 0.15  # what a round below float64 takes beside one in it, until it is measured


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
        law: laws over the next token, of every text, the reference's too.
    """

    lm: LanguageModel
    method: Method
    prompts: list[list[int]]
    seed: int
    max_tokens: int
    max_rounds: int
    plan: Plan
    law: Sequence[str] = ()

    @property
    def laws(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """What texts are written under, by the name of the setting."""
        return SETTINGS if self.method.draws else SEARCHES

    def prove(self, settings: Sequence[str]) -> list[Line]:
        """Run settings in float64, round after round, until each has seen enough, something differs or time is up."""
        lines = [self.new_line(name, dtype_of(self.lm)) for name in settings]
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
                self.plan.add(_part(line, ahead), "proof", _length(line.setting, ahead, length) + PREFILL)

    def _is_open(self, line: Line, number: int) -> bool:
        """Whether a setting has laws that were not tried yet, or has not seen enough; one that differs is done."""
        return not line.faults and (number < len(self.laws[line.setting]) or bool(line.missing))

    def _probe(self) -> float:
        """Write a few tokens and return the seconds that a token of a round may take."""
        began, num = self.plan.elapsed_s, 3

        def work() -> None:
            self._write(self.lm, [min(self.prompts, key=len)], next(iter(SETTINGS)), 0, max_tokens=num)
            rate = _ROUND_COST * (self.plan.elapsed_s - began) / num
            self.plan.guess("proof", rate)
            self.plan.guess("below", BELOW * rate)

        self.plan.add("first steps", "probe")
        self.plan.do("first steps", work)
        return self.plan.rate("proof") or 0.0

    def _affordable(self, rate: float, num: int) -> int:
        """Return how many tokens a text of a first round has, at `rate` seconds per token of a round."""
        share = _PROOF_SHARE * self.plan.limit_s / max(1, num)
        return min(self.max_tokens, max(_SHORTEST, int(share / rate) - PREFILL if rate > 0 else self.max_tokens))

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
        laws = self.laws[name]
        chosen: dict[str, Any] = {"method": method or self.method.reference(), "max_tokens": self.max_tokens}
        chosen |= {"seed": self.seed + number, "ignore_eos": True, "is_cancelled": self.plan.tick, "law": self.law}
        chosen |= {**laws[number % len(laws)], **arguments}
        results: list[Result] = lm.generate([list(ids) for ids in prompts], **chosen)
        return results

    def new_line(self, name: str, dtype: str) -> Line:
        """Return an empty line, which misses everything."""
        line = Line(name, dtype, takes_whole=self.method.needs.is_one_pass)
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
                is_free = self.method.draws and not self.method.needs.has_mask and not (lm.generation.law or self.law)
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
            if head == tokenizer.decode(tokens[:j]):  # it adds no text of its own: nothing is first seen there
                return None
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
        line, last = Line(name, dtype_of(lm)), len(self.laws[name]) - 1
        chosen = self.laws[name][last]
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
        """Compare plain and drafted decoding in batch-invariant mode, where it is promised."""
        if self.method.needs.has_tree and not lm.target.is_invariant:
            return {"is_identical": None, "note": "drafts chains only; nothing was certified for this tree."}
        return self.compare_invariant(lm)

    def compare_invariant(self, lm: LanguageModel) -> dict[str, Any]:
        """Compare the texts of both in batch-invariant mode, and measure what the mode costs."""
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
        return {"is_identical": is_identical, "rows": rows, "dtype": dtype_of(lm), "cost": cost}


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


def dtype_of(lm: LanguageModel) -> str:
    """Return the name of the dtype that a model computes in."""
    buffers = lm.target.new_cache(1, 2).buffers
    return str(buffers[0].dtype).removeprefix("torch.") if buffers else lm.dtype

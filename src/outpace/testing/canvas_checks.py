"""The executable contract of methods on a canvas: what must hold for every sampler, under full and block attention.

Like `outpace.testing.checks`, on toy models in float64: a row in a ragged batch equals the row alone, rows come and go,
seeds reproduce, exact caches change nothing, given pieces stay, nothing is computed behind the end of the text. A
method that promises exactness must write what its reference writes; the reference must write what a plain loop without
cache or batch writes (`outpace.testing.canvas_oracle`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from outpace.errors import ConfigError
from outpace.methods.base import Method
from outpace.methods.misfit import misfits
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SEED, SETTINGS, drive, make_run
from outpace.types import FinishReason, Guarantee

__all__ = ["canvas_checks", "check_canvas_method", "toy_canvas"]

Check = Callable[[Method], None]
_KINDS = (("full", True), ("block", True))  # attention, shifted logits; full and unshifted is what `checks` runs on
_ROWS = PROMPTS[:3]
_LENGTH, _END, _CAPACITY = 8, 3, 160
_WARM = SETTINGS["temperature 0.7"]


@functools.lru_cache(maxsize=4)
def toy_canvas(attention: str, is_shifted: bool) -> ToyModel:
    """Return a toy masked model, sure enough of itself to be guessed; blocks of 4 places."""
    return ToyModel(attention=attention, block_size=4, logits_shift=is_shifted, sharpness=6.0)


def canvas_checks() -> list[Check]:
    """Return all checks, the cheapest first."""
    return [
        check_mask_refused,
        check_end_of_work,
        check_given,
        check_together,
        check_coming_and_going,
        check_seeds,
        check_exact_caches,
        check_reference,
    ]


def check_canvas_method(method: Method) -> None:
    """Run the contract on a method, on every kind of canvas that it fits.

    Raises:
        AssertionError: names every check that failed, and why.
    """
    failures = []
    for check in canvas_checks():
        try:
            check(method)
        except Exception as error:  # a check that crashes has failed, whatever was raised
            failures.append(f"{check.__name__}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def _targets(method: Method, kinds: Sequence[tuple[str, bool]] = _KINDS) -> list[ToyModel]:
    every = [toy_canvas(*kind) for kind in kinds]
    return [target for target in every if not misfits(method, target.capabilities)]


def _rows(length: int = _LENGTH, ends: Sequence[int] = (_END,)) -> list[Row]:
    return [Row(list(p), len(p), row_key(SEED, i), length, tuple(ends)) for i, p in enumerate(_ROWS)]


def _write(method: Method, target: ToyModel, rows: Sequence[Row], settings: Sampling = _WARM) -> list[list[int]]:
    run = make_run(method, settings, target=target, capacity=_CAPACITY, record=("log_probs",))
    drive(run, list(rows))
    return [row.written for row in rows]


def check_mask_refused(method: Method) -> None:
    """A prompt that holds the mask token is refused before anything is computed."""
    for target in _targets(method)[:1]:
        row = Row([1, int(target.capabilities.mask_id or 0), 2], 3, row_key(SEED, 0), _LENGTH)
        try:
            make_run(method, target=target).join([row])
        except ConfigError as error:
            assert "mask" in str(error), f"The refusal does not name the mask: {error}"
        else:
            raise AssertionError("A prompt that holds the mask token was taken.")


def check_end_of_work(method: Method) -> None:
    """Nothing is forwarded behind an end token, or behind the canvas; no mask and nothing behind the end is emitted."""
    for target in _targets(method):
        seen = 0
        for index, prompt in enumerate(_ROWS):
            row = Row(list(prompt), len(prompt), row_key(SEED, index), _LENGTH, (3, 4, 5, 6))
            run = make_run(method, _WARM, target=target, capacity=_CAPACITY)
            run.join([row])
            while run.rows:
                canvas = run.batch.state.canvases[0]
                run.step()
                proposal = run.last.proposal if run.last is not None else None
                assert proposal is not None and proposal.position is not None, "A canvas has positions."
                last, size = int(proposal.position[0, : proposal.length[0]].max()), target.capabilities.block_size
                first = canvas.prompt if target.capabilities.attention == "causal-block" else 0
                if size and canvas.end > canvas.base and method.needs.copies == 1:
                    border = first + ((canvas.base - first) // size + 1) * size
                    assert last < border, f"Place {last} is not in the model's block."
                if canvas.live() < len(canvas.tokens) and canvas.end > canvas.base:
                    seen += 1
                    assert last < canvas.live(), f"Place {last} was forwarded behind the end of the text."
            assert target.capabilities.mask_id not in row.written, "A mask was emitted."
            assert not {3, 4, 5, 6} & set(row.written[:-1]), f"Text follows an end token: {row.written}."
            assert row.finish in (FinishReason.EOS, FinishReason.LENGTH), f"The row finished with {row.finish}."
        assert seen or method.needs.models, "No text had its end token before its last step."


def check_given(method: Method) -> None:
    """Given pieces are written as they are, and what lies between them holds no end token."""
    rest = [-1, -1, 7, 8, -1, -1, -1, 2]
    for target in _targets(method):
        rows = _rows()
        for row in rows:
            row.canvas = list(rest)
        for written in _write(method, target, rows):
            kept = [token for token, given in zip(written, rest, strict=False) if given >= 0]
            assert kept == [token for token in rest if token >= 0], f"Given pieces changed: {written}."
            assert _END not in written, f"A text ended between given pieces: {written}."


def check_together(method: Method) -> None:
    """A row in a ragged batch writes what it writes alone, log-probabilities included."""
    for target in _targets(method):
        together = _rows()
        _write(method, target, together)
        for index in (0, 2):
            alone = _rows()[index]
            _write(method, target, [alone])
            _same([alone.written], [together[index].written], f"Row {index} alone")
            pairs = zip(alone.log_probs, together[index].log_probs, strict=True)
            assert all(abs(a - b) < 1e-9 for a, b in pairs), f"Row {index} alone has other log-probabilities."


def check_coming_and_going(method: Method) -> None:
    """Rows that join late write what they write otherwise, and a row that leaves does not disturb its neighbours."""
    for target in _targets(method):
        expected, rows = _write(method, target, _rows()), _rows()
        run = make_run(method, _WARM, target=target, capacity=_CAPACITY)
        drive(run, rows[1:], steps=2)
        run.leave([rows[1]])
        drive(run, rows[:1])
        _same([rows[0].written, rows[2].written], [expected[0], expected[2]], "Rows that came and stayed")


def check_seeds(method: Method) -> None:
    """One seed gives one text; other seeds give others."""
    for target in _targets(method)[:1]:
        first = _write(method, target, _rows())
        _same(_write(method, target, _rows()), first, "Twice the same seed")
        others = _rows()
        for index, row in enumerate(others):
            row.key = row_key(SEED + 1, index)
        assert _write(method, target, others, SETTINGS["temperature 1.3"]) != _write(
            method, target, _rows(), SETTINGS["temperature 1.3"]
        ), "The seed makes no difference."


def check_exact_caches(method: Method) -> None:
    """The exact block cache, and approximate ones that are refreshed in every step, write what no cache writes."""
    try:
        uncached = _with(method, cache="none")
    except (ConfigError, TypeError):  # it brings a cache of its own
        return
    for target in _targets(method):
        plain = _write(uncached, target, _rows())
        pairs = [("block", 0)] if target.capabilities.block_size else []
        for cache, refresh in (*pairs, ("dual", 1)):
            cached = _write(_with(method, cache=cache, refresh=refresh), target, _rows())
            _same(cached, plain, f"cache={cache}, refresh={refresh} against none")


def check_reference(method: Method) -> None:
    """An exact method writes its reference's text in fewer steps, under every kind of cache, greedily and sampled."""
    if method.guarantee is not Guarantee.EXACT:
        return
    ours_steps = steps = 0
    caches: tuple[dict[str, Any], ...] = (
        {},
        {"cache": "dual"},
        {"cache": "delayed", "refresh": 3},
        {"cache": "prefix", "block": 2},
    )
    for target in _targets(method, (("full", False), *_KINDS)):
        for index, changes in enumerate(caches):
            chosen = _with(method.to_certify(), **changes)
            settings = SETTINGS["greedy"] if index % 2 else _WARM
            ours, theirs = _rows(), _rows()
            _same(
                _write(chosen, target, ours, settings),
                _write(chosen.reference(), target, theirs, settings),
                f"{target.capabilities.attention} attention, {changes}",
            )
            pairs = zip(
                [value for row in ours for value in row.log_probs],
                [value for row in theirs for value in row.log_probs],
                strict=True,
            )
            assert all(abs(a - b) < 1e-9 for a, b in pairs), "The log-probabilities are not the reference's."
            ours_steps += sum(row.usage.num_steps for row in ours)
            steps += sum(row.usage.num_steps for row in theirs)
    assert ours_steps < 0.9 * steps, f"{ours_steps} steps were taken, and {steps} by the reference."


def _with(method: Method, **changes: Any) -> Method:
    return dataclasses.replace(method, **changes) if changes else method


def _same(got: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], what: str) -> None:
    for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert list(ours) == list(theirs), f"{what}: row {index} differs: {list(ours)} != {list(theirs)}"

"""Known answers on a canvas: the plain loop's text, what each cache may hold, and the contract on chosen methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outpace.canvas.row import CanvasRow
from outpace.methods.base import Method
from outpace.methods.diffusion.freedave import FreeDave
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.ssd import SSD
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing import canvas_checks as contract
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.canvas_oracle import unmask
from outpace.testing.world import PROMPTS, SEED, SETTINGS, drive, make_run

__all__ = ["canvas_answers"]

KINDS = (("full", False), ("full", True), ("block", False), ("block", True))
ENDS = (3, 5)
GIVEN = ([-1] * 9, [-1] * 9, [-1, 7, -1, -1, 8, 2, -1, -1, -1])


def canvas_answers() -> list[Callable[[], None]]:
    """Return the checks, the cheapest first."""
    return [check_masks, check_pieces, check_held, check_ends, check_plain_loop, check_caches, check_guesses]


def check_masks() -> None:
    """A prompt with a mask token is refused."""
    contract.check_mask_refused(MaskedDiffusion())


def check_pieces() -> None:
    """Given pieces stay, and no text ends between them."""
    contract.check_given(MaskedDiffusion())


def check_ends() -> None:
    """An end token ends the work on a row."""
    contract.check_end_of_work(MaskedDiffusion())


def check_plain_loop() -> None:
    """The reference writes what a loop without cache and batch writes, around given pieces too."""
    for attention, is_shifted in KINDS:
        for name, order in (("temperature 0.7", "confidence"), ("greedy", "random")):
            model, block = toy_canvas(attention, is_shifted), 3 if attention == "full" else 2
            rows = [Row(list(p), len(p), row_key(SEED, i), 9, ENDS) for i, p in enumerate(PROMPTS[:3])]
            for row, rest in zip(rows, GIVEN, strict=True):
                row.canvas = list(rest)
            drive(make_run(MaskedDiffusion(block=block, order=order), SETTINGS[name], target=model), rows)
            for row, rest, prompt in zip(rows, GIVEN, PROMPTS, strict=False):
                wanted = unmask(model, prompt, rest, SETTINGS[name], row.key, block, order, ENDS)
                assert row.written == wanted, f"{attention}, {name}: {row.written} instead of {wanted}."


def check_caches() -> None:
    """Exact caches change nothing."""
    contract.check_exact_caches(MaskedDiffusion())


def check_guesses() -> None:
    """The lossless methods write their reference's text."""
    contract.check_reference(FreeDave().to_certify())
    contract.check_reference(SSD())


@dataclass
class _Held:
    """Watches what the cache holds after each step of one row."""

    method: Method
    rows: list[tuple[CanvasRow, CanvasRow]]

    @classmethod
    def of(cls, method: Method, attention: str = "full") -> _Held:
        row = Row(list(PROMPTS[0]), len(PROMPTS[0]), row_key(SEED, 0), 9)
        run, steps = make_run(method, SETTINGS["temperature 0.7"], target=toy_canvas(attention, False)), []
        run.join([row])
        before = run.batch.state.canvases[0]
        while run.rows:
            run.step()
            assert run.last is not None and run.last.decision is not None
            after = run.last.decision.carry[0].row
            steps.append((before, after))
            before = after
        return cls(method, steps)


def check_held() -> None:
    """Approximate caches hold what their papers say, and are computed anew when they should be."""
    inside = [pair for pair in _Held.of(MaskedDiffusion(block=3, cache="dual")).rows if pair[1].base == pair[0].base]
    for _, row in inside:
        held = set(row.held.tolist())
        assert not held & set(range(row.base, row.end)), "The dual cache holds places of the block in work."
        assert set(range(row.base)) | set(range(row.end, len(row.tokens))) == held, "The dual cache misses places."
    for before, row in _Held.of(MaskedDiffusion(block=3, cache="prefix")).rows:
        wanted = list(range(row.base)) if row.base == before.base else []
        assert row.held.tolist() == wanted, f"The prefix cache holds {row.held.tolist()} before place {row.base}."
    for before, row in _Held.of(MaskedDiffusion(block=3, cache="delayed")).rows:
        decided = set((before.tokens != 12).nonzero()[0].tolist())
        assert set(row.held.tolist()) <= decided, "The delayed cache holds the entry of a mask."
    ages = [len(row.held) for _, row in _Held.of(MaskedDiffusion(cache="delayed", refresh=3)).rows]
    assert [at for at, size in enumerate(ages) if size == 0] == [2, 5, 8], (
        f"The cache is emptied at other steps: {ages}."
    )
    for before, row in _Held.of(MaskedDiffusion(), "block").rows:
        assert (row.held < before.base // 4 * 4).all(), "The block cache holds places of an unfinished block."

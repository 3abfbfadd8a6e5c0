"""The executable contract: what must hold for every method, whoever wrote it.

    from outpace.testing import check_method
    check_method(MyMethod(draft_len=3))

Each `check_*` takes a method object and raises `AssertionError` with one sentence. They run on toy models in float64,
batched and ragged, in about a second a method. An exact method must write what plain decoding writes, token for token,
under every setting; any method must keep its books, its rows apart, and nothing on itself.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Sequence

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.misfit import misfits
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing import world
from outpace.testing.world import PROMPTS, SEED, SETTINGS, drive, ends_under, make_rows, make_run, reference, write
from outpace.types import FinishReason, Guarantee, Needs, Outputs, Scores

__all__ = ["Check", "check_method", "contract_checks", "run_contract"]

Check = Callable[[Method], None]
_WARM = "temperature 0.7"


def check_method(method: Method, kind: str = "decoder", *, every: int = 1) -> None:
    """Run the whole contract on a method.

    Args:
        method: a method object.
        kind: as `run_contract` takes it.
        every: likewise.

    Raises:
        AssertionError: names every check that failed, and why.
    """
    failures = run_contract(method, kind=kind, every=every)
    assert not failures, "\n".join(f"{name}: {reason}" for name, reason in failures.items())


def run_contract(
    method: Method | type[Method], checks: Sequence[Check] | None = None, kind: str = "decoder", *, every: int = 1
) -> dict[str, str]:
    """Return the failed checks and their reasons; empty = the contract holds.

    Args:
        method: a method object, or a class whose defaults are checked.
        checks: which ones; None = all of `contract_checks`.
        kind: of the toy models, "decoder" or "encoder-decoder"; a method that writes canvases gets canvas models, one
            that takes whole texts a one-pass model.
        every: take one of so many options of the sampler, from one that the method's settings tell, and all together:
            enough for one of several settings of a method that passed under each.
    """
    chosen = method() if isinstance(method, type) else method
    if chosen.needs.is_one_pass:
        kind = world.one_pass_kind(chosen)
    failures = {}
    for check in contract_checks() if checks is None else checks:
        try:
            with world.inhabited(kind):
                check_options(chosen, every) if check is check_options else check(chosen)
        except Exception as error:  # a check that crashes has failed, whatever was raised
            failures[check.__name__] = f"{type(error).__name__}: {error}"
    return failures


def contract_checks() -> list[Check]:
    """Return all checks of the contract, the cheapest first."""
    return [
        check_facts,
        check_settings,
        check_needs,
        check_bookkeeping,
        check_determinism,
        check_equality,
        check_alone,
        check_drafts_alone,
        check_end_tokens,
        check_lengths,
        check_stops,
        check_continue,
        check_rejoin,
        check_late_rows,
        check_samples,
        check_interleaved,
        check_broken_neighbour,
        check_fixed_width,
        check_records,
        check_options,
    ]


def _is_exact(method: Method) -> bool:
    """Whether it must write plain decoding's text; on a canvas the reference is another (`testing.canvas_checks`)."""
    return method.guarantee is Guarantee.EXACT and not (_is_canvas(method) or _is_search(method))


def _is_search(method: Method) -> bool:
    """Whether rows of a group search together; the reference is then the search without drafts."""
    return method.num_rows > 1


def _is_canvas(method: Method) -> bool:
    return method.needs.attention != "causal"


def _same(got: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], what: str) -> None:
    for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        if list(ours) != list(theirs):
            pairs = enumerate(zip(ours, theirs, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            raise AssertionError(f"{what}: row {index} differs from token {at} on: {list(ours)} != {list(theirs)}")


def _written(rows: Sequence[Row]) -> list[list[int]]:
    return [row.written for row in rows]


def _plain(name: str, max_tokens: int = world.NUM_TOKENS) -> tuple[tuple[int, ...], ...]:
    return reference(name, max_tokens, world.kind_here())


def _expected(method: Method, name: str) -> list[list[int]]:
    """Return what the method must write under a setting: plain decoding's text, or its own where it is not exact."""
    if _is_exact(method):
        return [list(tokens) for tokens in _plain(name)]
    try:
        return [list(tokens) for tokens in own_text(method, name, world.kind_here())]
    except TypeError:  # a method with a list on it cannot be a key
        return _written(write(method, SETTINGS[name]))


@functools.lru_cache(maxsize=8)
def own_text(method: Method, name: str, kind: str) -> tuple[tuple[int, ...], ...]:
    """Return what a method writes after the standard prompts under `SETTINGS[name]`, on models of that kind."""
    with world.inhabited(kind):
        return tuple(tuple(row.written) for row in write(method, SETTINGS[name]))


def check_facts(method: Method) -> None:
    """The method is a frozen dataclass that says what it is."""
    assert dataclasses.is_dataclass(method), "A method is a dataclass."
    assert type(method).__dataclass_params__.frozen, "A method's dataclass is frozen."  # type: ignore[attr-defined]
    for fact in ("name", "family", "summary"):
        assert getattr(method, fact), f"The class has no {fact}."
    assert isinstance(method.guarantee, Guarantee), "guarantee is a Guarantee."
    assert isinstance(method.needs, Needs), "needs is a Needs."


def check_settings(method: Method) -> None:
    """The settings survive JSON, and the command line's strings."""
    kind, settings = type(method), method.to_dict()
    assert set(settings) == {f.name for f in dataclasses.fields(method)}, "to_dict gives every setting."
    assert kind.from_settings(json.loads(json.dumps(settings))) == method, "The settings change on a way through JSON."
    strings = {
        name.replace("_", "-"): ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        for name, value in settings.items()
    }
    assert kind.from_settings(strings) == method, "The settings change on a way through command-line strings."


def check_needs(method: Method) -> None:
    """Nothing is used that `needs` does not ask for; what the toy world offers is enough."""
    needs = method.needs
    target = world.Watched(world.target_for(needs.attention))
    assert not misfits(method, target.capabilities), f"A toy model lacks {misfits(method, target.capabilities)}."
    run = make_run(method, SETTINGS[_WARM], target=target)
    world.join(run, make_rows(max_tokens=12))
    wanted = functools.reduce(operator.or_, [model.reads for model in run.models.values()], needs.outputs)
    while run.rows:
        run.step()
        assert run.last is not None and run.last.proposal is not None, "A step has a proposal."
        proposal = run.last.proposal
        # On a canvas the window is the canvas, and `needs.copies` counts how often it is forwarded.
        is_narrow = _is_canvas(method) or proposal.tokens.shape[1] <= needs.width
        assert is_narrow, f"A window is wider than needs.width = {needs.width}."
        is_tree = proposal.parent is not None or proposal.visible is not None
        assert needs.has_tree or not is_tree, "The window is a tree, but needs.has_tree is False."
        _check_outputs(wanted, run.last.scores)
    assert needs.has_skip or not target.calls.skips, "Layers are skipped, but needs.has_skip is False."
    assert not target.calls.outside, "The target was asked to score an id outside its vocabulary."


def _check_outputs(wanted: Outputs, scores: Scores | None) -> None:
    """What was asked for came with the logits, at the same places; nothing else did."""
    assert scores is not None and set(scores.taps) == set(wanted.layers), "Other layers were tapped than asked."
    assert set(scores.heads) == set(wanted.heads), "Other outputs came than asked."
    assert (scores.last is not None) == wanted.has_last, "The last hidden state came unasked, or did not."
    given = [*scores.taps.values(), *scores.heads.values(), *([] if scores.last is None else [scores.last])]
    assert all(one.shape[:2] == scores.logits.shape[:2] for one in given), "Outputs stand at other places than logits."


def check_bookkeeping(method: Method) -> None:
    """Usage agrees with itself, with the text, and with the number of forwards; the object is left unchanged."""
    before = copy.deepcopy(vars(method))
    for settings in (SETTINGS["greedy"], SETTINGS["temperature 1.3"]):
        target = world.Watched(world.target_for(method.needs.attention))
        rows, run = make_rows(), make_run(method, settings, target=target)
        drive(run, rows)
        total = run.counters["target"].nfe
        # A target that also drafts is scored more often: that is counted as drafting.
        drafts_itself = method.needs.has_skip or getattr(method, "draft", "") == "own"
        is_right = target.calls.num == total or (drafts_itself and target.calls.num > total)
        # Rules over places run the network when a row joins; the loop's looks at their laws are counted beside that.
        assert is_right or (method.needs.kinds and target.calls.num < total), "Forwards were miscounted."
        for row in rows:
            _check_usage(row, is_shared=_is_search(method))
        assert max(row.usage.target_nfe for row in rows) == total, "The longest row took part in every forward."
    assert vars(method) == before, "The method keeps something on itself."


def _check_usage(row: Row, *, is_shared: bool) -> None:
    """The counts of a row agree; `is_shared`: its prompt was read once for several, each of which has a share of it."""
    usage, sources = row.usage, row.sources
    assert row.finish is FinishReason.LENGTH, f"The row ended with {row.finish} instead of its length."
    assert len(row.written) == usage.num_emitted == row.max_tokens, "The row is shorter or longer than max_tokens."
    assert len(sources) == usage.num_emitted, "Not every token has a source."
    assert sources.count("draft") == usage.num_accepted <= usage.num_proposed, "Accepted drafts were miscounted."
    assert sources.count("recovered") == usage.num_recovered, "Recovered tokens were miscounted."
    assert sources.count("bonus") == usage.num_bonus, "Bonus tokens were miscounted."
    assert usage.num_prompt == row.num_prompt, "Prompt tokens were miscounted."
    assert usage.num_steps <= usage.target_nfe, "Forwards were miscounted."
    assert usage.target_nfe <= usage.positions_scored or is_shared, "Positions were miscounted."
    assert usage.num_emitted <= usage.num_steps + usage.num_accepted, "A step made more than one undrafted token final."


def check_determinism(method: Method) -> None:
    """One seed gives one text, another seed another one where it draws; no mask and no foreign id is ever written."""
    settings = SETTINGS["temperature 1.3"]
    first, second = write(method, settings), write(method, settings)
    _same(_written(first), _written(second), "Twice the same seed")
    other = write(method, settings, make_rows(keys=[row_key(SEED + 1, i) for i in range(len(PROMPTS))]))
    assert (_written(other) != _written(first)) is method.draws, "The seed makes a difference where it should not."
    capabilities = world.target_for(method.needs.attention).capabilities
    for token in (token for row in first for token in row.written):
        assert 0 <= token < capabilities.vocab_size, f"Id {token} is outside the vocabulary."
        assert token != capabilities.mask_id, "A mask was emitted."


def check_equality(method: Method) -> None:
    """An exact method writes plain decoding's text, greedily and at two temperatures; a search its reference's."""
    if _is_search(method) and method.guarantee is Guarantee.EXACT:
        for name, settings in SETTINGS.items():
            ours, theirs = (write(one, settings) for one in (method, method.reference()))
            _same(_written(ours), _written(theirs), name)
            pairs = zip(ours, theirs, strict=True)
            assert all(abs((a.score or 0.0) - (b.score or 0.0)) < 1e-9 for a, b in pairs), f"{name}: other scores."
    if _is_exact(method):
        for name in ("greedy", "temperature 0.7", "temperature 1.3"):
            _same(_written(write(method, SETTINGS[name])), _plain(name), name)


def check_options(method: Method, every: int = 1) -> None:
    """The same under every option of the sampler, alone and together."""
    if _is_exact(method):
        names = list(SETTINGS)[3:]
        for name in dict.fromkeys([*names[sum(map(ord, str(method))) % every :: every], "everything"]):
            rows = make_rows(max_tokens=12, end_tokens=ends_under(SETTINGS[name]))
            _same(_written(write(method, SETTINGS[name], rows)), _plain(name, 12), name)


def check_alone(method: Method) -> None:
    """A row writes the same alone and in a ragged batch."""
    for name in ("greedy", _WARM):
        together = _expected(method, name)
        for index in (0, 2):
            row = make_rows()[index]
            write(method, SETTINGS[name], [row])
            _same([row.written], [together[index]], f"{name}, row {index} alone")


def check_drafts_alone(method: Method) -> None:
    """A row's drafts do not depend on its neighbours, nor on who has left (trees may share their depth)."""
    if method.needs.has_tree or method.drafts_together:
        return
    rows = make_rows()
    for index, row in enumerate(rows):
        row.max_tokens -= 5 * (index % 2)  # neighbours leave first
    write(method, SETTINGS[_WARM], rows)
    alone = make_rows()[2]
    write(method, SETTINGS[_WARM], [alone])
    assert alone.sources == rows[2].sources, "Other tokens were drafted or accepted than for the row alone."
    assert alone.usage.num_proposed == rows[2].usage.num_proposed, "More or fewer tokens were drafted."


def check_end_tokens(method: Method) -> None:
    """An end token ends its row inside an accepted run too, and is the last token written."""
    if _is_canvas(method) or _is_search(method):
        _check_other_ends(method)
        return
    text = _expected(method, _WARM)[0]
    ends = sorted(set(text))
    rows = make_rows([PROMPTS[0]] * len(ends), len(text), keys=[row_key(SEED, 0)] * len(ends))
    for row, end in zip(rows, ends, strict=True):
        row.end_tokens = (end,)
    write(method, SETTINGS[_WARM], rows)
    for row, end in zip(rows, ends, strict=True):
        wanted = text[: text.index(end) + 1]
        _same([row.written], [wanted], f"End token {end}")
        assert row.finish is FinishReason.EOS, f"The row with end token {end} finished with {row.finish}."


def _check_other_ends(method: Method) -> None:
    """What stands before an end token may differ from the text without one.

    On a canvas it no longer sees what would follow, and a search weighs texts that ended against those that went on.
    """
    ends = sorted(set(_expected(method, _WARM)[0]))
    rows = make_rows([PROMPTS[0]] * len(ends), keys=[row_key(SEED, 0)] * len(ends))
    for row, end in zip(rows, ends, strict=True):
        row.end_tokens = (end,)
    write(method, SETTINGS[_WARM], rows)
    for row, end in zip(rows, ends, strict=True):
        assert end not in row.written[:-1], f"Text follows the end token {end}: {row.written}."
        wanted = FinishReason.EOS if row.written[-1] == end else FinishReason.LENGTH
        assert row.finish is wanted, f"The row {row.written} with end token {end} finished with {row.finish}."
        assert wanted is FinishReason.EOS or len(row.written) == row.max_tokens, "The row is shorter than max_tokens."
    assert any(row.finish is FinishReason.EOS for row in rows), "No row ended with its end token."


def check_lengths(method: Method) -> None:
    """A row never exceeds max_tokens; an exact method's shorter text is the beginning of its longer one."""
    text = _expected(method, _WARM)[0]
    rows = make_rows([PROMPTS[0]] * 12, keys=[row_key(SEED, 0)] * 12)
    for index, row in enumerate(rows):
        row.max_tokens = index + 1
    write(method, SETTINGS[_WARM], rows)
    for index, row in enumerate(rows):
        assert len(row.written) == index + 1, f"max_tokens {index + 1} gave {len(row.written)} tokens."
        assert row.finish is FinishReason.LENGTH, f"The row finished with {row.finish}."
        if _is_exact(method):
            _same([row.written], [text[: index + 1]], f"max_tokens {index + 1}")


def check_stops(method: Method) -> None:
    """A stop string across a token border ends its row inside an accepted run too; nothing follows it."""
    text = _expected(method, _WARM)[0]
    if _is_search(method):
        _check_search_stops(method, text)
        return
    whole = world.toy_decode(text)
    stops = sorted({whole[i : i + 3] for i in range(1, len(whole) - 3, 2)})
    rows = make_rows([PROMPTS[0]] * len(stops), len(text), keys=[row_key(SEED, 0)] * len(stops))
    for row, stop in zip(rows, stops, strict=True):
        world.with_stop(row, stop)
    write(method, SETTINGS[_WARM], rows)
    for row, stop in zip(rows, stops, strict=True):
        size = next(n for n in range(len(text) + 1) if stop in world.toy_decode(text[:n]))
        _same([row.written], [text[:size]], f"Stop string {stop!r}")
        assert row.finish is FinishReason.STOP, f"The row with stop string {stop!r} finished with {row.finish}."
        assert row.text is not None and row.text.text == whole[: whole.index(stop)], "The text is not cut at the stop."


def _check_search_stops(method: Method, text: list[int]) -> None:
    """A text that a search returns ends at its first stop string, or at its length without one."""
    stops = sorted({world.toy_decode(text)[i : i + 3] for i in range(1, 2 * len(text) - 3, 2)})
    rows = [world.with_stop(row, stop) for row, stop in zip(make_rows([PROMPTS[0]] * len(stops)), stops, strict=True)]
    write(method, SETTINGS[_WARM], rows)
    for row, stop in zip(rows, stops, strict=True):
        whole, before = world.toy_decode(row.written), world.toy_decode(row.written[:-1])
        assert stop not in before, f"Text follows the stop string {stop!r}."
        assert (stop in whole) is (row.finish is FinishReason.STOP), f"{whole!r} finished with {row.finish}."
        assert row.text is not None and row.text.text == whole.partition(stop)[0], "The text is not cut at the stop."
    assert any(row.finish is FinishReason.STOP for row in rows), "No row ended with its stop string."


def check_continue(method: Method) -> None:
    """Stopping after n tokens and continuing with prompt and text under the same key gives the same text."""
    if not _is_exact(method):
        return
    for name, cut in (("greedy", 7), (_WARM, 1), (_WARM, 6), ("repetition penalty", 11)):
        heads = make_rows(max_tokens=cut)
        write(method, SETTINGS[name], heads)
        tails = make_rows([row.tokens for row in heads], world.NUM_TOKENS - cut)
        write(method, SETTINGS[name], tails)
        got = [head.written + tail.written for head, tail in zip(heads, tails, strict=True)]
        _same(got, _plain(name), f"{name}, continued after {cut} tokens")


def check_rejoin(method: Method) -> None:
    """A row may leave between two steps and rejoin in another slot; its neighbours do not notice."""
    if _is_search(method):  # a group's rows stay together, and begin a new search elsewhere
        return
    for name in ("greedy", _WARM):
        expected, rows, run = _expected(method, name), make_rows(), make_run(method, SETTINGS[name])
        run.join(rows)
        for gone in (rows[0], rows[2]):
            drive(run, steps=1)
            run.leave([gone])
        drive(run, steps=2)
        run.join([rows[0], rows[2]])
        drive(run)
        stayed = range(len(rows)) if _is_exact(method) else (1, 3)
        _same([rows[i].written for i in stayed], [expected[i] for i in stayed], f"{name}, after leaving and rejoining")
        assert all(row.finish is FinishReason.LENGTH for row in rows), "A row that rejoined did not finish."


def check_late_rows(method: Method) -> None:
    """Rows that join a run under way write what they write alone."""
    expected, rows, run = _expected(method, _WARM), make_rows(), make_run(method, SETTINGS[_WARM])
    drive(run, rows[1:2], steps=2)
    drive(run, [rows[3], rows[0]], steps=1)
    drive(run, [rows[2]])
    _same(_written(rows), expected, "Rows that joined late")


def check_samples(method: Method) -> None:
    """Four samples of one prompt are four texts, each the one its sample number stands for."""
    if not method.draws:
        return
    rows = make_rows([PROMPTS[2]] * 4)
    write(method, SETTINGS["temperature 1.3"], rows)
    assert len({tuple(row.written) for row in rows}) == 4, "Two samples of one prompt are the same text."
    alone = make_rows([PROMPTS[2]] * 4)[2]
    write(Autoregressive() if _is_exact(method) else method, SETTINGS["temperature 1.3"], [alone])
    _same([rows[2].written], [alone.written], "Sample 2")


def check_interleaved(method: Method) -> None:
    """Two runs of one method object, stepped in turn, do not influence each other."""
    expected = [_expected(method, name) for name in ("greedy", _WARM)]
    runs = [make_run(method, SETTINGS[name]) for name in ("greedy", _WARM)]
    both = [make_rows(), make_rows()]
    for run, rows in zip(runs, both, strict=True):
        world.join(run, rows)
    while any(run.rows for run in runs):
        for run in runs:
            drive(run, steps=1)
    for rows, wanted in zip(both, expected, strict=True):
        _same(_written(rows), wanted, "Two interleaved runs")


def check_broken_neighbour(method: Method) -> None:
    """A row with NaN logits ends with an error and keeps what it wrote; its neighbours go on unchanged."""
    for name in ("greedy", "top-p"):
        expected, rows = _expected(method, name), make_rows()
        # A canvas may be full after two forwards, and a whole text after the first behind its prompt.
        first = 1 if _is_canvas(method) else 3 if method.needs.is_one_pass else 6
        size = method.num_rows
        target = world.NanRow(world.target_for(method.needs.attention), row=size, rows=size * len(rows), first=first)
        write(method, SETTINGS[name], rows, target=target)
        assert rows[1].finish is FinishReason.ERROR, f"The broken row finished with {rows[1].finish}."
        others = [i for i in range(len(rows)) if i != 1]
        _same([rows[i].written for i in others], [expected[i] for i in others], f"{name}, beside a NaN row")
        if not _is_search(method):
            _same([rows[1].written], [expected[1][: len(rows[1].written)]], f"{name}, before the NaN")


def check_fixed_width(method: Method) -> None:
    """Padding every window to one width (batch-invariant mode) changes nothing in float64."""
    if _is_canvas(method) or method.needs.has_tree:
        return
    width = method.needs.width + 2
    for name in ("greedy", "top-k"):
        got = _written(write(method, SETTINGS[name], width=width))
        _same(got, _expected(method, name), f"{name}, windows padded to {width}")


def check_records(method: Method) -> None:
    """Recorded log-probabilities and margins are plain decoding's, one per token."""
    if not _is_exact(method):
        return
    kinds = ("log_probs", "margins")
    for settings in (SETTINGS["repetition penalty"], Sampling(temperature=0.9, top_k=5, top_p=0.9)):
        rows = write(method, settings, make_rows(max_tokens=8), record=kinds)
        plain = write(Autoregressive(), settings, make_rows(max_tokens=8), record=kinds)
        for ours, theirs in zip(rows, plain, strict=True):
            for kind in kinds:
                pairs = zip(getattr(ours, kind), getattr(theirs, kind), strict=True)
                assert all(abs(a - b) < 1e-9 for a, b in pairs), f"The recorded {kind} differ from plain decoding's."
                assert len(getattr(ours, kind)) == len(ours.written), f"Not every token has {kind}."

"""The speed benchmark: every arm on every prompt, side by side, in rotating order (docs/measuring.md has the rules)."""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outpace.bench import machine, memory
from outpace.bench.arms import Arm, OurArm, Request, drafter_name, make_arms
from outpace.bench.engines import ENGINES, OTHER_TEXT, Workplace, contents_name
from outpace.bench.inflate import inflate, inflated_from
from outpace.bench.options import BenchOptions, CommonOptions
from outpace.bench.peers import gather_peers
from outpace.bench.prompts import Prompt, encode_prompt, read_prompts
from outpace.bench.report import Report, new_report
from outpace.bench.rounds import in_turns
from outpace.bench.rows import Record, make_rows
from outpace.errors import ConfigError
from outpace.models.generation import read_generation
from outpace.models.loading import read_config, resolve
from outpace.run.threads import fixed

__all__ = ["measure", "model_facts", "prepared", "run"]

Tell = Callable[[str], None]  # takes a sentence on the progress
_WARM_UP = 16  # tokens
_MEMORY_TOKENS = 128
_SLACK = 32  # cache slots beyond the longest text, for drafts that reach past its end


def run(options: BenchOptions, tell: Tell | None = None) -> Report:
    """Measure methods, and peers, on prompts; write the files that the options name.

    Args:
        options: what to measure.
        tell: called with sentences on the progress.

    Raises:
        ConfigError, ModelError, CapabilityError: something asked for does not exist.
        OutpaceError: another benchmark runs on this machine.
    """
    tell = tell or (lambda text: None)
    prompts = [prompt for name in options.prompts for prompt in read_prompts(name, options.num_prompts)]
    with prepared(options, tell) as (directory, facts, scratch), ExitStack() as stack:
        report = _measure_all(options, directory, prompts, facts, tell, scratch, stack)
    report.write(options.json, options.plot, options.markdown)
    return report


@contextmanager
def prepared(options: CommonOptions, tell: Tell) -> Iterator[tuple[Path, dict[str, Any], Path]]:
    """Hold the machine's lock and yield the model's directory, inflated if asked, the machine, and a scratch folder."""
    threads = options.threads or torch.get_num_threads()
    with machine.lock(options.wait_s), fixed(threads), tempfile.TemporaryDirectory() as scratch:
        directory = resolve(options.model)
        facts = machine.describe()
        if facts["is_busy"]:
            tell(f"The machine is busy (load {facts['load_average'][0]}): the figures will be noisy.")
        if options.inflate:
            tell(f"Inflating {options.model} to {options.inflate:,} parameters.")
            # Named like the source, so that what is written down names the source.
            directory = inflate(directory, Path(scratch) / directory.name, options.inflate, options.seed)
        yield directory, facts, Path(scratch)


def _measure_all(
    options: BenchOptions,
    directory: Path,
    prompts: Sequence[Prompt],
    facts: dict[str, Any],
    tell: Tell,
    scratch: Path,
    stack: ExitStack,
) -> Report:
    arms, skipped, lm = make_arms(options, directory)
    device = lm.target.device.type
    if device == "cuda":  # the load stays the one from before the model was read
        facts.update({name: machine.describe(device)[name] for name in ("gpu", "gpu_note")})
    dtype = lm.target.dtype
    tasks = {prompt: encode_prompt(lm, prompt) for prompt in prompts}
    folder = (options.peer_models or scratch) / f"{directory.name}-{contents_name(directory)}"
    capacity = max(len(ids) for ids in tasks.values()) + options.max_tokens + _SLACK
    place = Workplace(directory, folder, dtype, torch.get_num_threads(), capacity)
    peers, missing, versions = gather_peers(options, place, _draft_directory(options, directory), device, stack, tell)
    # Another precision is another text: those stand last, apart from what they may be compared with.
    everything = sorted([*arms, *peers], key=lambda arm: bool(arm.precision))
    skipped += missing
    tell(f"{len(everything)} arms, {len(prompts)} prompts, {options.repeats} repetitions.")
    records, is_cut = measure(everything, tasks, options, lm.end_tokens, tell, device)
    memories = _memories(options, everything, tasks, device, tell) if options.with_memory else {}
    arms_told = [
        {"name": arm.name, "method": arm.method, "path": arm.path, "memory": memories.get(arm.name), **_settings(arm)}
        for arm in everything
    ]
    return new_report(
        "speed",
        options,
        facts,
        make_rows(records, everything, tasks, options, lm.end_tokens),
        skipped=skipped,
        notes=_notes(options, directory, facts, is_cut, lm),
        peers=versions,
        model=model_facts(options.model, directory, dtype),
        arms=arms_told,
        samples=[record.to_dict() for record in records],
    )


def measure(
    arms: Sequence[Arm],
    tasks: dict[Prompt, list[int]],
    options: BenchOptions,
    end_tokens: Sequence[int] = (),
    tell: Tell | None = None,
    device: str = "cpu",
) -> tuple[list[Record], bool]:
    """Run every arm on every prompt: repetitions outermost, arms innermost and adjacent, their order rotating.

    Returns:
        The records, and whether the time limit cut the measurement short (only whole rounds of arms are kept).
    """
    began, rounds = time.monotonic(), list(_rounds(tasks, options))
    ends = tuple(end_tokens)
    for arm, temperature in itertools.product(arms, options.temperatures):
        arm.run(Request(tuple(next(iter(tasks.values()))), _WARM_UP, temperature, options.seed, ends))

    def begin(number: int) -> bool:
        if options.time_limit_s and number and time.monotonic() - began > options.time_limit_s:
            return False
        if tell is not None and number and number % 12 == 0:
            tell(f"{number} of {len(rounds)} rounds, {time.monotonic() - began:.0f} s.")
        at.append(number)
        gc.collect()
        return True

    def play(arm: Arm) -> Record:
        repeat, temperature, prompt = rounds[at[-1]]
        machine.synchronise(device)
        task = Request(tuple(tasks[prompt]), options.max_tokens, temperature, options.seed, ends)
        return Record(arm.name, prompt.set, prompt.id, temperature, repeat, arm.run(task))

    at: list[int] = []
    found = in_turns({arm.name: partial(play, arm) for arm in arms}, len(rounds), warm_ups=0, begin=begin)
    return [record for records in zip(*found.values(), strict=True) for record in records], len(at) < len(rounds)


def _rounds(tasks: dict[Prompt, list[int]], options: BenchOptions) -> Iterator[tuple[int, float, Prompt]]:
    """Yield every (repetition, temperature, prompt), sets alternating, so that a time limit cuts all sets alike."""
    by_set: dict[str, list[Prompt]] = {}
    for prompt in tasks:
        by_set.setdefault(prompt.set, []).append(prompt)
    longest = max(len(group) for group in by_set.values())
    mixed = [group[i] for i in range(longest) for group in by_set.values() if i < len(group)]
    for repeat in range(options.repeats):
        for prompt in mixed:
            for temperature in options.temperatures:
                yield repeat, temperature, prompt


def _draft_directory(options: BenchOptions, directory: Path) -> Path | None:
    try:
        return resolve(drafter_name(options, directory))
    except ConfigError:
        return None


def _memories(
    options: BenchOptions, arms: Sequence[Arm], tasks: dict[Prompt, list[int]], device: str, tell: Tell
) -> dict[str, Any]:
    if device == "cuda":
        return {arm.name: {"error": "Peak memory is measured on the CPU only."} for arm in arms}
    ids = max(tasks.values(), key=len)
    tell(f"Peak memory of {len(arms)} arms, each in a fresh process.")
    size = min(options.max_tokens, _MEMORY_TOKENS)
    return {arm.name: memory.measure(arm.memory_job(), ids, size, torch.get_num_threads()) for arm in arms}


def _notes(options: BenchOptions, directory: Path, facts: dict[str, Any], is_cut: bool, lm: Any) -> list[str]:
    notes = ["Ids in, ids out: no arm turns tokens into text.", str(facts["gpu_note"])]
    marker = inflated_from(directory)
    if marker:
        notes.append(
            f"The target is inflated: it writes what {marker['from']} writes, at the cost of {marker['params']:,}"
            " parameters."
        )
    if facts["is_busy"]:
        notes.append(f"The machine was busy beforehand: load average {facts['load_average'][0]}.")
    if is_cut:
        notes.append(f"The time limit of {options.time_limit_s:.0f} s cut the repetitions short; all rounds are whole.")
    if any(name in ENGINES for name in options.peers):
        notes.append(f"Rows in int8 and int4 are marked '{OTHER_TEXT}': what a CPU user may pick instead.")
    if options.peers and any(options.temperatures):
        notes.append("At a temperature the peers' text differs from ours, and from one mode to the next: other noise.")
    asked = read_generation(directory).law
    if asked:
        notes.append(f"No arm obeys what the model's own files ask of a text: {', '.join(sorted(asked))}.")
    notes += lm.target.notes
    return [note for note in notes if note]


def model_facts(name: str, directory: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a document says of its model."""
    config, marker = read_config(directory), inflated_from(directory)
    total = memory.stored_parameters(directory)
    is_tied = bool(config.get("tie_word_embeddings"))
    table = 0 if is_tied else config.get("vocab_size", 0) * config.get("hidden_size", 0)
    return {
        "name": Path(name).name,
        "parameters": total,
        "streamed_per_token": total - table,
        "inflated": marker,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _settings(arm: Arm) -> dict[str, Any]:
    if not isinstance(arm, OurArm):
        return {}
    told, needs = arm.settings.to_dict(), arm.settings.needs
    others = {role: Path(str(told[role])).name for role in (*needs.models, *needs.optional_models) if role in told}
    return {"settings": {**told, **others}}

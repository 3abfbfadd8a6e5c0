"""Everything that only a GPU can show, in one command and a few minutes: checks, exactness, speed and peak memory.

    python -m outpace.bench.gpu FOLDER

needs torch, numpy, safetensors, tokenizers and, for the comparison, transformers: no test runner, no command line
library, no network. Each part has an allowance of the time; what does not fit is skipped and said so. `gpu.json` in the
folder is written again after every part, so that a run which is stopped leaves what it had.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.bench import machine
from outpace.bench.arms import Arm, OurArm, Request
from outpace.bench.options import BenchOptions
from outpace.bench.peers import HfArm
from outpace.bench.prompts import Prompt, read_prompts
from outpace.bench.random_llama import first_layers, hf_twin, random_decoder
from outpace.bench.speed import measure
from outpace.errors import OutpaceError
from outpace.methods.base import Method
from outpace.methods.misfit import misfits
from outpace.methods.registry import load_method, method_names
from outpace.models.graphs import Graphs, make_graphs
from outpace.models.transformer import Transformer
from outpace.testing.certificate import Flip
from outpace.testing.certify import PROMPTS, logit_drift
from outpace.testing.device import DEVICE_CHECKS
from outpace.types import Adapter, Guarantee

__all__ = ["Budget", "compare_exact", "main", "run", "time_arms"]

_PLAIN = "autoregressive"
_METHODS = (_PLAIN, "suffix", "token-recycling", "auto")  # what is timed
_TOKENS = 32  # per text of a comparison
_TIMED_TOKENS = 64
_LAWS: dict[str, dict[str, Any]] = {"greedy": {}, "temperature 0.7": {"temperature": 0.7}}


class Budget:
    """Time to spend, and what was left out for want of it.

    Args:
        seconds: in all.
        tell: takes a line on the progress.
    """

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        self.seconds, self.tell, self._began = seconds, tell, time.monotonic()
        self.skipped: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self._began)

    @contextmanager
    def within(self, share: float) -> Iterator[None]:
        """While in the block, let no more than this share of the time that is left be spent."""
        whole, self.seconds = self.seconds, self.seconds - (1 - share) * self.left_s
        try:
            yield
        finally:
            self.seconds = whole

    def affords(self, what: str, seconds: float) -> bool:
        """Return whether something that takes about so long still fits; if not, note that it is left out."""
        if self.left_s >= seconds:
            return True
        self.skipped.append(what)
        self.tell(f"skipped for want of time: {what}")
        return False


def run(folder: Path, device: str, seconds: float, size: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run all parts; return what is written to gpu.json.

    Args:
        folder: where to write.
        device: "cuda"; on "cpu" the same runs without graphs, which shows that it runs.
        seconds: after which nothing new is begun.
        size: of the random Llama, see `outpace.bench.random_llama`.
        tell: takes lines on the progress.
    """
    budget = Budget(seconds, tell)
    # The CPU has nothing to record and no memory of its own to ask; all else is the same there.
    found: dict[str, Any] = {"machine": machine.describe(device), "device": device, "seconds": seconds, "size": size}
    parts: dict[str, Callable[[], Iterator[Any]]] = {
        "checks": lambda: _checks(device, budget),
        "exactness": lambda: _exactness(device, size, budget),
        "speed": lambda: _speed(device, size, budget),
    }
    for (name, part), share in zip(parts.items(), (0.25, 0.6, 1.0), strict=True):
        tell(f"== {name}, {budget.left_s:.0f} s left")
        found[name] = []
        with budget.within(share):
            for entry in part():
                found[name].append(entry)
                _write(folder, found, budget)
    found["took_s"] = round(seconds - budget.left_s, 1)
    _write(folder, found, budget)
    return found


def _write(folder: Path, found: dict[str, Any], budget: Budget) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found |= {"skipped": budget.skipped, "faults": faults(found)}
    (folder / "gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


def faults(found: dict[str, Any]) -> list[str]:
    """Return a sentence for everything that is wrong; empty = all that was run holds."""
    wrong = [f"{entry['name']}: {entry['fault']}" for entry in found.get("checks", []) if entry["fault"]]
    for line in found.get("exactness", []):
        where = f"{line['method']} on {line['model']} in {line['dtype']}, {line['law']}"
        wrong += [f"{where}: {line['fault']}"] if line["fault"] else []
        bad = [flip for flip in line["flips"] if flip["margin"] > flip["tolerance"]]
        wrong += [f"{where}: token {flip['index']} of text {flip['prompt']} is no rounding" for flip in bad]
    return wrong + [f"{entry['arm']}: {entry['fault']}" for entry in found.get("speed", []) if entry.get("fault")]


# 1 Checks


def _checks(device: str, budget: Budget) -> Iterator[dict[str, Any]]:
    for check in DEVICE_CHECKS:
        name = check.__name__.removeprefix("check_")
        if (device == "cpu" and name == "graphs") or not budget.affords(f"check of {name}", 5):
            continue
        fault, began = "", time.monotonic()
        try:
            check(device)
        except Exception as error:  # whatever breaks on a device is what this looks for
            fault = _told(error)
        budget.tell(f"{name:12}{fault or 'holds'}")
        yield {"name": name, "fault": fault, "seconds": round(time.monotonic() - began, 2)}


def _told(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, AssertionError | OutpaceError) else f"{type(error).__name__}: {first}"


# 2 Exact methods beside plain decoding


def _exactness(device: str, size: str, budget: Budget) -> Iterator[dict[str, Any]]:
    """Compare on every model and precision, those that tell most first, none at the cost of all others."""
    wanted = [("stories", "float64"), (size, "bfloat16"), ("stories", "bfloat16"), ("stories-mask", "float64")]
    wanted += [("stories-block", "float64"), (size, "float32"), ("stories", "float32")]
    for number, (name, dtype) in enumerate(wanted):
        label = name if name != size else f"random {size}"
        if not budget.affords(f"exactness on {label} in {dtype}", 8):
            continue
        with budget.within(min(1.0, 1.6 / (len(wanted) - number))):
            draft = None
            if name == size:
                target = random_decoder(size, dtype, device)
                target.use_graphs(make_graphs("auto", torch.device(device)))
                draft = first_layers(target)
                lm = LanguageModel(target, name=label, dtype=dtype, device=device)
                prompts = _random_prompts(lm)
            else:
                lm = load(name, dtype=dtype, device=device, is_compiled=False)
                prompts = [lm.encode(text) for text in PROMPTS[:4]]
            yield from compare_exact(lm, prompts, dtype, budget, draft=draft)


def _random_prompts(lm: LanguageModel) -> list[list[int]]:
    """Return prompts for a model without a text: random ids, each repeated in part so that drafters find copies."""
    source = torch.Generator().manual_seed(11)
    drawn = torch.randint(2, lm.target.capabilities.vocab_size, (4, 24), generator=source).tolist()
    return [ids * 2 + ids[: 6 * row] for row, ids in enumerate(drawn)]


def compare_exact(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    dtype: str,
    budget: Budget,
    names: Sequence[str] = (),
    draft: Adapter | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield, per exact method and law, where its texts leave those of its reference: never in float64.

    Below it, each flip has its margin and the tolerance that it must lie under, as certificates have them. Chains are
    also compared in batch-invariant mode in half precision, where nothing may differ.

    Args:
        lm: the model.
        prompts: ids.
        dtype: its name.
        budget: the time.
        names: of the methods; empty = all.
        draft: for methods that need a draft model; None = the one that is known for the model.
    """
    tolerance = 0.0 if dtype == "float64" else 2 * logit_drift(lm.target, prompts)
    written: dict[tuple[str, str], list[Result]] = {}
    for name in names or method_names():
        method = load_method(name)().to_certify()
        is_exact = method.guarantee is Guarantee.EXACT and name != _PLAIN
        if not is_exact or misfits(method, lm.target.capabilities):
            continue
        if not budget.affords(f"exactness on {lm.name} in {dtype}, from {name} on", 2):
            return
        seen: list[dict[str, Any]] = []
        for law, arguments in _LAWS.items():
            if seen and budget.left_s <= 0:  # what was broken off is on record
                break
            given: dict[str, Any] = {"max_tokens": _TOKENS, "ignore_eos": True, "seed": 3, **arguments}
            given |= {"is_cancelled": lambda: budget.left_s <= 0, "models": {} if draft is None else {"draft": draft}}
            line: dict[str, Any] = {"model": lm.name, "dtype": dtype, "method": name, "law": law, "fault": ""}
            flips: list[dict[str, Any]] = []
            line |= {"flips": flips, "tokens": 0, "kept": 0}
            try:
                key = repr(method.reference()), law
                if key not in written:
                    more: dict[str, Any] = {} if dtype == "float64" else {"record": ("margins",)}
                    written[key] = lm.generate(list(prompts), method=method.reference(), **given, **more)
                ours = lm.generate(list(prompts), method=method, **given)
                if budget.affords(f"the rest of {name} on {lm.name} in {dtype}", 0):
                    allowed = tolerance / arguments.get("temperature", 1.0)
                    flips += [dataclasses.asdict(flip) for flip in _flips(written[key], ours, allowed)]
                    line["tokens"] = sum(len(result.tokens) for result in ours)
                    line["kept"] = sum(result.usage.num_accepted for result in ours)
                    if dtype == "bfloat16" and law == "greedy" and not method.needs.has_tree:
                        line["batch_invariant"], line["fault"] = _invariant(lm, method, prompts[0], given, budget)
                else:  # texts were broken off
                    line["not_run"] = "There was no time."
            except OutpaceError as error:  # another model is needed, say
                line["not_run"] = str(error)
            except Exception as error:
                line["fault"] = _told(error)
            seen.append(line)
            yield line
        budget.tell(f"{lm.name:14}{dtype:10}{name:20}{_verdict(seen)}")


def _flips(plain: Sequence[Result], ours: Sequence[Result], allowed: float) -> Iterator[Flip]:
    for row, (theirs, result) in enumerate(zip(plain, ours, strict=True)):
        pairs = enumerate(zip(theirs.tokens, result.tokens, strict=False))
        at = next((at for at, (wanted, written) in pairs if wanted != written), None)
        if at is None and len(theirs.tokens) != len(result.tokens):
            at = min(len(theirs.tokens), len(result.tokens))
        if at is not None:
            margin = theirs.margins[at] if at < len(theirs.margins) else float("inf")
            yield Flip(row, at, margin, allowed)


def _invariant(
    lm: LanguageModel, method: Method, ids: list[int], given: dict[str, Any], budget: Budget
) -> tuple[bool | None, str]:
    """Return whether both texts are the same in batch-invariant mode (None = there was no time), and what is wrong."""
    plain, ours = (
        lm.generate(ids, method=each, is_batch_invariant=True, **given) for each in (method.reference(), method)
    )
    if budget.left_s <= 0:
        return None, ""
    is_same = plain.tokens == ours.tokens
    return is_same, "" if is_same else "the text differs in batch-invariant mode."


def _verdict(lines: Sequence[dict[str, Any]]) -> str:
    told: list[str] = [line["fault"] or line.get("not_run", "") for line in lines]
    if any(told):
        return next(text for text in told if text)
    flips = [flip for line in lines for flip in line["flips"]]
    if not flips:
        return f"{sum(line['tokens'] for line in lines)} tokens, the same"
    bad = sum(flip["margin"] > flip["tolerance"] for flip in flips)
    return f"{len(flips)} texts flipped, {bad} of them beyond rounding"


# 3 Speed and peak memory


def _speed(device: str, size: str, budget: Budget) -> Iterator[dict[str, Any]]:
    for name in (size, "stories"):
        label = name if name != size else f"random {size}"
        if not budget.affords(f"speed of {label}", 20):
            continue
        if name == size:
            target = random_decoder(size, "bfloat16", device)
            tokenizer = None
        else:
            loaded = load(name, dtype="bfloat16", device=device, is_compiled=False)
            assert isinstance(loaded.target, Transformer)  # the zoo's decoders are
            target, tokenizer = loaded.target, loaded.tokenizer
        lm = LanguageModel(target, None, name=label, dtype="bfloat16", device=device)
        if tokenizer is None:
            tasks = {Prompt("random", str(i), ""): ids for i, ids in enumerate(_random_prompts(lm)[:2])}
        else:
            tasks = {prompt: tokenizer.encode(prompt.text) for prompt in read_prompts("copy", 2)}
        try:
            yield from time_arms(lm, tasks, device, budget)
        except Exception as error:  # the other model may still be measured
            yield {"model": label, "arm": f"all of {label}", "fault": _told(error)}


def time_arms(
    lm: LanguageModel,
    tasks: dict[Prompt, list[int]],
    device: str,
    budget: Budget,
    names: Sequence[str] = _METHODS,
    repeats: int = 3,
) -> Iterator[dict[str, Any]]:
    """Yield a row per arm: our methods with graphs off and on, and transformers on the same weights.

    Args:
        lm: a native decoder.
        tasks: prompts and their ids; every arm writes the same number of tokens after each.
        device: where it lies.
        budget: the time; rounds of all arms are cut short by it.
        names: of our methods.
        repeats: of everything.
    """
    assert isinstance(lm.target, Transformer)
    arms: list[Arm] = []
    recorders: dict[str, Graphs] = {}
    for mode in ("off", "on") if device == "cuda" else ("off",):
        target = copy.copy(lm.target)
        target.use_graphs(make_graphs("auto" if mode == "on" else "off", torch.device(device)))
        bare = LanguageModel(target, None, name=lm.name, dtype=lm.dtype, device=lm.device)
        for name in names:
            arms.append(OurArm(bare, load_method(name)(), f"graphs {mode}", name))
            if target.graphs is not None:
                recorders[arms[-1].name] = target.graphs
    try:
        twin = hf_twin(lm.target)
        arms += [HfArm(twin, mode, "", device) for mode in ("plain", "prompt-lookup")]
    except ImportError:
        budget.tell("transformers is not installed: nothing to compare with.")
    peaks = {arm.name: _peak(arm, next(iter(tasks.values())), device) for arm in arms}
    options = BenchOptions(
        max_tokens=_TIMED_TOKENS, repeats=repeats, temperatures=(0.0,), time_limit_s=max(1.0, 0.6 * budget.left_s)
    )
    records, is_cut = measure(arms, tasks, options, (), budget.tell, device)
    for arm in arms:
        samples = [record.sample for record in records if record.arm == arm.name]
        row = {
            "model": lm.name,
            "arm": arm.name,
            "tokens_per_s": round(statistics.median(sample.rate for sample in samples), 1),
            "prefill_s": round(statistics.median(sample.prefill_s for sample in samples), 4),
            "tokens": [len(sample.tokens) for sample in samples],
            "tokens_per_forward": round(statistics.median(len(s.tokens) / max(1, s.forwards) for s in samples), 2),
            "weights_bytes": lm.target.weights.num_bytes,
            "peak_memory_bytes": peaks[arm.name],
            "repeats": len(samples),
            "is_cut_short": is_cut,
        }
        if arm.name in recorders:
            counts = recorders[arm.name]
            row["graphs"] = {name: getattr(counts, name) for name in ("num_recorded", "num_replayed", "num_plain")}
            row["fault"] = counts.fault
        budget.tell(f"{lm.name:14}{arm.name:36}{row['tokens_per_s']:>9} tokens/s")
        yield row


def _peak(arm: Arm, ids: Sequence[int], device: str) -> int | None:
    """Return the most device memory in use while an arm writes, weights of all arms included; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    arm.run(Request(tuple(ids), _TIMED_TOKENS, 0.0, 0))
    return int(torch.cuda.max_memory_allocated())


def main() -> int:
    """Parse the command line and run; exit status 1 = something is wrong, 2 = there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="to write gpu.json into (default: $OUT, or build/gpu)",
        default=Path(os.environ.get("OUT") or "build/gpu"),
    )
    parser.add_argument("--seconds", type=float, default=220.0, help="after which nothing new is begun (default: 220)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="1b", choices=("tiny", "1b"), help="of the random Llama")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device here; --device cpu --size tiny shows that the command runs.")
        return 2
    began = time.monotonic()
    found = run(
        given.folder,
        given.device,
        given.seconds,
        given.size,
        lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True),
    )
    wrong = faults(found)
    left_out = f" {len(found['skipped'])} things were skipped." if found["skipped"] else ""
    print("\n".join([f"WRONG: {text}" for text in wrong] or [f"All that was run holds.{left_out}"]))
    print(f"written: {given.folder / 'gpu.json'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Certifying every method that fits a model, side by side in processes; what cannot run here is said, not left out."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import Thread

import torch

from outpace.api.engine import LanguageModel, load
from outpace.errors import CapabilityError, ConfigError, OutpaceError
from outpace.heads.find import find_head
from outpace.methods.base import Method
from outpace.methods.misfit import misfits
from outpace.methods.registry import load_method, method_names
from outpace.testing.certify import Certificate, Plan, certify_model, own_prompts, working_dtype
from outpace.types import Guarantee
from outpace.zoo import drafter_of

__all__ = ["Entry", "certifiable", "certify_all", "entry_of"]

_PLAIN = "autoregressive"


@dataclass(frozen=True, slots=True)
class Entry:
    """One method's certificate, or why there is none.

    Attributes:
        method: its name.
        certificate: None = not run.
        reason: why not.
        is_failure: it should have run.
    """

    method: str
    certificate: Certificate | None = None
    reason: str = ""
    is_failure: bool = False

    @property
    def exit_status(self) -> int:
        """0 = certified, or rightly left out; 3 = too little seen; 1 = something is wrong."""
        return self.certificate.exit_status if self.certificate is not None else int(self.is_failure)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong or unproven."""
        return self.exit_status == 0

    def render(self) -> str:
        """Return one line."""
        if self.certificate is None:
            return f"{self.method:24}{'FAILED' if self.is_failure else 'not run':16}{self.reason}"
        seen = self.certificate
        accepted, rejected = (sum(getattr(line, kind) for line in seen.lines) for kind in ("accepted", "rejected"))
        flips = sum(len(line.flips) for line in seen.lines)
        faults = [fault for line in seen.lines for fault in line.faults]
        faults += [f"{name}: {reason}" for name, reason in seen.checks.items() if reason]
        faults += [f"{line.setting}: not seen: {missing}" for line in seen.lines for missing in line.missing]
        faults += [f"not done for want of time: {'; '.join(seen.dropped)}"] if seen.dropped else []
        verdict = seen.verdict.value if seen.holds else seen.verdict.value.upper()
        counts = f"{accepted:>7} kept {rejected:>7} rejected {flips:>3} flips {seen.seconds:>5.0f} s"
        return f"{self.method:24}{verdict:16}{seen.guarantee:14}{counts}{'  ' + faults[0] if faults else ''}"


def certifiable(model: str, names: Sequence[str] = (), draft: str = "auto") -> Iterator[tuple[Method | None, Entry]]:
    """Yield each method that can be certified on a model, or None with an entry that says why it cannot.

    Args:
        model: the model's name, for its drafter.
        names: which methods; empty = all that are registered.
        draft: a model that drafts for methods which name none themselves; "auto" = the one known for the model.
    """
    from outpace.models.opening import offered_by

    # Of a model without a native loader, only trying it tells what it can do.
    offered = offered_by(model) or load(model, dtype="float64").target.capabilities
    for name in names or [name for name in method_names() if name != _PLAIN]:
        method = _with_draft(load_method(name)(), draft)
        if method.guarantee is Guarantee.APPROXIMATE:
            yield None, Entry(name, reason="approximate: it may change the text, so there is nothing to certify")
        elif misfits(method, offered):
            yield None, Entry(name, reason=f"needs {' and '.join(misfits(method, offered))}")
        elif (lacks := _lacks(method, model, offered.vocab_size)) is not None:
            yield None, Entry(name, reason=lacks)
        else:
            yield method, Entry(name)


def _with_draft(method: Method, draft: str) -> Method:
    """Return a method that drafts with a model, where it leaves open which and takes one that writes token by token."""
    wants = "draft" in (*method.needs.models, *method.needs.optional_models)
    if not wants or method.needs.head or str(getattr(method, "draft", "")) != "auto":
        return method
    return type(method).from_settings({**method.to_dict(), "draft": draft})


def _lacks(method: Method, model: str, vocab_size: int) -> str | None:
    """Return the sentence about a drafter or a collection that is not at hand, or a drafter of other tokens."""
    from outpace.models.opening import offered_by

    if getattr(method, "collection", None) == "":
        return "it decodes plainly where no collection is named"
    for role in method.needs.models:
        if (name := str(getattr(method, role))) != "auto":
            other = offered_by(name)
            if other is not None and other.vocab_size != vocab_size and not method.needs.has_text:
                return f"its drafter {name!r} has {other.vocab_size} tokens, the model {vocab_size}"
        else:
            try:
                find_head(model, method.needs.head) if method.needs.head else drafter_of(model)
            except OutpaceError as error:
                return str(error)
    return None


def certify_all(
    model: str,
    names: Sequence[str] = (),
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    limit_s: float = 300.0,
    jobs: int = 2,
    draft: str = "auto",
) -> Iterator[Entry]:
    """Certify methods under their default settings, yielding each entry as it is ready.

    Args:
        model: zoo name, directory or hub id.
        names: which; empty = all that are registered.
        dtype: the working precision in which flips are listed, as `certify` takes it.
        seed: of every draw.
        limit_s: seconds per method.
        jobs: processes side by side.
        draft: as `certifiable` takes it.
    """
    methods = []
    for method, entry in certifiable(model, names, draft):
        if method is None:
            yield entry
        else:
            methods.append(method)
    # A fresh process each: a fork would copy the threads' locks.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_set_up, initargs=(model, dtype, threads)) as pool:
        waiting = {pool.submit(_certify, method, seed, limit_s): method.name for method in methods}
        for done in as_completed(waiting):
            yield entry_of(waiting[done], done)


def entry_of(name: str, done: Future[Certificate]) -> Entry:
    """Return what became of a method: its certificate, why it was refused, or what went wrong."""
    error = done.exception()
    if error is None:
        return Entry(name, done.result())
    if isinstance(error, ConfigError):  # refused before it began: its drafter is of another kind, say
        return Entry(name, reason=str(error))
    return Entry(name, reason=f"{type(error).__name__}: {error}", is_failure=True)


_loaded: dict[str, LanguageModel] = {}  # of a worker process


def _set_up(model: str, dtype: str, threads: int) -> None:
    Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _loaded["exact"] = load(model, dtype="float64")
    if (lower := working_dtype(_loaded["exact"], dtype)) != "float64":
        _loaded["rounded"] = load(model, dtype=lower)


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone; a pool sees to that after Ctrl-C alone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _certify(method: Method, seed: int, limit_s: float) -> Certificate:
    lm = _loaded["exact"]
    try:
        lm.generate(own_prompts(lm)[-1], method=method, max_tokens=1)
    except CapabilityError as error:  # the model does not offer what it needs; raised later, it would be a failure
        raise ConfigError(str(error), error.hint) from error
    return certify_model(lm, method, rounded=_loaded.get("rounded"), seed=seed, plan=Plan(limit_s))

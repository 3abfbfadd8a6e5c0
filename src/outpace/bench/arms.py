"""What is measured: an arm takes ids and gives ids, and says what that took."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from outpace.api.engine import LanguageModel, load
from outpace.bench.inflate import inflated_from
from outpace.bench.options import BenchOptions, CommonOptions
from outpace.bench.report import Skipped
from outpace.errors import CapabilityError, ConfigError
from outpace.heads.known import known_heads
from outpace.methods.base import Method
from outpace.methods.misfit import check_fit
from outpace.methods.registry import load_method
from outpace.models.loading import resolve
from outpace.zoo import drafter_of

__all__ = [
    "PLAIN",
    "Arm",
    "OurArm",
    "Request",
    "Sample",
    "drafter_name",
    "make_arms",
    "make_method",
    "with_drafter",
]

PLAIN = "autoregressive"


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to make.

    Attributes:
        ids: the prompt.
        max_tokens: most tokens to write.
        temperature: 0 = greedy.
        seed: of sampling.
        end_tokens: ids that end the text.
    """

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    end_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One generation as it was measured.

    Attributes:
        tokens: ids written, up to the true stop.
        prefill_s: until decoding began (peers: until their first tokens were there).
        decode_s: decoding, prefill apart.
        num_decoded: tokens that `decode_s` paid for.
        finish: why it ended.
        forwards: target forwards while decoding.
        positions: target positions scored while decoding; 0 = unknown.
        phases: shares of decode_s in seconds: draft, score, accept, other; empty for peers.
        proposed, accepted: drafts; 0 for peers.
    """

    tokens: list[int]
    prefill_s: float
    decode_s: float
    num_decoded: int
    finish: str
    forwards: int
    positions: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    proposed: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """Tokens decoded per second; 0 where nothing was left to time after the first token."""
        return self.num_decoded / self.decode_s if self.decode_s > 0 else 0.0


class Arm(Protocol):
    """One side of the comparison.

    Attributes:
        name: unique.
        method: our method, or the peer's mode.
        path: "eager" or "compiled", or the peer's name.
        precision: "" = that of our own arms; "int8", "int4" of a peer write another text.
        baseline: name of the plain arm that this one's text and speed are compared with.
        counterpart: name of the peer arm of the same kind, "" = none.
    """

    name: str
    method: str
    path: str
    precision: str
    baseline: str
    counterpart: str

    def run(self, task: Request) -> Sample:
        """Make one generation, from empty memory."""
        ...

    def memory_job(self) -> dict[str, Any]:
        """Return what a fresh process needs to run this arm; see `outpace.bench.memory`."""
        ...


_COUNTERPARTS = {PLAIN: "hf:plain", "prompt-lookup": "hf:prompt-lookup", "draft-model": "hf:assisted"}


class OurArm:
    """One of our methods on one forward path."""

    precision = ""

    def __init__(self, lm: LanguageModel, method: Method, path: str, label: str, directory: str = "") -> None:
        self.lm, self.settings = lm, method
        self.method, self.path = label, path
        self.name, self.baseline = f"{label} ({path})", f"{PLAIN} ({path})"
        self.counterpart = _COUNTERPARTS.get(method.name, "")
        self.directory = directory

    def run(self, task: Request) -> Sample:
        """Make one generation; no memory is handed over, so every one starts without."""
        result = self._generate(task)
        usage, timing = result.usage, result.timing
        phases = {name: timing[f"{name}_s"] for name in ("draft", "score", "accept", "other")}
        return Sample(
            tokens=result.tokens,
            prefill_s=timing["prefill_s"],
            decode_s=timing["decode_s"],
            num_decoded=len(result.tokens),
            finish=result.finish_reason,
            forwards=usage.num_steps,
            positions=usage.positions_scored - (usage.num_prompt - 1),
            phases=phases,
            proposed=usage.num_proposed,
            accepted=usage.num_accepted,
        )

    def margins(self, task: Request) -> list[float]:
        """Return how far each token is from being another one (not for timing)."""
        return list(self._generate(task, record=("margins",)).margins)

    def _generate(self, task: Request, **extra: Any) -> Any:
        self.lm.end_tokens = task.end_tokens
        return self.lm.generate(
            list(task.ids),
            method=self.settings,
            max_tokens=task.max_tokens,
            seed=task.seed,
            temperature=task.temperature,
            **extra,
        )

    def memory_job(self) -> dict[str, Any]:
        """Return what a fresh process needs."""
        return {
            "kind": "ours",
            "directory": self.directory,
            "dtype": self.lm.dtype,
            "method": self.settings.name,
            "settings": self.settings.to_dict(),
            "is_compiled": self.path == "compiled",
        }


def make_method(text: str, options: BenchOptions) -> Method:
    """Return the method that "name:key=value:..." and the options for that name mean."""
    name, *parts = text.split(":")
    if any("=" not in part for part in parts):
        raise ConfigError(f"{text!r} is no method with settings.", "Write it like draft-model:draft_len=4.")
    given = dict(part.split("=", 1) for part in parts)
    return load_method(name).from_settings({**options.options.get(name, {}), **given})


def drafter_name(options: CommonOptions, directory: Path) -> str:
    """Return the draft model's name: as asked, or that of the model, or of the model which was inflated."""
    if options.draft != "auto":
        return options.draft
    marker = inflated_from(directory)
    return drafter_of(str(marker["from"]) if marker else options.model)


def make_arms(
    options: BenchOptions, directory: Path, is_lenient: bool = False
) -> tuple[list[OurArm], list[Skipped], LanguageModel]:
    """Load the target once per path and return our arms, plain decoding first, what is left out, and a full model.

    The arms' models have no tokenizer (ids in, ids out, as with the peers), but for methods that draft on text.

    Args:
        options: what is measured.
        directory: the target's.
        is_lenient: leave out a method that lacks a setting here, such as a drafter, rather than raise.

    Raises:
        ConfigError: a method or a setting does not exist, or no path works.
    """
    arms, skipped, kept = [], [], None
    is_inflated = inflated_from(directory) is not None
    wanted = [PLAIN, *(text for text in options.methods if text != PLAIN)]
    for path in dict.fromkeys(options.paths):
        is_compiled = path == "compiled"
        lm = load(
            directory, dtype=options.dtype, device=options.device, is_compiled=is_compiled, generation_config="none"
        )
        if path == "compiled" and lm.target.path != "compiled":
            notes = list(lm.target.notes) or ["eager path: the compiled kernels do not serve this model"]
            reason = str(notes[0]).removeprefix("eager path: ")
            skipped.append(Skipped("all methods (compiled)", f"No compiled path: {reason}."))
            continue
        kept = lm
        bare, textual = (
            LanguageModel(lm.target, tokenizer, name=options.model, dtype=options.dtype, device=options.device)
            for tokenizer in (None, lm.tokenizer)
        )
        bare.is_compiled = textual.is_compiled = lm.is_compiled
        for text in dict.fromkeys(wanted):
            try:
                method = make_method(text, options)
                reason = _refusal(method, bare, is_inflated)
                method = method if reason else with_drafter(_with_head(method, lm), options, directory)
            except ConfigError as error:
                if not is_lenient:
                    raise
                reason = f"{error} {error.hint}"
            if reason:
                skipped.append(Skipped(f"{text} ({path})", reason))
            else:
                chosen = textual if method.needs.has_text else bare
                arms.append(OurArm(chosen, method, path, text, str(directory)))
    if kept is None:
        raise ConfigError("No forward path that was asked for works here.", "Add --paths eager.")
    return arms, skipped, kept


def _with_head(method: Method, lm: LanguageModel) -> Method:
    """Return a method whose trained drafter is named, where it takes one and one is known for the model."""
    if not method.needs.takes_heads or str(getattr(method, "draft", "")) != "auto":
        return method
    found = known_heads(lm.target, lm.tokenizer)
    return dataclasses.replace(method, draft=str(found[0])) if found else method  # type: ignore[call-arg]


def _refusal(method: Method, lm: LanguageModel, is_inflated: bool) -> str:
    """Return why a method is not timed on a model, or ""."""
    if is_inflated and method.needs.has_skip:
        return "It drafts with parts of the target, and this target is inflated: its added layers do nothing."
    try:
        check_fit(method, lm.target.capabilities)
    except CapabilityError as error:
        return str(error)
    return ""


def with_drafter(method: Method, options: CommonOptions, directory: Path) -> Method:
    """Return a method whose draft model is named by its directory, if it has one.

    Raises:
        ConfigError: it needs a draft model and none is known.
    """
    needs = method.needs
    if "draft" not in (*needs.models, *needs.optional_models):
        return method
    name = str(getattr(method, "draft", "auto"))
    try:
        name = drafter_name(options, directory) if name == "auto" else name
    except ConfigError:
        if "draft" in needs.models:
            raise
        return method
    # The resolved directory, so that a drafter given relative to the model is found by a fresh process too.
    return dataclasses.replace(method, draft=str(resolve(name)))  # type: ignore[call-arg]

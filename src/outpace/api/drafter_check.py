"""The self-test of a drafter from elsewhere: what its files leave open is tried out, and a useless one is refused.

Layouts leave conventions unsaid (is the residual normed, do layer numbers count what enters or what leaves, which
halves of a head turn together), and a wrong one raises nothing: the drafter is merely right a third as often. So three
fixed prompts are written with each, and the one that keeps most drafts is taken. The verdict is kept in the cache
folder, by the content of the drafter's files and of the target.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outpace.errors import CapabilityError, ModelError
from outpace.heads.files import is_head, open_head, read_head, save_head
from outpace.heads.foreign.export import write_drafter, write_pard
from outpace.heads.foreign.opening import Opened, check_lossless, open_foreign
from outpace.heads.foreign.source import Choice, Source, read_source
from outpace.heads.model import HeadModel
from outpace.store import cache_folder, is_whole, save
from outpace.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["LEAST", "Verdict", "check_drafter", "export_drafter", "open_checked"]

LEAST = 1.2
"""Tokens a round below which a drafter is refused: 1 would be plain decoding."""

_PROMPTS = (
    "Once upon a time, there was a little",
    "The capital of France is Paris. The capital of Italy is",
    "One day, a girl named Lily went to the park with her mom.",
)
_TOKENS, _BETTER, _VERSION = 40, 1.5, 1
_UNKNOWN = "It was trained for another target, on other texts, or hardly at all."


@dataclass(frozen=True)
class Verdict:
    """What the self-test of a drafter found.

    Attributes:
        layout: of its files.
        kind: of our network.
        chosen: conventions that are used, by name.
        tokens_per_round: with them, on the fixed prompts.
        trials: what was tried: conventions, and tokens per round with them.
        findings: sentences for the user: what was left open and how it was decided.
        cause: why the drafter is useless, most likely; "" = it is not.
        is_kept: the user takes it all the same.
    """

    layout: str
    kind: str
    chosen: Mapping[str, Any]
    tokens_per_round: float
    trials: Sequence[tuple[Mapping[str, Any], float]] = ()
    findings: Sequence[str] = ()
    cause: str = ""
    is_kept: bool = False

    @property
    def is_useful(self) -> bool:
        """Whether it drafts well enough, or is taken all the same."""
        return self.is_kept or not self.cause

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        trials = [[dict(chosen), rate] for chosen, rate in self.trials]
        fields = {name: getattr(self, name) for name in ("layout", "kind", "tokens_per_round", "cause", "is_kept")}
        return {**fields, "chosen": dict(self.chosen), "findings": list(self.findings), "trials": trials}


def open_checked(lm: LanguageModel, path: Path) -> HeadModel:
    """Return a foreign drafter beside a model; the self-test runs when these two meet for the first time.

    Raises:
        ModelError: the files are damaged or of a layout that is not read, or the self-test refused the drafter.
        CapabilityError: it was trained for another target.
    """
    source = read_source(path)
    place = _place(lm, source)
    verdict = _kept(place)
    if verdict is None or not verdict.is_kept:
        check_lossless(source)
    if verdict is None:
        verdict = _judge(lm, source)
        _keep(place, verdict)
    if not verdict.is_useful:
        raise ModelError(
            f"The drafter {path} gives {verdict.tokens_per_round:.2f} tokens a round; below {LEAST} it only costs.",
            f"{verdict.cause} outpace drafter check {path} --target {lm.name} --keep takes it all the same.",
        )
    model = open_foreign(source, lm.target, verdict.chosen).model
    model.notes = [*model.notes, *verdict.findings]
    return model


def check_drafter(lm: LanguageModel, path: Path, *, is_kept: bool = False) -> Verdict:
    """Run the self-test, whatever an earlier one found (unless it is to be kept all the same), and keep what it finds.

    Args:
        lm: the target.
        path: the drafter's directory or file.
        is_kept: take it even if it is useless, or asks for other texts than the target's (it gets the target's).

    Raises:
        ModelError, CapabilityError: as of `open_checked`; a useless drafter raises nothing here.
    """
    if is_head(path):  # of `outpace train drafter`: its files leave nothing open, and nothing is kept
        model = open_head(path, lm.target)
        rate = _rate(lm, model, _prompts(lm))
        return Verdict("Outpace", model.kind, {}, round(rate, 3), (), (), "" if rate >= LEAST else _UNKNOWN, is_kept)
    source = read_source(path)
    place = _place(lm, source)
    if not is_kept:
        check_lossless(source)
    known = _kept(place) if is_kept else None
    verdict = _judge(lm, source, is_kept) if known is None else replace(known, is_kept=True)
    _keep(place, verdict)
    return verdict


def export_drafter(lm: LanguageModel, path: Path, out: Path, form: str) -> tuple[float, float]:
    """Write a drafter in a foreign layout, and read it back.

    Args:
        lm: the target.
        path: the drafter's directory, ours or a foreign one.
        out: the directory to write.
        form: a name of `outpace.heads.foreign.export.FORMS`, "pard", or "int8": our own layout with matrices of bytes.

    Returns:
        Tokens a round on the fixed prompts, before, and read back by the reader of that layout.

    Raises:
        ConfigError: no such form, or one of another kind of drafter.
        ModelError: the drafter cannot be read, or the form has no place for something that it does.
    """
    prompts = _prompts(lm)
    if form == "pard":
        write_pard(path, out)
        return tuple(_masked_rate(lm, one, prompts) for one in (path, out))  # type: ignore[return-value]
    model = open_head(path, lm.target) if is_head(path) else open_checked(lm, path)
    if form == "int8":
        net, ids = read_head(path) if is_head(path) else (model.net, model.ids)
        save_head(net, out, ids, torch.int8)
        return _rate(lm, model, prompts), _rate(lm, open_head(out, lm.target), prompts)
    write_drafter(model, out, form)
    return _rate(lm, model, prompts), _rate(lm, open_foreign(read_source(out), lm.target).model, prompts)


def _masked_rate(lm: LanguageModel, path: Path, prompts: list[list[int]]) -> float:
    """Return tokens a round of a causal model with a mask, by the method that drafts with such."""
    return _written(lm, prompts, "pard", {"draft": str(path), "draft_len": 8, "is_adaptive": False}, {})


def _judge(lm: LanguageModel, source: Source, is_kept: bool = False) -> Verdict:
    """Try the conventions that the files leave open; where none of these helps, those that they state too."""
    _check_tokenizer(lm, source)
    first = open_foreign(source, lm.target)
    choices, prompts = first.foreign.choices, _prompts(lm)
    stated = {one.name: one.value for one in choices}
    rates: dict[tuple[Any, ...], float] = {}

    def rate(chosen: Mapping[str, Any]) -> float:
        key = tuple(chosen.values())
        if key not in rates:
            rates[key] = _rate(lm, _opened(source, lm, first, chosen, stated), prompts)
        return rates[key]

    found = _best(rate, choices, stated)
    names = tuple(stated)
    trials = [(dict(zip(names, key, strict=True)), round(value, 3)) for key, value in rates.items()]
    cause = "" if rate(found) >= LEAST else _cause(lm, source)
    findings = [*first.foreign.notes, *_told(choices, found, rate)]
    kind, layout = first.model.kind, first.foreign.layout
    return Verdict(layout, kind, found, round(rate(found), 3), trials, findings, cause, is_kept)


def _best(rate: Any, choices: Sequence[Choice], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conventions that keep most drafts.

    Open ones are decided by that alone, the first of equals. What the file says, or what all files of its kind have, is
    given up only where the other way keeps half as many drafts again; two are tried together where no single one helps.
    """
    opened = [one for one in choices if one.is_open]
    found = max(_combined(opened, base), key=rate)
    closed = [one for one in choices if not one.is_open]
    turned = [{**found, one.name: value} for one in closed for value in one.others]
    best = max(turned, key=rate, default=found)
    if max(rate(found), rate(best)) < LEAST:
        best = max((_both(*pair, found) for pair in itertools.combinations(choices, 2)), key=rate, default=best)
    is_better = rate(best) >= LEAST and rate(best) - 1 >= _BETTER * (rate(found) - 1)
    return best if is_better else found


def _combined(choices: Sequence[Choice], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all combinations of the choices' values, those of `base` first."""
    values = [[base[one.name], *(v for v in (one.value, *one.others) if v != base[one.name])] for one in choices]
    tried = itertools.product(*values)
    return [{**base, **{one.name: v for one, v in zip(choices, values, strict=True)}} for values in tried]


def _both(one: Choice, other: Choice, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with two choices the other way."""
    turned = {
        choice.name: next(v for v in (*choice.others, choice.value) if v != base[choice.name])
        for choice in (one, other)
    }
    return {**base, **turned}


def _opened(
    source: Source, lm: LanguageModel, first: Opened, chosen: Mapping[str, Any], stated: Mapping[str, Any]
) -> HeadModel | None:
    """Return the drafter with other conventions; None where the target has no such layers."""
    if chosen == stated:
        return first.model
    try:
        return open_foreign(source, lm.target, chosen).model
    except CapabilityError:
        return None


def _rate(lm: LanguageModel, model: HeadModel | None, prompts: list[list[int]]) -> float:
    """Return tokens a round on the prompts."""
    if model is None:
        return 0.0
    options = {"draft_len": model.net.config.depth, "is_adaptive": False}
    return _written(lm, prompts, "draft-model", options, {"draft": model})


def _written(
    lm: LanguageModel, prompts: list[list[int]], method: str, options: dict[str, Any], models: dict[str, Any]
) -> float:
    from outpace.api.engine import LanguageModel  # which opens drafters through this file

    # A model of its own: what the target's generation_config.json asks of texts is no matter here.
    results = LanguageModel(lm.target, lm.tokenizer, name=lm.name).generate(
        prompts,
        method=method,
        options=options,
        models=models,
        max_tokens=min(_TOKENS, lm.target.capabilities.max_positions - max(map(len, prompts))),
        temperature=0.0,
        ignore_eos=True,
    )
    steps = sum(result.usage.num_steps for result in results)
    return sum(result.usage.num_emitted for result in results) / max(1, steps)


def _prompts(lm: LanguageModel) -> list[list[int]]:
    if lm.tokenizer is None:
        size = lm.target.capabilities.vocab_size
        return [[(start + step * place) % size for place in range(8)] for start, step in ((1, 3), (2, 5), (5, 1))]
    if lm.tokenizer.has_chat:
        return [lm.encode_chat([{"role": "user", "content": text}]) for text in _PROMPTS]
    return [lm.encode(text) for text in _PROMPTS]


def _check_tokenizer(lm: LanguageModel, source: Source) -> None:
    """Refuse a drafter whose directory holds another tokenizer than the target's.

    Raises:
        ModelError: the same text has other ids.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    if lm.tokenizer is None or source.architecture or not (folder / "tokenizer.json").is_file():
        return
    theirs = Tokenizer.from_directory(folder)
    if any(theirs.encode(text) != lm.tokenizer.encode(text) for text in _PROMPTS):
        raise ModelError(
            f"The drafter {source.path} was trained on another tokenizer than the target's.",
            "Use a drafter of this target.",
        )


def _told(choices: Sequence[Choice], found: Mapping[str, Any], rate: Any) -> list[str]:
    """Return a sentence for each convention that was decided here."""
    told = []
    for one in choices:
        if not one.is_open and found[one.name] == one.value:
            continue
        others = [value for value in (one.value, *one.others) if value != found[one.name]]
        rates = ", ".join(f"{value} {rate({**found, one.name: value}):.2f}" for value in others)
        said = f"says {one.name} {one.value}" if one.is_stated else f"does not say {one.name}"
        told.append(
            f"The drafter's file {said}: {found[one.name]} was taken, as it gives {rate(found):.2f} tokens a round "
            f"({rates})."
        )
    return told


def _cause(lm: LanguageModel, source: Source) -> str:
    """Return the likeliest reason why a drafter is useless with every convention."""
    theirs = source.tensors.get("embed_tokens.weight", source.tensors.get("model.embed_tokens.weight"))
    if theirs is not None:
        some = torch.arange(min(256, len(theirs), lm.target.capabilities.vocab_size))
        ours = lm.target.embed(some.to(lm.target.device)).float().cpu()
        if ours.shape == theirs[some].shape:
            likeness = torch.cosine_similarity(ours.flatten(), theirs[some].float().flatten(), dim=0)
            if float(likeness) < 0.5:
                return "Its embeddings are not this target's: it is of another target."
    verifier = source.table("speculators_config").get("verifier")
    name = verifier.get("name_or_path") if isinstance(verifier, Mapping) else None
    name = name or source.config.get("base_model_name_or_path")
    if isinstance(name, str) and name and Path(name).name != Path(lm.name).name:
        return f"It was trained for {name}, and this target is {lm.name}."
    return _UNKNOWN


def _place(lm: LanguageModel, source: Source) -> Path:
    """Return where the verdict is kept: by the content of the drafter's files, and by some of the target's weights."""
    mark = hashlib.sha256(f"{_VERSION} {lm.target.capabilities}".encode())
    for file in source.files:
        with file.open("rb") as opened:
            mark.update(hashlib.file_digest(opened, "sha256").digest())
    some = lm.target.embed(torch.arange(min(64, lm.target.capabilities.vocab_size), device=lm.target.device))
    mark.update(some.float().cpu().numpy().tobytes())
    return cache_folder() / "drafter-checks" / f"{mark.hexdigest()[:32]}.json"


def _kept(place: Path) -> Verdict | None:
    if not is_whole(place):
        return None
    try:
        return Verdict(**json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _keep(place: Path, verdict: Verdict) -> None:
    with contextlib.suppress(OSError):  # no room for it: the test runs again
        save(place, json.dumps(verdict.to_dict()).encode())

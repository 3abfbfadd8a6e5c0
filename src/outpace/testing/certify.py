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
from functools import partial

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.methods.base import Method
from outpace.testing.answers import check_drafts, check_texts
from outpace.testing.canvas_certificate import CanvasWork, on_canvas
from outpace.testing.certificate import ENOUGH, Certificate, Flip, Line, Verdict
from outpace.testing.certify_texts import PROMPTS, SEARCHES, SETTINGS, own_prompts
from outpace.testing.checks import run_contract
from outpace.testing.enumeration import check_rule
from outpace.testing.plan import Plan
from outpace.testing.proof import BELOW, PREFILL, Work, dtype_of
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
    "certify",
    "certify_model",
    "logit_drift",
    "own_prompts",
    "working_dtype",
]


def certify(
    model: str,
    method: Method,
    prompts: Sequence[str] | None = None,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    seed: int = 0,
    plan: Plan | None = None,
    law: Sequence[str] = (),
) -> Certificate:
    """Load a model in float64 and in a working precision, and certify a method on it.

    Args:
        model: zoo name, directory or hub id.
        method: with its settings.
        prompts: texts; None = `own_prompts`.
        dtype: the working precision in which flips are listed; "float64" leaves that part out, "auto" = bfloat16, or
            quantised as the files are.
        device: where to compute.
        seed: of every draw.
        plan: the time limit, loading included, and who is told about progress; None = five minutes.
        law: laws over the next token, of the method's texts and of the reference's.
    """
    if method.guarantee is Guarantee.APPROXIMATE:
        return Certificate(model, method.name, method.to_dict(), method.guarantee.value)
    plan = plan or Plan()
    lm = load(model, dtype="float64", device=device)
    plan.guess("loading", plan.elapsed_s)
    lower = working_dtype(lm, dtype)
    # The second copy is loaded when the proof is done, and not at all if there is no time for it.
    rounded = (lambda: load(model, dtype=lower, device=device)) if lower != "float64" else None
    return certify_model(lm, method, prompts, rounded=rounded, seed=seed, plan=plan, law=law)


def working_dtype(lm: LanguageModel, dtype: str) -> str:
    """Return the working precision that "auto" means for a model: bfloat16, or quantised as its files are ("auto")."""
    return "bfloat16" if dtype == "auto" and not lm.target.is_quantised else dtype


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
    law: Sequence[str] = (),
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
        law: laws over the next token, of the method's texts and of the reference's.
    """
    plan = plan or Plan()
    method = method.to_certify()
    told = method.to_dict() | ({"law": " ".join(law)} if law else {})
    certificate = Certificate(lm.name, method.name, told, method.guarantee.value)
    if method.guarantee is Guarantee.APPROXIMATE:
        return certificate
    if method.guarantee is Guarantee.EXACT:
        certificate.reference = _told(method.reference())
    given = own_prompts(lm) if prompts is None else prompts
    ids = [lm.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in given]
    is_canvas = method.needs.attention == "canvas"
    if is_canvas:
        settings = on_canvas(settings)
    if not method.draws:
        settings = [name for name in settings if name in SEARCHES]
    if lm.tokenizer is None:  # nothing to read a grammar with
        settings = [name for name in settings if not any("regex" in law for law in SETTINGS[name])]
    work = (CanvasWork if is_canvas else Work)(lm, method, ids, seed, max_tokens, max_rounds, plan, law)
    if method.guarantee is Guarantee.DISTRIBUTION:
        plan.add(_LAWS, "laws")
        if not plan.do(_LAWS, lambda: certificate.checks.update(_law_checks(method))):
            certificate.missing.append(_LAWS)
    # A flip of a search has no margin: what goes on depends on several texts.
    has_more = rounded is not None and method.draws and (is_canvas or method.guarantee is Guarantee.EXACT)
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
        work.plan.add(f"{name}, rounded", "below", work.max_tokens + PREFILL)
    work.plan.add(_INVARIANT, "below", work.max_tokens)


def _below(
    certificate: Certificate,
    work: Work,
    rounded: LanguageModel | Callable[[], LanguageModel],
    flips: Sequence[str],
) -> None:
    """Do what is done below float64: flips, setting by setting, and batch-invariant mode."""
    plan, found = work.plan, list[LanguageModel]()
    plan.guess("below", BELOW * (plan.rate("proof") or 0.0))  # by what the proof was seen to take

    def prepare() -> None:
        found.append(rounded if isinstance(rounded, LanguageModel) else rounded())
        if flips:
            drift = logit_drift(found[0].target, list(plan.each(work.prompts)))
            certificate.tolerance[dtype_of(found[0])] = 2 * drift

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


@torch.no_grad()
def logit_drift(target: Adapter, texts: Sequence[Sequence[int]], length: int = 48) -> float:
    """Return the largest difference between the logits of forwards of one, of eight and of all tokens of a text.

    An encoder-decoder reads each text too, as the source of itself.
    """
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
    if target.capabilities.is_encoder_decoder:
        target.encode([ids], cache)
        ids = [token % target.capabilities.vocab_size for token in ids]
    device = cache.device
    for at in range(0, len(ids), size):
        piece = torch.tensor([ids[at : at + size]], device=device)
        position = torch.arange(at, at + piece.shape[1], device=device).unsqueeze(0)
        parts.append(target.score(piece, position, None, cache).logits[0].double())
        cache.keep([range(piece.shape[1])])
    return torch.cat(parts)

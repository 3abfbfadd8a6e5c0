"""Which layout a drafter's file has: what it says of itself first, the names of its tensors last.

Names of architectures mislead: files of EAGLE-3 call themselves LlamaForCausalLM, and six other things.
"""

from __future__ import annotations

import re
from pathlib import Path

from outpace.errors import ModelError
from outpace.heads.foreign.source import Source, read_source

__all__ = ["LAYOUTS", "is_foreign", "layout_of"]

LAYOUTS = ("eagle", "eagle3", "p-eagle", "medusa", "hydra", "dflash", "dflash2", "dspark", "domino", "mtp", "pard")

_SPECULATORS = {name: name for name in ("eagle", "eagle3", "dflash", "dflash2", "dspark", "mtp")} | {
    "peagle": "p-eagle"
}
_ARCHITECTURES = {
    "LlamaForCausalLMEagle3": "eagle3",
    "Eagle3LlamaForCausalLM": "eagle3",
    "Eagle3Speculator": "eagle3",
    "Eagle3DraftModel": "eagle3",
    "PEagleDraftModel": "p-eagle",
    "PEagleSpeculator": "p-eagle",
    "PeagleLlamaForCausalLM": "p-eagle",
    "PeagleQwen3ForCausalLM": "p-eagle",
    "LlamaForCausalLMEagle": "eagle",
    "EagleLlamaForCausalLM": "eagle",
    "EagleSpeculator": "eagle",
    "MedusaModel": "medusa",
    "DFlashDraftModel": "dflash",
    "DFlashSpeculator": "dflash",
    "DFlash2DraftModel": "dflash2",
    "DominoDraftModel": "domino",
    "Qwen3DSparkModel": "dspark",
    "DSparkSpeculator": "dspark",
    "MTPDraftModel": "mtp",
}
_UNREAD = {
    "Qwen3XPressModel": "XPress",
    "XPressSpeculator": "XPress",
    "LiLiCorrDraftModel": "LiLiCorr",
    "DFlareDraftModel": "DFlare",
}
# What tells a layout where nothing else does: the first pattern that a tensor's whole name matches.
_TENSORS = (
    (r"(.*\.)?markov_head\..*|markov_w1\..*", "dspark"),
    (r"(.*\.)?prefix_gru\..*", "domino"),
    (r"(.*\.)?candidate_selector\..*", "dflash2"),
    (r"mtp_layers\.0\..*", "mtp"),
    (r"(.*\.)?mask_hidden", "p-eagle"),
    (r"(.*\.)?midlayer\..*|(.*\.)?layers\.0\.hidden_norm\.weight", "eagle3"),
    (r"(model\.)?hidden_norm\.weight", "dflash"),
    (r"blocks\.\d+\.layers\.\d+\.weight|(medusa_heads?\.)?\d+\.\d+\.linear\.weight", "medusa"),
    (r"(model\.)?fc\.weight", "eagle"),
)


def layout_of(source: Source) -> str:
    """Return a name of `LAYOUTS`.

    Raises:
        ModelError: the layout is known but not read here, or nothing tells which it is.
    """
    found = _told(source) or _shown(source)
    if found is None:
        raise ModelError(
            f"Nothing in {source.path} tells which kind of drafter it is.", f"Read here are {', '.join(LAYOUTS)}."
        )
    return found


def is_foreign(path: Path) -> bool:
    """Return whether a path is a drafter that stands beside its target, of a layout that is known; False = a model."""
    try:
        source = read_source(path, is_peek=True)
    except ModelError:
        return False  # whoever opens it as a model says what is wrong
    if {*_names(source)} & {*_UNREAD} or source.config.get("speculators_model_type") is not None:
        return True
    return (_told(source) or _shown(source)) not in (None, "pard")


def _told(source: Source) -> str | None:
    """Return what a configuration says, in the order in which it is to be believed."""
    if source.architecture:
        return _gguf(source)
    stated = source.config.get("speculators_model_type")
    if stated is not None:
        if stated not in _SPECULATORS:
            raise _unread(source, str(stated))
        return _SPECULATORS[stated]
    for name in _names(source):
        if name in _UNREAD:
            raise _unread(source, _UNREAD[name])
    known = next((_ARCHITECTURES[name] for name in _names(source) if name in _ARCHITECTURES), None)
    projector = source.table("dflash_config").get("projector_type", source.config.get("projector_type"))
    if projector in ("dspark", "domino", "dflash2") and known in (None, "dflash"):
        return str(projector)
    if known == "eagle3" and source.has("mask_hidden", "model.mask_hidden"):
        return "p-eagle"
    if known is not None:
        return known
    if source.table("dflash_config"):
        return "dflash"
    for kind in ("hydra", "medusa"):
        if source.config.get(f"{kind}_num_heads") is not None or f"{kind}_lm_head" in {f.stem for f in source.files}:
            return kind
    return None


def _shown(source: Source) -> str | None:
    """Return what the names of the tensors show."""
    for pattern, layout in _TENSORS:
        if any(re.fullmatch(pattern, name) for name in source.tensors):
            is_three = layout == "eagle" and source.config.get("draft_vocab_size") is not None
            return "eagle3" if is_three else layout
    return "pard" if source.config.get("pard_token") is not None else None


def _gguf(source: Source) -> str | None:
    if source.architecture == "eagle3":
        return "eagle3"
    if source.architecture != "dflash":
        return None
    if source.has("markov_w1.weight"):
        return "dspark"
    return "dflash2" if source.has("selector_hidden.weight") else "dflash"


def _names(source: Source) -> list[str]:
    found = source.config.get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []


def _unread(source: Source, what: str) -> ModelError:
    return ModelError(
        f"{source.path} is a drafter of the kind {what}, which is not read here.",
        f"Read here are {', '.join(LAYOUTS)}.",
    )

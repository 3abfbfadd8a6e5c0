"""Names to objects, through entry points, lazily: listing names imports no torch.

Built-in methods and plug-ins use the same door, the group `outpace.methods` with values "module:Class".
Set OUTPACE_PLUGINS=0 to load built-ins only.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from outpace.errors import ConfigError, PluginError, nearest

if TYPE_CHECKING:
    from outpace.methods.base import Method

__all__ = ["built_in_names", "load_method", "method_names", "plugin_origins"]

_GROUP = "outpace.methods"
_BUILT_IN = {
    "autoregressive": "outpace.methods.autoregressive:Autoregressive",
    "auto": "outpace.methods.auto:Auto",
    "prompt-lookup": "outpace.methods.prompt_lookup:PromptLookup",
    "suffix": "outpace.methods.suffix:Suffix",
    "token-recycling": "outpace.methods.token_recycling:TokenRecycling",
    "aded": "outpace.methods.aded:Aded",
    "alignment": "outpace.methods.alignment:Alignment",
    "draft-model": "outpace.methods.draft_model:DraftModel",
    "block-verification": "outpace.methods.block_verification:BlockVerification",
    "multi-candidate": "outpace.methods.multi_candidate:MultiCandidate",
    "rsd": "outpace.methods.rsd:Rsd",
    "spectr": "outpace.methods.spectr:SpecTr",
    "traversal-verification": "outpace.methods.traversal:Traversal",
    "typical-acceptance": "outpace.methods.typical:Typical",
    "opt-tree": "outpace.methods.opt_tree:OptTree",
    "dyspec": "outpace.methods.dyspec:DySpec",
    "sequoia": "outpace.methods.sequoia:Sequoia",
    "staged": "outpace.methods.staged:Staged",
    "vocab-trim": "outpace.methods.vocab_trim:VocabTrim",
    "jacobi": "outpace.methods.jacobi:Jacobi",
    "retrieval": "outpace.methods.retrieval:Retrieval",
    "lookahead": "outpace.methods.lookahead:Lookahead",
    "ouroboros": "outpace.methods.ouroboros:Ouroboros",
    "layer-skip": "outpace.methods.layer_skip:LayerSkip",
    "swift": "outpace.methods.swift:Swift",
    "early-exit": "outpace.methods.early_exit:EarlyExit",
    "cross-vocab": "outpace.methods.cross_vocab:CrossVocab",
    "bild": "outpace.methods.bild:Bild",
    "masked-diffusion": "outpace.methods.masked_diffusion:MaskedDiffusion",
    "fast-dllm": "outpace.methods.fast_dllm:FastDllm",
    "fast-dllm-v2": "outpace.methods.fast_dllm_v2:FastDllmV2",
    "eb-sampler": "outpace.methods.eb_sampler:EbSampler",
    "pc-sampler": "outpace.methods.pc_sampler:PcSampler",
    "remdm": "outpace.methods.remdm:ReMdm",
    "mdlm": "outpace.methods.mdlm:Mdlm",
    "prophet": "outpace.methods.prophet:Prophet",
    "ccd": "outpace.methods.ccd:CoherentDecoding",
    "ete": "outpace.methods.ete:ExploreThenExploit",
    "lrd": "outpace.methods.lrd:LatentRefinement",
    "adablock": "outpace.methods.adablock:AdaBlock",
    "dkv-cache": "outpace.methods.dkv_cache:DkvCache",
    "freecache": "outpace.methods.freecache:FreeCache",
    "apd": "outpace.methods.apd:Apd",
    "freedave": "outpace.methods.freedave:FreeDave",
    "ssd": "outpace.methods.ssd:SSD",
    "block-draft": "outpace.methods.block_draft:BlockDraft",
}


@lru_cache(maxsize=1)
def _entries() -> dict[str, EntryPoint]:
    found = {name: EntryPoint(name, value, _GROUP) for name, value in _BUILT_IN.items()}
    if os.environ.get("OUTPACE_PLUGINS") == "0":
        return found
    for entry in entry_points(group=_GROUP):
        known = found.get(entry.name)
        if known is not None and known.value != entry.value:
            raise PluginError(
                f"Two packages name a method {entry.name!r}: {known.value} and {entry.value}.",
                "Uninstall one of them, or set OUTPACE_PLUGINS=0.",
            )
        found[entry.name] = entry
    return found


def method_names() -> list[str]:
    """Return the names of all methods, built-in ones first."""
    return list(_entries())


def built_in_names() -> list[str]:
    """Return the names of the methods that ship with Outpace."""
    return list(_BUILT_IN)


def plugin_origins() -> dict[str, str]:
    """Return the package that each plug-in method comes from, by the method's name; imports none of them."""
    found = {name: entry for name, entry in _entries().items() if name not in _BUILT_IN}
    return {name: entry.dist.name if entry.dist else entry.module for name, entry in found.items()}


def load_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ConfigError: no such method; the hint names the nearest.
        PluginError: the entry point does not load.
    """
    entry = _entries().get(name)
    if entry is None:
        raise ConfigError(f"There is no method {name!r}.", nearest(name, _entries(), "method"))
    try:
        return cast("type[Method]", entry.load())
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"The method {name!r} does not load: {error}.", f"Its entry point is {entry.value}."
        ) from error

"""Names to objects, lazily: listing names imports no torch.

What ships stands in one list here; plug-ins name "module:Class" in the entry-point group `outpace.methods`.
Set OUTPACE_PLUGINS=0 to load built-ins only.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, cast

from outpace.errors import ConfigError
from outpace.plugins import gather, load

if TYPE_CHECKING:
    from outpace.methods.base import Method

__all__ = ["built_in_names", "load_method", "method_names", "plugin_origins", "read_spelled"]

_GROUP = "outpace.methods"
_BUILT_IN = {  # below outpace.methods
    "autoregressive": "autoregressive:Autoregressive",
    "auto": "auto:Auto",
    "beam-search": "search.beam_search:BeamSearch",
    "diverse-beam-search": "search.diverse_beam_search:DiverseBeamSearch",
    "contrastive-search": "search.contrastive:ContrastiveSearch",
    "momentum": "search.momentum:Momentum",
    "copy-phrases": "parallel.copy_phrases:CopyPhrases",
    "chunk-retrieval": "parallel.chunk_retrieval:ChunkRetrieval",
    "prompt-lookup": "speculative.prompt_lookup:PromptLookup",
    "input-guided": "speculative.input_guided:InputGuided",
    "generalised-aggressive": "speculative.generalised_aggressive:GeneralisedAggressive",
    "lattice-drafts": "speculative.lattice_drafts:LatticeDrafts",
    "suffix": "speculative.suffix:Suffix",
    "token-recycling": "speculative.token_recycling:TokenRecycling",
    "aded": "speculative.aded:Aded",
    "alignment": "speculative.alignment:Alignment",
    "draft-model": "speculative.draft_model:DraftModel",
    "block-verification": "speculative.block_verification:BlockVerification",
    "multi-candidate": "speculative.multi_candidate:MultiCandidate",
    "rsd": "speculative.rsd:Rsd",
    "spectr": "speculative.spectr:SpecTr",
    "traversal-verification": "speculative.traversal:Traversal",
    "typical-acceptance": "speculative.typical:Typical",
    "opt-tree": "speculative.opt_tree:OptTree",
    "dyspec": "speculative.dyspec:DySpec",
    "sequoia": "speculative.sequoia:Sequoia",
    "staged": "speculative.staged:Staged",
    "vocab-trim": "speculative.vocab_trim:VocabTrim",
    "jacobi": "parallel.jacobi:Jacobi",
    "retrieval": "speculative.retrieval:Retrieval",
    "one-pass": "parallel.one_pass:OnePass",
    "mask-predict": "whole.mask_predict:MaskPredict",
    "sundae": "whole.sundae:Sundae",
    "dag-lookahead": "whole.dag_lookahead:DagLookahead",
    "dag-beam": "whole.dag_beam:DagBeam",
    "dag-viterbi": "whole.dag_viterbi:DagViterbi",
    "continuous-diffusion": "whole.continuous:ContinuousDiffusion",
    "learned-order": "whole.learned_order:LearnedOrder",
    "next-vector": "whole.next_vector:NextVector",
    "noisy-parallel": "whole.noisy_parallel:NoisyParallel",
    "confident-exit": "whole.confident_exit:ConfidentExit",
    "cascade": "whole.cascade:Cascade",
    "insertion": "whole.insertion:Insertion",
    "insertion-lm": "whole.insertion_lm:OneInsertion",
    "levenshtein": "whole.levenshtein:Levenshtein",
    "ctc-beam-search": "whole.ctc_beam:CtcBeamSearch",
    "any-subset": "parallel.any_subset:AnySubset",
    "sigma-gpt": "parallel.sigma_gpt:SigmaGpt",
    "lookahead": "parallel.lookahead:Lookahead",
    "ouroboros": "speculative.ouroboros:Ouroboros",
    "layer-skip": "speculative.layer_skip:LayerSkip",
    "swift": "speculative.swift:Swift",
    "early-exit": "speculative.early_exit:EarlyExit",
    "cross-vocab": "speculative.cross_vocab:CrossVocab",
    "bild": "speculative.bild:Bild",
    "entropy-switch": "speculative.entropy_switch:EntropySwitch",
    "masked-diffusion": "diffusion.masked_diffusion:MaskedDiffusion",
    "fast-dllm": "diffusion.fast_dllm:FastDllm",
    "fast-dllm-v2": "diffusion.fast_dllm_v2:FastDllmV2",
    "eb-sampler": "diffusion.eb_sampler:EbSampler",
    "pc-sampler": "diffusion.pc_sampler:PcSampler",
    "remdm": "diffusion.remdm:ReMdm",
    "mdlm": "diffusion.mdlm:Mdlm",
    "prophet": "diffusion.prophet:Prophet",
    "ccd": "diffusion.ccd:CoherentDecoding",
    "ete": "diffusion.ete:ExploreThenExploit",
    "lrd": "diffusion.lrd:LatentRefinement",
    "adablock": "diffusion.adablock:AdaBlock",
    "dkv-cache": "diffusion.dkv_cache:DkvCache",
    "freecache": "diffusion.freecache:FreeCache",
    "edlm": "diffusion.edlm:Edlm",
    "rcd": "diffusion.rcd:ResidualContext",
    "joint-sampler": "diffusion.joint_sampler:JointSampler",
    "learn2pd": "diffusion.learn2pd:Learn2Pd",
    "ctrldiff": "diffusion.ctrldiff:CtrlDiff",
    "hyperschedule": "diffusion.hyperschedule:Hyperschedule",
    "apd": "diffusion.apd:Apd",
    "freedave": "diffusion.freedave:FreeDave",
    "ssd": "diffusion.ssd:SSD",
    "block-draft": "speculative.block_draft:BlockDraft",
    "diffuspec": "speculative.diffuspec:DiffuSpec",
    "trained-drafter": "speculative.trained_drafter:TrainedDrafter",
    "medusa": "speculative.medusa:Medusa",
    "blockwise": "speculative.blockwise:Blockwise",
    "eagle": "speculative.eagle:Eagle",
    "mtp": "speculative.mtp:Mtp",
    "fastmtp": "speculative.fast_mtp:FastMtp",
    "eagle3": "speculative.eagle3:Eagle3",
    "p-eagle": "speculative.p_eagle:PEagle",
    "dflash": "speculative.dflash:DFlash",
    "l-mtp": "speculative.l_mtp:LMtp",
    "judge-decoding": "speculative.judge:Judge",
    "hydra": "speculative.hydra:Hydra",
    "koala": "speculative.koala:Koala",
    "amphista": "speculative.amphista:Amphista",
    "chimera": "speculative.chimera:Chimera",
    "refined": "speculative.refined:Refined",
    "hidden-transfer": "speculative.hidden_transfer:HiddenTransfer",
    "ppd": "speculative.ppd:Ppd",
    "bita": "speculative.bita:Bita",
    "space": "speculative.space:Space",
    "gated-lora": "speculative.gated_lora:GatedLora",
    "lud": "speculative.lud:Lud",
    "pard": "speculative.pard:Pard",
    "set-block": "speculative.set_block:SetBlock",
    "wedlm": "speculative.wedlm:WeDlm",
    "s2d": "speculative.s2d:SortedDraft",
    "fspad": "speculative.fspad:Fspad",
    "jakiro": "speculative.jakiro:Jakiro",
    "falcon": "speculative.falcon:Falcon",
    "tandem": "speculative.tandem:Tandem",
    "dspark": "speculative.dspark:DSpark",
    "domino": "speculative.domino:Domino",
    "dflash2": "speculative.dflash2:DFlash2",
    "jetspec": "speculative.jetspec:JetSpec",
}


@lru_cache(maxsize=1)
def _entries() -> dict[str, EntryPoint]:
    return gather(_GROUP, _BUILT_IN, "method")


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


def read_spelled(text: str, between: str = ",") -> tuple[str, dict[str, str]]:
    """Return the name and the options that "NAME:key=value,key=value" spells.

    Args:
        text: what is read.
        between: what parts one option from the next; a colon where several such texts stand in one list with commas.

    Raises:
        ConfigError: an option has no value.
    """
    name, _, rest = text.partition(":")
    options = dict[str, str]()
    for word in filter(None, rest.split(between)):
        key, sign, value = word.partition("=")
        if not key or not sign:
            raise ConfigError(f"{word!r} in {text!r} is no option.", "Write key=value.")
        options[key] = value
    return name, options


def load_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ConfigError: no such method; the hint names the nearest.
        PluginError: the entry point does not load.
    """
    return cast("type[Method]", load(_entries(), name, "method"))

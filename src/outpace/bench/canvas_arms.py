"""The samplers, caches and peers of the canvas benchmark, each over the settings that trade quality for speed."""

from __future__ import annotations

from outpace.bench.canvas import Arm, sweep

__all__ = ["cache_arms", "causal_arms", "lossless_arms", "sampler_arms"]

_COUNTS = (1, 2, 4, 8)
_GAPS = tuple({"early": 3 * gap, "middle": 2 * gap, "late": gap} for gap in (4.0, 2.5, 1.5, 1.0))
_STEPS = (32, 16, 8, 4)  # per block
_THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
CACHES = ("none", "prefix", "dual", "delayed", "greedy", "free")


def sampler_arms(model: str, is_full: bool) -> list[Arm]:
    """Return every sampler under the exact cache, at the settings that move it from slow to fast.

    Args:
        model: as arms name it.
        is_full: full attention, where samplers may look beyond the block.
    """
    exact = "none" if is_full else "block"
    orders = [
        Arm(f"{order}, fixed", model, "masked-diffusion", sweep("per_step", _COUNTS, order=order))
        for order in ("confidence", "margin", "entropy", "random", "left")
    ]
    found = [
        *orders,
        Arm("threshold", model, "fast-dllm", sweep("threshold", _THRESHOLDS, cache=exact)),
        Arm("factor", model, "fast-dllm", sweep("factor", (0.25, 0.5, 1.0, 1.5, 2.0), cache=exact)),
        Arm("entropy-bounded", model, "eb-sampler", sweep("gamma", (0.01, 0.1, 0.3, 1.0, 2.0))),
        Arm("PC-Sampler", model, "pc-sampler", sweep("per_step", _COUNTS)),
        Arm("ReMDM", model, "remdm", sweep("steps", _STEPS)),
        Arm("MDLM", model, "mdlm", sweep("steps", _STEPS)),
        Arm("CCD", model, "ccd", sweep("history", (1, 2, 3, 4))),
        Arm(
            "Prophet",
            model,
            "prophet",
            _GAPS,
        ),
        Arm("ETE", model, "ete", sweep("threshold", _THRESHOLDS[1:])),
        Arm("LRD", model, "lrd", sweep("threshold", _THRESHOLDS[1:])),
        Arm("AdaBlock", model, "adablock", sweep("threshold", _THRESHOLDS[1:])),
        Arm("APD", model, "apd", sweep("weight", (0.3, 0.5, 0.7, 0.9))),
        Arm("guided", model, "freecache", sweep("ratio", (0.7, 0.5, 0.3), cache=exact)),
    ]
    if not is_full:
        found.append(Arm("Fast-dLLM v2", model, "fast-dllm-v2", sweep("threshold", _THRESHOLDS[1:])))
    return found


def cache_arms(model: str, is_full: bool) -> list[Arm]:
    """Return the threshold sampler under every cache."""
    names = CACHES if is_full else ("none", "block", "dual", "delayed")
    return [
        Arm(f"threshold 0.9, {name}", model, "fast-dllm", ({"threshold": 0.9, "cache": name},)) for name in names
    ] + [
        Arm("threshold 0.9, dual, refresh 4", model, "fast-dllm", ({"threshold": 0.9, "cache": "dual", "refresh": 4},))
    ]


def lossless_arms(model: str) -> list[Arm]:
    """Return the reference and what reproduces it."""
    return [
        Arm("one per step", model, "masked-diffusion", ({},)),
        Arm("FreeDave", model, "freedave", sweep("copies", (2, 4, 8))),
        Arm("SSD", model, "ssd", sweep("copies", (2, 4, 8))),
    ]


def causal_arms(model: str) -> list[Arm]:
    """Return the causal model, plain and drafted for."""
    return [
        Arm("causal, plain", model, "autoregressive", ({},)),
        Arm("causal, opt-tree", model, "opt-tree", ({"draft": "stories-draft"},)),
        Arm("causal, draft-model", model, "draft-model", ({"draft": "stories-draft"},)),
        Arm("causal, suffix", model, "suffix", ({},)),
        Arm("causal, block-draft", model, "block-draft", ({"draft": "stories-block"},)),
    ]

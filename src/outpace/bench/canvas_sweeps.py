"""The samplers, caches and peers of the canvas benchmark, each over the settings that trade quality for speed."""

from __future__ import annotations

from outpace.bench.canvas import Sweep, values_of

__all__ = ["cache_sweeps", "causal_sweeps", "lossless_sweeps", "sampler_sweeps"]

_COUNTS = (1, 2, 4, 8)
_GAPS = tuple({"early": 3 * gap, "middle": 2 * gap, "late": gap} for gap in (4.0, 2.5, 1.5, 1.0))
_STEPS = (32, 16, 8, 4)  # per block
_THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
CACHES = ("none", "prefix", "dual", "delayed", "greedy", "free")


def sampler_sweeps(model: str, is_full: bool) -> list[Sweep]:
    """Return every sampler under the exact cache, at the settings that move it from slow to fast.

    Args:
        model: as sweeps name it.
        is_full: full attention, where samplers may look beyond the block.
    """
    exact = "none" if is_full else "block"
    orders = [
        Sweep(f"{order}, fixed", model, "masked-diffusion", values_of("per_step", _COUNTS, order=order))
        for order in ("confidence", "margin", "entropy", "random", "left")
    ]
    found = [
        *orders,
        Sweep("threshold", model, "fast-dllm", values_of("threshold", _THRESHOLDS, cache=exact)),
        Sweep("factor", model, "fast-dllm", values_of("factor", (0.25, 0.5, 1.0, 1.5, 2.0), cache=exact)),
        Sweep("entropy-bounded", model, "eb-sampler", values_of("gamma", (0.01, 0.1, 0.3, 1.0, 2.0))),
        Sweep("PC-Sampler", model, "pc-sampler", values_of("per_step", _COUNTS)),
        Sweep("ReMDM", model, "remdm", values_of("steps", _STEPS)),
        Sweep("MDLM", model, "mdlm", values_of("steps", _STEPS)),
        Sweep("CCD", model, "ccd", values_of("history", (1, 2, 3, 4))),
        Sweep("Prophet", model, "prophet", _GAPS),
        Sweep("ETE", model, "ete", values_of("threshold", _THRESHOLDS[1:])),
        Sweep("LRD", model, "lrd", values_of("threshold", _THRESHOLDS[1:])),
        Sweep("AdaBlock", model, "adablock", values_of("threshold", _THRESHOLDS[1:])),
        Sweep("APD", model, "apd", values_of("weight", (0.3, 0.5, 0.7, 0.9))),
        Sweep("guided", model, "freecache", values_of("ratio", (0.7, 0.5, 0.3), cache=exact)),
    ]
    if not is_full:
        found.append(Sweep("Fast-dLLM v2", model, "fast-dllm-v2", values_of("threshold", _THRESHOLDS[1:])))
    return found


def cache_sweeps(model: str, is_full: bool) -> list[Sweep]:
    """Return the threshold sampler under every cache."""
    names = CACHES if is_full else ("none", "block", "dual", "delayed")
    return [
        Sweep(f"threshold 0.9, {name}", model, "fast-dllm", ({"threshold": 0.9, "cache": name},)) for name in names
    ] + [
        Sweep(
            "threshold 0.9, dual, refresh 4", model, "fast-dllm", ({"threshold": 0.9, "cache": "dual", "refresh": 4},)
        )
    ]


def lossless_sweeps(model: str) -> list[Sweep]:
    """Return the reference and what reproduces it."""
    return [
        Sweep("one per step", model, "masked-diffusion", ({},)),
        Sweep("FreeDave", model, "freedave", values_of("copies", (2, 4, 8))),
        Sweep("SSD", model, "ssd", values_of("copies", (2, 4, 8))),
    ]


def causal_sweeps(model: str) -> list[Sweep]:
    """Return the causal model, plain and drafted for."""
    return [
        Sweep("causal, plain", model, "autoregressive", ({},)),
        Sweep("causal, opt-tree", model, "opt-tree", ({"draft": "stories-draft"},)),
        Sweep("causal, draft-model", model, "draft-model", ({"draft": "stories-draft"},)),
        Sweep("causal, suffix", model, "suffix", ({},)),
        Sweep("causal, block-draft", model, "block-draft", ({"draft": "stories-block"},)),
    ]

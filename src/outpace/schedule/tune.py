"""What a forward of k tokens costs on this machine: measured once, stored, read by every method that sizes drafts.

Whether speculation pays is decided by T(k) / T(1), which no formula gives: it depends on model, precision, kernels,
threads and cache. `outpace tune` measures it and stores one small file per model shape, precision and device.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ConfigError
from outpace.run.prefill import catch_up
from outpace.schedule.cost import CostCurve
from outpace.store import cache_folder
from outpace.types import Adapter, Context

__all__ = [
    "SIZES",
    "claim_curve",
    "curve_file",
    "draft_seconds",
    "head_share",
    "likely_curve",
    "load_curve",
    "measure_curve",
    "pass_share",
    "relative_size",
    "save_curve",
]

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_VERSION = 1
# Where nothing was measured: compiled kernels on a machine of today compute some ten tokens in the time that streaming
# the weights takes (SmolLM2 in bfloat16 on two cores). Other paths are left at what accelerators do: 32 for little.
# Codes take less time to stream and as long to compute, those of few bits first.
_TYPICAL = {
    0: CostCurve((1, 8, 16, 32, 64), (1.0, 1.12, 1.67, 3.14, 6.3)),
    8: CostCurve((1, 4, 8, 16, 32, 64), (1.0, 1.08, 1.29, 2.1, 4.1, 8.2)),
    6: CostCurve((1, 2, 4, 8, 16, 32, 64), (1.0, 1.02, 1.2, 1.8, 3.3, 6.4, 12.8)),
}
_FLAT = CostCurve((1, 32, 64), (1.0, 1.1, 2.2))
_DRAFT_COST = 0.1  # of a draft forward, against a target forward of one token, where nothing tells


def measure_curve(
    target: Adapter,
    *,
    context: int = 256,
    batch: int = 1,
    sizes: Sequence[int] = SIZES,
    repeats: int = 15,
    limit_s: float = 60.0,
    tell: Callable[[str], None] | None = None,
) -> CostCurve:
    """Time forwards of every size in turn, so that what else runs on the machine meets all of them alike.

    Args:
        target: the model.
        context: cached tokens.
        batch: rows.
        sizes: tokens per forward.
        repeats: rounds; the median is kept.
        limit_s: no new round is begun after this long, once three are done.
        tell: called with a sentence per round.

    Raises:
        ConfigError: the model's context cannot hold it.
    """
    capabilities = target.capabilities
    context = min(context, capabilities.max_positions - max(sizes))
    if context < 1:
        raise ConfigError(f"The model's context of {capabilities.max_positions} is too short.", "Tune smaller sizes.")
    cache = target.new_cache(batch, context + max(sizes))
    if capabilities.is_encoder_decoder:
        target.encode([[1, 2, 3, 4]] * batch, cache)
    ids = torch.arange(context + 1).remainder_(capabilities.vocab_size).tolist()
    for _ in catch_up(target, cache, [ids] * batch):
        pass
    device = cache.device
    windows = {size: _window(ids[-1], size, context, batch, capabilities.vocab_size, device) for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    began = time.perf_counter()
    for number in range(repeats + 1):
        for size, (tokens, position) in windows.items():
            t0 = time.perf_counter()
            logits = target.score(tokens, position, None, cache).logits
            logits[0, -1, 0].item()  # waits for an accelerator
            times[size].append(time.perf_counter() - t0)
        if tell is not None:
            tell(f"Round {number} of {repeats}.")
        if number >= 3 and time.perf_counter() - began > limit_s:
            break
    # The first round warms caches and allocators up.
    return CostCurve(tuple(sizes), tuple(statistics.median(times[size][1:]) for size in sizes), context, batch)


def _window(
    token: int, size: int, context: int, batch: int, vocab: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = (torch.arange(size, device=device) * 7 + token).remainder_(vocab).expand(batch, size).contiguous()
    return tokens, torch.arange(context, context + size, device=device).expand(batch, size).contiguous()


def curve_file(target: Adapter) -> Path:
    """Return where a model's curve is kept: one file per shape of the model, precision, device and number of threads.

    Models of one shape cost the same, so they share a curve.
    """
    facts: dict[str, Any] = {
        "version": _VERSION,
        "kind": type(target).__name__,
        "shape": target.shape or str(target.capabilities),
        "path": target.path,
        "dtype": str(target.dtype),
        "device": _device_name(target.device),
        "threads": torch.get_num_threads(),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    return cache_folder() / "tune" / f"{key}.json"


def _device_name(device: torch.device | str) -> str:
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def save_curve(target: Adapter, curve: CostCurve) -> Path:
    """Store a curve where `load_curve` finds it; return the file."""
    file = curve_file(target)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{time.time_ns()}")
    scratch.write_text(json.dumps(asdict(curve)), encoding="utf-8")
    scratch.replace(file)  # a reader sees the old file or the new one, never half of it
    return file


def load_curve(target: Adapter) -> CostCurve | None:
    """Return the stored curve of a model, None where there is none (or none that can be read: it is only a hint)."""
    try:
        fields = json.loads(curve_file(target).read_text(encoding="utf-8"))
        return CostCurve(tuple(fields["sizes"]), tuple(fields["seconds"]), fields["context"], fields["batch"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def claim_curve(context: Context, name: str) -> CostCurve | None:
    """Return the curve that a method sizes its drafts by: the caller's, or the stored one.

    Args:
        context: of the joining rows; its memory is a curve, or a mapping from method names to memories.
        name: the method that asks.

    Raises:
        ConfigError: the memory is no cost curve.
    """
    given = context.memory.get(name) if isinstance(context.memory, Mapping) else context.memory
    if given is not None and not isinstance(given, CostCurve):
        raise ConfigError(
            f"The method {name!r} cannot use a memory of type {type(given).__name__}.",
            "Give a CostCurve, or leave memory out.",
        )
    return given or load_curve(context.target)


def likely_curve(target: Adapter) -> CostCurve:
    """Return the stored curve of a model, else the one that models of its path have, in plain forwards."""
    if (stored := load_curve(target)) is not None or target.path != "compiled":
        return stored or _FLAT
    return _TYPICAL[min(bits for bits in (0, 6, 8) if bits >= target.capabilities.code_bits)]


def draft_seconds(curve: CostCurve | None, drafter: Adapter, share: float = 0.0) -> float:
    """Return the time of a drafter's forward; 0 where nothing was measured.

    Args:
        curve: of the target.
        drafter: the model; its stored curve tells.
        share: of a target forward of one token, in place of that curve; 0 = by the curve, or a tenth.
    """
    if curve is None:
        return 0.0
    own = None if share else load_curve(drafter)
    return own.seconds_for(1) if own is not None else (share or _DRAFT_COST) * curve.seconds_for(1)


def head_share(target: Adapter) -> float:
    """Return what the output matrix computes over what the layers do; a fifth where the model's shape is not known."""
    return target.head_weights / target.layer_weights if target.layer_weights else 0.2


def pass_share(drafter: Adapter, target: Adapter) -> float:
    """Return the weights that a drafter's pass reads over those of a target's forward; a tenth where one is unknown."""
    own, whole = (one.layer_weights + one.head_weights for one in (drafter, target))
    return own / whole if drafter.layer_weights and target.layer_weights else _DRAFT_COST


def relative_size(model: Adapter, target: Adapter) -> float:
    """Return the weights of a model's layers over those of the target's; a tenth where a shape is not known."""
    is_known = model.layer_weights and target.layer_weights
    return model.layer_weights / target.layer_weights if is_known else 0.1

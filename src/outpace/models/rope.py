"""Rotation frequencies from the rotary settings of a `config.json`, in float64.

Old files say `rope_theta` and `rope_scaling`, new ones `rope_parameters`; both are read. "dynamic" and "longrope"
frequencies depend on how long a text may grow: here they are fixed for the whole run by `context`, because entries
already in a cache cannot be turned again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from outpace.errors import ModelError
from outpace.models.spec import Rope

__all__ = ["make_rope", "rope_settings"]

Settings = Mapping[str, Any]


def rope_settings(config: Settings, theta: float = 10000.0, part: float = 1.0) -> dict[str, Any]:
    """Return one flat dict of rotary settings; `theta` and `part` are the family's defaults."""
    found = dict(config.get("rope_parameters") or {}) | dict(config.get("rope_scaling") or {})
    found.setdefault("rope_type", found.pop("type", "default"))
    found.setdefault("rope_theta", config.get("rope_theta", theta))
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", part))
    if original := config.get("original_max_position_embeddings"):
        found["original_max_position_embeddings"] = original
    found.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return found


def make_rope(settings: Settings, head_dim: int, trained: int, context: int) -> Rope:
    """Return the frequencies of one layer type.

    Args:
        settings: from `rope_settings`.
        head_dim: D; the partial rotary factor is taken of it.
        trained: `max_position_embeddings` of the file.
        context: the longest text of this run.
    """
    kind = settings["rope_type"]
    if kind == "su":  # Phi-3's first name for it
        kind = "longrope"
    if kind not in SCALINGS:
        raise ModelError(
            f"Rotary scaling {kind!r} is not known here.", hint=f"Known: {', '.join(SCALINGS)}; or use --model hf:NAME."
        )
    dim = int(head_dim * (settings.get("partial_rotary_factor") or 1.0))
    frequencies, scale = SCALINGS[kind](settings, dim, trained, context)
    return Rope(tuple(frequencies), float(scale))


def _plain(theta: float, dim: int) -> list[float]:
    return [theta ** (-i / dim) for i in range(0, dim, 2)]


def _default(s: Settings, dim: int, trained: int, context: int) -> tuple[list[float], float]:
    del trained, context
    return _plain(s["rope_theta"], dim), 1.0


def _linear(s: Settings, dim: int, trained: int, context: int) -> tuple[list[float], float]:
    del trained, context
    return [f / s["factor"] for f in _plain(s["rope_theta"], dim)], 1.0


def _dynamic(s: Settings, dim: int, trained: int, context: int) -> tuple[list[float], float]:
    """NTK: the base grows with the text, here with the longest text of the run."""
    growth = s["factor"] * max(context, trained) / trained - (s["factor"] - 1)
    return _plain(s["rope_theta"] * growth ** (dim / (dim - 2)), dim), 1.0


def _llama3(s: Settings, dim: int, trained: int, context: int) -> tuple[list[float], float]:
    """Slow turns are slowed further, fast ones kept, a smooth ramp between."""
    del trained, context
    factor, low, high = s["factor"], s["low_freq_factor"], s["high_freq_factor"]
    original = s["original_max_position_embeddings"]
    frequencies = []
    for frequency in _plain(s["rope_theta"], dim):
        length = 2 * math.pi / frequency
        smooth = min(1.0, max(0.0, (original / length - low) / (high - low)))
        frequencies.append((1 - smooth) * frequency / factor + smooth * frequency)
    return frequencies, 1.0


def _yarn(s: Settings, dim: int, trained: int, context: int) -> tuple[list[float], float]:
    del context
    original = s["original_max_position_embeddings"]
    factor, theta = s.get("factor") or trained / original, s["rope_theta"]

    def turns_at(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turns_at(s.get("beta_fast") or 32), turns_at(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    frequencies = []
    for i, frequency in enumerate(_plain(theta, dim)):
        slowed = min(1.0, max(0.0, (i - low) / (high - low)))
        frequencies.append(frequency / factor * slowed + frequency * (1 - slowed))
    return frequencies, _yarn_scale(s, factor)


def _yarn_scale(s: Settings, factor: float) -> float:
    if s.get("attention_factor") is not None:
        return float(s["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if s.get("mscale") and s.get("mscale_all_dim"):
        return scale(s["mscale"]) / scale(s["mscale_all_dim"])
    return scale(1.0)


def _longrope(s: Settings, dim: int, trained: int, context: int) -> tuple[list[float], float]:
    """Two lists of divisors: texts up to the original length use the short one, longer runs the long one."""
    original = s["original_max_position_embeddings"]
    factors = s["long_factor"] if context > original else s["short_factor"]
    factor, scale = s.get("factor") or trained / original, s.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return [f / divisor for f, divisor in zip(_plain(s["rope_theta"], dim), factors, strict=True)], scale


SCALINGS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}

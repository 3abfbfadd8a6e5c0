"""Rotation frequencies from the rotary settings of a `config.json`, in float64.

Old files say `rope_theta` and `rope_scaling`, new ones `rope_parameters`; both are read. "dynamic" and "longrope"
frequencies depend on the length of the text: a `Rope` holds what both short and long texts turn by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outpace.errors import ModelError
from outpace.models.spec import Rope

__all__ = ["make_rope", "rope_settings", "stretched"]

Settings = Mapping[str, Any]


def rope_settings(config: Settings, theta: float = 10000.0, part: float = 1.0) -> dict[str, Any]:
    """Return one flat dict of rotary settings; `theta` and `part` are the family's defaults."""
    found = dict(config.get("rope_parameters") or {}) | dict(config.get("rope_scaling") or {})
    kind = found.pop("type", None)
    found["rope_type"] = found.get("rope_type") or kind or "default"
    if found["rope_type"] == "su":  # Phi-3's first name for it
        found["rope_type"] = "longrope"
    found.setdefault("rope_theta", config.get("rope_theta", theta))
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", part))
    if original := config.get("original_max_position_embeddings"):
        found["original_max_position_embeddings"] = original
    found.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return found


def stretched(settings: Settings, trained: int) -> int:
    """Return the context in tokens: `max_position_embeddings`, or what scaling makes of the length before it.

    YaRN, linear and dynamic scalings are usually stated beside the length that the model had before; long-rope and
    Llama 3 state the length that they lead to.
    """
    if settings["rope_type"] not in ("linear", "dynamic", "yarn"):
        return trained
    return max(trained, int(settings["original_max_position_embeddings"] * (settings.get("factor") or 1)))


def make_rope(settings: Settings, head_dim: int, trained: int) -> Rope:
    """Return the frequencies of one layer type.

    Args:
        settings: from `rope_settings`.
        head_dim: D; the partial rotary factor is taken of it.
        trained: `max_position_embeddings` of the file.
    """
    kind = settings["rope_type"]
    if kind not in SCALINGS:
        raise ModelError(
            f"Rotary scaling {kind!r} is not known here.", hint=f"Known: {', '.join(SCALINGS)}; or use --model hf:NAME."
        )
    dim = int(head_dim * (settings.get("partial_rotary_factor") or 1.0))
    try:
        rope = SCALINGS[kind](settings, dim, trained)
    except KeyError as missing:
        raise ModelError(
            f"Rotary scaling {kind!r} lacks {missing.args[0]!r} in config.json.", hint="Fetch the model's files again."
        ) from None
    if not (divisors := settings.get("divisors")):
        return rope
    # Every frequency by a number of its own, as GGUF states the Llama 3 scaling; a scaling stated beside it holds too.
    return replace(rope, inv_freq=tuple(f / divisor for f, divisor in zip(rope.inv_freq, divisors, strict=True)))


def _plain(theta: float, dim: int) -> list[float]:
    return [theta ** (-i / dim) for i in range(0, dim, 2)]


def _default(s: Settings, dim: int, trained: int) -> Rope:
    del trained
    return Rope(tuple(_plain(s["rope_theta"], dim)))


def _linear(s: Settings, dim: int, trained: int) -> Rope:
    del trained
    return Rope(tuple(f / s["factor"] for f in _plain(s["rope_theta"], dim)))


def _dynamic(s: Settings, dim: int, trained: int) -> Rope:
    """NTK: beyond the trained length the base grows with the text."""
    theta = s["rope_theta"]
    return Rope(tuple(_plain(theta, dim)), switch=trained, base=float(theta), factor=float(s["factor"]))


def _llama3(s: Settings, dim: int, trained: int) -> Rope:
    """Slow turns are slowed further, fast ones kept, a smooth ramp between."""
    del trained
    factor, low, high = s["factor"], s["low_freq_factor"], s["high_freq_factor"]
    original = s["original_max_position_embeddings"]
    frequencies = []
    for frequency in _plain(s["rope_theta"], dim):
        length = 2 * math.pi / frequency
        smooth = min(1.0, max(0.0, (original / length - low) / (high - low)))
        frequencies.append((1 - smooth) * frequency / factor + smooth * frequency)
    return Rope(tuple(frequencies))


def _yarn(s: Settings, dim: int, trained: int) -> Rope:
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
    return Rope(tuple(frequencies), _yarn_scale(s, factor))


def _yarn_scale(s: Settings, factor: float) -> float:
    if s.get("attention_factor") is not None:
        return float(s["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if s.get("mscale") and s.get("mscale_all_dim"):
        return scale(s["mscale"]) / scale(s["mscale_all_dim"])
    return scale(1.0)


def _longrope(s: Settings, dim: int, trained: int) -> Rope:
    """Two lists of divisors: texts up to the original length use the short one, longer texts the long one."""
    original, plain = s["original_max_position_embeddings"], _plain(s["rope_theta"], dim)
    factor, scale = s.get("factor") or trained / original, s.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (
        tuple(f / divisor for f, divisor in zip(plain, s[name], strict=True))
        for name in ("short_factor", "long_factor")
    )
    return Rope(short, float(scale), switch=original, long=long)


SCALINGS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}

"""What a model directory holds besides plain weights: quantised weights, an adapter, GGUF; named before they are read.

Formats that have no loader here would otherwise fail at some tensor, or load as numbers that mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outpace.errors import ModelError

__all__ = ["check_checkpoint", "check_file", "has_adapter", "quantization"]

Config = Mapping[str, Any]

# quant_method -> name, and bits where the settings name none.
_METHODS = {
    "gptq": ("GPTQ", 0),
    "awq": ("AWQ", 0),
    "compressed-tensors": ("compressed-tensors", 0),
    "bitsandbytes": ("bitsandbytes", 0),
    "fp8": ("FP8", 8),
    "fbgemm_fp8": ("FBGEMM FP8", 8),
    "mxfp4": ("MXFP4", 4),
    "eetq": ("EETQ", 8),
    "bitnet": ("BitNet", 2),
    "hqq": ("HQQ", 0),
    "quanto": ("Quanto", 0),
    "aqlm": ("AQLM", 0),
    "modelopt": ("ModelOpt", 0),
}
_KEYS = ("quantization_config", "compression_config", "quantization")  # the last one is MLX's
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_BITS = ("bits", "w_bit", "num_bits", "nbits", "weight_bits", "nbits_per_codebook")
_WORDS = {"int8": 8, "int4": 4, "int2": 2, "float8": 8, "qint8": 8, "qint4": 4}


def quantization(directory: Path, config: Config) -> str:
    """Return what kind of quantised checkpoint a directory holds, as "GPTQ, 4 bits"; "" for plain weights."""
    bodies = (config, config.get("text_config"))
    stated = [body.get(key) for body in bodies if isinstance(body, Mapping) for key in _KEYS]
    found = next((item for item in stated if item), None)
    method = str(found.get("quant_method") or "").lower() if isinstance(found, Mapping) else ""
    if found is None:
        file = next((name for name in _FILES if (directory / name).is_file()), None)
        if file is None:
            return ""
        found, method = _read(directory / file), _FILES[file]
    settings = found if isinstance(found, Mapping) else {}
    if not method:
        method = _guess(config, settings)
    name, known = _METHODS.get(method, (method or "of an unnamed kind", 0))
    bits = _bits(settings) or known
    return f"{name}, {bits} bits" if bits else name


def _guess(config: Config, settings: Config) -> str:
    """Name a method that its settings do not: old bitsandbytes, compressed-tensors and MLX files."""
    if any(str(key).startswith(("load_in_", "bnb_")) for key in settings):
        return "bitsandbytes"
    if "config_groups" in settings or config.get("compression_config"):
        return "compressed-tensors"
    return "MLX" if config.get("quantization") else ""


def _bits(settings: Any) -> int:
    """Return the bits per weight that settings state, at any depth; 0 = none."""
    if isinstance(settings, Mapping):
        for key in _BITS:
            if isinstance(settings.get(key), int) and not isinstance(settings[key], bool):
                return int(settings[key])
        for number in (4, 8):
            if settings.get(f"load_in_{number}bit") is True:
                return number
        for key, value in settings.items():
            if key == "weights" and isinstance(value, str) and value in _WORDS:
                return _WORDS[value]
            if found := _bits(value):
                return found
    return 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def has_adapter(directory: Path) -> bool:
    """Return whether a directory holds the settings of an adapter (LoRA and its kin)."""
    return (directory / "adapter_config.json").is_file()


def check_file(path: Path) -> None:
    """Refuse a file in place of a directory, by what it is.

    Raises:
        ModelError: it is a file.
    """
    if not path.is_file():
        return
    raise ModelError(
        f"{path} is neither a model directory nor a GGUF file.", "Give the directory that holds config.json."
    )


def check_checkpoint(directory: Path) -> None:
    """Refuse a directory whose files say that they are no model of plain weights.

    Raises:
        ModelError: an adapter without its model, or quantised weights.
    """
    weights = [*directory.glob("*.safetensors")]
    is_whole = any(path.name.startswith(("model", "pytorch_model")) for path in weights)
    if has_adapter(directory) and not is_whole:
        raise _adapter(directory)
    config = _read(directory / "config.json")
    kind = quantization(directory, config) if isinstance(config, Mapping) else ""
    if kind:
        raise ModelError(
            f"{directory} is a quantised checkpoint ({kind}), which cannot be loaded yet.",
            "Use the unquantised checkpoint, or hf:NAME where transformers can read this one.",
        )


def _adapter(directory: Path) -> ModelError:
    settings = _read(directory / "adapter_config.json")
    settings = settings if isinstance(settings, Mapping) else {}
    kind = "LoRA" if str(settings.get("peft_type") or "LORA").upper() == "LORA" else str(settings["peft_type"])
    base = settings.get("base_model_name_or_path")
    return ModelError(
        f"{directory} holds a {kind} adapter{f' for {base}' if base else ''}, not a model.",
        "Merge it into its model first (peft: merge_and_unload, then save_pretrained).",
    )

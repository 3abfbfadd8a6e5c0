"""What the files of a quantised Hugging Face checkpoint say of it: the method, and how each module's matrix is stored.

What cannot be read is refused by name before weights are looked at. Schemes: GPTQ (Frantar et al. 2022,
arXiv:2210.17323), AWQ (Lin et al. 2023, arXiv:2306.00978) in its GEMM form, compressed-tensors, and float8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outpace.errors import ModelError

__all__ = ["Quantisation", "Scheme", "read_quantisation"]

Config = Mapping[str, Any]

# quant_method -> name, and bits where the settings name none.
_METHODS = {
    "gptq": ("GPTQ", 0),
    "awq": ("AWQ", 0),
    "compressed-tensors": ("compressed-tensors", 0),
    "fp8": ("FP8", 8),
    "fbgemm_fp8": ("FBGEMM FP8", 8),
    "auto-round": ("AutoRound", 0),
    "bitsandbytes": ("bitsandbytes", 0),
    "mxfp4": ("MXFP4", 4),
    "nvfp4": ("NVFP4", 4),
    "eetq": ("EETQ", 8),
    "bitnet": ("BitNet", 2),
    "hqq": ("HQQ", 0),
    "quanto": ("Quanto", 0),
    "aqlm": ("AQLM", 0),
    "exl2": ("EXL2", 0),
    "exl3": ("EXL3", 0),
    "modelopt": ("ModelOpt", 0),
    "torchao": ("torchao", 0),
}
_KEYS = ("quantization_config", "compression_config", "quantization")  # the last one is MLX's
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_BITS = ("bits", "w_bit", "num_bits", "nbits", "weight_bits", "nbits_per_codebook")
_WORDS = {"int8": 8, "int4": 4, "int2": 2, "float8": 8, "qint8": 8, "qint4": 4}
_PLAIN_ADVICE = "Use the unquantised checkpoint, or hf:NAME where transformers can read this one."
_AGAIN = "Fetch the model's files again."


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the matrix [out, in] of a module is stored.

    Attributes:
        layout: "gptq", "awq", "packed" or "int" (both of compressed-tensors) or "float8".
        bits: of a code, 1 to 8.
        group: inputs per scale, 0 = all of them, None = the shape of the scales says it.
        block: outputs and inputs per scale, in place of `group`.
        is_less_one: stored zero points are one less than those that count (GPTQ's first form).
    """

    layout: str
    bits: int
    group: int | None = None
    block: tuple[int, int] | None = None
    is_less_one: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    """A scheme and the modules that it is for: a name, an expression ("re:..."), or a class of modules."""

    target: str
    scheme: Scheme | None

    def rank(self, module: str) -> int | None:
        """Return how closely it names a module, 0 = by its name; None = not at all."""
        if self.target == module:
            return 0
        if self.target.startswith("re:"):
            return 1 if _expression(self.target[3:]).match(module) else None
        return 2 if self.target == ("Embedding" if _is_embedding(module) else "Linear") else None


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What is said of a whole checkpoint.

    Attributes:
        name: as in "GPTQ, 4 bits".
        rules: the closest one holds for a module, the first among equals.
        notes: what is not followed, for results.
        ignored: rules for modules that are plain whatever the others say.
    """

    name: str
    rules: tuple[_Rule, ...]
    notes: tuple[str, ...] = ()
    ignored: tuple[_Rule, ...] = ()

    def scheme(self, module: str) -> Scheme | None:
        """Return how a module's matrix is stored; None = the settings say nothing of it, or that it is plain.

        Args:
            module: its name in the files, without ".weight".
        """
        if any(rule.rank(module) is not None for rule in self.ignored):
            return None
        ranked = [(rank, i) for i, rule in enumerate(self.rules) if (rank := rule.rank(module)) is not None]
        return self.rules[min(ranked)[1]].scheme if ranked else None


def read_quantisation(directory: Path, config: Config) -> Quantisation | None:
    """Return how a model directory's weights are quantised; None = they are not.

    Args:
        directory: old checkpoints say it in a file of their own.
        config: the parsed config.json.

    Raises:
        ModelError: a method or a form of it that has no reader here, or settings that contradict themselves.
    """
    found = _find(directory, config)
    if found is None:
        return None
    method, settings = found
    name = _name(method, settings)
    reader = _READERS.get(method)
    if reader is None:
        raise _unread(name)
    return reader(name, settings)


# Finding and naming


def _find(directory: Path, config: Config) -> tuple[str, Config] | None:
    """Return the method, "" = unnamed, and its settings."""
    bodies = (config, config.get("text_config"))
    stated = [body.get(key) for body in bodies if isinstance(body, Mapping) for key in _KEYS]
    found = next((item for item in stated if item), None)
    method = str(found.get("quant_method") or "").lower() if isinstance(found, Mapping) else ""
    if found is None:
        file = next((name for name in _FILES if (directory / name).is_file()), None)
        if file is None:
            return None
        found, method = _read(directory / file), _FILES[file]
    settings = found if isinstance(found, Mapping) else {}
    return method or _guess(config, settings), settings


def _name(method: str, settings: Config) -> str:
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


def _bits(settings: Any, depth: int = 6) -> int:
    """Return the bits per weight that settings state, at some depth; 0 = none."""
    if isinstance(settings, Mapping) and depth:
        for key in _BITS:
            if isinstance(settings.get(key), int) and not isinstance(settings[key], bool):
                return int(settings[key])
        for number in (4, 8):
            if settings.get(f"load_in_{number}bit") is True:
                return number
        for key, value in settings.items():
            if key == "weights" and isinstance(value, str) and value in _WORDS:
                return _WORDS[value]
            if found := _bits(value, depth - 1):
                return found
    return 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


# One function per method


def _gptq(name: str, settings: Config) -> Quantisation:
    form = _word(settings, "checkpoint_format", "format") or "gptq"
    if settings.get("is_marlin_format") is True:
        form = "marlin"
    if form not in ("gptq", "gptq_v2"):
        raise _unread(f"{name}, stored as {form}")
    if (packed := _word(settings, "pack_dtype")) not in ("", "int32", "torch.int32"):
        raise _unread(f"{name}, packed as {packed}")
    bits = _whole(settings, ("bits",), (2, 3, 4, 8))
    scheme = Scheme("gptq", bits, _group(settings, "group_size"), is_less_one=form == "gptq")
    rules = [*_overrides(scheme, settings.get("dynamic") or {}), _Rule("re:", scheme)]
    return Quantisation(name, tuple(rules))


def _overrides(scheme: Scheme, stated: Any) -> list[_Rule]:
    """Return GPTQModel's settings of single modules: expressions, with "-:" before them where nothing is quantised."""
    if not isinstance(stated, Mapping) or not all(isinstance(value, Mapping) for value in stated.values()):
        raise _contradicts("dynamic", stated, "an object of objects")
    rules: list[_Rule] = []
    for pattern, own in stated.items():
        target = "re:" + pattern.removeprefix("-:").removeprefix("+:")
        _expression(target[3:])
        if pattern.startswith("-:"):
            rules.append(_Rule(target, None))
            continue
        bits = _whole({"bits": scheme.bits} | dict(own), ("bits",), (2, 3, 4, 8))
        group = _group(own, "group_size") if "group_size" in own else scheme.group
        rules.append(_Rule(target, replace(scheme, bits=bits, group=group)))
    return rules


def _awq(name: str, settings: Config) -> Quantisation:
    form = _word(settings, "version", "format") or "gemm"
    if _word(settings, "backend") == "llm-awq":
        form = "llm-awq"
    if form != "gemm":
        raise _unread(f"{name}, stored as {form}")
    bits = _whole(settings, ("bits", "w_bit"), (4,))
    return Quantisation(name, (_Rule("re:", Scheme("awq", bits, _group(settings, "group_size", "q_group_size"))),))


def _float8(name: str, settings: Config) -> Quantisation:
    scheme = Scheme("float8", 8, block=_block(settings.get("weight_block_size"), "weight_block_size"))
    kind = _word(settings, "activation_scheme") or "dynamic"
    return Quantisation(name, (_Rule("re:", scheme),), (_activations(kind),))


def _compressed(name: str, settings: Config) -> Quantisation:
    if isinstance(settings.get("quantization_config"), Mapping):  # as it was nested once
        settings = settings["quantization_config"] | {"sparsity_config": settings.get("sparsity_config")}
    sparsity = settings.get("sparsity_config") or {}
    if isinstance(sparsity, Mapping) and _word(sparsity, "format") not in ("", "dense"):
        raise _unread(f"{name}, {_word(sparsity, 'format')}")
    if settings.get("transform_config"):
        raise _unread(f"{name}, with transforms of inputs")
    if (status := _word(settings, "quantization_status")) not in ("", "compressed"):
        raise _unread(f"{name}, of status {status}")
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise _contradicts("config_groups", groups, "an object of objects")
    ignored = [_Rule(target, None) for target in _texts(settings, "ignore")]
    rules: list[_Rule] = []
    notes: list[str] = []
    for group in groups.values():
        scheme = _compressed_scheme(name, group, _word(group, "format") or _word(settings, "format"))
        rules += [_Rule(target, scheme) for target in _texts(group, "targets")]
        notes += _activation_notes(group)
    for rule in (*ignored, *rules):
        if rule.target.startswith("re:"):
            _expression(rule.target[3:])
    if settings.get("kv_cache_scheme"):
        notes.append("The checkpoint asks for a quantised cache: that is not followed, the cache keeps its precision.")
    return Quantisation(name, tuple(rules), tuple(dict.fromkeys(notes)), tuple(ignored))


def _compressed_scheme(name: str, group: Config, form: str) -> Scheme | None:
    weights = group.get("weights")
    if weights is None or form == "dense":
        return None
    if not isinstance(weights, Mapping):
        raise _contradicts("weights", weights, "an object")
    kind = _word(weights, "type") or "int"
    layouts = {"pack-quantized": "packed", "int-quantized": "int", "float-quantized": "float8"}
    layout = {"int": "int", "float": "float8"}.get(kind, "") if form == "naive-quantized" else layouts.get(form, "")
    if not layout:
        raise _unread(f"{name}, stored as {form or 'an unnamed form'}")
    if (layout == "float8") != (kind == "float"):
        raise ModelError(f"config.json says that weights of type {kind} are stored as {form}.", _AGAIN)
    bits = _whole(weights, ("num_bits",), (8,) if layout == "float8" else tuple(range(1, 9)))
    strategy = _word(weights, "strategy")
    size = weights.get("group_size")
    if not strategy:  # as the package infers it
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "block":
        return Scheme(layout, bits, block=_block(weights.get("block_structure"), "block_structure"))
    if strategy == "group":
        return Scheme(layout, bits, _group(weights, "group_size") or 0)
    if strategy not in ("channel", "tensor"):
        raise _unread(f"{name}, one scale per {strategy}")
    return Scheme(layout, bits, 0)


def _activation_notes(group: Config) -> list[str]:
    stated = [group.get(key) for key in ("input_activations", "output_activations")]
    return [
        _activations("dynamic" if item.get("dynamic") else "static") for item in stated if isinstance(item, Mapping)
    ]


def _activations(kind: str) -> str:
    return (
        f"The checkpoint asks for {kind} quantisation of activations: that is not followed, they keep their precision."
    )


_READERS = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _float8,
    "fbgemm_fp8": _float8,
}


# Values


def _unread(what: str) -> ModelError:
    return ModelError(f"This is a quantised checkpoint ({what}), which has no reader here.", _PLAIN_ADVICE)


def _contradicts(key: str, value: Any, wanted: str) -> ModelError:
    shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
    return ModelError(f"The quantisation's settings say {key} {shown}; it has to be {wanted}.", _AGAIN)


def _word(settings: Config, *keys: str) -> str:
    """Return the first of some keys that is set, in small letters."""
    return next((str(settings[key]).lower() for key in keys if settings.get(key) is not None), "")


def _whole(settings: Config, keys: tuple[str, ...], known: tuple[int, ...]) -> int:
    key = next((key for key in keys if settings.get(key) is not None), keys[0])
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        listed = f"{known[0]} to {known[-1]}" if known == tuple(range(1, 9)) else " or ".join(map(str, known))
        raise _contradicts(key, value, listed)
    return value


def _group(settings: Config, *keys: str) -> int | None:
    key = next((key for key in keys if settings.get(key) is not None), None)
    if key is None:
        return None
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise _contradicts(key, value, "-1 or a number above 0")
    return max(value, 0)


def _block(value: Any, key: str) -> tuple[int, int] | None:
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sizes) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise _contradicts(key, value, "two numbers above 0")
    return sizes[0], sizes[1]


def _texts(settings: Config, key: str) -> list[str]:
    value = settings.get(key) or []
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise _contradicts(key, value, "a list of names")
    return list(value)


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error:
        raise _contradicts("a module", pattern, "a regular expression") from None


def _is_embedding(module: str) -> bool:
    last = module.rpartition(".")[2]
    return "embed" in last or last == "wte"

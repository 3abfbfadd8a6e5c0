"""Low-rank adapters as PEFT saves them (LoRA: Hu et al. 2021, arXiv:2106.09685), merged into weights as these are read.

A matrix W becomes W + scale * B A, computed in float32 and rounded once. What changes more than weights, or other
weights than its tensors name, is refused by name: DoRA, biases, and starts that alter the model underneath.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.families import Family
from outpace.models.quantised import Quantised
from outpace.models.tensors import FLOATS, TensorFiles
from outpace.text.files import read_object

__all__ = ["AdaptedFiles", "base_directory", "has_adapter"]

_SETTINGS, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE = "base_model.model."  # every name
_PARTS = {
    ".lora_A.weight": ("A", ".weight"),
    ".lora_B.weight": ("B", ".weight"),
    ".lora_embedding_A": ("A", ".weight"),
    ".lora_embedding_B": ("B", ".weight"),
}
# Settings that mean more than B A where they are set; those that begin with use_ do so too, but for one.
_MORE = (
    *("lora_bias", "trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens"),
    *("velora_config", "monteclora_config", "arrow_config", "kasa_config"),
)
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of A and B, that leave the model as it is
_OTHER_MODEL = "The adapter is of another model."
_MERGE = "Merge it into its model first (peft: merge_and_unload, then save_pretrained)."


def has_adapter(directory: Path) -> bool:
    """Return whether a directory holds the settings of an adapter (LoRA and its kin)."""
    return (directory / _SETTINGS).is_file()


def base_directory(directory: Path) -> Path | None:
    """Return the model that a directory's adapter is for; None = the directory is no adapter alone.

    Raises:
        ModelError: it is one, and its model is in no local directory.
    """
    is_whole = any(path.name.startswith(("model", "pytorch_model")) for path in directory.glob("*.safetensors"))
    if not has_adapter(directory) or is_whole:
        return None
    settings = read_object(directory / _SETTINGS)
    base = settings.get("base_model_name_or_path")
    if isinstance(base, str) and base and Path(base).expanduser().is_dir():
        return Path(base).expanduser()
    kind = "LoRA" if _kind(settings) == "LORA" else _kind(settings)
    raise ModelError(
        f"{directory} holds a {kind} adapter{f' for {base}' if base else ''}, not a model.",
        "Give its model, and this directory as the adapter (--adapter).",
    )


def _kind(settings: Mapping[str, Any]) -> str:
    return str(settings.get("peft_type") or "LORA").upper()


@dataclass(slots=True)
class _Pair:
    """Names of the two factors, and what their product is multiplied by."""

    a: str = ""
    b: str = ""
    scale: float = 1.0
    is_embedding: bool = False


class AdaptedFiles(TensorFiles):
    """The tensors of a model with those of an adapter merged in; a quantised matrix that one changes is decoded.

    Rounding the sum to the codes' grid again would be another quantisation, with an error that nobody measured.

    Args:
        base: the model's files.
        directory: the adapter's.
        family: what the model's tensors are called.
        is_tied: the model's head is its embedding.

    Raises:
        ModelError: no LoRA, one that means more than its factors, or one of another model.
    """

    def __init__(self, base: TensorFiles, directory: Path, family: Family, is_tied: bool) -> None:
        if not directory.is_dir() or not has_adapter(directory):
            raise ModelError(f"{directory} holds no adapter.", f"Give the directory that holds {_SETTINGS}.")
        if not (directory / _TENSORS).is_file():
            raise ModelError(
                f"{directory} has no {_TENSORS}.", "Save the adapter as safetensors (peft: save_pretrained)."
            )
        self.base, self.entries, self.used = base, base.entries, base.used
        self._family, self._settings = family, read_object(directory / _SETTINGS)
        self._adapter = TensorFiles([directory / _TENSORS])
        self._pairs: dict[str, _Pair] = {}
        self._whole: dict[str, str] = {}
        self._is_decoded = False
        _check_settings(directory, self._settings)
        for name in self._adapter.entries:
            self._place(name)
        for target, pair in self._pairs.items():
            self._complete(target, pair)
        self._check_targets(is_tied)

    def __contains__(self, name: str) -> bool:
        return name in self.base

    @property
    def notes(self) -> list[str]:
        """What a result should say of these files."""
        found = "Quantised matrices are decoded and run dense where the adapter is merged into them."
        return [*self.base.notes, *([found] if self._is_decoded else [])]

    def quantised_kinds(self) -> list[str]:
        """Return how the model's quantised matrices are stored."""
        return self.base.quantised_kinds()

    def stored_dtype(self) -> str:
        """Return the floating dtype that the model's files are stored in."""
        return self.base.stored_dtype()

    def unused(self) -> list[str]:
        """Return the names of the model's tensors that nobody read."""
        return self.base.unused()

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of this shape, changed as the adapter says."""
        target = self._plain(name)
        weight = self.base.read(name, shape)
        if target in self._whole:
            weight = self._take(self._whole[target], shape)
        if target not in self._pairs:
            return weight
        pair = self._pairs[target]
        is_head = target == self._family.outer["head"] + ".weight"
        is_turned = pair.is_embedding or (self._family.is_transposed and not is_head)
        rows, columns = shape[::-1] if is_turned else shape
        a = self._take(pair.a, (self._rank(pair.a), columns)).float()
        b = self._take(pair.b, (rows, self._rank(pair.a))).float()
        change = (b @ a) * pair.scale
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) + (change.t() if is_turned else change)

    def read_quantised(self, name: str, shape: tuple[int, ...]) -> Quantised | None:
        """Return a matrix's codes; None = `read` gives it, as for all that the adapter changes."""
        if self._plain(name) not in (self._pairs.keys() | self._whole.keys()):
            return self.base.read_quantised(name, shape)
        self._is_decoded = bool(self.base.quantised_kinds())
        return None

    def _plain(self, name: str) -> str:
        """Return a tensor's name without what may stand before it: files and adapters differ in that."""
        found = next((p for p in sorted(self._family.prefixes, key=len, reverse=True) if name.startswith(p)), "")
        return name.removeprefix(found)

    def _place(self, name: str) -> None:
        """Find out what one tensor of the adapter is for."""
        if "lora_magnitude_vector" in name:
            raise _refused("DoRA")
        told = name.removeprefix(_BEFORE)
        part = next((part for part in _PARTS if told.endswith(part)), None)
        if part is None:
            if ".lora_" in told or told == name:
                raise ModelError(f"Tensor {name} of the adapter is no factor of a LoRA.", _MERGE)
            self._whole[self._plain(told.replace(".base_layer.", "."))] = name
            return
        factor, after = _PARTS[part]
        pair = self._pairs.setdefault(self._plain(told.removesuffix(part) + after), _Pair())
        pair.is_embedding |= "embedding" in part
        if factor == "A":
            pair.a = name
            pair.scale = _scale(self._settings, name, told.removesuffix(part), self._rank(name))
        else:
            pair.b = name

    def _complete(self, target: str, pair: _Pair) -> None:
        if not pair.a or not pair.b:
            raise ModelError(f"The adapter has one factor of two for {target}: {pair.a or pair.b}.", _MERGE)
        if len(self._adapter.entries[pair.b].shape) != 2:
            raise ModelError(f"Tensor {pair.b} of the adapter is no matrix.", _MERGE)

    def _rank(self, name: str) -> int:
        shape = self._adapter.entries[name].shape
        if len(shape) != 2:
            raise ModelError(f"Tensor {name} of the adapter is no matrix.", _MERGE)
        return shape[0]

    def _check_targets(self, is_tied: bool) -> None:
        """Refuse, before weights are read, an adapter of tensors that are not there or that stand for two."""
        outer = {self._family.outer[role] + ".weight" for role in ("embed", "head")}
        for target, name in {**{t: pair.a for t, pair in self._pairs.items()}, **self._whole}.items():
            if is_tied and target in outer:
                raise ModelError(
                    f"Tensor {name} of the adapter changes one of embedding and head, which this model shares.", _MERGE
                )
            if not any(prefix + target in self.base for prefix in {*self._family.prefixes, "", "language_model."}):
                raise ModelError(f"Tensor {name} of the adapter has no place in this model.", _OTHER_MODEL)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        try:
            return self._adapter.take(name, shape, FLOATS)
        except ModelError as error:
            raise ModelError(str(error), _OTHER_MODEL) from error


def _check_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings that mean more than factors.

    Raises:
        ModelError: see the message.
    """
    if _kind(settings) != "LORA":
        raise _refused(f"{_kind(settings)}, no LoRA,")
    if settings.get("use_dora"):
        raise _refused("DoRA")
    if (bias := settings.get("bias") or "none") != "none":
        raise _refused(f"a LoRA with biases ({bias})")
    extra = [key for key in settings if key in _MORE or (key.startswith("use_") and key != "use_rslora")]
    if found := next((key for key in extra if settings[key]), None):
        raise _refused(f"a LoRA with {found}")
    if (start := settings.get("init_lora_weights")) not in _STARTS:
        raise _refused(f"a LoRA whose start ({start}) changed the model under it")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, Mapping):
            raise ModelError(f"{directory / _SETTINGS} says {key}, which is no object.", _MERGE)


def _scale(settings: Mapping[str, Any], name: str, module: str, stored: int) -> float:
    """Return what a module's product is multiplied by: alpha / r, or alpha / sqrt(r) where the rank is stabilised.

    Args:
        settings: of the adapter.
        name: the tensor, for the message.
        module: the model's name for what is changed.
        stored: the rank of the factors.
    """
    rank = _of_module(settings.get("rank_pattern") or {}, module, settings.get("r", 8))
    alpha = _of_module(settings.get("alpha_pattern") or {}, module, settings.get("lora_alpha", 8))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 or rank != stored:
        raise ModelError(
            f"Tensor {name} of the adapter has rank {stored}, but its settings say {rank!r}.", _OTHER_MODEL
        )
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ModelError(f"The adapter's settings say lora_alpha {alpha!r}; it has to be a number.", _OTHER_MODEL)
    return float(alpha / math.sqrt(rank)) if settings.get("use_rslora") else float(alpha / rank)


def _of_module(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return what is said of a module: patterns are expressions for the end of its name, the first that fits."""
    try:
        return next((it for key, it in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    except re.error:
        raise ModelError("The adapter's rank_pattern or alpha_pattern is no regular expression.", _MERGE) from None


def _refused(what: str) -> ModelError:
    return ModelError(f"The adapter is {what}, which cannot be merged here.", _MERGE)

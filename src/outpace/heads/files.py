"""Writing and reading trained drafters: a directory with `config.json`, `model.safetensors` and, perhaps, a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from outpace.errors import ModelError
from outpace.heads.model import HeadModel
from outpace.heads.net import HeadConfig, HeadNet, load_kind
from outpace.models.opening import DRAFTER
from outpace.models.rounded import SCALE, joined, split
from outpace.types import Adapter

__all__ = ["MODEL_TYPE", "is_head", "open_head", "read_config", "read_head", "save_head"]

MODEL_TYPE = DRAFTER
_IDS = "draft_ids"  # int32 [K], ascending


def is_head(directory: str | Path) -> bool:
    """Return whether a directory holds a trained drafter."""
    try:
        found = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == MODEL_TYPE


def save_head(net: HeadNet, directory: Path, ids: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a network, and the tokens that it drafts (None = all).

    Args:
        net: the network.
        directory: where to; what lies there is replaced.
        ids: [K] int64, ascending.
        dtype: of its numbers; int8 = matrices as bytes with a scale per row, the rest in bfloat16.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.detach() for name, weight in net.state_dict().items()}
    if dtype == torch.int8:
        tensors, dtype = split(tensors), torch.bfloat16
    tensors = {
        name: (tensor if _is_rounded(name, tensor) else tensor.to(dtype)).contiguous()
        for name, tensor in tensors.items()
    }
    if ids is not None:
        tensors[_IDS] = ids.to(torch.int32)
    part = directory / "model.safetensors.part"
    save_file(tensors, part)
    part.replace(directory / "model.safetensors")
    net.write_beside(directory)
    config = {"model_type": MODEL_TYPE, **net.config.to_dict()}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _is_rounded(name: str, tensor: Tensor) -> bool:
    return tensor.dtype == torch.int8 or name.endswith(SCALE)


def read_head(directory: Path) -> tuple[HeadNet, Tensor | None]:
    """Return a network, in float32, and the tokens that it drafts.

    Raises:
        ModelError: a file is missing or damaged, lacks a setting, or holds other tensors than the network has.
    """
    config = read_config(directory)
    try:
        net = load_kind(config.kind)(config)
    except KeyError as error:
        raise ModelError(
            f"The config.json of the drafter {directory} has no setting {error.args[0]!r}.", "Train it again."
        ) from error
    try:
        tensors = load_file(directory / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The weights of the drafter {directory} cannot be read ({error}).", "Fetch it again."
        ) from error
    ids = tensors.pop(_IDS, None)
    tensors, coded = joined(tensors)
    own = net.state_dict()
    odd = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
    if odd:
        raise ModelError(f"The drafter {directory} does not have the tensors of its kind: {odd[0]}.", "Train it again.")
    net.load_state_dict({name: weight.float() for name, weight in tensors.items()})
    net.coded = coded
    _check_ids(ids, config, directory)
    return net, None if ids is None else ids.long()


def open_head(directory: str | Path, target: Adapter) -> HeadModel:
    """Return a drafter beside its target.

    Raises:
        ModelError: it cannot be read.
        CapabilityError: it was made for another target.
    """
    net, ids = read_head(Path(directory))
    return HeadModel(net, target, ids)


def read_config(directory: Path) -> HeadConfig:
    """Return what a drafter is, and what it was made for.

    Raises:
        ModelError: its config.json is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found.pop("model_type", None)
        return HeadConfig(**{**found, "layers": tuple(found["layers"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"The config.json of the drafter {directory} cannot be read.", "Fetch it again.") from error


def _check_ids(ids: Tensor | None, config: HeadConfig, directory: Path) -> None:
    if ids is None and not config.draft_vocab:
        return
    is_sound = ids is not None and ids.dim() == 1 and len(ids) == config.draft_vocab and len(ids) > 0
    if not is_sound or not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size or bool((ids.diff() <= 0).any()):  # type: ignore[union-attr]
        raise ModelError(
            f"The drafter {directory} names tokens beyond the target's vocabulary, or not in order.", "Train it again."
        )

"""Editing models in files: a `config.json` that names the kind and its sizes, and its weights as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ModelError
from outpace.text.files import read_object
from outpace.types import Adapter

from .copy_ctc import CopyCtc
from .edit5 import Edit5
from .encoder import Sizes

__all__ = ["Editor", "editor_config", "is_editor", "load_editor", "open_editor"]

Editor = CopyCtc | Edit5
_KINDS: dict[str, type[Editor]] = {kind.model_type: kind for kind in (CopyCtc, Edit5)}


def editor_config(network: Editor) -> dict[str, Any]:
    """Return the `config.json` of a network."""
    sizes = asdict(network.sizes)
    return {"model_type": network.model_type, "vocab_size": sizes.pop("vocab"), **sizes}


def is_editor(directory: Path) -> bool:
    """Return whether a directory holds an editing model of ours."""
    config = directory / "config.json"
    return config.is_file() and str(read_object(config).get("model_type")) in _KINDS


def load_editor(directory: Path) -> Editor:
    """Return the network of a directory, in float32 and without dropout.

    Raises:
        ModelError: a file is missing, or its settings or tensors are not those of the kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = _build(read_object(directory / "config.json"))
    try:
        weights = load_file(directory / "model.safetensors")
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{directory} holds no whole editing model: {reason}", "Fetch its files again.") from error
    network.eval()
    return network


def _build(config: Mapping[str, Any]) -> Editor:
    kind = _KINDS[str(config["model_type"])]
    names = [one.name for one in fields(Sizes) if one.name != "vocab"]
    try:
        return kind(Sizes(vocab=config["vocab_size"], **{name: config[name] for name in names}))
    except KeyError as missing:
        raise ModelError(f"config.json lacks {missing.args[0]!r}.", "Fetch the model's files again.") from None
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"config.json describes no editing model: {reason}.", "Fetch its files again.") from error


def open_editor(directory: Path, dtype: str, device: str) -> Adapter:
    """Return the adapter of a directory's editing model.

    Args:
        directory: its files.
        dtype: "auto" (float32), or the name of a floating-point type.
        device: "auto" or a torch device.
    """
    from outpace.models.loading import pick_device, pick_dtype

    place = pick_device(device)
    kind = torch.float32 if dtype == "auto" else pick_dtype(dtype, {}, place)
    generation = directory / "generation_config.json"
    told = read_object(generation) if generation.is_file() else {}
    network = load_editor(directory)
    network.to(place, kind)
    return network.adapter(int(told.get("eos_token_id", 0)), int(told.get("decoder_start_token_id", 0)))

"""Reading and writing networks of the family: `config.json` with a kind, `model.safetensors`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ModelError, nearest
from outpace.models.kernel_contract import Kernels
from outpace.models.rounded import joined
from outpace.text.files import read_object

from .model import NarModel
from .network import NarConfig, NarNet

__all__ = ["KINDS", "MODEL_TYPE", "config_of", "find_kind", "kind_of", "open_nar", "read_nar"]

MODEL_TYPE = "outpace_nar"
KINDS = {  # below outpace.models.nar, or, with a dot, below outpace.models
    "ctc": "ctc:Ctc",
    "dag": "dag:Dag",
    "ctc-diffused": "diffused:Diffused",
    "cmlm": "cmlm:Cmlm",
    "fertility": "fertility:Fertility",
    "elmer": "elmer:Elmer",
    "markov": "markov:Markov",
    "sga": "sga:Sga",
    "insertion": "insertion:Insertion",
    "insertion-lm": "insertion:InsertionLm",
    "levenshtein": "levenshtein:Levenshtein",
    "recursive": "recursive:Recursive",
    "diffusion": "continuous.network:Diffusion",
    "ordered": "ordered:Ordered",
    "latents": "continuous.latents:Latents",
    "vectors": "continuous.vectors:Vectors",
}


def find_kind(kind: str) -> type[NarNet]:
    """Return the class of a kind.

    Raises:
        ModelError: there is no such kind.
    """
    if kind not in KINDS:
        raise ModelError(f"There is no kind of one-pass network {kind!r}.", nearest(kind, KINDS, "kind"))
    module, _, name = KINDS[kind].partition(":")
    found: type[NarNet] = getattr(
        importlib.import_module(f"outpace.models.{module if '.' in module else 'nar.' + module}"), name
    )
    return found


def kind_of(config: NarConfig) -> type[NarNet]:
    """Return the class of the network whose sizes these are."""
    return next(kind for kind in map(find_kind, KINDS) if kind.Config is type(config))


def config_of(net: NarNet) -> dict[str, Any]:
    """Return the `config.json` of a network."""
    return {"model_type": MODEL_TYPE, "kind": net.kind, "is_encoder_decoder": True, **asdict(net.config)}


def read_nar(directory: Path) -> NarNet:
    """Return the network of a directory, in float32 and without dropout.

    Raises:
        ModelError: a file is missing or damaged, or its tensors are not those of the kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(directory / "config.json")
    kind = find_kind(str(config.get("kind")))
    net = kind(_settings(kind, config, directory))
    try:
        weights, _ = joined(load_file(directory / "model.safetensors"))
        net.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{directory} holds no whole one-pass model: {reason}", "Fetch its files again.") from error
    return net.eval()


def _settings(kind: type[NarNet], config: Mapping[str, Any], directory: Path) -> Any:
    names = {field.name for field in fields(kind.Config)}
    try:
        return kind.Config(**{name: value for name, value in config.items() if name in names})
    except TypeError as error:
        raise ModelError(f"The config.json of {directory} lacks a setting ({error}).", "Train it again.") from error


def open_nar(directory: Path, dtype: torch.dtype, device: torch.device, kernels: Kernels | None = None) -> NarModel:
    """Return the adapter of a directory's network, its layers on compiled kernels where they serve it."""
    model = NarModel(read_nar(directory).to(device, dtype))
    if kernels is not None:
        model.compile(kernels)
    return model

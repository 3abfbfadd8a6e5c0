"""Writing and reading our own sequence-to-sequence networks: `config.json` with a kind, `model.safetensors`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from outpace.errors import ModelError, nearest
from outpace.models.nets.adapter import NetAdapter
from outpace.models.nets.base import PairConfig, PairNet
from outpace.text.files import read_object

__all__ = ["KINDS", "MODEL_TYPE", "config_of", "find_kind", "kind_of", "open_net", "read_net"]

MODEL_TYPE = "outpace_pairs"
KINDS = {
    "decoder-only": "stacks:DecoderOnly",
    "encoder-decoder": "stacks:EncoderDecoder",
    "gru": "gru:Gru",
    "llm-to-slm": "llm_to_slm:LlmToSlm",
    "pervasive": "pervasive:Pervasive",
    "registers": "registers:Registers",
    "phrases": "phrases:Phrases",
}


def find_kind(kind: str) -> type[PairNet]:
    """Return the class of a kind of network.

    Raises:
        ModelError: there is no such kind.
    """
    if kind not in KINDS:
        raise ModelError(f"There is no kind of network {kind!r}.", nearest(kind, KINDS, "kind"))
    module, _, name = KINDS[kind].partition(":")
    found: type[PairNet] = getattr(importlib.import_module(f"outpace.models.nets.{module}"), name)
    return found


def kind_of(config: PairConfig) -> type[PairNet]:
    """Return the class of the network whose sizes these are."""
    return next(kind for kind in map(find_kind, KINDS) if kind.Config is type(config))


def config_of(net: PairNet) -> dict[str, Any]:
    """Return the `config.json` of a network."""
    kind = next(name for name in KINDS if find_kind(name) is type(net))
    return {"model_type": MODEL_TYPE, "kind": kind, "is_encoder_decoder": True, **asdict(net.config)}


def read_net(directory: Path) -> PairNet:
    """Return the network of a directory, in float32.

    Raises:
        ModelError: a file is missing or damaged, or holds other tensors than the network has.
    """
    config = read_object(directory / "config.json")
    kind = find_kind(str(config.get("kind")))
    net = kind(_settings(kind, config, directory))
    try:
        tensors = load_file(directory / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights of {directory} cannot be read ({error}).", "Train it again.") from error
    own = net.state_dict()
    odd = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
    if odd:
        raise ModelError(f"{directory} does not have the tensors of its kind: {odd[0]}.", "Train it again.")
    net.load_state_dict({name: weight.to(own[name].dtype) for name, weight in tensors.items()})
    return net.eval()


def _settings(kind: type[PairNet], config: Mapping[str, Any], directory: Path) -> Any:
    names = {field.name for field in fields(kind.Config)}
    try:
        return kind.Config(**{name: value for name, value in config.items() if name in names})
    except TypeError as error:
        raise ModelError(f"The config.json of {directory} lacks a setting ({error}).", "Train it again.") from error


def open_net(directory: Path, dtype: torch.dtype, device: torch.device) -> NetAdapter:
    """Return the adapter of a network's directory.

    Raises:
        ModelError: it cannot be read.
    """
    return NetAdapter(read_net(directory).to(device, dtype))

"""From a foreign drafter's file to a drafter beside its target."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from outpace.errors import CapabilityError, ModelError
from outpace.heads.foreign.gguf import as_hugging
from outpace.heads.foreign.layer import bare
from outpace.heads.foreign.layouts import layout_of
from outpace.heads.foreign.source import Foreign, Sizes, Source
from outpace.heads.model import HeadModel
from outpace.heads.net import load_kind
from outpace.types import Adapter

__all__ = ["Opened", "check_lossless", "open_foreign", "sizes_of"]

_READERS = {
    "medusa": "medusa:read_medusa",
    "hydra": "hydra:read_hydra",
    "eagle": "eagle:read_eagle",
    "eagle3": "eagle3:read_eagle3",
    "p-eagle": "eagle3:read_eagle3",
    "dflash": "dflash:read_dflash",
    "dflash2": "dflash:read_dflash",
    "dspark": "dflash:read_dflash",
    "domino": "dflash:read_dflash",
    "mtp": "mtp:read_mtp",
}
_NUMBERED = ("medusa", "hydra")  # whose tensors begin with numbers of heads


@dataclass(frozen=True)
class Opened:
    """A foreign drafter beside its target, and what was taken for granted."""

    model: HeadModel
    foreign: Foreign


def sizes_of(target: Adapter) -> Sizes:
    """Return what a drafter of a target has to fit."""
    offered = target.capabilities
    width = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
    return Sizes(width, offered.vocab_size, offered.num_layers, offered.max_positions)


def open_foreign(source: Source, target: Adapter, chosen: Mapping[str, Any] | None = None) -> Opened:
    """Return a foreign drafter beside its target.

    Args:
        source: what lies on the disk.
        target: what it was trained for.
        chosen: conventions by name, in place of what the file says or leaves open.

    Raises:
        ModelError: the file is damaged, of a layout that is not read, or has a tensor too many or too few.
        CapabilityError: it was trained for another target.
    """
    layout, sizes = layout_of(source), sizes_of(target)
    if layout not in _READERS:
        raise ModelError(
            f"{source.path} is a drafter of the kind {layout}, which does not stand beside a target here.",
            "Name it as a model, if it is one.",
        )
    module, _, name = _READERS[layout].partition(":")
    read: Callable[[Source, Sizes, Mapping[str, Any]], Foreign] = getattr(
        importlib.import_module(f"outpace.heads.foreign.{module}"), name
    )
    if source.architecture:
        source = as_hugging(source)
    check_target(source, sizes)
    if layout not in _NUMBERED:
        source = bare(source)
    foreign = read(source, sizes, chosen or {})
    source.check_used()
    config = foreign.config
    beyond = [layer for layer in config.layers if not 0 <= layer <= sizes.layers]
    if beyond:
        raise CapabilityError(
            f"The drafter {source.path} reads what enters layer {beyond[0]}, but the target has {sizes.layers} layers.",
            "It is of another target.",
        )
    net = load_kind(config.kind)(config)
    own = net.state_dict()
    _drop_shared(source, foreign, {*own}, target)
    for what, names in (("lacks", {*own} - {*foreign.tensors}), ("has no place for", {*foreign.tensors} - {*own})):
        if names:
            raise ModelError(
                f"The drafter {source.path}, read as {foreign.layout}, {what} the tensor {min(names)}.",
                "It is of a kind that is not read here, or its config.json is of another file.",
            )
    for name, ours in own.items():
        if ours.shape != (theirs := foreign.tensors[name]).shape:
            raise ModelError(
                f"The drafter {source.path} has the shape {list(theirs.shape)} for {name}, where the target and its "
                f"config.json ask for {list(ours.shape)}.",
                "It is of another target, or its config.json is of another file.",
            )
    net.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in foreign.tensors.items()})
    return Opened(HeadModel(net, target, foreign.ids), foreign)


def _drop_shared(source: Source, foreign: Foreign, own: set[str], target: Adapter) -> None:
    """Leave out embeddings and output matrices that are the target's, of kinds that have none of their own.

    Raises:
        ModelError: they differ from the target's.
    """
    for name in {"embed_tokens.weight", "lm_head.weight"} & {*foreign.tensors} - own:
        theirs = foreign.tensors.pop(name)
        every = torch.arange(target.capabilities.vocab_size, device=target.device)
        if name.startswith("embed"):
            ours = target.embed(every)
        else:
            eye = torch.eye(theirs.shape[-1], dtype=target.dtype, device=target.device)
            ours = target.head(eye).T if foreign.ids is None else target.head(eye).T[foreign.ids]
        if ours.shape != theirs.shape or not torch.allclose(ours.float().cpu(), theirs.float(), rtol=0.02, atol=0.02):
            raise ModelError(
                f"The drafter {source.path} has a {name} that is not the target's, where its kind uses the target's.",
                "It is of another target.",
            )


def check_target(source: Source, target: Sizes) -> None:
    """Refuse a drafter whose configuration states another target.

    Raises:
        CapabilityError: says which size differs.
    """
    layer = source.layer_config()
    hidden = source.config.get("target_hidden_size") or layer.get("hidden_size")
    for what, theirs, ours in (
        ("states of {} numbers", hidden, target.hidden),
        ("{} tokens", layer.get("vocab_size"), target.vocab),
        ("{} layers", source.config.get("num_target_layers"), target.layers),
    ):
        if isinstance(theirs, int) and theirs != ours:
            raise CapabilityError(
                f"The drafter {source.path} is for a target of {what.format(theirs)}, but this one has {ours}.",
                "Use a drafter of this target.",
            )


def check_lossless(source: Source) -> None:
    """Refuse a drafter that asks for drafts to be kept that the target would not have written.

    Raises:
        ModelError: `verifier_accept_k` above 1, or `accept_tolerance` above 0.
    """
    stated = source.table("speculators_config").get("proposal_methods")
    for one in stated if isinstance(stated, list) else []:
        if not isinstance(one, Mapping):
            continue
        for key, most in (("verifier_accept_k", 1), ("accept_tolerance", 0)):
            value = one.get(key, most)
            if isinstance(value, int | float) and value > most:
                raise ModelError(
                    f"The drafter {source.path} asks for {key} {value}, which changes the text.",
                    "Here drafts are checked exactly; outpace drafter check DIR --target MODEL --keep takes it so.",
                )

"""Which door a model comes through: our own decoder where a family fits, transformers for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.models import any_order, diffusion_gemma, recurrent
from outpace.models.byte_model import ByteModel, ByteNames, Voice, cover_rules
from outpace.models.checkpoint import check_checkpoint
from outpace.models.editing.files import is_editor, open_editor
from outpace.models.kernel_contract import Kernels
from outpace.models.loading import (
    load_model,
    pick_device,
    pick_dtype,
    read_capabilities,
    read_config,
    read_end_tokens,
    resolve,
)
from outpace.models.lookup import is_native
from outpace.models.lora import base_directory
from outpace.models.nar import files as nar
from outpace.models.nets.files import MODEL_TYPE, open_net
from outpace.models.parallel import Split
from outpace.text.byte_index import END
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter, Capabilities

__all__ = ["DRAFTER", "locate", "offered_by", "open_model", "refuse_beside"]

DRAFTER = "outpace_drafter"  # the model type of trained drafters, which stand beside a target (`outpace.heads`)
_PREFIX = "hf:"


def locate(name: str) -> tuple[Path, bool]:
    """Return a model's directory or GGUF file, and whether the native decoder serves it.

    Args:
        name: a zoo name, directory, GGUF file or hub id; "hf:NAME" asks for the transformers adapter. The directory of
            a LoRA alone stands for that of its model.
    """
    directory, has_loader, _ = _find(name)
    return directory, has_loader


def _find(name: str) -> tuple[Path, bool, Path | None]:
    """Return what `locate` returns, and the directory of a LoRA if that is what the name stands for."""
    if ByteNames.is_one(name):
        raise ConfigError(f"{name} is no model with files of its own.", "Name a model, or ask generate for bytes.")
    named = resolve(name.removeprefix(_PREFIX))
    if named.is_file():
        if name.startswith(_PREFIX):
            raise ModelError(f"transformers is not asked to read {named}.", "Leave hf: out.")
        return named, True, None
    base = base_directory(named)
    directory = base or named
    if not name.startswith(_PREFIX):  # asked for by name, transformers may read more formats
        check_checkpoint(directory)
        if read_config(directory).get("model_type") == DRAFTER:
            raise ModelError(f"{name} is a trained drafter, which writes nothing by itself.", "Name it in draft=.")
    has_loader = not name.startswith(_PREFIX) and is_native(read_config(directory))
    return directory, has_loader, named if base else None


def offered_by(name: str, card: Mapping[str, Any] | None = None) -> Capabilities | None:
    """Return a model's capabilities without loading weights; None where only running it tells (transformers)."""
    if ByteNames.is_one(name):
        refuse_beside(name, card=card)
        return _bytes_offered(name)
    directory, has_loader = locate(name)
    _check_card(name, has_loader, card)
    return read_capabilities(directory, card=card) if has_loader else None


def open_model(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    kernels: Kernels | None = None,
    card: Mapping[str, Any] | None = None,
    context: int = 0,
    adapter: str | None = None,
    split: Split | None = None,
) -> Adapter:
    """Load a model by name through the right door; arguments as those of `outpace.load` and `load_model`.

    Raises:
        ModelError: it cannot be found, read or trusted.
        ConfigError: a card that contradicts itself, or a card or adapter for a model that transformers runs.
        CapabilityError: the model cannot be split as `split` says.
    """
    if ByteNames.is_one(name):
        refuse_beside(name, card=card, context=context, adapter=adapter, split=split)
        return _open_bytes(name, dtype, device, kernels)
    directory, has_loader, named = _find(name)
    _check_card(name, has_loader, card)
    if named is not None and adapter is not None:
        raise ConfigError(f"{name} is an adapter, and another one was given.", "Leave one out.")
    lora = named or adapter
    is_own = not has_loader and not name.startswith(_PREFIX) and _is_own(directory)
    runner = "a network of its own" if is_own else "transformers"
    if has_loader:
        return load_model(
            directory, dtype, device, kernels=kernels, card=card, context=context, adapter=lora, split=split
        )
    if lora is not None:
        raise ConfigError(
            f"An adapter was given for {name}, but {runner} runs that model in its own way.",
            "Merge it into its model first (peft: merge_and_unload, then save_pretrained).",
        )
    if split is not None:
        raise CapabilityError(f"{name} is not split: {runner} runs it in its own way.", "Load it in one process.")
    if context:
        raise ConfigError(
            f"A context was asked for, but {runner} runs {name} in its own way.",
            "Leave it out.",
        )
    if is_own:
        return _open_own(directory, dtype, device, kernels)
    from outpace.models.hf import load_transformers

    model = load_transformers(str(directory), dtype=dtype, device=device)
    if not name.startswith(_PREFIX):
        model.notes.append("This architecture has no native loader: it runs through transformers, which is slower.")
    return model


def _bytes_offered(name: str) -> Capabilities | None:
    parts = [offered_by(one) for one in ByteNames.read(name).names]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Capabilities(END + 1, min(part.max_positions for part in known))


def _open_bytes(name: str, dtype: str, device: str, kernels: Kernels | None) -> ByteModel:
    """Load the models that a name of a byte model says, each with its own tokenizer."""
    named, voices = ByteNames.read(name), list[Voice]()
    for one, weight in zip(named.names, named.weights, strict=True):
        directory, _ = locate(one)
        tokenizer, ends = Tokenizer.from_directory(directory), read_end_tokens(directory)
        rules, adds_space = cover_rules(open_model(one, dtype, device, kernels), tokenizer, ends)
        voices.append(Voice(rules, weight, adds_space))
    return ByteModel(voices, named.is_product)


def refuse_beside(name: str, **given: Any) -> None:
    """Refuse what is for a model with files of its own.

    Raises:
        ConfigError: it was given.
    """
    found = next((what for what, value in given.items() if value), None)
    if found is not None:
        raise ConfigError(f"A {found} was given for {name}, which stands for other models.", "Leave it out.")


def _is_own(directory: Path) -> bool:
    """Return whether a directory holds a network that this project alone has."""
    return is_editor(directory) or read_config(directory).get("model_type") in (
        MODEL_TYPE,
        nar.MODEL_TYPE,
        any_order.MODEL_TYPE,
        diffusion_gemma.MODEL_TYPE,
        recurrent.MODEL_TYPE,
    )


def _open_own(directory: Path, dtype: str, device: str, kernels: Kernels | None) -> Adapter:
    if is_editor(directory):
        return open_editor(directory, dtype, device)
    place, config = pick_device(device), read_config(directory)
    if config.get("model_type") == any_order.MODEL_TYPE:
        from outpace.models.any_order_model import open_any_order

        return open_any_order(directory, torch.float32 if dtype == "auto" else pick_dtype(dtype, config, place), place)
    if config.get("model_type") == diffusion_gemma.MODEL_TYPE:
        return diffusion_gemma.open_diffusion_gemma(directory, pick_dtype(dtype, config, place), place)
    if config.get("model_type") == recurrent.MODEL_TYPE:
        number = torch.float32 if dtype == "auto" else pick_dtype(dtype, config, place)
        return recurrent.open_recurrent(directory, number, place)
    if config.get("model_type") == nar.MODEL_TYPE:
        number = torch.float32 if dtype == "auto" else pick_dtype(dtype, config, place)
        return nar.open_nar(directory, number, place, kernels)
    return open_net(directory, pick_dtype(dtype, config, place), place)


def _check_card(name: str, has_loader: bool, card: Mapping[str, Any] | None) -> None:
    if card and not has_loader:
        raise ConfigError(
            f"A card was given for {name}, but transformers runs that model in its own way.",
            "Leave the card out, or use a model of a native family.",
        )

"""A model to quantise: its files, checked, and what each of its tensors is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ModelError
from outpace.models.card import kind_of
from outpace.models.checkpoint import check_checkpoint
from outpace.models.families import CAUSAL, Family
from outpace.models.loading import read_config, read_end_tokens, resolve
from outpace.models.lookup import make_spec
from outpace.models.spec import Spec
from outpace.models.tensors import FLOATS, TensorFiles, find_tensor_files
from outpace.text.tokenizer import Tokenizer

__all__ = ["SMALLEST", "Source", "open_source"]

SMALLEST = 32  # inputs per scale, at the least
_QUANTISED = ("quantization_config", "compression_config", "quantization")  # keys of config.json that say so
_MATRICES = ("q", "k", "v", "o", "qkv", "gate", "up", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class Source:
    """A causal decoder with plain weights.

    Attributes:
        directory: holds its files.
        config: the parsed config.json.
        family, spec: what the config names, and its shape.
        files: its tensors.
        kinds: by tensor: "matrix" (of a layer, to be quantised), "embed", "head", or "plain".
        end_tokens: ids that end a text.
    """

    directory: Path
    config: Mapping[str, Any]
    family: Family
    spec: Spec
    files: TensorFiles
    kinds: dict[str, str]
    end_tokens: tuple[int, ...]

    @property
    def model_type(self) -> str:
        """What config.json calls the architecture."""
        return kind_of(self.config)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(entry.num_bytes for entry in self.files.entries.values())

    @property
    def num_weights(self) -> int:
        """Numbers that are written: those of all tensors that a forward reads."""
        return sum(torch.Size(self.files.entries[name].shape).numel() for name in self.kinds)

    def tokenizer(self) -> Tokenizer:
        """Return its tokenizer."""
        return Tokenizer.from_directory(self.directory)


def open_source(name: str) -> Source:
    """Open a model to quantise; no weight is read but a tied head.

    Args:
        name: a shipped model, a directory or a hub id.

    Raises:
        ModelError: it cannot be found or read, is quantised already, or is no causal decoder that is read natively.
    """
    directory = resolve(name)
    if not directory.is_dir():
        raise ModelError(
            f"{name} is no directory.", "Give the checkpoint: a directory with config.json and safetensors."
        )
    config = read_config(directory)
    if any(config.get(key) for key in _QUANTISED):
        raise _quantised(name)
    check_checkpoint(directory)
    family = CAUSAL.get(kind_of(config))
    if family is None or family.is_transposed or family.is_interleaved or family.text_key:
        known = [key for key, one in CAUSAL.items() if not (one.is_transposed or one.is_interleaved or one.text_key)]
        raise ModelError(
            f"{name} is a model of kind {kind_of(config) or 'unnamed'!r}, which is not converted here.",
            f"Causal decoders are: {', '.join(known)}.",
        )
    files, spec = TensorFiles(find_tensor_files(directory)), make_spec(config)
    kinds = _kinds(files, family, spec)
    if any(files.entries[tensor].dtype not in FLOATS for tensor in kinds):
        raise _quantised(name)
    return Source(directory, config, family, spec, files, kinds, read_end_tokens(directory))


def _quantised(name: str) -> ModelError:
    return ModelError(f"{name} is quantised already.", "Give the checkpoint that it was made from.")


def _kinds(files: TensorFiles, family: Family, spec: Spec) -> dict[str, str]:
    """Return what each tensor is; buffers, and a head that repeats its embedding, are left out."""
    prefix = f"(?:{'|'.join(re.escape(part) for part in family.prefixes)})"
    layers = [re.escape(family.layer[role]).replace(r"\{\}", r"\d+") for role in _MATRICES if role in family.layer]
    patterns = {
        "matrix": prefix + f"(?:{'|'.join(layers)})" + r"\.weight",
        "embed": prefix + re.escape(family.outer["embed"]) + r"\.weight",
        "head": f"(?:{prefix}|)" + re.escape(family.outer["head"]) + r"\.weight",
    }
    found = {}
    for name in files.entries:
        if not any(re.search(pattern, name) for pattern in family.ignored):
            found[name] = next((kind for kind, one in patterns.items() if re.fullmatch(one, name)), "plain")
    embeds, heads = ([name for name, kind in found.items() if kind == which] for which in ("embed", "head"))
    if spec.tie_embeddings and len(embeds) == len(heads) == 1:
        pair = [files.read(name, files.entries[name].shape) for name in (*embeds, *heads)]
        if torch.equal(*pair):
            del found[heads[0]]
    return found

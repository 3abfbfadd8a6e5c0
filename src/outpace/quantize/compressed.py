"""A checkpoint in the form of compressed-tensors, `pack-quantized`: what vLLM and transformers read.

Codes lie in 32-bit words along the inputs, the first in the lowest bits; scales have the checkpoint's own type; the
embedding and the head stay as they are. Matrices with groups of several sizes make several `config_groups`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from outpace.models.quantised import Quantised
from outpace.quantize.source import Source

__all__ = ["entries", "pack_codes", "quantization_config", "write_folder"]

_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "additional_chat_templates",
    "LICENSE*",
)
_WORD = 32


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Return [out, in * bits / 32] int32 of codes [out, in] uint8; 32 / bits divides `in`."""
    rows, columns = codes.shape
    bytes_ = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    return bytes_.contiguous().view(torch.int32).view(rows, columns * bits // _WORD)


def entries(name: str, matrix: Quantised, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a matrix by name.

    Args:
        name: of the plain tensor, ending in ".weight".
        matrix: codes around zero.
        dtype: of the scales.
    """
    return {
        f"{name}_packed": pack_codes(matrix.codes, matrix.bits),
        f"{name}_scale": matrix.scale.to(dtype),
        f"{name}_shape": torch.tensor(matrix.shape, dtype=torch.int64),
    }


def quantization_config(bits: int, groups: Mapping[str, int], plain: list[str]) -> dict[str, Any]:
    """Return the key of config.json that tells how matrices are stored.

    Args:
        bits: per weight.
        groups: inputs per scale by module, 0 = the whole row.
        plain: modules of linear maps that are stored as they were.
    """
    sizes = sorted(set(groups.values()))
    made = {}
    for number, size in enumerate(sizes):
        chosen = [module for module, group in groups.items() if group == size]
        weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
        made[f"group_{number}"] = {
            "targets": ["Linear"] if len(sizes) == 1 else chosen,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": made,
        "ignore": plain,
        "kv_cache_scheme": None,
    }


def write_folder(source: Source, folder: Path, tensors: dict[str, Tensor], told: Mapping[str, Any]) -> None:
    """Write config.json and weights, and copy the tokenizer and what else describes the model.

    Args:
        source: the model.
        folder: exists, and is empty.
        tensors: all that the checkpoint holds.
        told: from `quantization_config`.

    Raises:
        OSError: something cannot be written.
    """
    weights = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    for pattern in _COPIED:
        for path in sorted(source.directory.glob(pattern)):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, folder / path.name)
    config = folder / "config.json"
    config.write_text(json.dumps({**source.config, "quantization_config": told}, indent=2) + "\n", encoding="utf-8")
    weights.chmod(config.stat().st_mode)  # the library makes a file that only its owner may read

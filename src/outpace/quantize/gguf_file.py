"""A decoder of the Llama line as one GGUF file, plain or quantised, written tensor by tensor.

The `gguf` package knows the keys, the names of tensors and the layout; here is what each family's values are. Files of
architecture `llama` hold neighbouring dimensions of a head side by side where Hugging Face files hold two halves, so
rows of queries and keys are reordered. Matrices have a scale per 32 inputs, whatever the groups were: a larger group's
scale is repeated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from outpace.errors import ConfigError, ModelError
from outpace.models.quantised import Quantised
from outpace.models.rope import rope_settings
from outpace.quantize.source import SMALLEST, Source, open_source
from outpace.quantize.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["Stored", "block_type", "check_architecture", "encode", "plan_tensors", "write_gguf", "write_plain"]

_ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
_PLAIN = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a GGUF file.

    Attributes:
        name: in the source; "" = none, it is made here.
        written: in the file.
        shape: outputs and inputs, or one size.
        type: GGUF's name of the layout: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
    """

    name: str
    written: str
    shape: tuple[int, ...]
    type: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        block, size = _library().GGML_QUANT_SIZES[_type(self.type)]
        return int(torch.Size(self.shape).numel()) // int(block) * int(size)


def block_type(bits: int, is_shifted: bool = False) -> str:
    """Return GGUF's name of a layout with a scale per 32 inputs."""
    return "Q8_0" if bits == 8 else "Q4_1" if is_shifted else "Q4_0"


def check_architecture(source: Source) -> None:
    """Refuse a model that no GGUF file of a known architecture describes.

    Raises:
        ModelError: its family, or something that it computes, has no place in the file.
        ConfigError: the `gguf` package is not installed.
    """
    _library()
    if source.model_type not in _ARCHITECTURES:
        raise ModelError(
            f"GGUF files of {source.model_type!r} models are not written here.",
            f"Use --format compressed-tensors; GGUF is written for {', '.join(_ARCHITECTURES)}.",
        )
    if any(window is not None for window in source.spec.windows):
        raise ModelError("The model attends within a window, which its GGUF file would not say.", _OTHER)
    kind = rope_settings(source.config)["rope_type"]
    if kind not in ("default", "linear") and not (kind == "llama3" and _architecture(source) == "LLAMA"):
        raise ModelError(f"Rotary scaling {kind!r} is not written to GGUF files of this architecture.", _OTHER)


_OTHER = "Use --format compressed-tensors."


def plan_tensors(source: Source, matrix: str, embed: str, plain: str = "F32") -> list[Stored]:
    """Return the tensors of the file in order.

    Args:
        source: the model.
        matrix: layout of the layers' matrices.
        embed: of the embedding and the head.
        plain: of a matrix whose inputs are no multiple of 32.

    Raises:
        ModelError: a tensor has no place in the file.
    """
    library = _library()
    names = library.get_tensor_name_map(library.MODEL_ARCH[_architecture(source)], source.spec.num_layers)
    found = []
    for name, kind in source.kinds.items():
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ModelError(f"GGUF has no place for the tensor {name}.", _OTHER)
        shape = source.files.entries[name].shape
        stored = {"matrix": matrix, "plain": "F32"}.get(kind, embed)
        if stored not in _PLAIN.values() and shape[-1] % SMALLEST:
            stored = plain
        found.append(Stored(name, written, shape, stored))
    if rope_settings(source.config)["rope_type"] == "llama3":
        found.append(Stored("", "rope_freqs.weight", (len(source.spec.ropes[0].inv_freq),), "F32"))
    return found


def write_gguf(
    source: Source, path: Path, tensors: list[Stored], read: Callable[[Stored], Tensor | Quantised], *, has_text: bool
) -> list[str]:
    """Write the file; memory holds one tensor at a time.

    Args:
        source: the model.
        path: of the new file.
        tensors: from `plan_tensors`.
        read: gives a tensor as it is to be stored: quantised for the block layouts, else in any floating type.
        has_text: write the tokenizer too; else the file takes ids only.

    Returns:
        What a user should know of the file.

    Raises:
        ModelError: the tokenizer has no place in the file.
        OSError: it cannot be written.
    """
    library = _library()
    notes = []
    writer = library.GGUFWriter(path, library.MODEL_ARCH_NAMES[library.MODEL_ARCH[_architecture(source)]])
    _write_shape(writer, source, tensors)
    if has_text:
        notes = write_vocabulary(writer, source.tokenizer(), source.spec.vocab_size, source.end_tokens, source.config)
    else:
        writer.add_tokenizer_model("none")
    for stored in tensors:
        # numpy has no bfloat16: the type given last is what counts, and the shape is that of the numbers.
        writer.add_tensor_info(
            stored.written, stored.shape, np.dtype(np.float32), stored.num_bytes, raw_dtype=_type(stored.type)
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for stored in tensors:
            writer.write_tensor_data(_bytes(source, stored, read))
    finally:
        writer.close()
    return notes


def write_plain(model: str | Path, path: Path, dtype: torch.dtype, *, has_text: bool = False) -> Path:
    """Write a model, matrices in `dtype`, norms in float32; without its tokenizer (ids in, ids out) unless asked.

    Args:
        model: a shipped model, a directory or a hub id.
        path: the file to write.
        dtype: float32, bfloat16 or float16.
        has_text: write the tokenizer too.

    Raises:
        ModelError: the model has no place in a GGUF file, or the dtype is another one.
    """
    if dtype not in _PLAIN:
        raise ModelError(f"GGUF files are not written in {dtype}.", f"Use {', '.join(map(str, _PLAIN))}.")
    source, kind = open_source(str(model)), _PLAIN[dtype]
    check_architecture(source)

    def read(stored: Stored) -> Tensor:
        return source.files.read(stored.name, stored.shape)

    write_gguf(source, path, plan_tensors(source, kind, kind, kind), read, has_text=has_text)
    return path


def encode(matrix: Quantised, stored: str) -> Tensor:
    """Return the blocks [out, bytes] uint8 of a matrix, in layout Q8_0, Q4_0 or Q4_1.

    Each block is its scale in float16, for Q4_1 its shift, and its codes; of 4 bits, input j and input j + 16 of the
    block share a byte, the first in its lower half.
    """
    rows = matrix.shape[0]
    codes = matrix.codes.view(rows, -1, SMALLEST)
    scale = matrix.scale.repeat_interleave(matrix.group // SMALLEST, dim=1)
    parts = [scale.half().unsqueeze(-1).view(torch.uint8)]
    if stored == "Q4_1":
        shift = matrix.shift.repeat_interleave(matrix.group // SMALLEST, dim=1)
        parts.append(shift.half().unsqueeze(-1).view(torch.uint8))
    if stored == "Q8_0":
        parts.append(codes ^ 128)  # from code to two's complement
    else:
        half = SMALLEST // 2
        parts.append(codes[..., :half] | codes[..., half:] << 4)
    return torch.cat(parts, dim=-1).view(rows, -1)


def _bytes(source: Source, stored: Stored, read: Callable[[Stored], Tensor | Quantised]) -> Any:
    if not stored.name:  # by what each pair turns slower than the base alone says
        base, dim = rope_settings(source.config)["rope_theta"], source.spec.rotary_dim
        inverse = source.spec.ropes[0].inv_freq
        found: Tensor | Quantised = torch.tensor([base ** (-2 * i / dim) / inverse[i] for i in range(len(inverse))])
    else:
        found = read(stored)
    order = _row_order(source, stored.name)
    if isinstance(found, Quantised):
        data = encode(found if order is None else found.rows(order), stored.type)
    else:
        dtype = next(dtype for dtype, name in _PLAIN.items() if name == stored.type)
        data = (found if order is None else found[order]).to(dtype).contiguous().view(-1).view(torch.uint8)
    return data.numpy()


def _row_order(source: Source, name: str) -> Tensor | None:
    """Return the rows of a query or key head so that rows i and i + dim / 2 stand side by side; None = as they are."""
    if _architecture(source) != "LLAMA" or not any(f".{part}_proj." in name for part in "qk"):
        return None
    rows = source.files.entries[name].shape[0]
    return torch.arange(rows).view(-1, 2, source.spec.head_dim // 2).transpose(1, 2).reshape(-1)


def _write_shape(writer: GGUFWriter, source: Source, tensors: list[Stored]) -> None:
    """Write what the model computes."""
    spec, rope = source.spec, rope_settings(source.config)
    counts: dict[str, int] = {}
    for stored in tensors:
        counts[stored.type] = counts.get(stored.type, 0) + torch.Size(stored.shape).numel()
    most = max(counts, key=lambda kind: counts[kind])
    writer.add_name(source.directory.resolve().name)
    writer.add_file_type(_FILE_TYPES[most])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.ffn_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(spec.rotary_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(_library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _architecture(source: Source) -> str:
    return _ARCHITECTURES[source.model_type]


def _type(name: str) -> Any:
    return _library().GGMLQuantizationType[name]


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ConfigError(
            "GGUF files are written with the gguf package, which is not installed.", "pip install outpace[gguf]"
        ) from None

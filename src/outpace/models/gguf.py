"""The tensors of a GGUF model under the names and in the order that Hugging Face files have.

Bytes are read, not mapped, as those of safetensors are: each is wanted once, a mapped one would count twice beside what
is made of it, and a file that shrinks meanwhile ends in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.gguf_blocks import PLAIN, unpack
from outpace.models.quantised import Quantised
from outpace.models.tensors import Entry, TensorFiles, read_bytes
from outpace.text.files import AGAIN
from outpace.text.gguf_file import Gguf, Stored

__all__ = ["GgufTensors", "read_plain"]

# Names of a layer's parts: here -> in the file.
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_LLAMA = _ATTENTION | _MLP | {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_GEMMA2 = _LLAMA | {"pre_feedforward_layernorm": "ffn_norm"} | _POST_NORMS
_LAYERS: dict[str, dict[str, str]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | _HEAD_NORMS,
    "smollm3": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2 | _HEAD_NORMS,
    "olmo2": _ATTENTION | _MLP | _HEAD_NORMS | _POST_NORMS,
    "phi3": {
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    },
    "gpt2": {
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
    },
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_GPT2_OUTER = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
_NEIGHBOURS = ("llama", "smollm3")  # architectures whose query and key rows the converter reorders
_ROTATIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # read with the config


class GgufTensors(TensorFiles):
    """The tensors of one GGUF model by their Hugging Face names. Remembers which were read.

    Args:
        gguf: the model's head, of an architecture that is known here.
        config: the config.json that was made of its metadata.
    """

    def __init__(self, gguf: Gguf, config: Mapping[str, Any]) -> None:
        super().__init__(())
        self.architecture, self.path = gguf.metadata["general.architecture"], gguf.path
        self.heads = {"q": config.get("num_attention_heads"), "k": config.get("num_key_value_heads")}
        names = _names(self.architecture, config.get("num_hidden_layers") or config["n_layer"])
        self._theirs: dict[str, str] = {}
        for theirs, stored in gguf.tensors.items():
            if theirs not in _ROTATIONS:
                name = names.get(theirs, theirs)
                self._theirs[name] = theirs
                self.entries[name] = Entry(
                    stored.path, stored.offset, stored.num_bytes, stored.kind, self._shape(name, stored)
                )

    def stored_dtype(self) -> str:
        """Return the dtype that most bytes are stored in; "bfloat16" for quantised ones."""
        size: dict[str, int] = {}
        for entry in self.entries.values():
            size[entry.dtype] = size.get(entry.dtype, 0) + entry.num_bytes
        most = max(size, key=lambda kind: size[kind], default="F32")
        return str(PLAIN.get(most, torch.bfloat16)).removeprefix("torch.")

    def quantised_kinds(self) -> list[str]:
        """Return the types of quantised tensors, that of most bytes first."""
        size: dict[str, int] = {}
        for entry in self.entries.values():
            if entry.dtype not in PLAIN:
                size[entry.dtype] = size.get(entry.dtype, 0) + entry.num_bytes
        return sorted(size, key=lambda kind: -size[kind])

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor's numbers: in the file's own dtype, or float32 where it is quantised."""
        entry = self._entry(name, shape)
        if entry.dtype not in PLAIN:
            found = self._unpacked(name, entry).dense()
        else:
            order = shape[::-1] if self._is_turned(name) else shape
            found = read_bytes(entry).view(PLAIN[entry.dtype]).view(order)
            found = found if (rows := self._rows(name, order[0])) is None else found[rows]
        if self._is_turned(name):
            return found.t()
        return found.float() - 1 if self.architecture.startswith("gemma") and name.endswith("norm.weight") else found

    def read_quantised(self, name: str, shape: tuple[int, ...]) -> Quantised | None:
        """Return a matrix as codes [out, in]; None where the file holds plain numbers.

        Args:
            name: of the tensor.
            shape: [out, in], for GPT-2 too, whose plain matrices lie the other way round.
        """
        entry = self._entry(name, shape[::-1] if self._is_turned(name) else shape)
        return None if entry.dtype in PLAIN else self._unpacked(name, entry)

    def _unpacked(self, name: str, entry: Entry) -> Quantised:
        rows, columns = entry.shape[::-1] if self._is_turned(name) else entry.shape
        found = unpack(read_bytes(entry), entry.dtype, (rows, columns))
        order = self._rows(name, rows)
        return found if order is None else found.rows(order)

    def _entry(self, name: str, shape: tuple[int, ...]) -> Entry:
        entry = self.entries.get(name)
        if entry is None or entry.shape != shape:
            spelled = name if entry is None else self._theirs[name]
            found = "lacks" if entry is None else f"has the shape {list(entry.shape)} for"
            raise ModelError(f"{self.path} {found} {spelled}, where its metadata ask for {list(shape)}.", AGAIN)
        if entry.dtype == "I64" or (entry.dtype not in PLAIN and len(shape) != 2):
            raise ModelError(f"{self.path} stores {self._theirs[name]} as {entry.dtype}, which fits no weights.", AGAIN)
        self.used.add(name)
        return entry

    def _shape(self, name: str, stored: Stored) -> tuple[int, ...]:
        return stored.shape[::-1] if self._is_turned(name) else stored.shape

    def _is_turned(self, name: str) -> bool:
        """GPT-2's matrices lie [in, out] in Hugging Face files, all matrices lie [out, in] in GGUF."""
        return self.architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))

    def _rows(self, name: str, count: int) -> Tensor | None:
        """Return which row of the file each row is: llama.cpp turns neighbours, Hugging Face the halves of a head."""
        part = name.rsplit(".", 2)[-2]
        if self.architecture not in _NEIGHBOURS or part not in ("q_proj", "k_proj"):
            return None
        heads = self.heads[part[0]] or self.heads["q"]
        assert heads is not None and count % (2 * heads) == 0  # the shape was checked against the config
        return torch.arange(count).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _names(architecture: str, layers: int) -> dict[str, str]:
    """Return names here by names in the file, weights and biases."""
    is_gpt2 = architecture == "gpt2"
    parts = {theirs: ours for ours, theirs in (_GPT2_OUTER | {"lm_head": "output"} if is_gpt2 else _OUTER).items()}
    stem = "transformer.h" if is_gpt2 else "model.layers"
    for layer in range(layers):
        parts |= {f"blk.{layer}.{theirs}": f"{stem}.{layer}.{ours}" for ours, theirs in _LAYERS[architecture].items()}
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in parts.items() for kind in ("weight", "bias")}


def read_plain(gguf: Gguf, name: str) -> list[float] | None:
    """Return the numbers of a small plain tensor by its name in the file; None where there is none."""
    stored = gguf.tensors.get(name)
    if stored is None:
        return None
    if stored.kind not in PLAIN or len(stored.shape) != 1:
        raise ModelError(f"{gguf.path} stores {name} as {stored.kind} {list(stored.shape)}, not as a list.", AGAIN)
    raw = read_bytes(Entry(stored.path, stored.offset, stored.num_bytes, stored.kind, stored.shape))
    return [float(number) for number in raw.view(PLAIN[stored.kind])]

"""Widen and deepen a trained Llama without changing its function, to time real text at the cost of a larger model.

Width: every residual channel, head and MLP neuron is copied `width` times (a power of two, so that shares are exact in
bfloat16). What reads copies gets shared-out weights; what writes them gets equal rows, so that copies stay equal and an
RMS norm over them is unchanged. Shares are split unevenly, at random, where that costs no bit: one copy gets +d, its
neighbour -d.

Depth: added layers compute attention and MLP in full, from a real layer's weights, but write exactly opposite multiples
of two equal numbers that stand side by side: value dimensions 2i and 2i + 1 of a head, neurons 2i and 2i + 1 of the
MLP. Summation orders in use treat neighbours alike, so that the sum is zero in bfloat16 with float32 accumulation, and
within rounding of it in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from outpace.errors import ConfigError, ModelError
from outpace.models.tensors import TensorFiles, find_tensor_files

__all__ = ["count_parameters", "inflate", "inflated_from", "parse_size", "streamed_parameters"]

_SHARD_BYTES = 256 << 20
_LARGEST_JITTER = 32  # steps of a bfloat16 number's last place, of 128 to 255
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}

Shapes = Mapping[str, int]


def inflate(
    source_dir: str | Path, out_dir: str | Path, params: int, seed: int = 0, *, width: int | None = None
) -> Path:
    """Write a larger model of the same function.

    Args:
        source_dir: a Hugging Face directory of a Llama without biases, e.g. a causal zoo model.
        out_dir: where to write: config (with the marker `outpace_inflated`), safetensors in the source's dtype, and the
            tokenizer's files. Memory in use stays near one shard (256 MB) and the source.
        params: parameters wanted; the number of layers that comes nearest is taken, embeddings tied as in the source.
        seed: of the uneven splits.
        width: copies of every channel, a power of two; None = the most that leaves twice the source's layers.

    Returns:
        The directory written.

    Raises:
        ModelError: the source is no such model.
        ConfigError: the size cannot be reached, or the width is no power of two.
    """
    source, out = Path(source_dir), Path(out_dir)
    config = _read_config(source)
    width, layers = _plan(config, params, width)
    larger = _widened(config, width, layers)
    larger["outpace_inflated"] = {"from": source.resolve().name, "params": count_parameters(larger)}
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    files = TensorFiles(find_tensor_files(source))
    _write_shards(out, _tensors(files, config, width, layers, generator))
    (out / "config.json").write_text(json.dumps(larger, indent=2) + "\n", encoding="utf-8")
    for file in source.iterdir():
        if "token" in file.name or file.name in ("generation_config.json", "vocab.json", "merges.txt"):
            shutil.copy(file, out / file.name)
    return out


def inflated_from(directory: str | Path) -> dict[str, Any] | None:
    """Return the marker of an inflated model, {"from": name, "params": count}, or None for any other directory."""
    try:
        found = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8")).get("outpace_inflated")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def parse_size(text: str) -> int:
    """Return the number that "350M", "1B" or "1000000" means."""
    unit = _UNITS.get(text[-1:].upper(), 0)
    try:
        return round(float(text[:-1]) * unit) if unit else int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no model size.", "Write it like 350M or 1B.") from None


def count_parameters(config: Mapping[str, Any]) -> int:
    """Return the parameters of a Llama of this configuration, a tied embedding counted once."""
    hidden, tables = config["hidden_size"], config["vocab_size"] * config["hidden_size"]
    heads = 1 if config.get("tie_word_embeddings") else 2
    return int(config["num_hidden_layers"] * _layer_parameters(config) + heads * tables + hidden)


def streamed_parameters(config: Mapping[str, Any]) -> int:
    """Return the parameters that one token reads: all but an untied embedding table."""
    table = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * config["hidden_size"]
    return int(count_parameters(config) - table)


def _layer_parameters(config: Mapping[str, Any]) -> int:
    hidden, dim = config["hidden_size"], _head_dim(config)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    attention = 2 * hidden * dim * (heads + kv_heads)
    return int(attention + 3 * hidden * config["intermediate_size"] + 2 * hidden)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _read_config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{source} has no readable config.json.", "Name a causal zoo model.") from None
    is_llama = config.get("model_type") in ("llama", "outpace_masked_llama")
    if not is_llama or config.get("attention_bias") or config.get("mlp_bias"):
        raise ModelError(
            "Only Llama-shaped models without biases can be inflated.", "Use a zoo model, such as stories."
        )
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    assert isinstance(config, dict)
    return config


def _plan(config: Mapping[str, Any], params: int, width: int | None) -> tuple[int, int]:
    """Return how often to copy channels, and how many layers to have."""
    least = config["num_hidden_layers"]
    if width is None:
        fitting = [w for w in (2**power for power in range(10)) if _depth(config, params, w) >= 2 * least]
        width = max(fitting, default=1)
    if width < 1 or width & (width - 1):
        raise ConfigError(f"width is {width}.", "width must be a power of two, so that shares are exact.")
    layers = _depth(config, params, width)
    if layers < least:
        raise ConfigError(
            f"{params:,} parameters are fewer than {width} copies of the source take.", "Ask for more weights."
        )
    return width, layers


def _depth(config: Mapping[str, Any], params: int, width: int) -> int:
    """Return the number of layers that comes nearest to `params`."""
    wide = _widened(config, width, 0)
    return round((params - count_parameters(wide)) / _layer_parameters(wide))


def _widened(config: Mapping[str, Any], width: int, layers: int) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    changed = {name: config[name] * width for name in names}
    return {**config, **changed, "head_dim": _head_dim(config), "num_hidden_layers": layers}


def _read(files: TensorFiles, name: str) -> Tensor:
    return files.read(name, files.entries[name].shape)


def _tensors(
    files: TensorFiles, config: Mapping[str, Any], width: int, layers: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Yield the larger model's tensors by name."""
    embed = _read(files, "model.embed_tokens.weight")
    norm = _read(files, "model.norm.weight")
    yield "model.embed_tokens.weight", embed.repeat(1, width)
    if config.get("tie_word_embeddings"):
        # A tied head adds up `width` equal products; the last norm takes the factor back out, exactly.
        yield "model.norm.weight", (norm.float() / width).to(norm.dtype).repeat(width)
    else:
        yield "model.norm.weight", norm.repeat(width)
        head = _read(files, "lm_head.weight")
        yield "lm_head.weight", _Splitter(width, generator).shares(head.float()).to(head.dtype)
    count = config["num_hidden_layers"]
    real = {round((i + 0.5) * layers / count - 0.5): i for i in range(count)}
    for place in range(layers):
        # Added layers take their weights from the real layers in turn.
        index, is_real = (real[place], True) if place in real else (place % count, False)
        read = {name: _read(files, f"model.layers.{index}.{name}.weight") for name in _LAYER}
        for name, tensor in _layer(read, width, is_real, generator):
            yield f"model.layers.{place}.{name}.weight", tensor


_LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def _layer(
    read: Mapping[str, Tensor], width: int, is_real: bool, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    splitter = _Splitter(width, generator)
    paired = {"self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}
    for name, tensor in read.items():
        weight = tensor.float()
        if weight.dim() == 1:
            larger = weight.repeat(width)
        elif name in ("self_attn.o_proj", "mlp.down_proj"):
            larger = splitter.writer(weight) if is_real else splitter.opposed_writer(weight)
        else:
            larger = splitter.reader(weight) if is_real or name not in paired else splitter.paired_reader(weight)
        yield name, larger.to(tensor.dtype).contiguous()


class _Splitter:
    """Shares weights out over `width` copies of their inputs."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        self.width, self.generator = width, generator

    def shares(self, weight: Tensor) -> Tensor:
        """Return [out, width * in]: per copy a share, pairs of copies uneven; shares add up to `weight` exactly."""
        share = weight / self.width
        parts = [share]
        if self.width > 1:
            parts = []
            for _ in range(self.width // 2):
                jitter = self._jitter(share)
                parts += [share + jitter, share - jitter]
        return torch.cat(parts, 1)

    def reader(self, weight: Tensor) -> Tensor:
        """Return the rows for every copy of the outputs, each copy split in its own way."""
        return torch.cat([self.shares(weight) for _ in range(self.width)])

    def writer(self, weight: Tensor) -> Tensor:
        """Return rows that are equal for every copy of the outputs."""
        return self.shares(weight).repeat(self.width, 1)

    def paired_reader(self, weight: Tensor) -> Tensor:
        """Return rows of which 2i and 2i + 1 are equal (an odd last row stays alone)."""
        rows = self.reader(weight)
        return rows[(torch.arange(rows.shape[0]) // 2) * 2]

    def opposed_writer(self, weight: Tensor) -> Tensor:
        """Return columns of which 2i and 2i + 1 are opposite (an odd last column is zero)."""
        columns = self.writer(weight)
        count = columns.shape[1]
        sign = 1.0 - 2.0 * (torch.arange(count) % 2)
        opposed = columns[:, (torch.arange(count) // 2) * 2] * sign
        if count % 2:
            opposed[:, -1] = 0
        return opposed

    def _jitter(self, share: Tensor) -> Tensor:
        """Return d of which share + d and share - d both keep every bit: whole last places within the binade."""
        mantissa, exponent = torch.frexp(share)  # |mantissa| in [0.5, 1)
        headroom = (256 * (1 - mantissa.abs()) - 1).clamp(0, _LARGEST_JITTER)
        steps = (torch.rand(share.shape, generator=self.generator) * (headroom + 1)).floor().minimum(headroom.floor())
        return torch.ldexp(steps * torch.sign(share), exponent - 8)


def _write_shards(out: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write tensors to files of at most 256 MB (or one tensor), then the index that names them."""
    for old in out.glob("*.safetensors"):
        old.unlink()
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(held, out / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and size + sum(t.numel() * t.element_size() for t in held.values()) > _SHARD_BYTES:
            flush()
        held[name] = tensor
        total += size
    flush()
    where = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (out / f"part-{number}.safetensors").rename(out / file)
        where.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

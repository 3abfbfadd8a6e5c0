"""Medusa's files: the original's (in a pickled and a newer form), and vLLM's.

Original: `HEAD.BLOCK.linear.{weight,bias}`, then `HEAD.BLOCKS.weight`, an output matrix per head; `medusa_head.` may
stand before. vLLM: `blocks.HEAD.layers.BLOCK.weight`, mostly without bias, and `lm_heads.HEAD.weight` (one where
`original_lm_head` is set), over the tokens of `token_map` where the vocabulary is cut.
Blocks that share weights ([block] * n of the original) are written once by some savers: what lacks is the first's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.heads.foreign.export import output_matrix, refuse
from outpace.heads.foreign.source import Foreign, Sizes, Source, Written
from outpace.heads.foreign.vocabulary import Drafted, read_drafted
from outpace.heads.model import HeadModel
from outpace.heads.net import HeadConfig

__all__ = ["read_medusa", "write_medusa", "write_vllm"]

_START = r"(?:medusa_heads?\.|model\.)?"


def read_medusa(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> Foreign:
    """Return Medusa heads; a depth in the configuration that differs from the file's heads is not believed.

    Raises:
        ModelError: a tensor is missing or of another shape.
    """
    del chosen
    drafted = read_drafted(source, target.vocab)
    is_vllm = any(name.endswith(".weight") and ".layers." in name for name in source.tensors)
    tensors, layout = (_vllm if is_vllm else _original)(source, drafted, target)
    heads = 1 + max((int(name.split(".")[1]) for name in tensors), default=-1)
    if heads < 1:
        raise ModelError(f"The drafter {source.path} has no Medusa head.", "Fetch it again.")
    blocks = sum(name.startswith("heads.0.") and name.endswith("linear.weight") for name in tensors)
    has_output = f"heads.0.{blocks}.weight" in tensors
    config = HeadConfig(
        kind="medusa",
        hidden_size=target.hidden,
        vocab_size=target.vocab,
        num_layers=target.layers,
        draft_vocab=drafted.size,
        depth=heads,
        settings={"blocks": blocks, "own_output": has_output},
        target=str(source.config.get("base_model_name_or_path") or ""),
    )
    stated = source.number("medusa_num_heads", "num_heads")
    notes = (
        () if stated in (None, heads) else (f"The drafter's config.json says {stated} heads; its file has {heads}.",)
    )
    return Foreign(layout, config, tensors, drafted.ids, notes=notes)


def _original(source: Source, drafted: Drafted, target: Sizes) -> tuple[dict[str, Tensor], str]:
    found = source.below(_START + r"(\d+\.\d+\.linear\.(?:weight|bias))")
    outputs = source.below(_START + r"(\d+\.\d+\.weight)")
    heads = {int(name.split(".")[0]) for name in (*found, *outputs)}
    blocks = max((int(name.split(".")[1]) + 1 for name in found), default=0)
    blocks = max(blocks, int(source.number("medusa_num_layers") or 0))
    tensors = {f"heads.{name}": drafted.rows(tensor) for name, tensor in outputs.items()}
    for head in heads:
        for block in range(blocks):
            for part in ("weight", "bias"):
                first = found.get(f"{head}.0.linear.{part}", torch.zeros(target.hidden))
                tensors[f"heads.{head}.{block}.linear.{part}"] = found.get(f"{head}.{block}.linear.{part}", first)
    is_old = any(path.suffix == ".pt" for path in source.files)
    return tensors, "Medusa, medusa_lm_head.pt" if is_old else "Medusa"


def _vllm(source: Source, drafted: Drafted, target: Sizes) -> tuple[dict[str, Tensor], str]:
    start = r"(?:medusa_heads\.)?"
    weights = source.below(start + r"blocks\.(\d+\.layers\.\d+\.weight)")
    biases = source.below(start + r"blocks\.(\d+\.layers\.\d+\.bias)")
    outputs = source.below(start + r"lm_heads\.(\d+)\.weight") or source.below(start + r"(lm_head)\.weight")
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        head, _, block, _ = name.split(".")
        bias = biases.get(name.replace("weight", "bias"), torch.zeros(target.hidden))
        tensors |= {f"heads.{head}.{block}.linear.weight": weight, f"heads.{head}.{block}.linear.bias": bias}
    blocks = 1 + max((int(name.split(".")[2]) for name in weights), default=-1)
    for head in {name.split(".")[0] for name in weights}:
        table = outputs.get(head, outputs.get("0", outputs.get("lm_head")))
        if table is not None:
            if drafted.ids is not None and len(table) == target.vocab:  # stored whole, used by the map
                table = table[drafted.ids]
            else:
                table = drafted.rows(table)
            tensors[f"heads.{head}.{blocks}.weight"] = table
    return tensors, "Medusa (vLLM)"


def write_medusa(model: HeadModel) -> Written:
    """Return Medusa heads in the original's newer form.

    Heads that share the target's output matrix get it each, as the form has no place for a shared one.

    Raises:
        ModelError: the heads draft part of the vocabulary, which the form cannot say.
    """
    config, settings = model.net.config, model.net.config.settings
    if model.ids is not None:
        raise refuse("medusa", "a part of the vocabulary")
    blocks = int(settings.get("blocks", 1))
    tensors = {name.removeprefix("heads."): tensor for name, tensor in model.net.state_dict().items()}
    if not settings.get("own_output"):
        tensors |= {f"{head}.{blocks}.weight": output_matrix(model) for head in range(config.depth)}
    stated = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "medusa_num_heads": config.depth,
        "medusa_num_layers": blocks,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "base_model_name_or_path": config.target,
    }
    return Written(stated, {f"medusa_head.{name}": tensor for name, tensor in tensors.items()})


def write_vllm(model: HeadModel) -> Written:
    """Return Medusa heads as vLLM reads them; they may draft part of the vocabulary."""
    config, settings = model.net.config, model.net.config.settings
    state, blocks = model.net.state_dict(), int(settings.get("blocks", 1))
    tensors = {}
    for head in range(config.depth):
        for block in range(blocks):
            for part in ("weight", "bias"):
                tensors[f"blocks.{head}.layers.{block}.{part}"] = state[f"heads.{head}.{block}.linear.{part}"]
        if settings.get("own_output"):
            tensors[f"lm_heads.{head}.weight"] = state[f"heads.{head}.{blocks}.weight"]
    stated = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "num_heads": config.depth,
        "num_hidden_layers": blocks,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "truncated_vocab_size": config.draft_vocab or config.vocab_size,
        "medusa_fc_bias": True,
        "original_lm_head": not settings.get("own_output"),
        "base_model_name_or_path": config.target,
    }
    if not settings.get("own_output"):  # one matrix for all heads
        tensors["lm_heads.0.weight"] = output_matrix(model, model.ids)
    return Written(stated, tensors | ({} if model.ids is None else {"token_map": model.ids}))

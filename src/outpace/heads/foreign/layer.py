"""What foreign files say of a drafter's decoder layers: sizes, rotation, taps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from outpace.errors import ModelError
from outpace.heads.foreign.source import Choice, Sizes, Source
from outpace.heads.net import HeadConfig
from outpace.models.rope import rope_settings
from outpace.text.files import AGAIN

__all__ = ["bare", "depth_of", "layer_settings", "pairing", "read_taps", "with_vocab"]

_ENTERING = ("eagle_aux_hidden_state_layer_ids", "aux_hidden_state_layer_ids")


def bare(source: Source) -> Source:
    """Return a drafter whose tensors have no `model.` before their names, and `layers.0.` for `midlayer.`."""
    tensors = {
        re.sub(r"^midlayer\.", "layers.0.", re.sub(r"^(model|draft_model)\.", "", name)): tensor
        for name, tensor in source.tensors.items()
    }
    if len(tensors) != len(source.tensors):
        raise ModelError(f"The drafter {source.path} has a tensor under two names.", AGAIN)
    return Source(source.path, source.config, tensors, source.architecture, source.files)


def layer_settings(source: Source, width: int, theta: float = 10000.0) -> dict[str, Any]:
    """Return the settings of a drafter's decoder layers: what the tensors show goes before what config.json says.

    Args:
        source: the drafter, with bare names.
        width: of its residual stream.
        theta: base of the rotary frequencies where the file says none.

    Raises:
        ModelError: sizes that contradict each other.
    """
    config = source.layer_config()
    query, key = source.take("layers.0.self_attn.q_proj.weight"), source.take("layers.0.self_attn.k_proj.weight")
    gate = source.take("layers.0.mlp.gate_proj.weight")
    heads = _count(source, config, "num_attention_heads")
    dim = config.get("head_dim") or (width // heads if heads else 0)
    if not heads or not dim or len(query) != heads * dim or len(key) % dim:
        raise ModelError(
            f"The drafter {source.path} says {heads} heads of {dim}, but its queries have {len(query)} numbers.",
            "Its config.json is of another file.",
        )
    turned = rope_settings(config, theta)
    base = turned.pop("rope_theta")
    is_plain = turned["rope_type"] == "default" and turned["partial_rotary_factor"] in (None, 1.0)
    return {
        "heads": heads,
        "kv_heads": len(key) // dim,
        "head_dim": int(dim),
        "ffn": len(gate),
        "eps": float(config.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(base),
        "rope_scaling": {} if is_plain else {name: value for name, value in turned.items() if value is not None},
        "attention_bias": source.has("layers.0.self_attn.q_proj.bias"),
        "mlp_bias": source.has("layers.0.mlp.gate_proj.bias"),
        "has_head_norm": source.has("layers.0.self_attn.q_norm.weight"),
        "own_layers": 1 + max(int(name.split(".")[1]) for name in source.tensors if name.startswith("layers.")),
    }


def pairing(source: Source, chosen: Mapping[str, Any]) -> tuple[bool, Choice]:
    """Return whether neighbouring numbers of a head turn together, not its halves, and the choice of it."""
    stated = [source.flag(key) for key in ("is_neox_style", "rope_is_neox_style")]
    said = next((not flag for flag in stated if flag is not None), None)
    value = "neighbours" if said else "halves"
    others = ("halves",) if said else ("neighbours",)
    choice = Choice("rotary pairing", value, others, is_stated=said is not None or bool(source.architecture))
    return chosen.get(choice.name, value) == "neighbours", choice


def read_taps(
    source: Source, target: Sizes, chosen: Mapping[str, Any], count: int, default: Sequence[int] | None
) -> tuple[tuple[int, ...], Choice]:
    """Return the layers whose entering states are read, and the choice of how their numbers count.

    Args:
        source: the drafter.
        target: its target.
        chosen: what somebody chose.
        count: how many the shape of `fc` implies.
        default: entering layers where the file names none; None = it has to.

    Raises:
        ModelError: other numbers of layers than `fc` reads.
    """
    found, leaves = _stated_taps(source)
    if found is None:
        if default is None or len(default) != count:
            raise ModelError(
                f"The drafter {source.path} reads {count} states of each token, but does not say of which layers.",
                "Add their numbers to its config.json: eagle_aux_hidden_state_layer_ids.",
            )
        found, leaves, is_stated = list(default), False, False
    else:
        is_stated = True
    if len(found) != count:
        raise ModelError(
            f"The drafter {source.path} names {len(found)} layers, but its fc reads {count} states.",
            "Its config.json is of another file, or the target has another hidden size.",
        )
    value = "leaving" if leaves else "entering"
    choice = Choice("layer numbers", value, ("entering",) if leaves else ("leaving",), is_stated=is_stated)
    is_leaving = chosen.get(choice.name, value) == "leaving"
    return tuple(int(layer) + is_leaving for layer in found), choice


def _stated_taps(source: Source) -> tuple[list[int] | None, bool]:
    """Return the layers that a file names, and whether these are left, not entered (vLLM's order of looking)."""
    eagle, dflash = source.table("eagle_config"), source.table("dflash_config")
    places: list[tuple[Any, bool]] = [(table.get(key), False) for table in (source.config, eagle) for key in _ENTERING]
    is_used_as_is = source.config.get("model_type") == "deepseek_v41"
    places += [
        (dflash.get("target_layer_ids"), not is_used_as_is),
        (source.config.get("dspark_target_layer_ids"), not is_used_as_is),
        (source.config.get("target_layer_ids"), not is_used_as_is),
        (eagle.get("layer_ids"), False),
        (dflash.get("layer_ids"), False),
        (source.config.get("target_layers"), False),  # GGUF
    ]
    for value, leaves in places:
        if value is None:
            continue
        found = [int(one) for one in value] if hasattr(value, "__iter__") and not isinstance(value, str) else None
        if not found:
            raise ModelError(f"The drafter {source.path} names no layers to read: {value!r}.", AGAIN)
        return found, leaves
    return None, False


def depth_of(source: Source, default: int) -> int:
    """Return how many tokens ahead a drafter is meant to draft."""
    methods = source.table("speculators_config").get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods and isinstance(methods[0], Mapping) else {}
    stated = first.get("speculative_tokens")
    return stated if isinstance(stated, int) and 0 < stated <= 64 else default


def with_vocab(config: HeadConfig, size: int) -> HeadConfig:
    """Return a configuration of a drafter that drafts so many tokens; 0 = all."""
    return HeadConfig(**{**config.to_dict(), "layers": config.layers, "draft_vocab": size})


def _count(source: Source, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"The drafter {source.path} says {key} {value!r}, which is no count.", AGAIN)
    return value

"""Files of the DFlash line: z-lab's and speculators' DFlash, DFlash2, DSpark (DeepSpec) and Domino, and JetSpec's.

All share the body `layers.N.*`, `fc`, `hidden_norm`, `norm`. Layer numbers are those that states *leave* in z-lab's
files, and those that they *enter* in speculators'. Most take the target's embeddings and output matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outpace.errors import CapabilityError, ModelError
from outpace.heads.foreign.export import refuse, speculators
from outpace.heads.foreign.layer import layer_settings, pairing, read_taps, with_vocab
from outpace.heads.foreign.source import Choice, Foreign, Sizes, Source, Written
from outpace.heads.foreign.vocabulary import read_drafted
from outpace.heads.model import HeadModel
from outpace.heads.net import load_kind
from outpace.text.files import AGAIN

__all__ = ["read_dflash", "write_dflash", "write_dspark"]

_THETA = 1e6
_LEFT = ("d2t", "t2d", "token_map", "verifier_lm_head.weight", "verifier_norm.weight")
_TABLE = "candidate_selector.predecessor_codebook"
_RENAMED = {
    "encoder.fc.weight": "fc.weight",
    "encoder.output_norm_enc.weight": "hidden_norm.weight",
    _TABLE: f"{_TABLE}.weight",
    "candidate_selector.successor_codebook.weight": "candidate_selector.successor_codebook",
}
_BY_DRAFT = (
    "markov_head.markov_w2.weight",
    "embed_proj.2.weight",
    "candidate_selector.successor_codebook",
)  # a row per drafted token
_PLAIN = {"output_multiplier": 1, "input_embedding_scale": 1, "final_logit_softcapping": None}  # what is not computed


@dataclass(frozen=True)
class _Block:
    """What a block is: how many places, whether the anchor's drafts, the mask's token, and the choice of the second."""

    size: int
    anchor_drafts: bool
    mask: int
    choice: Choice


def read_dflash(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> Foreign:
    """Return a drafter of the DFlash line; which member it is, its tensors show.

    Raises:
        ModelError: a tensor is missing or of another shape, or it computes what is not known here.
        CapabilityError: its block is longer than the target's context.
    """
    _check_known(source)
    drafted = read_drafted(source, target.vocab)
    tensors = {_RENAMED.get(name, name): tensor for name, tensor in source.all().items()}
    for name in _LEFT:
        tensors.pop(name, None)
    for name in _BY_DRAFT:
        if name in tensors and len(tensors[name]) == (drafted.size or target.vocab):
            tensors[name] = drafted.rows(tensors[name])
    kind = _kind(tensors)
    count, rest = divmod(tensors["fc.weight"].shape[1] if "fc.weight" in tensors else 0, target.hidden)
    if rest or not count:
        raise ModelError(f"The drafter {source.path} fuses no whole states of the target's size.", "It is of another.")
    layers, taps = read_taps(source, target, chosen, count, _usual(target.layers, count))
    block = _block(source, target, chosen, kind)
    settings = layer_settings(source, target.hidden, _THETA)
    is_interleaved, turning = pairing(source, chosen)
    if is_interleaved:
        _turn(tensors, settings["head_dim"])
    own = _settings(source, settings, kind, tensors, target)
    own |= {"anchor_drafts": block.anchor_drafts, "mask_id": block.mask, "adds_state": False, "has_last": False}
    _scale_values(source, tensors)
    _masks(source, tensors, own, block.size)
    net = load_kind(kind)
    depth = block.size - (not block.anchor_drafts)
    config = net.made_for(target.hidden, target.vocab, target.layers, depth=depth, taps=layers, **own)
    choices = (block.choice, taps, turning)
    return Foreign(_called(source, kind), with_vocab(config, drafted.size), tensors, drafted.ids, choices)


def _usual(num_layers: int, count: int) -> list[int]:
    """Return the layers that states leave where a file names none, as entering ones."""
    last = num_layers - 3
    left = [num_layers // 2] if count == 1 else [round(1 + i * (last - 1) / (count - 1)) for i in range(count)]
    return [layer + 1 for layer in left]


def _kind(tensors: Mapping[str, Tensor]) -> str:
    if "markov_head.markov_w1.weight" in tensors:
        return "dspark"
    if "prefix_gru.weight_ih_l0" in tensors:
        return "domino"
    return "dflash2" if "candidate_selector.successor_codebook" in tensors else "dflash"


def _check_known(source: Source) -> None:
    """Refuse what would be left out without a word."""
    tables = (source.config, source.table("dflash_config"), source.layer_config())
    for name, plain in _PLAIN.items():
        value = next((table[name] for table in tables if table.get(name) is not None), plain)
        if value != plain:
            raise ModelError(f"The drafter {source.path} has {name} {value}, which is not computed here.", "")
    kind = next((table["markov_head_type"] for table in tables if table.get("markov_head_type")), "vanilla")
    if kind != "vanilla":
        raise ModelError(
            f"The drafter {source.path} has a Markov head of the type {kind!r}.", "Read here is 'vanilla'."
        )


def _block(source: Source, target: Sizes, chosen: Mapping[str, Any], kind: str) -> _Block:
    own, is_theirs = source.table("dflash_config"), source.config.get("speculators_model_type") is not None
    stated = source.number("block_size", "xpress_block_size") or own.get("block_size")
    size = int(stated or (8 if is_theirs else 7 if kind == "dspark" else 16))
    if not 1 < size <= target.context:
        raise CapabilityError(
            f"The drafter {source.path} drafts blocks of {size} tokens, but the target's context is {target.context}.",
            "Use a drafter of this target.",
        )
    said = [source.flag(name, "dflash_config") for name in ("sample_from_anchor", "shift_label", "draft_shift")]
    flag = next((one for one in said if one is not None), None)
    # Files of DSpark's authors mean true where they say nothing; an export of speculators is read as false.
    is_export = bool(source.table("transformer_layer_config")) or "aux_hidden_state_layer_ids" in source.config
    value = flag if flag is not None else kind == "dspark" and not is_export
    choice = Choice("anchor drafts", value, (not value,), is_open=flag is None, is_stated=flag is not None)
    mask = own.get("mask_token_id", source.number("mask_token_id", "tokenizer.ggml.mask_token_id"))
    if isinstance(mask, bool) or not isinstance(mask, int) or not 0 <= mask < target.vocab:
        raise ModelError(
            f"The drafter {source.path} says that its mask is token {mask}; the target has {target.vocab} tokens.",
            AGAIN,
        )
    return _Block(size, bool(chosen.get(choice.name, value)), mask, choice)


def _settings(
    source: Source, layer: Mapping[str, Any], kind: str, tensors: Mapping[str, Tensor], target: Sizes
) -> dict[str, Any]:
    """Return the settings of our network's body and parts."""
    if layer["rope_scaling"]:
        raise ModelError(f"The drafter {source.path} scales its rotary positions, which is not computed here.", "")
    if layer["mlp_bias"]:
        raise ModelError(f"The drafter {source.path} has biases in its feed-forward layers.", "They are not read here.")
    found: dict[str, Any] = {
        "blocks": layer["own_layers"],
        "qk_norm": layer["has_head_norm"],
        "bias": layer["attention_bias"],
        "theta": layer["rope_theta"],
        **{name: layer[name] for name in ("heads", "kv_heads", "head_dim", "ffn", "eps")},
        **_sight(source, layer["own_layers"], target),
    }
    own = source.table("dflash_config")
    if kind == "dspark":
        has_confidence = "confidence_head.proj.weight" in tensors
        rank = tensors["markov_head.markov_w1.weight"].shape[1]
        found |= {"rank": rank, "has_table": True, "has_confidence": has_confidence}
    elif kind == "domino":
        gru, joint = tensors["prefix_gru.weight_hh_l0"], tensors["embed_proj.0.weight"]
        pure = int(own.get("pure_draft_prefix_len", source.config.get("pure_draft_prefix_len")) or 0)
        found |= {"rank": len(joint), "gru_size": gru.shape[1], "pure": pure}
    elif kind == "dflash2":
        base, delta = (tensors[f"layers.0.attention_conv.{n}"] for n in ("base_kernel", "kernel_projection.weight"))
        groups = len(delta) // (2 * base.shape[1])
        top = own.get("selector_top_k", source.config.get("selector_top_k")) or 16
        found |= {"conv_taps": base.shape[1], "conv_group": target.hidden // groups, "top": int(top)}
        found |= {"rank": tensors["candidate_selector.successor_codebook"].shape[1], "has_table": True}
    return found


def _sight(source: Source, layers: int, target: Sizes) -> dict[str, Any]:
    """Return window and causality, which our body has for all layers alike."""
    own, config = source.table("dflash_config"), source.layer_config()
    kinds = list(config.get("layer_types") or ["full_attention"] * layers)[:layers]
    window = int(own.get("swa_window_size") or config.get("sliding_window") or 0)
    forced = bool(own.get("use_swa"))
    slides = [forced or kind == "sliding_attention" for kind in kinds]
    is_causal = next((flag for flag in (source.flag("is_causal"), own.get("causal")) if flag is not None), None)
    is_theirs = source.config.get("speculators_model_type") is not None
    open_slides = is_theirs and source.config.get("sliding_window_non_causal", True)
    causal = [slide and not open_slides if is_causal is None else bool(is_causal) for slide in slides]
    windows = [window if slide and 0 < window < target.context else 0 for slide in slides]
    if len({*causal}) > 1 or len({*windows}) > 1:
        raise ModelError(
            f"The drafter {source.path} has layers that see different things (windows or directions).",
            "Read here are drafters whose layers are alike, and windows no shorter than the target's context.",
        )
    return {"window": windows[0], "is_causal": causal[0]}


def _turn(tensors: dict[str, Tensor], dim: int) -> None:
    """Reorder queries and keys, whose neighbours turn together, for halves that do."""
    order = torch.arange(dim).view(-1, 2).T.reshape(-1)
    for name in [one for one in tensors if ".q_" in one or ".k_" in one]:
        rows = tensors[name]
        tensors[name] = rows.view(-1, dim, *rows.shape[1:])[:, order].reshape(rows.shape)


def _scale_values(source: Source, tensors: dict[str, Tensor]) -> None:
    """Fold a factor on the values into the matrices that make them."""
    factor = source.layer_config().get("attention_value_scale")
    if factor is None or factor == 1:
        return
    for name in [one for one in tensors if ".v_proj." in one]:
        tensors[name] = tensors[name] * float(factor)


def _masks(source: Source, tensors: dict[str, Tensor], own: dict[str, Any], size: int) -> None:
    """Take a mask's vector of its own, where a file beside the weights has one (MiMo)."""
    folder = source.path if source.path.is_dir() else source.path.parent
    if not (folder / "mask_embedding.pt").is_file():
        return
    vector = source.beside("mask_embedding.pt").get("embedding")
    if vector is None:
        raise ModelError(f"{folder / 'mask_embedding.pt'} holds no embedding.", AGAIN)
    own["mask_id"] = -1
    tensors["mask_embedding"] = vector.reshape(1, -1).expand(size - 1, -1)


def _called(source: Source, kind: str) -> str:
    name = {"dspark": "DSpark", "domino": "Domino", "dflash2": "DFlash2"}.get(kind, "DFlash")
    if source.architecture:
        return f"{name} (GGUF)"
    if source.config.get("speculators_model_type"):
        return f"{name} (speculators)"
    return f"{name} (DeepSpec)" if kind == "dspark" else f"{name} (z-lab)"


def _check_body(model: HeadModel, form: str) -> None:
    own = model.net.config.settings
    wrong = [
        (own["adds_state"], "a state added to every place (adds_state)"),
        (own["mask_id"] < 0, "masks without a token (mask_id)"),
        (model.net.config.has_last, "the last hidden state among what is read (has_last)"),
        (model.ids is not None, "a part of the vocabulary"),
        (0 in model.net.config.layers, "the embeddings among the states that are read"),
    ]
    for is_wrong, what in wrong:
        if is_wrong:
            raise refuse(form, what)


def _written(model: HeadModel) -> dict[str, Tensor]:
    tensors = dict(model.net.state_dict())
    first = "markov_head.markov_w1.weight"
    if first in tensors and not model.net.config.settings["has_table"]:  # a projection of the embeddings
        every = torch.arange(model.capabilities.vocab_size, device=model.device)
        tensors[first] = model.target.embed(every) @ tensors[first].T
    return tensors


def _layer(model: HeadModel) -> dict[str, Any]:
    config, own = model.net.config, model.net.config.settings
    kind = "sliding_attention" if own["window"] else "full_attention"
    return {
        "model_type": "qwen3",
        "hidden_size": config.hidden_size,
        "intermediate_size": own["ffn"],
        "num_hidden_layers": own["blocks"],
        "num_attention_heads": own["heads"],
        "num_key_value_heads": own["kv_heads"],
        "head_dim": own["head_dim"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": model.capabilities.max_positions,
        "rms_norm_eps": own["eps"],
        "rope_theta": own["theta"],
        "attention_bias": own["bias"],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "layer_types": [kind] * own["blocks"],
        **({"sliding_window": own["window"], "use_sliding_window": True} if own["window"] else {}),
    }


def _body_config(model: HeadModel, architecture: str, **more: Any) -> dict[str, Any]:
    config, own = model.net.config, model.net.config.settings
    return {
        "architectures": [architecture],
        **_layer(model),
        "block_size": model.net.places,
        "num_target_layers": config.num_layers,
        "is_causal": own["is_causal"],
        "dflash_config": {
            "mask_token_id": own["mask_id"],
            "target_layer_ids": [layer - 1 for layer in config.layers],
            "sample_from_anchor": own["anchor_drafts"],
            **more,
        },
    }


def write_dflash(model: HeadModel) -> Written:
    """Return a DFlash drafter in z-lab's form: the target's embeddings and head, layers by what they leave.

    Raises:
        ModelError: it drafts at the anchor, or does something that the form has no place for.
    """
    _check_body(model, "dflash")
    if model.net.config.settings["anchor_drafts"]:
        raise refuse("dflash", "drafts at the anchor (anchor_drafts)")
    return Written(_body_config(model, "DFlashDraftModel"), _written(model))


def write_dspark(model: HeadModel) -> Written:
    """Return a DSpark drafter in DeepSpec's form.

    Raises:
        ModelError: it does something that the form has no place for.
    """
    _check_body(model, "dspark")
    own = model.net.config.settings
    stated = _body_config(model, "Qwen3DSparkModel", projector_type="dspark")
    stated |= {
        "projector_type": "dspark",
        "markov_rank": own["rank"],
        "markov_head_type": "vanilla",
        "enable_confidence_head": own["has_confidence"],
        "confidence_head_with_markov": own["has_confidence"],
        "sample_from_anchor": own["anchor_drafts"],
    }
    return Written(stated, _written(model))


def write_dflash_speculators(model: HeadModel) -> Written:
    """Return a DFlash or DSpark drafter as `speculators` writes it.

    Raises:
        ModelError: it does something that the form has no place for.
    """
    _check_body(model, "dflash-speculators")
    config, own = model.net.config, model.net.config.settings
    is_spark = config.kind == "dspark"
    kind, architecture = ("dspark", "DSparkSpeculator") if is_spark else ("dflash", "DFlashSpeculator")
    if own["is_causal"]:
        raise refuse("dflash-speculators", "places that see those before them alone (is_causal)")
    more: dict[str, Any] = {}
    if is_spark:
        more = {"markov_rank": own["rank"], "markov_head_type": "vanilla"}
        more |= {"enable_confidence_head": own["has_confidence"], "confidence_head_with_markov": own["has_confidence"]}
    stated = speculators(
        kind,
        architecture,
        model,
        _layer(model),
        block_size=model.net.places,
        aux_hidden_state_layer_ids=list(config.layers),
        mask_token_id=own["mask_id"],
        sample_from_anchor=own["anchor_drafts"],
        sliding_window_non_causal=True,
        **more,
    )
    return Written(stated, _written(model))

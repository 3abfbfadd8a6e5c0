"""Files of EAGLE-1 and EAGLE-2 (HASS writes the same): a layer on [embedding; last hidden state].

`fc.weight` [H, 2H], `fc.bias` where there is one, `layers.N.*` without a first norm in layer 0, `embed_tokens`; the
target's own output matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.heads.foreign.export import embedding_matrix, refuse
from outpace.heads.foreign.layer import depth_of, layer_settings, pairing, with_vocab
from outpace.heads.foreign.source import Choice, Foreign, Sizes, Source, Written
from outpace.heads.foreign.vocabulary import read_drafted
from outpace.heads.model import HeadModel
from outpace.heads.net import load_kind

__all__ = ["hugging_layer", "read_eagle", "swapped", "write_eagle"]

ORDER = "order of embedding and state"


def read_eagle(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> Foreign:
    """Return an EAGLE drafter.

    Raises:
        ModelError: a tensor is missing or of another shape.
    """
    settings = layer_settings(source, target.hidden)
    settings["is_interleaved"], turning = pairing(source, chosen)
    fusion = source.take("fc.weight")
    if fusion.shape != (target.hidden, 2 * target.hidden):
        raise ModelError(
            f"The drafter {source.path} has an fc of {list(fusion.shape)}, where the target asks for "
            f"{[target.hidden, 2 * target.hidden]}.",
            "It is of another target.",
        )
    order = Choice(ORDER, "embedding first", ("state first",))
    tensors = source.all()
    if chosen.get(ORDER, order.value) != order.value:
        tensors["fc.weight"] = swapped(fusion)
    drafted = read_drafted(source, target.vocab)
    for name in ("d2t", "t2d", "token_map", "lm_head.weight", "layers.0.self_attn.rotary_emb.inv_freq"):
        tensors.pop(name, None)  # the head is the target's: files that have one copy it
    settings |= {"fc_bias": "fc.bias" in tensors, "own_embedding": "embed_tokens.weight" in tensors}
    net = load_kind("eagle")
    config = net.made_for(target.hidden, target.vocab, target.layers, depth=depth_of(source, 5), **settings)
    config = with_vocab(config, drafted.size)
    return Foreign("EAGLE", config, tensors, drafted.ids, (turning, order))


def swapped(matrix: Tensor) -> Tensor:
    """Return a matrix [.., 2H] with the halves of its inputs exchanged."""
    first, second = matrix.chunk(2, -1)
    return torch.cat([second, first], -1)


def write_eagle(model: HeadModel) -> Written:
    """Return an EAGLE drafter as its authors' code and vLLM read it.

    Raises:
        ModelError: it drafts part of the vocabulary.
    """
    if model.ids is not None:
        raise refuse("eagle", "a part of the vocabulary")
    config, tensors = model.net.config, dict(model.net.state_dict())
    tensors.setdefault("embed_tokens.weight", embedding_matrix(model))
    stated = {"architectures": ["LlamaForCausalLM"], "bias": bool(config.settings["fc_bias"]), **hugging_layer(model)}
    return Written(stated, tensors)


def hugging_layer(model: HeadModel) -> dict[str, Any]:
    """Return what a Llama's or Qwen3's config.json says of layers like a drafter's."""
    config, settings = model.net.config, model.net.config.settings
    width = int(settings.get("hidden") or config.hidden_size)
    rope = {"rope_scaling": dict(settings["rope_scaling"])} if settings["rope_scaling"] else {}
    turned = {"is_neox_style": False} if settings["is_interleaved"] else {}
    return {
        "model_type": "qwen3" if settings["has_head_norm"] else "llama",
        "hidden_size": width,
        "intermediate_size": settings["ffn"],
        "num_hidden_layers": settings["own_layers"],
        "num_attention_heads": settings["heads"],
        "num_key_value_heads": settings["kv_heads"] or settings["heads"],
        "head_dim": settings["head_dim"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": model.capabilities.max_positions,
        "rms_norm_eps": settings["eps"],
        "rope_theta": settings["rope_theta"],
        "attention_bias": settings["attention_bias"],
        "mlp_bias": settings["mlp_bias"],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **rope,
        **turned,
    }

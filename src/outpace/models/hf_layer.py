"""One layer of a transformers model by itself: the layer of a multi-token module, whatever its family computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.hf import wrap
from outpace.models.hf_adapter import TransformersAdapter
from outpace.models.hf_quiet import quiet

__all__ = ["foreign_layer"]

_WORDS = 64  # of its embedding and output matrix, which nobody reads


def foreign_layer(target: TransformersAdapter, tensors: Mapping[str, Tensor], norm: Tensor) -> TransformersAdapter:
    """Return a model of the target's class with one layer of full attention, which reads soft inputs.

    Args:
        target: whose class and settings it has.
        tensors: the layer's, by the names that the family's files use behind "layers.N.".
        norm: scale of the norm behind the layer.

    Raises:
        ModelError: they are not the tensors of such a layer.
    """
    main = target.model
    config = _one_layer(main.config.get_text_config(decoder=True), is_sparse=any("experts" in name for name in tensors))
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(2, _WORDS, config.hidden_size, generator=generator).to(main.dtype)
    state = {f"model.layers.0.{name}": tensor for name, tensor in tensors.items()}
    state |= {"model.norm.weight": norm, "model.embed_tokens.weight": words[0], "lm_head.weight": words[1]}
    given = {"config": config, "state_dict": state, "dtype": main.dtype, "output_loading_info": True}
    with quiet():
        try:
            model, report = type(main).from_pretrained(None, **given)
        except Exception as error:  # transformers raises a dozen kinds; each means that it is another layer
            raise ModelError(f"A multi-token module is no layer of its model: {error}.", _HINT) from error
    odd = sorted([*report["missing_keys"], *report["unexpected_keys"], *map(str, report["mismatched_keys"])])
    if odd:
        raise ModelError(f"A multi-token module's layer does not fit its model: {odd[0]}.", _HINT)
    experts = getattr(main.config, "_experts_implementation", None)
    if experts is not None:
        model.set_experts_implementation(experts)
    return wrap(model.to(main.device))


_HINT = "The files are not of this config.json, or of a family whose modules have a layer of their own kind."


def _one_layer(config: Any, is_sparse: bool) -> Any:
    """Return the settings of one layer; what they say of single layers becomes what modules are everywhere."""
    one = copy.deepcopy(config)
    one.num_hidden_layers, one.vocab_size, one.tie_word_embeddings, one.pad_token_id = 1, _WORDS, False, None
    own = {
        "layer_types": list(getattr(one, "mtp_layer_types", None) or ["full_attention"])[:1],
        "mlp_layer_types": ["sparse" if is_sparse else "dense"],
        "first_k_dense_replace": 0 if is_sparse else 1,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }
    for name, value in own.items():
        if getattr(one, name, None) is not None:
            setattr(one, name, value)
    return one

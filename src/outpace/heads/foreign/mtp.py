"""A multi-token module that speculators cut out of a target: `mtp_layers.0.*`, one decoder layer of the target's kind.

`token_layernorm`, `hidden_layernorm`, `input_proj` on [embedding; state], the layer, `final_layernorm`; embeddings and
output matrix are the target's. Modules that lie in the target's own files need no file of their own:
see `outpace.heads.stored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from outpace.errors import ModelError
from outpace.heads.foreign.layer import depth_of, layer_settings, pairing
from outpace.heads.foreign.source import Choice, Foreign, Sizes, Source
from outpace.heads.net import load_kind

__all__ = ["read_mtp"]

_NAMES = {
    "token_layernorm": "enorm",
    "hidden_layernorm": "hnorm",
    "input_proj": "eh_proj",
    "final_layernorm": "post_norm",
}
_GATED = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
ORDER = "order of embedding and state"


def read_mtp(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> Foreign:
    """Return a module that was cut out.

    Raises:
        ModelError: a tensor is missing, or its layer is of a kind that is not read (experts, gated attention).
    """
    found = source.below(r"mtp_layers\.0\.(.*)")
    source.leave(r"verifier_.*|t2d|d2t")
    kind = str(source.layer_config().get("model_type", ""))
    experts = [name for name in found if ".experts." in name or "shared_expert" in name]
    if experts or any(key.startswith("mtp_layers.1.") for key in source.tensors):
        raise ModelError(f"The module {source.path} has experts, or is one of several.", "It is read in its target.")
    tensors, layer = {}, {}
    for name, tensor in found.items():
        part, _, rest = name.partition(".")
        if part in _NAMES:
            tensors[f"layers.0.{_NAMES[part]}.{rest}"] = tensor
        else:
            tensors[f"layers.0.mtp_block.{name}"] = tensor
            layer[f"layers.0.{name}"] = tensor
    shapes = Source(source.path, source.config, layer, source.architecture, source.files)
    if kind in _GATED:
        raise ModelError(f"The module {source.path} has gated attention.", "It is read in its target.")
    settings = layer_settings(shapes, target.hidden)
    settings["is_interleaved"], turning = pairing(source, chosen)
    settings.pop("own_layers")
    order = Choice(ORDER, "embedding first", ("state first",))
    settings["hidden_first"] = chosen.get(ORDER, order.value) != order.value
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if (shared := source.find(name)) is not None and not bool(torch.isnan(shared.float()).any()):
            tensors[name] = shared
    net = load_kind("fastmtp")
    config = net.made_for(target.hidden, target.vocab, target.layers, depth=depth_of(source, 3), **settings)
    return Foreign("MTP (speculators)", config, tensors, None, (turning, order))

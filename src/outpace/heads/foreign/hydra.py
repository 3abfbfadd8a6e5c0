"""Hydra's files: `hydra_lm_head.pt` with heads that read the state and the embeddings of the path.

`hydra_mlp.HEAD.{1,3,...}.linear`, `hydra_mlp.HEAD.1.res_connection`, `hydra_lm_head.HEAD.1`. Blocks that share weights
lie there as often as they are used. A Hydra++ file has a decoder layer too, whose heads only its target's config tells:
it is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.errors import ModelError
from outpace.heads.foreign.source import Foreign, Sizes, Source
from outpace.heads.foreign.vocabulary import read_drafted
from outpace.heads.net import load_kind

__all__ = ["read_hydra"]

_START = r"(?:hydra_head\.|model\.)?"


def read_hydra(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> Foreign:
    """Return Hydra heads.

    Raises:
        ModelError: the heads do not read the path, have a layer before them, or a tensor is missing.
    """
    del chosen
    tensors = source.below(_START + r"(hydra_(?:mlp|lm_head)\..*)")
    if source.flag("grounded_heads") is False:
        raise ModelError(f"The heads of {source.path} do not read the path.", "Save them as Medusa heads.")
    if source.config.get("hydra_head_arch", "mlp") != "mlp" or any("prefix_embeding" in n for n in source.tensors):
        raise ModelError(
            f"The drafter {source.path} has a layer before its heads, whose number of attention heads no file says.",
            "Read here are Hydra's heads without that layer (hydra_head_arch mlp).",
        )
    parts = [name.split(".") for name in tensors if name.startswith("hydra_mlp.")]
    if not parts:
        raise ModelError(f"The drafter {source.path} has no Hydra head.", "Fetch it again.")
    drafted = read_drafted(source, target.vocab)
    own_output = any(name.startswith("hydra_lm_head.") for name in tensors)
    for name in [one for one in tensors if one.startswith("hydra_lm_head.")]:
        tensors[name] = drafted.rows(tensors[name])
    blocks = sum(part[1] == "0" and part[3:] == ["linear", "weight"] for part in parts)
    depth = 1 + max(int(part[1]) for part in parts)
    config = load_kind("hydra").made_for(
        target.hidden,
        target.vocab,
        target.layers,
        str(source.config.get("base_model_name_or_path") or ""),
        depth=depth,
        blocks=blocks,
        own_output=own_output,
    )
    return Foreign("Hydra, hydra_lm_head.pt", config, tensors, drafted.ids)

"""Our drafters written in the layouts of others; each is read back by the reader of that foreign layout."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from outpace.errors import ConfigError, ModelError, nearest
from outpace.heads.foreign.source import Written
from outpace.heads.model import HeadModel
from outpace.models.tensors import find_tensor_files
from outpace.text.files import read_object

__all__ = ["FORMS", "write_drafter", "write_pard"]

FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "eagle": (("eagle",), "eagle:write_eagle"),
    "eagle3-speculators": (("eagle3", "p-eagle"), "eagle3:write_speculators"),
    "sglang": (("eagle3",), "eagle3:write_sglang"),
    "dflash": (("dflash", "jetspec"), "dflash:write_dflash"),
    "dflash-speculators": (("dflash", "dspark"), "dflash:write_dflash_speculators"),
    "dspark": (("dspark",), "dflash:write_dspark"),
    "medusa": (("medusa",), "medusa:write_medusa"),
    "medusa-vllm": (("medusa",), "medusa:write_vllm"),
}
"""Per form the kinds that it takes, and what writes it."""


def write_drafter(model: HeadModel, directory: Path, form: str) -> None:
    """Write a drafter in a foreign layout.

    Args:
        model: the drafter beside its target.
        directory: a new one.
        form: a name of `FORMS`.

    Raises:
        ConfigError: there is no such form, or it is of another kind of drafter.
        ModelError: the form has no place for something that the drafter does.
        OSError: the directory cannot be written.
    """
    if form not in FORMS:
        raise ConfigError(f"There is no form {form!r}.", nearest(form, FORMS, "form"))
    takes, name = FORMS[form]
    if model.kind not in takes:
        fitting = ", ".join(one for one, (kinds, _) in FORMS.items() if model.kind in kinds)
        raise ConfigError(
            f"A drafter of the kind {model.kind!r} cannot be written as {form}.",
            f"Forms of it: {fitting}." if fitting else "There is no form for this kind.",
        )
    module, _, function = name.partition(":")
    write: Callable[[HeadModel], Written] = getattr(
        importlib.import_module(f"outpace.heads.foreign.{module}"), function
    )
    written = write(model)
    directory.mkdir(parents=True)
    kept = {name: _stored(tensor) for name, tensor in written.tensors.items()}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(written.config, indent=2) + "\n", encoding="utf-8")


def write_pard(source: Path, directory: Path) -> None:
    """Write a causal model with a mask as vLLM and TensorRT-LLM look for it: under `pard_token` and `mask_token_id`.

    Args:
        source: the model's directory.
        directory: a new one.

    Raises:
        ModelError: it names no mask, or is no directory of a model.
        OSError: the directory cannot be written.
    """
    config = read_object(source / "config.json")
    mask = config.get("pard_token", config.get("mask_token_id"))
    if isinstance(mask, bool) or not isinstance(mask, int):
        raise ModelError(f"The model {source} names no mask: its config.json has no pard_token.", "Train it as PARD.")
    files = [*find_tensor_files(source), *source.glob("tokenizer*"), *source.glob("*generation_config.json")]
    directory.mkdir(parents=True)
    for file in files:
        shutil.copy2(file, directory / file.name)
    stated = {**config, "pard_token": mask, "mask_token_id": mask}
    (directory / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def _stored(tensor: Tensor) -> Tensor:
    """Return a tensor of its own; float64, which engines do not read, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).clone().contiguous()


def refuse(form: str, what: str) -> ModelError:
    """Return the error for a drafter that does something which a form has no place for."""
    return ModelError(f"The form {form} has no place for {what}.", "Train the drafter without it, or use another form.")


def output_matrix(model: HeadModel, ids: Tensor | None = None) -> Tensor:
    """Return the target's output matrix [K, hidden], of some tokens or of all.

    Raises:
        ModelError: its logits are more than a matrix makes (a soft cap).
    """
    eye = torch.eye(model.net.config.hidden_size, dtype=model.dtype, device=model.device)
    whole, double = model.target.head(eye).T, model.target.head(2 * eye).T
    if not torch.allclose(double.float(), 2 * whole.float(), rtol=0.02, atol=1e-3):
        raise refuse("of most engines", "a target whose logits are more than a product with a matrix")
    return whole if ids is None else whole[ids]


def embedding_matrix(model: HeadModel) -> Tensor:
    """Return the target's embeddings [V, hidden]."""
    return model.target.embed(torch.arange(model.capabilities.vocab_size, device=model.device))


def speculators(kind: str, architecture: str, model: HeadModel, layer: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a config.json as the package `speculators` writes it.

    Args:
        kind: speculators_model_type.
        architecture: of the drafter.
        model: the drafter.
        layer: of its layers.
        more: the kind's own keys.
    """
    config = model.net.config
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": config.depth,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": [architecture],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": kind,
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": config.target or None, "architectures": []},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": config.draft_vocab or config.vocab_size,
        "target_hidden_size": config.hidden_size,
        **more,
    }

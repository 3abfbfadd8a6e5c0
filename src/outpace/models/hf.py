"""Any transformers model behind the `Adapter` contract: slower than the native decoder, same answers.

    adapter = load_transformers("org/name")     # or a directory; causal or encoder-decoder
    adapter = wrap(model)                       # a model object in memory

Loading and wrapping are here; what is wrapped is in `outpace.models.hf_adapter` and `outpace.models.hf_seq2seq`.
transformers is imported only inside functions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ModelError
from outpace.models.hf_adapter import TransformersAdapter
from outpace.models.hf_quiet import first_line, quiet
from outpace.models.hf_seq2seq import TransformersSeq2Seq

__all__ = ["load_transformers", "wrap"]


def load_transformers(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
) -> TransformersAdapter:
    """Load a model with transformers.

    Args:
        name: a directory, or an id on the Hugging Face hub. Only safetensors are read.
        dtype: "auto" (as stored, but bfloat16 for float16 on a CPU), or a name or torch dtype.
        device: "auto", "cpu", "cuda", or a torch device.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: it cannot be found, read or trusted, or transformers is not installed.
        CapabilityError: it is not a model that writes from left to right.
    """
    from outpace.models.loading import loading_notes, pick_device, pick_dtype, read_config, resolve
    from outpace.models.tensors import check_stored, find_tensor_files

    transformers = _transformers()
    # A fetched snapshot has no code in it, so a trusted name goes to transformers as it is.
    where = os.fspath(name) if trust_remote_code and not Path(name).is_dir() else str(resolve(name))
    place = pick_device(device)
    stored: dict[str, Any] = {}
    if os.path.isdir(where):
        stored = read_config(where)
        check_stored(find_tensor_files(Path(where)), stored)
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
            kind = pick_dtype(dtype, stored or config.to_dict(), place)
            maker = (
                transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
            )
            model, report = maker.from_pretrained(
                where,
                config=config,
                dtype=kind,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except ModelError:
            raise
        except Exception as error:  # transformers raises a dozen kinds; each means that the model cannot be had
            raise ModelError(f"transformers cannot load {where}: {first_line(error)}", _load_hint(error)) from error
    missing = sorted(report["missing_keys"]) or sorted(str(item) for item in report["mismatched_keys"])
    if missing:
        raise ModelError(
            f"{where} lacks or mis-shapes {len(missing)} tensors, {missing[0]} among them.",
            "The files are not of this config.json.",
        )
    adapter = wrap(model.to(place))
    adapter.notes += loading_notes(Path(where), stored, dtype, kind)
    if report["unexpected_keys"]:
        first = sorted(report["unexpected_keys"])[0]
        adapter.notes.append(f"transformers left {len(report['unexpected_keys'])} tensors unread, {first} among them.")
    return adapter


def wrap(model: Any) -> TransformersAdapter:
    """Return the adapter of a transformers model in memory: a `TransformersSeq2Seq` if it has an encoder.

    The model is put into evaluation mode. Its own functions, `generate` included, go on working as before.

    Raises:
        ModelError: the model cannot be run.
        CapabilityError: it is not a model that writes from left to right.
    """
    _transformers()
    return TransformersSeq2Seq(model) if model.config.is_encoder_decoder else TransformersAdapter(model)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "This model needs transformers, which is not installed.", 'pip install "outpace[transformers]"'
        ) from None
    return transformers


def _load_hint(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "It needs its own code; read that code, then pass trust_remote_code=True if you trust it."
    return "Check that the directory holds a model that transformers knows, as safetensors."

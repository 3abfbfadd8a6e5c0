"""Opening an encoder-decoder: a directory in, an `EncoderDecoder` out. No pickle is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from outpace.errors import ModelError
from outpace.models.checkpoint import check_checkpoint
from outpace.models.kernel_contract import Kernels, Shelf
from outpace.models.loading import list_sources, loading_notes, pick_device, pick_dtype, read_config
from outpace.models.seq2seq.adapter import EncoderDecoder
from outpace.models.seq2seq.assemble import assemble_pair
from outpace.models.seq2seq.families import find_pair, make_pair
from outpace.models.seq2seq.pair import PairSpec
from outpace.models.tensors import TensorFiles, find_tensor_files, one_thread
from outpace.models.weights import can_pack
from outpace.text.files import read_object
from outpace.types import Capabilities

__all__ = ["load_pair", "pair_capabilities"]


def load_pair(
    directory: Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    context: int = 0,
    kernels: Kernels | None = None,
    pack: bool | None = None,
) -> EncoderDecoder:
    """Load an encoder-decoder; arguments as those of `outpace.models.loading.load_model`.

    Raises:
        ModelError: the files cannot be read, or are not of their config.json.
    """
    check_checkpoint(directory)
    config = read_config(directory)
    pair, family = _shape(directory, context), find_pair(config)
    if config.get("quantization_config"):
        raise ModelError("This is a quantised encoder-decoder.", "Use the unquantised checkpoint.")
    place = pick_device(device)
    files = TensorFiles(find_tensor_files(directory))
    kind = pick_dtype(dtype, config, place, files.stored_dtype())
    compiler = kernels if kernels is not None and _is_served(kernels, pair, kind, place) else None
    is_packed = compiler is None and (can_pack(kind, place) if pack is None else pack)
    shelf = None if compiler is None else _shelf(compiler, pair, kind, directory, files)
    with torch.no_grad(), one_thread():
        kept = None if shelf is None else shelf.find()
        if kept is None:
            sides = assemble_pair(files, pair, family, config, kind, place, is_packed)
            notes = files.notes
        else:
            sides, notes = (kept[0][0], kept[0][1]), kept[1]
        model = EncoderDecoder(pair, *sides, pack=is_packed)
        if compiler is not None and model.compile(compiler, pack) and shelf is not None and kept is None:
            failed = shelf.put(sides, notes)
            model.notes += [failed] if failed else []
    model.notes += [*loading_notes(directory, config, dtype, kind), *notes]
    return model


def _shelf(kernels: Kernels, pair: PairSpec, kind: torch.dtype, directory: Path, files: TensorFiles) -> Shelf | None:
    """Return where the packed weights of both sides are kept, if both are packed."""
    if not (kernels.supports(pair.encoder) and kernels.supports(pair.decoder)):
        return None
    return kernels.open_shelf(pair.decoder, kind, list_sources(directory, files), f"encoder {pair.encoder}")


def _is_served(kernels: Kernels, pair: PairSpec, kind: torch.dtype, place: torch.device) -> bool:
    is_cpu = place.type == "cpu" and kind in (torch.float32, torch.bfloat16)
    return is_cpu and (kernels.supports(pair.encoder) or kernels.supports(pair.decoder))


def _shape(directory: Path, context: int = 0) -> PairSpec:
    settings = directory / "generation_config.json"
    generation: dict[str, Any] = read_object(settings) if settings.is_file() else {}
    return make_pair(read_config(directory), context, generation)


def pair_capabilities(directory: Path, context: int = 0) -> Capabilities:
    """Return what a model offers, from its files of settings alone."""
    return _shape(directory, context).capabilities

"""Opening a model: a directory or a hub id in, a `Transformer` out. Nobody's code is run, no pickle is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outpace.errors import CapabilityError, ConfigError, ModelError, nearest
from outpace.models.assemble import assemble
from outpace.models.card import CARD_TABLE, read_card
from outpace.models.checkpoint import check_checkpoint, check_file, check_marian
from outpace.models.codebooks import CodedTransformer, read_codes
from outpace.models.config_values import token_ids
from outpace.models.families import Family
from outpace.models.gguf import GgufTensors
from outpace.models.gguf_config import gguf_config
from outpace.models.hfquant_files import QuantisedFiles
from outpace.models.hfquant_settings import read_quantisation
from outpace.models.kernel_contract import Kernels
from outpace.models.lookup import find_family, make_spec
from outpace.models.lora import AdaptedFiles, has_adapter
from outpace.models.parallel import Split, SplitTransformer
from outpace.models.seq2seq.families import is_pair
from outpace.models.spec import Spec, spec_capabilities
from outpace.models.tensors import TensorFiles, find_tensor_files, one_thread
from outpace.models.transformer import Transformer
from outpace.models.weights import can_pack
from outpace.text.files import read_object
from outpace.text.gguf_file import find_gguf, read_gguf
from outpace.types import Capabilities
from outpace.zoo import published

__all__ = [
    "count_parameters",
    "list_sources",
    "load_model",
    "open_tensors",
    "pick_device",
    "pick_dtype",
    "read_capabilities",
    "read_config",
    "read_end_tokens",
    "resolve",
]

ZOO = Path(__file__).parents[1] / "zoo"  # weights that ship with the package
FILES = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "merges.txt"]
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    context: int = 0,
    kernels: Kernels | None = None,
    pack: bool | None = None,
    revision: str | None = None,
    card: Mapping[str, Any] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    split: Split | None = None,
) -> Transformer:
    """Load a decoder, or an encoder-decoder (`outpace.models.seq2seq`).

    Args:
        name: a directory, a GGUF file, or an id on the Hugging Face hub.
        dtype: "auto" (as stored, but bfloat16 or float32 on a CPU), or a name or torch dtype.
        device: "auto" (cuda where there is one), "cpu", "cuda", or a torch device.
        context: the longest text wanted, 0 = what the model was made for.
        kernels: what compiles the forward where it can, e.g. the module `outpace.kernels`; None = the eager path.
        pack: on the eager path, reorder matrices for oneDNN; None = where that exists, False = plain torch only.
        revision: commit, branch or tag on the hub.
        card: fields of the capability card that replace what the files and the table of families say.
        adapter: the directory of a LoRA to merge into the weights.
        split: which share of the model this process holds; None = all of it. A share runs on the eager path.
    """
    directory = resolve(name, revision)
    if not directory.is_file():
        check_checkpoint(directory)
    config = read_config(directory)
    if is_pair(config):
        return _load_pair(directory, dtype, device, context, kernels, pack, card, adapter, split)
    spec, family = make_spec(config, context, card), find_family(config)
    place = pick_device(device)
    if split is not None:
        if config.get("codebooks"):
            raise CapabilityError("A codebook model is not split over processes.", "Load it in one process.")
        split.check(spec)
        kernels, pack = None, False
    files = open_tensors(directory)
    if adapter is not None:
        files = AdaptedFiles(files, Path(adapter).expanduser(), family, spec.tie_embeddings)
    kind = pick_dtype(dtype, config, place, files.stored_dtype())
    is_served = place.type == "cpu" and kind in (torch.float32, torch.bfloat16)
    codes, count = read_codes(config, files, spec, torch.empty(0, dtype=kind, device=place))
    has_kernels = kernels is not None and is_served and not codes and kernels.supports(spec)
    compiler = kernels if has_kernels else None
    is_packed = compiler is None and (can_pack(kind, place) if pack is None else pack)
    # Codes are kept where the dtype is left to us and kernels read them; else they are decoded to what is computed in.
    packer = compiler.new_packer(spec, kind) if compiler is not None and dtype == "auto" else None
    sources, variant = list_sources(directory, files, adapter), "plain" if packer is None else "codes"
    shelf = None if compiler is None else compiler.open_shelf(spec, kind, sources, variant)
    with torch.no_grad(), one_thread():
        kept = None if shelf is None else shelf.find()
        if kept is None:
            weights, notes = assemble(files, spec, family, kind, place, is_packed, packer, split), files.notes
        else:
            (weights,), notes = kept
        if codes and split is None:
            model: Transformer = CodedTransformer(spec, weights, codes, count, pack=is_packed)
        elif split is None:
            model = Transformer(spec, weights, pack=is_packed)
        else:
            model = SplitTransformer(spec, weights, split)
        if compiler is not None and model.compile(compiler, pack) and shelf is not None and kept is None:
            failed = shelf.put([weights], notes)
            model.notes += [failed] if failed else []
    model.notes += [*loading_notes(directory, config, dtype, kind), *notes]
    model.mask_token, model.exits = _mask_token(config), _exits(config, spec.num_layers)
    model.own_mask = _own_mask(config, spec, family)
    kinds = files.quantised_kinds()
    model.is_quantised = bool(kinds)
    if dtype == "auto" and model.path != "compiled" and kinds:
        name = str(kind).removeprefix("torch.")
        model.notes.append(
            f"The quantised weights ({', '.join(kinds)}) are decoded to {name}: no compiled kernels serve them here. "
            "dtype float32 rounds none."
        )
    return model


def _load_pair(
    directory: Path,
    dtype: str | torch.dtype,
    device: str | torch.device,
    context: int,
    kernels: Kernels | None,
    pack: bool | None,
    card: Mapping[str, Any] | None,
    adapter: str | os.PathLike[str] | None,
    split: Split | None,
) -> Transformer:
    """Load an encoder-decoder, for which some settings mean nothing."""
    from outpace.models.seq2seq.loading import load_pair  # which reads files by functions of this module

    if card:
        raise ConfigError("A card was given, but an encoder-decoder has none.", "Leave the card out.")
    if adapter is not None:
        raise ConfigError(
            "An adapter was given for an encoder-decoder, into which none is merged here.",
            "Merge it into its model first (peft: merge_and_unload, then save_pretrained).",
        )
    if split is not None:
        raise CapabilityError("An encoder-decoder is not split over processes.", "Load it in one process.")
    return load_pair(directory, dtype, device, context=context, kernels=kernels, pack=pack)


def _mask_token(config: Mapping[str, Any]) -> int | None:
    """Return the mask of a causal model that drafts in parallel, None for others; a model without any is no error."""
    named = config.get("pard_token")
    return named if isinstance(named, int) and not isinstance(named, bool) else None


def _own_mask(config: Mapping[str, Any], spec: Spec, family: Family) -> int | None:
    """Return the mask of a model that is read as causal and was taught blocks behind its text as well."""
    if spec.attention != "causal" or "causal-block" not in family.attentions:
        return None
    return read_card(config, {"attention": "causal-block"}).mask_id


def _exits(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Return the layers at which a nested model may be left; empty where its files name none that it has."""
    named = config.get("exit_layers")
    found = tuple(named) if isinstance(named, list) else ()
    return found if all(isinstance(layer, int) and 0 < layer <= layers for layer in found) else ()


def list_sources(directory: Path, files: TensorFiles, adapter: str | os.PathLike[str] | None = None) -> set[Path]:
    """Return all files that a model's weights are made of, those that say how to read them included."""
    sources = {entry.path for entry in files.entries.values()}
    for folder in [directory] if adapter is None else [directory, Path(adapter).expanduser()]:
        sources |= {*folder.glob("*config*.json"), *folder.glob("adapter_model*")}  # a GGUF file has none below it
    return sources


def open_tensors(path: Path) -> TensorFiles:
    """Return the tensors of a model directory or GGUF file by their Hugging Face names, decoded as they are read."""
    config = read_config(path)
    if path.is_file():
        return GgufTensors(read_gguf(path), config)
    files = find_tensor_files(path)
    quantisation = read_quantisation(path, config)
    if quantisation is None:
        return TensorFiles(files)
    if find_family(config).is_transposed:
        raise ModelError(
            f"This is a quantised checkpoint ({quantisation.name}) of a family whose matrices lie transposed.",
            "There is no reader for it: use the unquantised checkpoint.",
        )
    return QuantisedFiles(files, quantisation)


def count_parameters(path: Path) -> int:
    """Return how many numbers a model's tensors hold; 0 = they cannot be read here."""
    try:
        return open_tensors(path).num_values()
    except ModelError:  # of a model that transformers runs
        return 0


def loading_notes(directory: Path, config: Mapping[str, Any], asked: str | torch.dtype, kind: torch.dtype) -> list[str]:
    """Return what a result should say of files that are not followed to the letter.

    Args:
        directory: the model's, or its GGUF file.
        config: its parsed config.json.
        asked: the dtype that the caller asked for.
        kind: the dtype that is computed in.
    """
    notes = []
    if asked == "auto" and kind == torch.bfloat16 and stated_dtype(config) == "float16":
        notes.append(
            "The model's float16 is computed in bfloat16 on a CPU, with fewer digits; dtype float32 keeps them all."
        )
    if has_adapter(directory):
        notes.append("adapter_config.json lies beside the weights: that adapter is not applied.")
    return notes


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype that a config.json names, without "torch."."""
    text = config.get("text_config")
    inner = text.get("dtype") or text.get("torch_dtype") if isinstance(text, Mapping) else None
    found = config.get("dtype") or config.get("torch_dtype") or inner
    return str(found).removeprefix("torch.") if found else None


def resolve(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return where a model lies: one of the zoo by name, a directory, a GGUF file, or fetched from the hub."""
    text, path = os.fspath(name), Path(name).expanduser()
    zoo = {folder.name: folder for folder in ZOO.glob("*") if (folder / "config.json").is_file()}
    if text in zoo:  # names of ours come before directories, which "./" tells apart
        return zoo[text]
    if (fetched := published.local(text)) is not None:
        return fetched
    if (gguf := find_gguf(path)) is not None:
        return gguf
    if path.is_dir():
        return path
    check_file(path)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        known = [*zoo, *(model.name for model in published.published())]
        hint = nearest(text, known, "model") + " Or give a directory, a GGUF file, or a hub id like org/name."
        raise ModelError(f"There is no model {text!r}: neither a directory nor one of ours.", hint=hint)
    return _fetch(text, revision)


def _fetch(name: str, revision: str | None) -> Path:
    """Fetch weights, settings and tokenizer of a hub model; HF_HUB_OFFLINE is honoured by the client."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{name} is not a directory, and huggingface_hub is not installed.", hint="pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # the client raises a dozen kinds; each means that the model is not here
        reason = type(error).__name__
        raise ModelError(
            f"{name} could not be fetched from the hub ({reason}).",
            hint="Check the name and the network, or give a local directory; HF_HUB_OFFLINE=1 uses only the cache.",
        ) from error


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the parsed config.json of a model directory, or what a GGUF file says in place of one."""
    if Path(directory).is_file():
        return gguf_config(read_gguf(Path(directory)))
    path = Path(directory) / "config.json"
    check_marian(Path(directory))
    if not path.is_file():
        raise ModelError(f"{directory} has no config.json.", hint="Give the directory that holds a model's files.")
    return read_object(path)


def read_capabilities(
    directory: str | os.PathLike[str], context: int = 0, card: Mapping[str, Any] | None = None
) -> Capabilities:
    """Return what a model offers, from its config.json and what the user says of its card."""
    if is_pair(read_config(directory)):
        from outpace.models.seq2seq.loading import pair_capabilities

        return pair_capabilities(Path(directory), context)
    return spec_capabilities(make_spec(read_config(directory), context, card))


def read_end_tokens(directory: str | os.PathLike[str], card: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """Return the ids that end a text: of generation_config.json, else of config.json; empty if neither names any.

    A masked family's own end tokens join them (LLaDA's files name one of its two). Those that the user names in
    `card` replace all.
    """
    if card and "end_tokens" in card:
        return read_card(read_config(directory), card).end_tokens
    found = _stated_ends(directory)
    config = read_config(directory)
    vocab_size = (config if "vocab_size" in config else config.get("text_config") or {}).get("vocab_size")
    if isinstance(vocab_size, int):  # what no text can hold ends none
        found = tuple(token for token in found if 0 <= token < vocab_size)
    if config.get("model_type") in {entry.model_type for entry in CARD_TABLE}:
        found = tuple(dict.fromkeys((*found, *read_card(config, card).end_tokens)))
    return found


def _stated_ends(directory: str | os.PathLike[str]) -> tuple[int, ...]:
    settings = Path(directory) / "generation_config.json"
    found = read_object(settings).get("eos_token_id") if settings.is_file() else None
    if found is None:
        config = read_config(directory)
        found = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
    return token_ids(found, "eos_token_id")


def pick_device(device: str | torch.device) -> torch.device:
    """Return the torch device that a name means."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ModelError(f"There is no device {str(device)!r}.", hint="Use auto, cpu or cuda.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("No CUDA device can be used here.", hint="Use --device cpu.")
    return place


def pick_dtype(
    dtype: str | torch.dtype, config: dict[str, Any], device: torch.device, stored: str = "float32"
) -> torch.dtype:
    """Return the dtype to compute in; "auto" follows the files, with bfloat16 for float16 on a CPU.

    Args:
        dtype: a name, a torch dtype or "auto".
        config: the parsed config.json; LLaDA's names no dtype.
        device: where to compute.
        stored: the dtype of the tensors, for a config that names none.
    """
    if isinstance(dtype, torch.dtype) and dtype in STORED.values():
        return dtype
    if dtype == "auto":
        dtype = stated_dtype(config) or stored
        if dtype == "float16" and device.type == "cpu":
            dtype = "bfloat16"
    name = str(dtype).removeprefix("torch.")
    if name not in STORED:
        raise ModelError(f"{dtype!r} is not a dtype to compute in.", hint=f"Use auto or {', '.join(STORED)}.")
    return STORED[name]

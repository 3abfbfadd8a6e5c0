"""A model written anew under another tokenizer: the same weights, other ids, and some words spelled in pieces."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from outpace.errors import ConfigError
from outpace.models.rounded import joined

__all__ = ["respell"]

_TABLES, _BIAS, _END = ("model.embed_tokens.weight", "model.shared.weight"), "final_logits_bias", "<|endoftext|>"
_START = "<|start|>"  # of decoders with an encoder


def respell(source: Path, out: Path, drop: int, seed: int = 0) -> Path:
    """Write a byte-pair model with other ids, and without some of its words, which are spelled in pieces then.

    What it knows stays, so that a method for drafters of another vocabulary meets a drafter worth having; it never
    saw the pieces of a dropped word in its place, so it accepts less than one that was trained with them.

    Args:
        source: directory of the model; its head is tied to its embeddings.
        out: folder to make.
        drop: how many words to leave out; none that is part of a longer one.
        seed: of the choice and of the new order.

    Returns:
        The folder.

    Raises:
        ConfigError: the model has no byte-pair tokenizer that ends texts as ours do, or an untied head.
    """
    spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    model = spec["model"]
    is_known = model.get("type") == "BPE" and _END in model["vocab"] and config.get("tie_word_embeddings")
    weights = joined(load_file(source / "model.safetensors"))[0] if is_known else {}
    table = next((name for name in _TABLES if name in weights), None)
    if table is None:
        raise ConfigError(f"{source.name} cannot be respelled.", "It takes byte pairs and a tied head, as the zoo has.")
    rng = random.Random(seed)
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    parts = {part for merge in merges for part in merge}
    gone = set(rng.sample([left + right for left, right in merges if left + right not in parts], drop))
    order = [token for token in model["vocab"] if token not in gone]
    rng.shuffle(order)
    old = torch.tensor([model["vocab"][token] for token in order])
    weights[table] = weights[table][old].contiguous()
    if _BIAS in weights:
        weights[_BIAS] = weights[_BIAS][:, old].contiguous()
    model["vocab"] = {token: at for at, token in enumerate(order)}
    model["merges"] = [merge for merge in merges if merge[0] + merge[1] not in gone]
    for token in spec["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    end = model["vocab"][_END]
    config |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end) | {"vocab_size": len(order)}
    generation = {"eos_token_id": end}
    if config.get("is_encoder_decoder"):
        begins = {"decoder_start_token_id": model["vocab"][_START], "bos_token_id": model["vocab"][_START]}
        config |= begins | {"decoder_vocab_size": len(order)}
        generation |= begins | {"pad_token_id": end}
        spec["post_processor"]["special_tokens"][_END]["ids"] = [end]
    out.mkdir()
    written = {"tokenizer": spec, "config": config, "generation_config": generation}
    for name, content in written.items():
        (out / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (out / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out

"""Files of EAGLE-3, EAGLE-3.1 and P-EAGLE: the original, SpecForge (SGLang, AngelSlim, NVIDIA) and speculators.

The names differ in `midlayer.` or `layers.0.`, and in what their configurations leave unsaid: whether the first layer's
residual is normed (readers disagree on what a missing flag means), and whether what is fed back is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from outpace.errors import ModelError
from outpace.heads.foreign.eagle import ORDER, hugging_layer, swapped
from outpace.heads.foreign.export import embedding_matrix, output_matrix, refuse, speculators
from outpace.heads.foreign.layer import depth_of, layer_settings, pairing, read_taps, with_vocab
from outpace.heads.foreign.source import Choice, Foreign, Sizes, Source, Written
from outpace.heads.foreign.vocabulary import Drafted, offsets_of, read_drafted
from outpace.heads.model import HeadModel
from outpace.heads.net import load_kind
from outpace.text.files import AGAIN

__all__ = ["read_eagle3", "write_sglang", "write_speculators"]

_LEFT = ("d2t", "t2d", "token_map", "verifier_lm_head.weight", "verifier_norm.weight")


def read_eagle3(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> Foreign:
    """Return a drafter of the EAGLE-3 line; which member it is, its tensors show.

    Raises:
        ModelError: a tensor is missing or of another shape, or the layers that it reads are not known.
    """
    tensors, drafted = source.all(), read_drafted(source, target.vocab)
    for name in _LEFT:
        tensors.pop(name, None)
    width = len(source.take("layers.0.post_attention_layernorm.weight"))
    settings = layer_settings(source, width)
    settings["is_interleaved"], turning = pairing(source, chosen)
    _name_norms(tensors)
    is_parallel = "mask_hidden" in tensors
    layers, taps = _taps(source, target, chosen)
    flags, norms = _flags(source, tensors, chosen)
    order = Choice(ORDER, "embedding first", ("state first",))
    if chosen.get(ORDER, order.value) != order.value:
        for part in "qkv":
            name = f"layers.0.self_attn.{part}_proj.weight"
            tensors[name] = swapped(tensors[name])
    _head(source, tensors, drafted, target)
    settings |= flags
    settings |= {
        "hidden": 0 if width == target.hidden else width,
        "fc_bias": "fc.bias" in tensors,
        "own_embedding": "embed_tokens.weight" in tensors,
        "own_output": "lm_head.weight" in tensors,
        "logit_scale": float(source.config.get("logit_scale") or 1.0),
    }
    if is_parallel:
        mask = source.number("mask_token_id", "pard_token", "ptd_token_id")
        if mask is None or mask >= target.vocab:
            raise ModelError(f"The drafter {source.path} says that its mask is token {mask}.", AGAIN)
        settings["mask_token"] = mask
    net = load_kind("p-eagle" if is_parallel else "eagle3")
    depth = depth_of(source, 8 if is_parallel else 5)
    config = net.made_for(target.hidden, target.vocab, target.layers, depth=depth, layers=layers, **settings)
    choices = (*norms, *taps, turning, order)
    return Foreign(
        _called(source, settings, is_parallel), with_vocab(config, drafted.size), tensors, drafted.ids, choices
    )


def _taps(source: Source, target: Sizes, chosen: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[Choice, ...]]:
    fusion = source.find("fc.weight")
    if fusion is None:
        if source.flag("use_aux_hidden_state", "eagle_config") is not False:
            raise ModelError(f"The drafter {source.path} lacks the tensor fc.weight.", AGAIN)
        return (), ()
    count, rest = divmod(fusion.shape[1], target.hidden)
    if rest or not count:
        raise ModelError(
            f"The drafter {source.path} fuses {fusion.shape[1]} numbers, no multiple of the target's {target.hidden}.",
            "It is of another target.",
        )
    usual = [min(2, target.layers), target.layers // 2, max(0, target.layers - 3)]
    layers, choice = read_taps(source, target, chosen, count, usual if count == 3 else sorted({*usual}))
    return layers, (choice,)


def _name_norms(tensors: dict[str, Tensor]) -> None:
    """Give later layers' first norm its usual name, where a file has it as hidden_norm (SGLang)."""
    for name in [one for one in tensors if one.endswith(".hidden_norm.weight") and not one.startswith("layers.0.")]:
        usual = name.replace("hidden_norm", "input_layernorm")
        norm = tensors.pop(name)
        tensors.setdefault(usual, norm)


def _flags(
    source: Source, tensors: Mapping[str, Tensor], chosen: Mapping[str, Any]
) -> tuple[dict[str, bool], tuple[Choice, ...]]:
    """Return the norms: those with tensors as the tensors show them, the others as the file or somebody says."""
    is_each = any(name.startswith("fc_norm.") for name in tensors)
    found = {"norm_before_fc": "input_norm.weight" in tensors, "fc_norm": is_each}
    choices = []
    for name, usual in (("norm_before_residual", False), ("norm_output", is_each)):
        said = source.flag(name, "eagle_config")
        value = usual if said is None else said
        # Whoever norms no taps feeds back what is not normed: EAGLE-3 before 3.1, which has no such flag.
        is_known = said is not None or (name == "norm_output" and not is_each)
        choices.append(Choice(name, value, (not value,), is_open=not is_known, is_stated=said is not None))
        found[name] = bool(chosen.get(name, value))
    return found, tuple(choices)


def _head(source: Source, tensors: dict[str, Tensor], drafted: Drafted, target: Sizes) -> None:
    """Bring the output matrix into the order of tokens; one that is missing is the embeddings, or the target's."""
    table = tensors.get("lm_head.weight")
    if table is None and source.layer_config().get("tie_word_embeddings") and "embed_tokens.weight" in tensors:
        table = tensors["embed_tokens.weight"]
    if table is None and drafted.ids is not None:
        raise ModelError(f"The drafter {source.path} drafts part of the vocabulary, but has no lm_head.", AGAIN)
    if table is None:
        return
    if drafted.ids is not None and len(table) != len(drafted.ids) and len(table) == target.vocab:
        tensors["lm_head.weight"] = table[drafted.ids]
    else:
        tensors["lm_head.weight"] = drafted.rows(table)


def _called(source: Source, settings: Mapping[str, Any], is_parallel: bool) -> str:
    name = "P-EAGLE" if is_parallel else "EAGLE-3.1" if settings["fc_norm"] else "EAGLE-3"
    if source.architecture:
        return f"{name} (GGUF)"
    if source.config.get("speculators_model_type"):
        return f"{name} (speculators)"
    return f"{name} (SpecForge, SGLang)"


def _written(model: HeadModel, form: str) -> dict[str, Tensor]:
    """Return the tensors by speculators' names, with matrices of their own."""
    settings = model.net.config.settings
    if model.net.config.has_last:
        raise refuse(form, "the last hidden state among what is read")
    if settings["logit_scale"] != 1:
        raise refuse(form, "a factor on the logits")
    tensors = dict(model.net.state_dict())
    if "embed_tokens.weight" not in tensors:
        tensors["embed_tokens.weight"] = embedding_matrix(model)
    if "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = output_matrix(model, model.ids)
    return tensors | ({} if model.ids is None else offsets_of(model.ids, model.net.config.vocab_size))


def _norm_flags(model: HeadModel) -> dict[str, bool]:
    names = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    return {name: bool(model.net.config.settings[name]) for name in names}


def write_speculators(model: HeadModel) -> Written:
    """Return a drafter as `speculators` writes it, with every flag written out.

    Raises:
        ModelError: it reads the last hidden state, or scales its logits.
    """
    config = model.net.config
    is_parallel = config.kind == "p-eagle"
    kind, architecture = ("peagle", "PEagleSpeculator") if is_parallel else ("eagle3", "Eagle3Speculator")
    more = {"mask_token_id": model.net.mask_token} if is_parallel else {}
    stated = speculators(
        kind,
        architecture,
        model,
        hugging_layer(model),
        eagle_aux_hidden_state_layer_ids=list(config.layers),
        embed_requires_grad=bool(config.settings["own_embedding"]),
        **_norm_flags(model),
        **more,
    )
    return Written(stated, _written(model, "speculators"))


def write_sglang(model: HeadModel) -> Written:
    """Return an EAGLE-3 drafter as SpecForge writes it and SGLang reads it.

    Raises:
        ModelError: as `write_speculators`.
    """
    config, tensors = model.net.config, _written(model, "sglang")
    if config.settings["own_layers"] == 1:
        tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    if not config.settings["own_embedding"]:
        del tensors["embed_tokens.weight"]  # their exporter leaves it out: the engine takes the target's
    layers = list(config.layers)
    stated = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **hugging_layer(model),
        "draft_vocab_size": config.draft_vocab or config.vocab_size,
        "target_hidden_size": config.hidden_size,
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": layers},
        **_norm_flags(model),
    }
    return Written(stated, tensors)

"""The encoder-decoder families: how each one's `config.json` becomes two `Spec`s, and what its tensors are called.

A family is a function and two name maps, one per side; names are relative to a prefix, `{}` stands for the layer.
Defaults are those that apply when a file leaves a key out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from outpace.errors import ModelError
from outpace.models.card import kind_of
from outpace.models.config_values import checked_config
from outpace.models.families import Family, read_activation
from outpace.models.seq2seq.pair import PairSpec
from outpace.models.seq2seq.tables import interleaved_waves, stacked_waves
from outpace.models.spec import Spec

__all__ = ["PAIRS", "PairFamily", "find_pair", "is_pair", "make_pair"]

Config = Mapping[str, Any]
Sides = tuple[dict[str, Any], dict[str, Any]]

UNLIMITED = 2048  # written tokens promised where a model counts distances, which have no end
_ANY_SOURCE = 1 << 20


@dataclass(frozen=True, slots=True)
class PairFamily:
    """One architecture.

    Attributes:
        sides: makes the keyword arguments of both `Spec`s from a config and the longest text of the run (0 = the
            model's own).
        encoder, decoder: tensor names, as a causal `Family` has them; "relative" of layer 0 serves all layers where it
            names none.
        positions: computes a side's position table of so many rows; None = it is in the files.
        start: the token that starts a text where no file names one.
    """

    sides: Callable[[Config, int], Sides]
    encoder: Family
    decoder: Family
    positions: Callable[[Config, int], Tensor] | None = None
    start: int | None = None


def is_pair(config: Config) -> bool:
    """Return whether a family here is named by this config.json."""
    return kind_of(config) in PAIRS and config.get("is_encoder_decoder", True) is not False


def find_pair(config: Config) -> PairFamily:
    """Return the family that a config.json names.

    Raises:
        ModelError: it names none of these.
    """
    name = kind_of(config)
    if name not in PAIRS:
        raise ModelError(f"Architecture {name!r} is no encoder-decoder known here.", "Known: " + ", ".join(PAIRS) + ".")
    return PAIRS[name]


def make_pair(config: Config, context: int = 0, generation: Config | None = None) -> PairSpec:
    """Return the shapes that a config.json describes.

    Args:
        config: the parsed file.
        context: the longest text to be written, 0 = the model's own.
        generation: the parsed generation_config.json, which may name the start token.

    Raises:
        ModelError: a key is missing, of the wrong kind, or contradicts another; no start token is named.
    """
    family = find_pair(config)
    config = checked_config(config)
    try:
        encoder, decoder = family.sides(config, context)
    except KeyError as missing:
        raise ModelError(f"config.json lacks {missing.args[0]!r}.", hint="Fetch the model's files again.") from None
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"config.json describes no {kind_of(config)} model: {error}.", hint="Fetch the model's files again."
        ) from error
    start = _start(family, config, generation or {})
    return PairSpec(encoder=Spec(**encoder), decoder=Spec(**decoder), start_token=start)


def _start(family: PairFamily, config: Config, generation: Config) -> int:
    """Return the decoder's first token, as transformers finds it."""
    names, owners = ("decoder_start_token_id", "bos_token_id"), (generation, config)
    found = [owner.get(name) for name in names for owner in owners]
    start = next((token for token in [*found, family.start] if token is not None), None)
    if isinstance(start, list) and len(start) == 1:
        start = start[0]
    if not isinstance(start, int) or isinstance(start, bool):
        raise ModelError("The model names no token to start its decoder with.", "Set decoder_start_token_id.")
    return start


# BART and what descends from it


def _bart(
    config: Config,
    context: int,
    *,
    is_before: bool = False,
    has_embed_norm: bool = False,
    offset: int = 0,
    has_bias: bool = True,
    activation: str = "gelu",
    can_grow: bool = False,
) -> Sides:
    """Return both sides of a model of layer norms and full biases.

    Args:
        config, context: as of `make_pair`.
        is_before: norms stand before attention and MLP, with one more behind the last layer.
        has_embed_norm: the embeddings have a norm too.
        offset: rows of the position table before that of the first token.
        has_bias: the logits have a bias, `final_logits_bias`.
        activation: where config.json names none.
        can_grow: the table is computed, as far as it is needed.
    """
    hidden, trained = config["d_model"], config.get("max_position_embeddings", 1024)
    if context > trained and not can_grow:
        raise ModelError(f"A context of {context} tokens is longer than the {trained} positions of the model.")
    common = {
        "hidden_size": hidden,
        "norm": "layer",
        "norm_eps": 1e-5,
        "has_norm_bias": True,
        "norm_placement": "pre" if is_before else "after",
        "has_final_norm": is_before,
        "has_embed_norm": has_embed_norm,
        "activation": read_activation(config.get("activation_function", activation)),
        "is_gated": False,
        "positions": "learned",
        "position_offset": offset,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "embed_scale": hidden**0.5 if config.get("scale_embedding", False) else 1.0,
    }
    encoder = common | _side(config, "encoder") | {"max_positions": trained, "attention": "full"}
    words = config.get("decoder_vocab_size") or config["vocab_size"]
    decoder = common | _side(config, "decoder") | {"vocab_size": words, "has_cross": True, "head_bias": has_bias}
    decoder["max_positions"] = context if context and can_grow else trained
    return encoder, decoder | {"tie_embeddings": bool(config.get("tie_word_embeddings", True))}


def _side(config: Config, side: str) -> dict[str, Any]:
    heads, hidden = config[f"{side}_attention_heads"], config["d_model"]
    if hidden % heads:
        raise ModelError(f"{heads} heads cannot share {hidden} numbers evenly.")
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config[f"{side}_layers"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn_size": config[f"{side}_ffn_dim"],
    }


def _m2m(config: Config, context: int) -> Sides:
    scaled = {"scale_embedding": True} | dict(config)
    offset = _padding(config) + 1
    return _bart(scaled, context, is_before=True, offset=offset, has_bias=False, activation="relu", can_grow=True)


def _padding(config: Config) -> int:
    found = config.get("pad_token_id", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise ModelError("Positions are counted from the padding token, which config.json does not name.")
    return found


def _bart_names(side: str) -> Family:
    attention, cross = f"{side}.layers.{{}}.self_attn", f"{side}.layers.{{}}.encoder_attn"
    layer = {role: f"{attention}.{role}_proj" for role in "qkv"} | {
        "o": f"{attention}.out_proj",
        "attn_norm": f"{side}.layers.{{}}.self_attn_layer_norm",
        "mlp_norm": f"{side}.layers.{{}}.final_layer_norm",
        "up": f"{side}.layers.{{}}.fc1",
        "down": f"{side}.layers.{{}}.fc2",
    }
    if side == "decoder":
        layer |= {f"cross_{role}": f"{cross}.{role}_proj" for role in "qkv"}
        layer |= {"cross_o": f"{cross}.out_proj", "cross_norm": f"{side}.layers.{{}}.encoder_attn_layer_norm"}
    outer = {
        "embed": f"{side}.embed_tokens",
        "positions": f"{side}.embed_positions",
        "embed_norm": f"{side}.layernorm_embedding",
        "final_norm": f"{side}.layer_norm",
        "head": "lm_head",
    }
    ignored = (r"(^|\.)(en|de)coder\.version$", r"embed_positions\.(weights|_float_tensor)$")
    return Family(_no_fields, layer, outer, prefixes=("model.", ""), ignored=ignored)


def _no_fields(config: Config, context: int) -> dict[str, Any]:
    raise ModelError("One side of an encoder-decoder is no decoder of its own.")


# T5 and what descends from it


def _t5(config: Config, context: int, *, is_scaled: bool | None = None, projection: str = "relu") -> Sides:
    """Return both sides of a model of RMS norms without any bias, that counts distances.

    Args:
        config, context: as of `make_pair`.
        is_scaled: the last states are scaled before the head; None = where config.json does not untie it, as the
            authors' versions 1.0 and 1.1 differ.
        projection: the MLP where config.json names none.
    """
    hidden, heads, layers = config["d_model"], config["num_heads"], config["num_layers"]
    *gate, act = str(config.get("feed_forward_proj", projection)).split("-", 1)
    if gate not in ([], ["gated"]):
        raise ModelError(f"feed_forward_proj {config['feed_forward_proj']!r} is not known here.")
    if is_scaled is None:
        is_scaled = bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False))
    common = {
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": config.get("d_kv", 64),
        "ffn_size": config["d_ff"],
        "norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "activation": "gelu_tanh" if gate and act == "gelu" else read_activation(act),
        "is_gated": bool(gate),
        "positions": "relative",
        "relative_buckets": config.get("relative_attention_num_buckets", 32),
        "relative_distance": config.get("relative_attention_max_distance", 128),
        "attn_scale": 1.0,
    }
    decoder = common | {
        "num_layers": config.get("num_decoder_layers") or layers,
        "max_positions": context or max(UNLIMITED, config.get("n_positions", 0)),
        "has_cross": True,
        "tie_embeddings": True,  # a head of its own in the files counts all the same
        "head_scale": hidden**-0.5 if is_scaled else 1.0,
    }
    return common | {"max_positions": _ANY_SOURCE, "attention": "full"}, decoder


def _t5_names(side: str) -> Family:
    block, last = f"{side}.block.{{}}.layer", 2 if side == "decoder" else 1
    attention, mlp = f"{block}.0.SelfAttention", f"{block}.{last}.DenseReluDense"
    layer = {role: f"{attention}.{role}" for role in "qkvo"} | {
        "relative": f"{attention}.relative_attention_bias",
        "attn_norm": f"{block}.0.layer_norm",
        "mlp_norm": f"{block}.{last}.layer_norm",
        "down": f"{mlp}.wo",
    }
    if side == "decoder":
        layer |= {f"cross_{role}": f"{block}.1.EncDecAttention.{role}" for role in "qkvo"}
        layer["cross_norm"] = f"{block}.1.layer_norm"
    layer |= {"gate": f"{mlp}.wi_0", "up": f"{mlp}.wi_1", "plain_up": f"{mlp}.wi"}
    outer = {"embed": f"{side}.embed_tokens", "final_norm": f"{side}.final_layer_norm", "head": "lm_head"}
    ignored = (r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)
    return Family(_no_fields, layer, outer, prefixes=("", "transformer."), ignored=ignored)


def _stacked(config: Config, rows: int) -> Tensor:
    return stacked_waves(rows, config["d_model"])


def _interleaved(config: Config, rows: int) -> Tensor:
    return interleaved_waves(rows, config["d_model"], _padding(config))


_BARTS = (_bart_names("encoder"), _bart_names("decoder"))
_T5S = (_t5_names("encoder"), _t5_names("decoder"))
_gated = partial(_t5, projection="gated-gelu")

PAIRS: dict[str, PairFamily] = {
    "marian": PairFamily(_bart, *_BARTS, positions=_stacked, start=58100),
    "bart": PairFamily(partial(_bart, has_embed_norm=True, offset=2), *_BARTS, start=2),
    "plbart": PairFamily(
        lambda config, context: _bart({"scale_embedding": True} | dict(config), context, has_embed_norm=True, offset=2),
        *_BARTS,
    ),
    "mbart": PairFamily(partial(_bart, is_before=True, has_embed_norm=True, offset=2), *_BARTS),
    "blenderbot": PairFamily(partial(_bart, is_before=True), *_BARTS, start=1),
    "pegasus": PairFamily(partial(_bart, is_before=True), *_BARTS, positions=_stacked, start=0),
    "m2m_100": PairFamily(_m2m, *_BARTS, positions=_interleaved, start=2),
    "t5": PairFamily(_t5, *_T5S, start=0),
    "mt5": PairFamily(partial(_gated, is_scaled=False), *_T5S, start=0),
    "umt5": PairFamily(_gated, *_T5S, start=0),
}

"""The kinds of values that a `config.json` may hold: told in one sentence where they are wrong.

Null stands for a key that is left out, as transformers writes it. A number in quotes, or a fraction where a count
belongs, is refused, as transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from outpace.errors import ModelError

__all__ = ["checked_config", "token_ids"]

_COUNTS = frozenset(
    """vocab_size embedding_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    intermediate_size max_position_embeddings original_max_position_embeddings n_embd n_head n_layer n_inner n_positions
    ffn_dim word_embed_proj_dim sliding_window max_window_layers no_rope_layer_interval sliding_window_pattern bd_size
    block_size block_length d_model n_heads n_layers n_kv_heads mlp_hidden_size max_sequence_length d_kv d_ff num_layers
    num_decoder_layers num_heads encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads
    encoder_ffn_dim decoder_ffn_dim decoder_vocab_size relative_attention_num_buckets
    relative_attention_max_distance""".split()
)
_MAY_BE_ZERO = frozenset({"max_window_layers"})
_NUMBERS = frozenset(
    """rms_norm_eps layer_norm_epsilon layer_norm_eps rope_theta rotary_emb_base rotary_pct partial_rotary_factor
    rope_local_base_freq query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping""".split()
)
_FLAGS = frozenset(
    """tie_word_embeddings attention_bias mlp_bias use_sliding_window do_layer_norm_before enable_bias
    use_parallel_residual scale_attn_weights scale_attn_by_inverse_layer_idx layer_norm_elementwise_affine
    _remove_final_layer_norm use_bidirectional_attention scale_embedding share_encoder_decoder_embeddings
    scale_decoder_outputs is_encoder_decoder""".split()
)
_TEXTS = frozenset(
    "model_type hidden_act hidden_activation activation_function feed_forward_proj dtype torch_dtype".split()
)
_LISTS = frozenset({"layer_types", "no_rope_layers", "architectures"})
_TABLES = frozenset({"rope_scaling", "rope_parameters", "text_config"})
_OFF = frozenset({"sliding_window", "attn_logit_softcapping", "final_logit_softcapping"})  # null switches them off
_MOST = 1 << 40  # no count of a model comes near it
_MOST_LAYERS = 100_000


def checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that are null and mean nothing by it.

    Raises:
        ModelError: a value is of the wrong kind.
    """
    kept = {key: value for key, value in config.items() if value is not None or key in _OFF or key not in _KNOWN}
    for key, value in kept.items():
        if value is not None and key in _KNOWN:
            _check(key, value)
    for key in _TABLES & set(kept):
        if key == "text_config":
            kept[key] = checked_config(kept[key])
        else:
            _check_rotary(key, kept[key])
    return kept


_KNOWN = _COUNTS | _NUMBERS | _FLAGS | _TEXTS | _LISTS | _TABLES


def _check(key: str, value: Any) -> None:
    if key in _COUNTS:
        least = 0 if key in _MAY_BE_ZERO else 1
        most = _MOST_LAYERS if key in ("num_hidden_layers", "n_layer", "n_layers") else _MOST
        _demand(_is_whole(value) and least <= value <= most, key, value, f"a whole number of {least} or more")
    elif key in _NUMBERS:
        _demand(_is_number(value) and value > 0, key, value, "a number above 0")
    elif key in _FLAGS:
        _demand(isinstance(value, bool) or value in (0, 1), key, value, "true or false")
    elif key in _TEXTS:
        _demand(isinstance(value, str), key, value, "text")
    else:
        kind = (list, tuple) if key in _LISTS else Mapping
        _demand(isinstance(value, kind), key, value, "a list" if key in _LISTS else "an object")


def _check_rotary(key: str, table: Mapping[str, Any]) -> None:
    for name, value in table.items():
        if isinstance(value, Mapping):  # one table per kind of layer
            _check_rotary(f"{key}.{name}", value)
        elif name in ("rope_type", "type"):
            _demand(value is None or isinstance(value, str), f"{key}.{name}", value, "text")
        elif name in ("short_factor", "long_factor"):
            is_right = isinstance(value, (list, tuple)) and all(_is_number(item) and item > 0 for item in value)
            _demand(is_right, f"{key}.{name}", value, "a list of numbers above 0")
        elif name in _ROTARY:
            _demand(value is None or (_is_number(value) and value > 0), f"{key}.{name}", value, "a number above 0")


_ROTARY = frozenset(
    """factor rope_theta original_max_position_embeddings attention_factor beta_fast beta_slow low_freq_factor
    high_freq_factor partial_rotary_factor""".split()
)


def _demand(is_right: bool, key: str, value: Any, wanted: str) -> None:
    if not is_right:
        shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
        raise ModelError(f"config.json says {key} {shown}; it has to be {wanted}.", "Fetch the model's files again.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def token_ids(stated: Any, what: str) -> tuple[int, ...]:
    """Return ids as files state them: none, one, or a list; a number in quotes is one too.

    Args:
        stated: the parsed value.
        what: the key, for the sentence.

    Raises:
        ModelError: something in it is no token id.
    """
    if stated is None:
        return ()
    found: list[int] = []
    for item in stated if isinstance(stated, (list, tuple)) else [stated]:
        word: Any = item.strip() if isinstance(item, str) else item
        if isinstance(word, str) and word.isascii() and word.isdigit():
            word = int(word)
        if isinstance(word, float) and word.is_integer():
            word = int(word)
        if not _is_whole(word):
            raise ModelError(f"The model's files say {what} {item!r}, which is no token id.", "Correct it there.")
        found.append(word)
    return tuple(found)

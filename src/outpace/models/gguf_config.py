"""The metadata of a GGUF model as the `config.json` that it was made from would say it.

What files leave out is what llama.cpp takes for granted of an architecture: Gemma's windows and score scale, SmolLM3's
layers without rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from outpace.errors import ModelError
from outpace.models.gguf import read_plain
from outpace.text.files import AGAIN
from outpace.text.gguf_file import Gguf, shortest
from outpace.text.gguf_tokenizer import end_ids

__all__ = ["gguf_config"]

_OTHERS = "Use a directory with safetensors, which transformers reads where nothing here does."
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def gguf_config(gguf: Gguf) -> dict[str, Any]:
    """Return the config of a model.

    Raises:
        ModelError: its architecture is not read here, a key is missing or of the wrong kind, or keys contradict the
            tensors.
    """
    architecture = gguf.get("general.architecture", str)
    if architecture not in _FAMILIES:
        raise ModelError(
            f"{gguf.path} is of the architecture {architecture or 'nothing named'!r}, which is not read from GGUF.",
            f"Read are {', '.join(_FAMILIES)}; other models load from a directory with safetensors.",
        )
    keys = _Keys(gguf, architecture)
    if keys.find("expert_count", int):
        raise ModelError(f"{gguf.path} is a mixture of experts, which is not read here.", "Use a dense model.")
    config = _FAMILIES[architecture](keys) | {"vocab_size": keys.vocab_size(), "eos_token_id": list(end_ids(gguf))}
    if (start := gguf.get("tokenizer.ggml.bos_token_id", int)) is not None:
        config["bos_token_id"] = start
    kinds = {stored.kind for stored in gguf.tensors.values()}
    if kinds <= set(_TYPES):  # plain numbers: that of the matrices, since norms are float32 in every file
        config["dtype"] = _TYPES[gguf.tensors["token_embd.weight"].kind]
    return config


class _Keys:
    """The keys of an architecture."""

    def __init__(self, gguf: Gguf, architecture: str) -> None:
        self.gguf, self.architecture = gguf, architecture

    def find(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """Return a value; a list with one entry per layer counts where all are the same."""
        name = f"{self.architecture}.{key}"
        value = self.gguf.metadata.get(name)
        if isinstance(value, np.ndarray) and kind is int and len(value):
            if np.any(value != value[0]):
                raise ModelError(f"{self.gguf.path} says {name} layer by layer, which is not read here.", _OTHERS)
            return int(value[0])
        found = self.gguf.get(name, kind, default)
        return shortest(found) if kind is float and found is not None else found

    def need(self, key: str, kind: type[Any]) -> Any:
        value = self.find(key, kind)
        if value is None:
            raise ModelError(f"{self.gguf.path} does not say {self.architecture}.{key}.", AGAIN)
        return value

    def count(self, key: str, default: int = 0) -> int:
        """Return a size, which is positive."""
        value = int(self.find(key, int, default) or self.need(key, int))
        if value < 1:
            raise ModelError(f"{self.gguf.path} says {self.architecture}.{key} {value}.", AGAIN)
        return value

    def layers(self) -> int:
        """Return the number of layers, each of which holds tensors."""
        stated = self.count("block_count")
        if stated > len(self.gguf.tensors):
            raise ModelError(f"{self.gguf.path} says that it has {stated} layers, but holds fewer tensors.", AGAIN)
        return stated

    def has(self, tensor: str) -> bool:
        return tensor in self.gguf.tensors

    def vocab_size(self) -> int:
        """Return how many tokens the embedding has, if nothing else contradicts it."""
        table = self.gguf.tensors.get("token_embd.weight")
        if table is None:
            raise ModelError(f"{self.gguf.path} has no token_embd.weight.", AGAIN)
        stated = self.find("vocab_size", int, table.shape[0])
        tokens = len(self.gguf.get("tokenizer.ggml.tokens", list) or ())
        if stated != table.shape[0] or tokens > table.shape[0]:
            raise ModelError(
                f"{self.gguf.path} has an embedding of {table.shape[0]} rows for {max(stated, tokens)} tokens.",
                AGAIN,
            )
        return table.shape[0]

    def shape(self) -> dict[str, Any]:
        """Return what the Llama line shares."""
        heads, size = self.count("attention.head_count"), self.count("embedding_length")
        head_dim = self.count("attention.key_length", size // heads)
        if self.count("attention.value_length", head_dim) != head_dim:
            raise ModelError(f"{self.gguf.path} has values of another size than keys, which is not read here.", _OTHERS)
        return {
            "model_type": self.architecture,
            "hidden_size": size,
            "num_hidden_layers": self.layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate_size": self.count("feed_forward_length"),
            "max_position_embeddings": self.count("context_length"),
            "rms_norm_eps": self.need("attention.layer_norm_rms_epsilon", float),
            "attention_bias": self.has("blk.0.attn_q.bias"),
            "mlp_bias": self.has("blk.0.ffn_down.bias"),
            "tie_word_embeddings": not self.has("output.weight"),
            "rope_parameters": self.rotation(head_dim),
        }

    def rotation(self, head_dim: int) -> dict[str, Any]:
        """Return the rotary settings."""
        turning = self.count("rope.dimension_count", head_dim)
        if turning > head_dim or turning % 2:
            raise ModelError(f"{self.gguf.path} turns {turning} dimensions of heads of {head_dim}.", AGAIN)
        found: dict[str, Any] = {"rope_theta": self.find("rope.freq_base", float, 10000.0)}
        if turning != head_dim:  # the next number up, so that the product comes out whole
            found["partial_rotary_factor"] = math.nextafter(turning / head_dim, 1)
        if divisors := self._divisors("rope_freqs.weight", turning):  # a scaling may be stated beside them
            found["divisors"] = divisors
        kind = self.find("rope.scaling.type", str, "linear")  # where there is a factor
        factor = self.find("rope.scaling.factor", float, self.find("rope.scale_linear", float, 0.0))
        short, long = (self._divisors(f"rope_factors_{name}.weight", turning) for name in ("short", "long"))
        if short and long and not divisors:
            found |= {"rope_type": "longrope", "short_factor": short, "long_factor": long}
            if (scale := self.find("rope.scaling.attn_factor", float)) is not None:
                found["attention_factor"] = scale
        elif kind == "linear" and factor:
            found |= {"rope_type": "linear", "factor": factor}
        elif kind == "yarn":
            found |= self._yarn(factor)
        elif kind not in ("linear", "none", "longrope"):
            raise ModelError(f"{self.gguf.path} scales rotations by {kind!r}, which is not known here.", _OTHERS)
        if original := self.find("rope.scaling.original_context_length", int):
            found["original_max_position_embeddings"] = original
        return found

    def _yarn(self, factor: float) -> dict[str, Any]:
        found: dict[str, Any] = {"rope_type": "yarn", "factor": factor or 1.0}
        for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if (value := self.find(f"rope.scaling.{key}", float)) is not None:
                found[name] = value
        if (scale := self.find("rope.scaling.attn_factor", float)) is not None:  # besides YaRN's own
            found["attention_factor"] = scale * (0.1 * math.log(max(factor, 1.0)) + 1.0)
        return found

    def _divisors(self, name: str, turning: int) -> list[float]:
        found = read_plain(self.gguf, name) or []
        if found and (len(found) != turning // 2 or not all(math.isfinite(one) and one > 0 for one in found)):
            raise ModelError(f"{self.gguf.path} has {name} that does not fit heads of {turning} dimensions.", AGAIN)
        return found

    def kinds(self, layers: int, period: int) -> list[str]:
        """Return each layer's kind, from the list that the file holds or the period that the architecture has."""
        stated = self.gguf.metadata.get(f"{self.architecture}.attention.sliding_window_pattern")
        if isinstance(stated, np.ndarray) and len(stated) == layers:
            return ["sliding_attention" if flag else "full_attention" for flag in stated]
        every = stated if isinstance(stated, int) and stated > 0 else period
        return ["full_attention" if layer % every == every - 1 else "sliding_attention" for layer in range(layers)]


def _llama(keys: _Keys) -> dict[str, Any]:
    return keys.shape()


def _smollm3(keys: _Keys) -> dict[str, Any]:
    return keys.shape() | {"no_rope_layer_interval": 4}


def _olmo2(keys: _Keys) -> dict[str, Any]:
    if keys.find("attention.sliding_window", int):
        raise ModelError(f"{keys.gguf.path} is an OLMo 3, which is not read here.", "Use an OLMo 2.")
    return keys.shape()


def _gemma2(keys: _Keys) -> dict[str, Any]:
    found = keys.shape()
    return found | {
        "sliding_window": keys.count("attention.sliding_window", 4096),
        "layer_types": keys.kinds(found["num_hidden_layers"], 2),
        "attn_logit_softcapping": keys.find("attn_logit_softcapping", float, 50.0),
        "final_logit_softcapping": keys.find("final_logit_softcapping", float, 30.0),
        "query_pre_attn_scalar": _score_scale(found, 46),
    }


def _gemma3(keys: _Keys) -> dict[str, Any]:
    found = keys.shape()
    window, layers = keys.find("attention.sliding_window", int), found["num_hidden_layers"]
    local = {"rope_theta": keys.find("rope.freq_base_swa", float, 10000.0)}
    return found | {
        "model_type": "gemma3_text",
        "sliding_window": window or None,
        "layer_types": keys.kinds(layers, 6) if window else ["full_attention"] * layers,
        "final_logit_softcapping": keys.find("final_logit_softcapping", float),
        "query_pre_attn_scalar": _score_scale(found, 62),
        "rope_parameters": {"full_attention": found["rope_parameters"], "sliding_attention": local},
    }


def _score_scale(found: dict[str, Any], layers_of_27b: int) -> int:
    """Return the number whose root divides scores: a head's size, but for the largest model of a line."""
    is_largest = found["num_hidden_layers"] == layers_of_27b
    return found["hidden_size"] // found["num_attention_heads"] if is_largest else int(found["head_dim"])


def _phi3(keys: _Keys) -> dict[str, Any]:
    found = keys.shape() | {"sliding_window": keys.find("attention.sliding_window", int) or None}
    original = found["rope_parameters"].pop("original_max_position_embeddings", None)
    return found | ({"original_max_position_embeddings": original} if original else {})


def _gpt2(keys: _Keys) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": keys.count("embedding_length"),
        "n_layer": keys.layers(),
        "n_head": keys.count("attention.head_count"),
        "n_inner": keys.count("feed_forward_length"),
        "n_positions": keys.count("context_length"),
        "layer_norm_epsilon": keys.need("attention.layer_norm_epsilon", float),
        "activation_function": "gelu_new",
        "tie_word_embeddings": not keys.has("output.weight"),
    }


_FAMILIES: dict[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "smollm3": _smollm3,
    "olmo2": _olmo2,
}

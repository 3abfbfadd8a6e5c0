"""Small random models of every family, written by transformers itself, and an all-float64 reference of each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch.overrides import TorchFunctionMode

COMMON: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 96,
}
GROUPED: dict[str, Any] = COMMON | {"num_key_value_heads": 2, "intermediate_size": 72}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
GEMMA = {"head_dim": 10, "sliding_window": 7, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **settings}}


def longrope(original: int, pairs: int = 4) -> dict[str, Any]:
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
    return rope("longrope", **factors) | {"original_max_position_embeddings": original}


CASES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED, head_dim=10),
    "llama-biased-tied": lambda: hf.LlamaConfig(
        **GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama-linear": lambda: hf.LlamaConfig(**GROUPED, **rope("linear", factor=3.0)),
    "llama-dynamic": lambda: hf.LlamaConfig(**GROUPED, **rope("dynamic", factor=3.0)),
    "llama-llama3": lambda: hf.LlamaConfig(**GROUPED, **rope("llama3", **LLAMA3)),
    "llama-yarn": lambda: hf.LlamaConfig(**GROUPED, **rope("yarn", **YARN)),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=10),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=9),
    "gpt2": lambda: hf.GPT2Config(vocab_size=131, n_embd=48, n_layer=3, n_head=6, n_positions=96),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**COMMON, intermediate_size=80, **rope("default", partial_rotary_factor=0.5)),
    "gpt_neox-serial": lambda: hf.GPTNeoXConfig(**COMMON, intermediate_size=80, use_parallel_residual=False),
    "opt": lambda: hf.OPTConfig(**COMMON, ffn_dim=80),
    "opt-350m": lambda: hf.OPTConfig(**COMMON, ffn_dim=80, do_layer_norm_before=False, word_embed_proj_dim=20),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, **GEMMA, final_logit_softcapping=8.0, attn_logit_softcapping=3.0),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GROUPED,
        **GEMMA,
        rope_parameters=GEMMA3_ROPES,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": lambda: hf.Phi3Config(**GROUPED, sliding_window=11, pad_token_id=0),
    "phi3-longrope": lambda: hf.Phi3Config(**GROUPED, **longrope(80), pad_token_id=0),
    "smollm3": lambda: hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0, 1], pad_token_id=0),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
}
SEEDS = {"qwen3": 1, "gpt2": 2, "gpt_neox": 3, "gpt_neox-serial": 3, "opt": 2, "opt-350m": 2, "olmo2": 1}


class Lifted(TorchFunctionMode):
    """Runs code with its float32 islands (norms, softmax, rotary tables) in float64, as the rest of it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        lift = {torch.float32: torch.float64}
        args = [lift.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        kwargs = {k: lift.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Lift float32 islands, and make float64 the dtype of what numbers become."""
    torch.set_default_dtype(torch.float64)
    try:
        with Lifted():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def make_model(config: hf.PreTrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A random model whose every tensor matters and whose text does not loop at once."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    is_after = getattr(config, "do_layer_norm_before", True) is False  # norms after the sum tame large weights
    for name, weight in model.named_parameters():
        narrow, wide = (0.05, 1.0) if is_after else (0.2, 3.0)
        spread = narrow if weight.dim() == 1 else wide / weight.shape[-1] ** 0.5
        if any(part in name for part in ("embed_tokens", "embed_in", "embed_positions", "wte", "wpe")):
            spread = 3.0 if is_after else 0.1  # the layers, not the last token, decide what a tied head says
        if weight.dim() == 1 and name.endswith("norm.weight") and "post_" in name:
            spread = 3.0
        weight.data = weight.data + torch.randn_like(weight) * spread
    return model


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Decode greedily, one token per forward, with our own cache; return all ids."""
    cache, text, new = model.new_cache(1, len(prompt) + count), list(prompt), list(prompt)
    for _ in range(count):
        start, size = cache.lengths[0], len(new)
        position = torch.arange(start, start + size)[None]
        ask = torch.tensor([[size - 1]])
        logits = model.score(torch.tensor([new]), position, None, cache, ask).logits
        cache.keep([range(size)])
        new = [int(logits[0, -1].argmax())]
        text += new
    return text


@functools.cache
def saved(case: str, root: Path) -> tuple[Path, hf.PreTrainedModel]:
    """Write a case below `root` once; return its directory and its all-float64 reference."""
    model = make_model(CASES[case](), SEEDS.get(case, 0))
    directory = root / case
    model.save_pretrained(directory)
    return directory, lifted(model)


def lifted(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """Return a float64 copy; run it through `reference_logits`."""
    with in_float64():
        twin = type(model)(model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    return twin


def reference_logits(model: hf.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of one teacher-forced forward in float64."""
    with in_float64(), torch.no_grad():
        return model(ids, use_cache=False).logits

"""Small random encoder-decoders of every family, written by transformers itself, and their float64 references."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCAB = 131
NAMED: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2}
SIDES = {
    f"{side}_{name}": size
    for side, sizes in (("encoder", (2, 4, 24)), ("decoder", (3, 2, 40)))
    for name, size in zip(("layers", "attention_heads", "ffn_dim"), sizes, strict=True)
}
BART: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 16, "max_position_embeddings": 80, "forced_eos_token_id": None}
BART |= NAMED | SIDES
T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 24,
    **NAMED,
}
CASES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "marian": lambda: hf.MarianConfig(**BART, scale_embedding=True, activation_function="swish"),
    "marian-two-vocabularies": lambda: hf.MarianConfig(
        **BART, share_encoder_decoder_embeddings=False, decoder_vocab_size=140, activation_function="relu"
    ),
    "bart": lambda: hf.BartConfig(**BART),
    "bart-untied": lambda: hf.BartConfig(**BART, tie_word_embeddings=False),
    "plbart": lambda: hf.PLBartConfig(**BART),
    "mbart": lambda: hf.MBartConfig(**BART, scale_embedding=True),
    "blenderbot": lambda: hf.BlenderbotConfig(**BART),
    "pegasus": lambda: hf.PegasusConfig(**BART, scale_embedding=True, activation_function="relu"),
    "m2m100": lambda: hf.M2M100Config(**BART),
    "t5": lambda: hf.T5Config(**T5),
    "t5-gated": lambda: hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: hf.MT5Config(**T5),
    "umt5": lambda: hf.UMT5Config(**T5),
}
SOURCES = [[5, 9, 17, 5, 9, 44, 71, 3], [40, 3], [88, 4, 61, 12, 100, 7, 7, 30, 64, 51, 23, 90, 3]]


def make_pair_model(config: hf.PreTrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A random model whose every tensor matters and whose text does not loop at once."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = hf.AutoModelForSeq2SeqLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:  # a computed table of positions
            continue
        is_table = any(part in name for part in ("embed_", "shared"))
        spread = 0.3 if weight.dim() == 1 or "relative" in name else 1.0 if is_table else 4.0 / weight.shape[-1] ** 0.5
        if config.model_type in ("t5", "mt5", "umt5") and name.endswith((".q.weight", ".k.weight")):
            spread /= 4  # products are not scaled
        weight.data = weight.data * (weight.dim() == 1) + torch.randn_like(weight) * spread
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias = torch.randn_like(model.final_logits_bias)
    if config.model_type in ("t5", "umt5") and not getattr(config, "scale_decoder_outputs", True):
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    return model


@functools.cache
def saved_pair(case: str, root: Path) -> tuple[Path, hf.PreTrainedModel]:
    """Write a case below `root` once; return its directory and its float64 reference, read back from the files."""
    directory = root / case
    make_pair_model(CASES[case]()).save_pretrained(directory)
    model = hf.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):  # T5's norm, which takes its mean in float32
            module.forward = MethodType(_norm, module)
    return directory, model.eval()


def _norm(self: Any, states: Tensor) -> Tensor:
    scaled: Tensor = self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return scaled


@torch.no_grad()
def pair_logits(model: hf.PreTrainedModel, source: list[int], ids: Sequence[int], **more: Any) -> Any:
    """The model's own forward of one text, without a cache: its output, whose `logits` are [1, T, V]."""
    return model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([list(ids)]), use_cache=False, **more)


@torch.no_grad()
def pair_text(model: hf.PreTrainedModel, source: list[int], count: int) -> list[int]:
    """The greedy text that transformers writes, `count` tokens long, without the start token."""
    ids = model.generate(
        torch.tensor([source]),
        attention_mask=torch.ones(1, len(source), dtype=torch.int64),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        use_cache=False,  # transformers 5.23 caches as many T5 layers as its encoder has
        no_repeat_ngram_size=1,  # random models repeat themselves
        suppress_tokens=[1],  # a padding token in a text has no position of its own in M2M100
    )
    return [int(token) for token in ids[0, 1:]]

"""Small models for every test: random ones, and one that writes a known text. No slow library helps to write them."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script, and children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

END = "<|end|>"
CYCLE = " 日語é🙂ж"  # every byte occurs once, so that each token can decide the next
SHAPE = {"hidden": 32, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 48}
Weights = dict[str, Tensor]


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported for good, and frequent walks through thousands of rows."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level, 300 tokens, a few of them whole words."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[END], show_progress=False, min_frequency=1
    )
    built.train_from_iterator(["the quick brown fox jumps over the lazy dog and then the fox sleeps"] * 3, trainer)
    return built


@pytest.fixture(scope="session")
def vocab(tokenizer: Tokenizer) -> int:
    return tokenizer.get_vocab_size()


def random_weights(vocab: int, seed: int, hidden: int = SHAPE["hidden"], layers: int = SHAPE["layers"]) -> Weights:
    """A Llama's weights under their published names, in float64."""
    source = torch.Generator().manual_seed(seed)
    heads, kv, ffn = (SHAPE[key] * size for key, size in (("heads", 16), ("kv_heads", 16), ("ffn", 1)))

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=source, dtype=torch.float64) * scale / columns**0.5

    weights = {
        "model.embed_tokens.weight": matrix(vocab, hidden, hidden**0.5),
        "model.norm.weight": torch.ones(hidden, dtype=torch.float64),
        "lm_head.weight": matrix(vocab, hidden, 2.0),
    }
    for layer in range(layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": torch.ones(hidden, dtype=torch.float64),
            f"{name}.post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.float64),
            f"{name}.self_attn.q_proj.weight": matrix(heads, hidden, 2.0),
            f"{name}.self_attn.k_proj.weight": matrix(kv, hidden, 2.0),
            f"{name}.self_attn.v_proj.weight": matrix(kv, hidden),
            f"{name}.self_attn.o_proj.weight": matrix(hidden, heads),
            f"{name}.mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{name}.mlp.up_proj.weight": matrix(ffn, hidden),
            f"{name}.mlp.down_proj.weight": matrix(hidden, ffn),
        }
    return weights


def write_model(directory: Path, tokenizer: Tokenizer, weights: Weights, context: int = 512) -> Path:
    """Write a model directory as the hub has them."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab, hidden = weights["model.embed_tokens.weight"].shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": SHAPE["ffn"],
        "num_hidden_layers": sum(name.endswith("q_proj.weight") for name in weights),
        "num_attention_heads": SHAPE["heads"],
        "num_key_value_heads": SHAPE["kv_heads"],
        "head_dim": SHAPE["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id(END),
        "torch_dtype": "float64",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "chat_template": TEMPLATE}))
    tokenizer.save(str(directory / "tokenizer.json"))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, vocab: int) -> Path:
    """A random model of three layers."""
    return write_model(tmp_path_factory.mktemp("tiny"), tokenizer, random_weights(vocab, 1))


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, vocab: int) -> Path:
    """The same model, slightly off: often right, not always."""
    weights, other = random_weights(vocab, 1), random_weights(vocab, 2)
    mixed = {name: weight + 0.15 * other[name] for name, weight in weights.items()}
    return write_model(tmp_path_factory.mktemp("draft"), tokenizer, mixed)


@pytest.fixture(scope="session")
def cycle_weights(tokenizer: Tokenizer, vocab: int) -> Weights:
    """Layers that do nothing between one-hot embeddings and a table of which byte follows which."""
    weights = random_weights(vocab, 3, hidden=vocab, layers=1)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{name}.weight"].zero_()
    weights["model.embed_tokens.weight"] = torch.eye(vocab, dtype=torch.float64)
    ids = [token for character in CYCLE for token in byte_ids(tokenizer, character)]
    weights["lm_head.weight"] = torch.zeros(vocab, vocab, dtype=torch.float64)
    weights["lm_head.weight"][ids[1:] + ids[:1], ids] = 1.0
    return weights


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The id of each byte of a text, as a token of its own."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    return [tokenizer.token_to_id(letter) for letter in spelled]


@pytest.fixture(scope="session")
def cycle(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, cycle_weights: Weights) -> Path:
    """Writes CYCLE for ever, one byte per token, in a context that is long enough to be interrupted."""
    return write_model(tmp_path_factory.mktemp("cycle"), tokenizer, cycle_weights, context=60_000)


@pytest.fixture
def altered(tiny: Path, tmp_path: Path, tokenizer: Tokenizer) -> Callable[[Callable[[Weights], object]], Path]:
    """Write a copy of the tiny model whose weights were changed by a function."""

    def alter(change: Callable[[Weights], object]) -> Path:
        weights = load_file(tiny / "model.safetensors")
        directory = write_model(tmp_path / "altered", tokenizer, weights)
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return alter

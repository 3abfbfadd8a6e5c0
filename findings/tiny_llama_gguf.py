"""A random little Llama as GGUF files, its positions scaled in every way that such files state."""

import gguf
import numpy as np

kinds = gguf.GGUFValueType
WIDTH, HEADS, INNER, LAYERS = 64, 2, 128, 2
# The 256 signs that stand for bytes, one merge, and an end token.
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in plain]
signs = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
TOKENS = [*(signs[byte] for byte in range(256)), "th", "<|endoftext|>"]
draw = np.random.default_rng(0)


def _some(*shape):
    return (draw.standard_normal(shape) * 0.3).astype(np.float16)


def _ones(size):
    return np.ones(size, dtype=np.float32)


tensors = {"token_embd.weight": _some(len(TOKENS), WIDTH), "output_norm.weight": _ones(WIDTH)}
for layer in range(LAYERS):
    part = {"attn_norm": _ones(WIDTH), "ffn_norm": _ones(WIDTH), "ffn_down": _some(WIDTH, INNER)}
    part |= {name: _some(WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    part |= {name: _some(INNER, WIDTH) for name in ("ffn_gate", "ffn_up")}
    tensors |= {f"blk.{layer}.{name}.weight": value for name, value in part.items()}


def make(path, base=10000.0, settings=(), more=()):
    """Write one file: `settings` are (key below rope.scaling, value, kind), `more` further tensors; return its path."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(2)
    writer.add_block_count(LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(len(TOKENS) - 1)
    writer.add_eos_token_id(len(TOKENS) - 1)
    for key, value, kind in settings:
        writer.add_key_value(f"llama.rope.scaling.{key}", value, kind)
    for key, value in (tensors | dict(more)).items():
        writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_all(home):
    """Write a file without scaling, one of another base, and three with scaling; return their paths."""
    # Llama 3.1's factors at these sizes: none for high frequencies, 8 for low ones, between them in between.
    wave = 2 * np.pi * 10000.0 ** (np.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    smooth = np.clip((8192 / wave - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    linear = [("type", "linear", kinds.STRING), ("factor", 4.0, kinds.FLOAT32)]
    yarn = [("type", "yarn", kinds.STRING), ("factor", 4.0, kinds.FLOAT32)]
    yarn.append(("original_context_length", 2048, kinds.UINT32))
    return {
        "no scaling": make(f"{home}/none.gguf"),
        "another base": make(f"{home}/base.gguf", base=1000.0),
        "linear": make(f"{home}/linear.gguf", settings=linear),
        "YaRN": make(f"{home}/yarn.gguf", settings=yarn),
        "rope_freqs.weight": make(f"{home}/factors.gguf", more={"rope_freqs.weight": factors}),
    }

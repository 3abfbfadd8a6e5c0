#!/bin/sh
# OpenVINO GenAI opens a Llama's GGUF file that holds rope factors (the tensor rope_freqs.weight, as every file of Llama 3.1,
# 3.2 and 3.3 does) or states `rope.scaling`, and turns its positions as if nothing of that were there, without a word.
#
# Expected: Llama is among the architectures that its GGUF reader takes, and others it refuses in words. So what the file says
# of positions is read, as rope.freq_base is, or the file is refused. The text is then llama.cpp's.
# Seen: one random Llama in five files. Without scaling, and with another rope.freq_base, OpenVINO and llama.cpp write one
# text each time. With linear scaling by 4, with YaRN, or with rope_freqs.weight llama.cpp writes other texts, and OpenVINO
# that of the file without scaling to the last token. The other reader that newer documents tell of (the property GGUF_READER)
# is not in this version.
# What follows: a Llama 3 file answers short questions there, since its high frequencies are unscaled, and goes astray in long
# texts, where the scaled ones tell positions apart; a model stretched by linear scaling or YaRN is wrong from the start.
# Versions: openvino-genai 2026.4.1.0, llama-cpp-python 0.3.36, gguf 0.19.0, numpy 2.4.6. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare openvino-genai==2026.4.1.0 llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
FOLDER="$home" see <<'PY'
import os

import gguf
import numpy as np
import openvino as ov
import openvino_genai as genai
from llama_cpp import Llama

home = os.environ["FOLDER"]
kinds = gguf.GGUFValueType
WIDTH, HEADS, INNER, LAYERS = 64, 2, 128, 2
# The 256 signs that stand for bytes, one merge, and an end token.
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in plain]
signs = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
TOKENS = [*(signs[byte] for byte in range(256)), "th", "<|endoftext|>"]
draw = np.random.default_rng(0)


def some(*shape):
    return (draw.standard_normal(shape) * 0.3).astype(np.float16)


def ones(size):
    return np.ones(size, dtype=np.float32)


tensors = {"token_embd.weight": some(len(TOKENS), WIDTH), "output_norm.weight": ones(WIDTH)}
for layer in range(LAYERS):
    part = {"attn_norm": ones(WIDTH), "ffn_norm": ones(WIDTH), "ffn_down": some(WIDTH, INNER)}
    part |= {name: some(WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    part |= {name: some(INNER, WIDTH) for name in ("ffn_gate", "ffn_up")}
    tensors |= {f"blk.{layer}.{name}.weight": value for name, value in part.items()}


def make(name, base=10000.0, settings=(), more=()):
    path = f"{home}/{name}.gguf"
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


def by_llama_cpp(path):
    model = Llama(path, n_ctx=128, n_threads=1, verbose=False)
    found = []
    for token in model.generate(PROMPT, temp=0.0, top_k=1, repeat_penalty=1.0):
        found.append(int(token))
        if len(found) == LENGTH:
            return found


def by_openvino(path):
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos = LENGTH, True
    ids = ov.Tensor(np.array([PROMPT], dtype=np.int64))
    return [int(token) for token in genai.LLMPipeline(path, "CPU", **exact).generate(ids, config).tokens[0]]


PROMPT, LENGTH = list(range(40, 80)), 8
# Llama 3.1's factors at these sizes: none for high frequencies, 8 for low ones, between them in between.
wave = 2 * np.pi * 10000.0 ** (np.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
smooth = np.clip((8192 / wave - 1) / 3, 0, 1)
factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
print("rope factors:", factors.round(2).tolist())
linear = [("type", "linear", kinds.STRING), ("factor", 4.0, kinds.FLOAT32)]
yarn = [("type", "yarn", kinds.STRING), ("factor", 4.0, kinds.FLOAT32)]
yarn.append(("original_context_length", 2048, kinds.UINT32))
files = {
    "no scaling": make("none"),
    "another base": make("base", base=1000.0),
    "linear": make("linear", settings=linear),
    "YaRN": make("yarn", settings=yarn),
    "rope_freqs.weight": make("factors", more={"rope_freqs.weight": factors}),
}
texts = {}
for name, path in files.items():
    texts[name] = by_llama_cpp(path), by_openvino(path)
    print(f"{name}: llama.cpp {texts[name][0]}, OpenVINO {texts[name][1]}", flush=True)
reference, read = texts["no scaling"]
for name, (right, found) in texts.items():
    if name in ("no scaling", "another base"):
        assert right == found, (name, "the two part where nothing is scaled")
    else:
        assert right != reference, (name, "llama.cpp does not scale")
        assert found == read, (name, "OpenVINO reads it now, or reads it otherwise")
assert texts["another base"][1] != read
PY

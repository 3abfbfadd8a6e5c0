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
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import os

import numpy as np
import openvino as ov
import openvino_genai as genai
from llama_cpp import Llama
from tiny_llama_gguf import make_all



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
files = make_all(os.environ["FOLDER"])
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

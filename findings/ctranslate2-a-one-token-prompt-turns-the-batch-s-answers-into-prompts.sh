#!/bin/sh
# In CTranslate2's generator one prompt of a single token makes `include_prompt_in_result=False` void for its whole batch:
# the others' answers begin with their prompts, which count against max_length, so that an answer can be its prompt alone.
#
# Expected: with include_prompt_in_result=False a row's result is what was written behind its prompt, up to max_length tokens,
# whatever else is in the batch. A prompt of one token is valid: the begin token alone (a text from nothing), or behind a
# `static_prompt` one word of a user.
# Seen: a prompt of 7 tokens with max_length=6 gives 6 new tokens alone and beside a prompt of 2 tokens. Beside a prompt that
# is the begin token alone it gives its own tokens 2 to 7 and nothing new. With max_length=10 it gives these and 4 new ones.
# So it is behind a static prompt, where a first word of one token does it. Nothing is said of it, and all is well as long as
# no batch holds a prompt of one token.
# What follows: a caller takes an echo for an answer, and pays for it with the tokens of the answer. Batch such prompts apart.
# Versions: ctranslate2 4.8.5, numpy 2.4.6; float32 on a CPU. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare ctranslate2==4.8.5 numpy==2.4.6
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import os

from tiny_ctranslate2 import opened

generator = opened(os.environ["FOLDER"])
WORDS = ["t10", "t11", "t12", "t13", "t14", "t15"]


def written(batch, length, static=None):
    answers = generator.generate_batch(
        batch, max_length=length, min_length=length, beam_size=1, sampling_topk=1, include_prompt_in_result=False,
        static_prompt=static,
    )
    return answers[0].sequences[0]


for title, static, begin, two, one in (
    ("from the begin token", None, ["<s>"], ["<s>", "t7"], ["<s>"]),
    ("behind a static prompt", ["<s>", "t20", "t21", "t22"], ["t23"], ["t8", "t9"], ["t9"]),
):
    prompt = [*begin, *WORDS]
    for length in (len(WORDS), len(WORDS) + 4):
        alone = written([prompt], length, static)
        beside_two, beside_one = written([prompt, two], length, static), written([prompt, one], length, static)
        print(f"{title}, at most {length} tokens of {' '.join(prompt)}")
        print(f"  alone: {' '.join(alone)}")
        print(f"  beside a prompt of two tokens: {' '.join(beside_two)}")
        print(f"  beside a prompt of one token: {' '.join(beside_one)}", flush=True)
        assert len(alone) == length and alone == beside_two
        assert beside_one != alone, "the batch changes nothing now"
        assert beside_one == WORDS + alone[: length - len(WORDS)], "the answer is something else now"
PY

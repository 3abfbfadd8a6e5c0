#!/bin/sh
# In CTranslate2's generator, how much of a prompt `repetition_penalty` and `no_repeat_ngram_size` count is decided by the
# shortest prompt of the batch: a prompt's greedy text changes when a shorter one stands beside it.
#
# Expected: greedy texts do not depend on what else is in the batch, in float32; a penalty counts the whole prompt (as
# transformers does) or only what was generated (as its documents say), for every row alike. And include_prompt_in_result
# says what is returned, not what is written.
# Seen (12 random prompts of 13 tokens, one random model): without such settings each text is the same alone, beside a prompt
# of 3 tokens and with the prompt in the result. With repetition_penalty=1.5 ten of 12 change beside it, and ten with the
# prompt in the result; with no_repeat_ngram_size=1 eleven each. Alone no token of the prompt counts; beside a prompt of 3
# tokens those from the fourth on do; with the prompt in the result all but the begin token. All texts are those that the
# model's logits give by hand under these three rules.
# The documents say, as a matter of speed, that only the shortest length of a batch is read at once. What is left over goes
# through the loop that writes, where it counts as written.
# What follows: results of a batch cannot be repeated one by one, and a server that gathers requests gives one prompt
# different texts by its load. Batches of one length, or one by one, are safe.
# Versions: ctranslate2 4.8.5, numpy 2.4.6; float32 on a CPU. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare ctranslate2==4.8.5 numpy==2.4.6
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import os

import numpy as np
from tiny_ctranslate2 import VOCAB, draw, names, opened

LENGTH, PENALTY = 10, 1.5
generator = opened(os.environ["FOLDER"])
prompts = [["<s>", *(names[index] for index in draw.integers(3, VOCAB, 12))] for _ in range(12)]
SHORT = ["<s>", "t5", "t6"]


def written(batch, included=False, **settings):
    length = LENGTH + (len(batch[0]) - 1) * included
    answer = generator.generate_batch(
        batch, max_length=length, min_length=length, beam_size=1, sampling_topk=1, include_prompt_in_result=included,
        **settings,
    )[0].sequences[0]
    return answer[-LENGTH:]


def by_hand(prompt, first, rule):
    """Decode greedily; the rule sees the prompt's tokens from `first` on and what was written."""
    text = list(prompt)
    for _ in range(LENGTH):
        logits = np.array(generator.forward_batch([text]))[0, -1].astype(np.float64)
        seen = sorted({names.index(token) for token in text[first:]})
        if rule == "penalty":
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / PENALTY, logits[seen] * PENALTY)
        else:
            logits[seen] = -np.inf
        logits[names.index("</s>")] = -np.inf
        text.append(names[int(logits.argmax())])
    return text[len(prompt):]


found = {}
for rule, settings in (
    ("no such setting", {}),
    ("penalty", {"repetition_penalty": PENALTY}),
    ("no token twice", {"no_repeat_ngram_size": 1}),
):
    ways = {
        "alone": [written([prompt], **settings) for prompt in prompts],
        "beside a short prompt": [written([prompt, SHORT], **settings) for prompt in prompts],
        "prompt in the result": [written([prompt], included=True, **settings) for prompt in prompts],
    }
    firsts = {"alone": len(prompts[0]), "beside a short prompt": len(SHORT), "prompt in the result": 1}
    for way, texts in ways.items():
        same = sum(text == other for text, other in zip(texts, ways["alone"], strict=True))
        right = len(prompts)
        if settings:
            right = sum(text == by_hand(prompt, firsts[way], rule) for text, prompt in zip(texts, prompts, strict=True))
            note = f"; {right} as by hand with the prompt's tokens from number {firsts[way]} on"
        else:
            note = ""
        print(f"{rule}, {way}: {same} of {len(prompts)} texts are those alone{note}", flush=True)
        found[rule, way] = same
        assert right == len(prompts), "another rule now"
for (rule, way), same in found.items():
    if rule == "no such setting" or way == "alone":
        assert same == len(prompts)
    else:
        assert same < len(prompts), (rule, way, "neighbours change nothing now")
PY

#!/bin/sh
# In `transformers serve`, frequency_penalty changes the very first token of an answer: it is turned into a repetition
# penalty of 1 + its value, which also counts the prompt.
#
# Expected: the protocol's penalty subtracts value * (how often the token was sampled so far) from a logit. Before the
# first token nothing was sampled, so with max_tokens=1 no value can change the answer; and 0.5 is a mild one.
# Seen: of 182 greedy one-token answers to prompts of two letters (one token each), 19 repeat a letter of the prompt, and
# frequency_penalty 0.5 (a repetition penalty of 1.5) turns 13 of these into another letter; all others stay.
# presence_penalty, its neighbour in the protocol, is ignored with a line in the server's log.
# What follows: with that value a model is kept from quoting its prompt, names and code included; texts with a penalty are
# not to be compared with those of other servers.
# Versions: transformers 5.23.0 (`transformers serve`), tokenizers 0.23.3, accelerate 1.15.0, torch 2.13.0, fastapi 0.165.0,
# uvicorn 0.54.0, openai 3.57.0; on a CPU. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
import string

from tiny_serve import serve

with serve() as ask:
    def first(prompt, **fields):
        return ask("/v1/completions", prompt=prompt, max_tokens=1, temperature=0, **fields)["choices"][0]["text"]

    prompts = [one + two for one in "tuvwxyz" for two in string.ascii_lowercase]
    plain = {prompt: first(prompt) for prompt in prompts}
    penal = {prompt: first(prompt, frequency_penalty=0.5) for prompt in prompts}
    present = {prompt: first(prompt, presence_penalty=2.0) for prompt in prompts}
changed = {prompt for prompt in prompts if plain[prompt] != penal[prompt]}
repeats = {prompt for prompt in prompts if plain[prompt] in prompt}
print("prompts:", len(prompts), "| answered with a letter of the prompt:", len(repeats))
print("changed by frequency_penalty 0.5:", {prompt: f"{plain[prompt]} to {penal[prompt]}" for prompt in sorted(changed)})
print("changed by presence_penalty 2:", sum(plain[prompt] != present[prompt] for prompt in prompts))
assert changed and changed <= repeats, changed
assert plain == present
PY

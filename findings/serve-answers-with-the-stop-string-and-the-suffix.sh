#!/bin/sh
# The text that `transformers serve` returns ends with the stop string, and with the request's `suffix` pasted behind it.
#
# Expected: in the protocol the text ends before the stop string; `suffix` is what comes after the text to insert: the
# model is to read it, and it is not part of the answer.
# Seen: for a greedy text "zzzzzzzripz " and stop="ri" the answer is "zzzzzzzri", finish_reason "stop"; chat answers end so
# as well. With suffix="xyz" the answer is the text without a suffix plus "xyz", and prompt_tokens is that of the
# prompt alone: the model never saw the suffix.
# What follows: a client that cuts at a stop string (a parser of "Observation:", of a closing fence) gets the marker in
# its text, and an editor that inserts the answer before the suffix writes the suffix twice.
# Versions: transformers 5.23.0 (`transformers serve`), tokenizers 0.23.3, accelerate 1.15.0, torch 2.13.0, fastapi 0.165.0,
# uvicorn 0.54.0, openai 3.57.0; on a CPU. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
from tiny_serve import serve

with serve() as ask:
    def answer(**fields):
        found = ask("/v1/completions", prompt="hello world", temperature=0, **fields)
        return found["choices"][0]["text"], found["choices"][0]["finish_reason"], found["usage"]["prompt_tokens"]

    plain = answer(max_tokens=12)
    at = next(place for place, letter in enumerate(plain[0]) if letter not in plain[0][:place] and place)
    stop = plain[0][at : at + 2]
    stopped, filled = answer(max_tokens=12, stop=stop), answer(max_tokens=12, suffix="xyz")
    chat = ask(
        "/v1/chat/completions", messages=[{"role": "user", "content": "hello world"}], max_tokens=12, temperature=0, stop=stop
    )["choices"][0]["message"]["content"]
print("plain:", plain, "| stop", repr(stop) + ":", stopped, "| in chat:", repr(chat), "| suffix:", filled)
assert stopped[:2] == (plain[0][: at + 2], "stop") and chat == stopped[0], stopped
assert filled == (plain[0] + "xyz", *plain[1:]), filled
PY

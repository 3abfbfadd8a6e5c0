#!/bin/sh
# `transformers serve --continuous-batching` decodes every request with the sampling settings of the first one that came,
# until the server stops: after one request at temperature 1, temperature 0 samples, for everybody.
#
# Expected: temperature, top_p and stop belong to a request, as in the protocol and as without the option.
# Seen: a first request at temperature 1 is followed by four at temperature 0 for one prompt: their texts differ from one
# another. A request's stop string is not looked at either: the text goes through it to max_tokens. The other way round, a
# first request at temperature 0 makes all later ones greedy. Only max_tokens and the end token are each request's own.
# Without the option the four are one text.
# What follows: what a client gets depends on who called first; an evaluation against such a server is not repeatable.
# Versions: transformers 5.23.0 (`transformers serve`), tokenizers 0.23.3, accelerate 1.15.0, torch 2.13.0, fastapi 0.165.0,
# uvicorn 0.54.0, openai 3.57.0; on a CPU. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
from tiny_serve import serve

def text(ask, **fields):
    return ask("/v1/completions", prompt="hello world", max_tokens=16, **fields)["choices"][0]["text"]

small, seen = ("--cb-block-size", "16", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "64"), {}
for name, options, first in (
    ("batched, first at 1", ("--continuous-batching", *small), 1.0),
    ("batched, first at 0", ("--continuous-batching", *small), 0.0),
    ("one by one", (), 1.0),
):
    with serve(*options, samples=True) as ask:
        text(ask, temperature=first)
        zero = [text(ask, temperature=0) for _ in range(4)]
        warm = [text(ask, temperature=1.0) for _ in range(4)]
        halted = text(ask, temperature=0, stop=list("abcdefghijklmnopqrstuvwxyz "))
    seen[name] = len(set(zero)), len(set(warm)), len(halted)
    print(name, "| at temperature 0:", zero, "| at temperature 1:", warm, "| with every letter a stop string:", halted)
assert seen["batched, first at 1"][0] > 1 and seen["batched, first at 0"][:2] == (1, 1), seen
assert seen["batched, first at 1"][2] == seen["batched, first at 0"][2] == 16, seen
assert seen["one by one"][0] == 1 and seen["one by one"][1] > 1 and seen["one by one"][2] == 1, seen
PY

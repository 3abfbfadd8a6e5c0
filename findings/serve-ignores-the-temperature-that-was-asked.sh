#!/bin/sh
# `transformers serve` takes a request's temperature, top_p and seed and answers greedily all the same, unless the
# checkpoint's generation config says do_sample.
#
# Expected: as in the protocol that it serves, temperature above 0 samples; at temperature 2 two seeds give two texts.
# Seen: the handler sets the temperature in the generation config but turns do_sample only off (at temperature 0), never
# on. A random model answers temperature 2 with seeds 1, 2 and 3 with one and the same text, that of temperature 0, without
# a word in the reply. The extra field generation_config='{"do_sample": true}' makes the seeds differ.
# What follows: most base models and many small chat models (their generation config has no do_sample) give one text there
# whatever is asked: no pass@k, no best of several, and a test of sampling against this server tests nothing.
# Versions: transformers 5.23.0 (`transformers serve`), tokenizers 0.23.3, accelerate 1.15.0, torch 2.13.0, fastapi 0.165.0,
# uvicorn 0.54.0, openai 3.57.0; on a CPU. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
from tiny_serve import serve

with serve() as ask:
    def text(**fields):
        return ask("/v1/completions", prompt="hello world", max_tokens=16, **fields)["choices"][0]["text"]

    greedy = text(temperature=0)
    asked = [text(temperature=2.0, top_p=1.0, seed=seed) for seed in (1, 2, 3)]
    drawn = [text(temperature=2.0, seed=seed, generation_config='{"do_sample": true}') for seed in (1, 2, 3)]
print("temperature 0:", greedy)
print("temperature 2, seeds 1 to 3:", asked)
print("the same with do_sample in the extra field:", drawn)
assert asked == [greedy] * 3, asked
assert len(set(drawn)) == 3, drawn
PY

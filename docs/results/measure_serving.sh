#!/bin/sh
# Measures the server into docs/results, on a machine that does nothing else: the load curve and what stands beside it, peers
# on the same file, and the soak. OUTPACE_PEERS_PYTHON names the Python that has the peers (docs/measuring.md says which).
set -e
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-docs/results}
export OMP_NUM_THREADS=2

# The curve, long prompts beside decoding, a warm prefix, the way over HTTP, shared memory.
"$PYTHON" -m outpace.bench.serving --model smollm2 --rounds 3 --requests 2 \
  --json "$OUT/serving.json" --markdown "$OUT/serving.md" --plot "$OUT/serving.svg"

# Peers; transformers reads a folder, no GGUF file.
"$PYTHON" -m outpace.bench.serving --model smollm2 --parts load --clients 1,4,16 --rounds 1 --requests 2 \
  --peers llama.cpp,llama.cpp:lookup --markdown "$OUT/serving-peers.md"

# Short requests from 64 clients; a quarter of an hour.
"$PYTHON" -m outpace.bench.soak --requests 100000 --clients 64 --json "$OUT/soak.json" > "$OUT/soak.md"

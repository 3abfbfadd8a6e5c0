#!/bin/sh
# Measures the server into docs/results, on a machine that does nothing else: the load curve and what stands beside it, peers
# on the same weights, and the soak. OUTPACE_PEERS_PYTHON names the Python that has the peers (docs/measuring.md says which).
set -e
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-docs/results}
export OMP_NUM_THREADS=2

# The curve, long prompts beside decoding, a warm prefix, the way over HTTP, shared memory, peers.
"$PYTHON" -m outpace.bench.serving --model smollm2 --peers llama.cpp,llama.cpp:lookup,transformers,transformers:batching \
  --json "$OUT/serving.json" --markdown "$OUT/serving.md" --plot "$OUT/serving.svg"

# 100,000 short requests from 64 clients.
"$PYTHON" -m outpace.bench.soak --requests 100000 --clients 64 --json "$OUT/soak.json" > "$OUT/soak.md"

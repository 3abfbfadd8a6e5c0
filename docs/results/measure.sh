#!/bin/sh
# Measures peers, growth and catalogue into this folder, on a machine that does nothing else: about 25 minutes on two cores.
# OUTPACE_PEERS_PYTHON names the environment of the peers (docs/measuring.md). Run it twice to have the conversions of the
# models out of the way: they are kept in PEER_MODELS.
set -e
cd "$(dirname "$0")/../.."
OUTPACE=${OUTPACE:-.venv/bin/outpace}
PEER_MODELS=${PEER_MODELS:-build/peer-models}
OUT=${OUT:-docs/results}
METHODS=autoregressive,prompt-lookup,suffix,token-recycling,draft-model,opt-tree,auto
export OMP_NUM_THREADS=2

# Peers, 6.45M, greedy and sampled: 24 pairs per set. 4 minutes.
"$OUTPACE" bench --methods $METHODS --peers hf,llama.cpp,openvino --peer-models "$PEER_MODELS" --paths compiled \
  --threads 2 --repeats 2 --max-tokens 96 --no-memory --time-limit 180 \
  --json "$OUT/stories.json" --markdown "$OUT/stories.md" --plot "$OUT/stories.png"

# Peers, inflated to 350M, greedy: up to 12 pairs per set. 10 minutes.
"$OUTPACE" bench --inflate 350M --methods $METHODS --peers hf,llama.cpp,openvino --peer-models "$PEER_MODELS" \
  --paths compiled --threads 2 --repeats 1 --max-tokens 64 --temperatures 0 --no-memory --time-limit 420 \
  --json "$OUT/inflated-350m.json" --markdown "$OUT/inflated-350m.md" --plot "$OUT/inflated-350m.png"

# Does choosing cost anything where nothing is to be gained? 60 pairs small, 36 large. 2 minutes.
"$OUTPACE" bench --methods autoregressive,auto --prompts stories --paths compiled --threads 2 --repeats 5 --max-tokens 96 \
  --temperatures 0 --no-memory --json "$OUT/auto.json" --markdown "$OUT/auto.md"
"$OUTPACE" bench --inflate 350M --methods autoregressive,auto --prompts stories --paths compiled --threads 2 --repeats 3 \
  --max-tokens 64 --temperatures 0 --no-memory --time-limit 120 --json "$OUT/auto-350m.json" --markdown "$OUT/auto-350m.md"

# The catalogue, small (2 minutes) and large (4 minutes).
"$OUTPACE" bench --catalogue "$OUT/catalogue.json" --paths compiled --threads 2 --repeats 1 --max-tokens 96 --time-limit 110
"$OUTPACE" bench --catalogue "$OUT/catalogue-350m.json" --inflate 350M --paths compiled --threads 2 --repeats 1 \
  --num-prompts 4 --max-tokens 48 --temperatures 0 --time-limit 180

# A drafter's head by its size: counts. 1 minute.
"${PYTHON:-.venv/bin/python}" -m outpace.bench.vocab_trim stories --k 256,512,1024,2048,4096,8192 > "$OUT/vocab-trim.md"

# How cost grows, at 350M. 3 minutes.
"$OUTPACE" bench --growth --inflate 350M --paths compiled --threads 2 --repeats 2 --max-tokens 32 \
  --json "$OUT/growth.json" --markdown "$OUT/growth.md" --plot "$OUT/growth.png"

# A published model from GGUF files, beside engines that read the same: 6 minutes. GGUF names a folder with these files.
for kind in bf16 q8-0 q4-0 q4-k-m; do
  if [ -f "${GGUF:-build/gguf}/$kind.gguf" ]; then
    "$OUTPACE" bench --model "${GGUF:-build/gguf}/$kind.gguf" --peers llama.cpp,openvino --prompts ask-code,ask-text,ask-open \
      --num-prompts 4 --repeats 1 --max-tokens 64 --methods autoregressive,auto --temperatures 0 --paths compiled --no-memory \
      --json "$OUT/smollm2-$kind.json" --markdown "$OUT/smollm2-$kind.md"
  fi
done

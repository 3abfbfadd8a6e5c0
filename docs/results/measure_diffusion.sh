#!/bin/sh
# Measures samplers, caches and lossless methods of masked models into docs/results/diffusion, on a machine that does nothing
# else: about 28 minutes on two cores. TASKS is a causal model trained on the mixture of the masked ones, which does not ship:
#   .venv/bin/python -m outpace.train.written --data DATA --out DATA/written/stories-greedy.jsonl   (once)
#   .venv/bin/outpace train stories-tasks --data DATA --out build/stories-tasks
set -e
cd "$(dirname "$0")/../.."
OUTPACE=${OUTPACE:-.venv/bin/outpace}
PYTHON=${PYTHON:-.venv/bin/python}
TASKS=${TASKS:-build/stories-tasks}
OUT=${OUT:-docs/results/diffusion}
export OMP_NUM_THREADS=2
mkdir -p "$OUT"

# What a step costs, beside transformers, and what lies outside forwards. 2 minutes.
{
  for model in stories-mask stories-block; do
    printf '\n**%s**\n\n' "$model"
    "$PYTHON" -m outpace.bench.canvas_steps "$model"
  done
  printf '\n**stories-block, inflated to 350M**\n\n'
  "$PYTHON" -m outpace.bench.canvas_steps stories-block --params 350M --repeats 7
} > "$OUT/steps.md"

# What approximate caches change, along the uncached trajectory. 1 minute.
{
  for model in stories-mask stories-block; do
    printf '\n**%s**\n\n' "$model"
    "$PYTHON" -m outpace.bench.canvas_caches "$model" --limit 4 --max-tokens 64
  done
} > "$OUT/caches.md"

# Samplers that look beyond one step, and what parallel writing costs where answers depend on each other: counts. 3 minutes.
"$PYTHON" -m outpace.bench.samplers stories-block stories-mask --prompts 12 --max-tokens 64 > "$OUT/samplers.md"
"$PYTHON" -m outpace.bench.dependent stories-block --tasks copy,reverse,sudoku --examples 24 > "$OUT/dependent.md"

# Threshold and lossless methods where forwards are what costs. 4 minutes.
"$OUTPACE" bench --canvas "$OUT" --inflate 350M --canvas-models stories-block --num-prompts 4 --max-tokens 48 --repeats 1 \
  --threads 2 > /dev/null

# Every sampler on stories and tasks, as curves; the causal models on the same axes. 15 minutes.
"$OUTPACE" bench --canvas "$OUT" --causal-models "stories,$TASKS" --num-prompts 12 --max-tokens 96 --repeats 1 --threads 2 \
  > /dev/null

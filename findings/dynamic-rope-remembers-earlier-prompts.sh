#!/bin/sh
# With dynamic NTK scaling, what transformers computes for a prompt depends on the prompts that the model object saw before.
#
# Expected: a forward is a function of its input and the weights; a server may answer in any order.
# Seen: the base frequencies grow with the longest text so far and go back only for a text within the original length. The
# same prompt of 40 tokens (original length 32) has other logits after the model has read one of 100 tokens.
# What follows: answers of a long-running process change with its history, and a comparison of two engines on such a model
# needs a freshly loaded one for every text.
# Versions: transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
see <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.5, bos_token_id=None, eos_token_id=None,
    rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}, pad_token_id=0,
)).double().eval()
prompt, longer, short = (torch.randint(1, 100, (1, size)) for size in (40, 100, 20))
with torch.no_grad():
    fresh = model(prompt).logits
    again = model(prompt).logits
    model(longer)
    after = model(prompt).logits
    model(short)
    back = model(prompt).logits
moved = [float((other - fresh).abs().max()) for other in (again, after, back)]
print("difference to the first answer: asked again %.2g, after a longer prompt %.2g, after a short one %.2g" % tuple(moved))
assert moved[0] < 1e-9 < 1e-3 < moved[1] and moved[2] < 1e-9, moved
PY

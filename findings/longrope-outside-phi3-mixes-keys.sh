#!/bin/sh
# A long-rope model that is not Phi-3 writes another text with transformers' cache than without, from the token on at which
# it passes its original length.
#
# Expected: the cache changes the speed, never the text.
# Seen: past the original length positions turn by the long factors. Phi-3's own code drops the cache there and reads the
# text anew; a Llama (or any other) with the same `rope_parameters` keeps keys that were turned by the short factors beside
# queries turned by the long ones. Its greedy text leaves that of one whole forward per token 5 tokens on, at position 33
# of an original length of 32; Phi-3's does not.
# What follows: long-rope fine-tunes of other families read their prompt distorted whenever an answer crosses the border.
# Versions: transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
see <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
rope = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, "factor": 4.0,
    "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}
shape = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": rope, "initializer_range": 0.5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}
first = {}
for kind, config in (
    (LlamaForCausalLM, LlamaConfig(**shape)), (Phi3ForCausalLM, Phi3Config(**shape, original_max_position_embeddings=32)),
):
    model, prompt = kind(config).double().eval(), torch.randint(1, 100, (1, 28))
    with torch.no_grad():
        cached = model.generate(prompt, max_new_tokens=30, do_sample=False)[0, 28:].tolist()
        ids = prompt
        for _ in range(30):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    plain = ids[0, 28:].tolist()
    first[kind.__name__] = next((place for place, pair in enumerate(zip(cached, plain)) if pair[0] != pair[1]), None)
print("first token that differs:", first)
assert first == {"LlamaForCausalLM": 5, "Phi3ForCausalLM": None}, first
PY

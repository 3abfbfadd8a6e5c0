#!/bin/sh
# In transformers `top_h` does not bound the entropy of what is kept, as its documentation and its paper say: of 100 equally
# likely tokens top_h=0.4 keeps 40 in place of 6.
#
# Expected: most likely tokens are kept as long as the entropy of the kept law, summed to one again, is at most top_h times the
# entropy of the full law (so GenerationConfig documents it, and the paper on Top-H states it). top_h=1 keeps everything.
# Seen: the terms -p log p of the full law are added up as they are, and what is kept is never summed to one again; and only
# the 100 most likely tokens are looked at, both for the sum and for the entropy that it is compared with. In flat laws far too
# many tokens stay (with 0.4 the kept law has 0.80 of the entropy), in laws with a long tail too few: of 1,000 tokens with
# chances as 1/rank, 0.6 keeps 25 in place of 44. top_h=1 drops 900 of 1,000 equally likely tokens.
# What follows: the texts are not those of Top-H at the same setting. Where the model is unsure, and there above all the method
# is to hold back, it lets through most of what a draw without a cut would. Comparisons of samplers that use this option do not
# measure the method.
# Versions: transformers 5.23.0, torch 2.13.0; on a CPU. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
see <<'PY'
import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TopHLogitsWarper


def entropy(law):
    return -sum(chance * math.log(chance) for chance in law) / sum(law) + math.log(sum(law))


def documented(law, bound):
    """How many tokens are kept; the law comes with the most likely first."""
    limit, kept = bound * entropy(law) + 1e-9, 1
    while kept < len(law) and entropy(law[: kept + 1]) <= limit:
        kept += 1
    return kept


def kept(law, bound):
    return int(torch.isfinite(TopHLogitsWarper(bound)(None, torch.tensor([law]).log())).sum())


def tail(size):
    total = sum(1 / rank for rank in range(1, size + 1))
    return [1 / rank / total for rank in range(1, size + 1)]


found = {}
for name, law in (("100 equal", [0.01] * 100), ("1000 equal", [0.001] * 1000), ("1000 as 1/rank", tail(1000))):
    for bound in (0.4, 0.6, 1.0):
        count, should = found[name, bound] = kept(law, bound), documented(law, bound)
        share = entropy(law[:count]) / entropy(law)
        print(f"{name}, top_h={bound}: {count} tokens with {share:.2f} of the entropy; documented {should}")
# With a model: its laws are flat over 64 tokens, of which 0.4 should leave 5.
torch.manual_seed(0)
sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=512)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, eos_token_id=None, pad_token_id=0, bos_token_id=1, **sizes)).eval()
torch.nn.init.zeros_(model.lm_head.weight)
ids = torch.tensor([[5]])
text = model.generate(
    ids, attention_mask=torch.ones_like(ids), do_sample=True, top_h=0.4, top_k=0, max_new_tokens=300
)[0, 1:]
drawn, should = len(set(text.tolist())), documented([1 / 64] * 64, 0.4)
print(f"generate(top_h=0.4) over 64 equal tokens: {drawn} different tokens in 300; documented {should}")
for key, (count, should_be) in {
    ("100 equal", 0.4): (40, 6), ("100 equal", 0.6): (60, 15), ("1000 equal", 0.4): (40, 15), ("1000 equal", 1.0): (100, 1000),
    ("1000 as 1/rank", 0.6): (25, 44),
}.items():
    assert found[key][1] == should_be and abs(found[key][0] - count) <= 1, (key, found[key])
assert drawn > 3 * should == 15
PY

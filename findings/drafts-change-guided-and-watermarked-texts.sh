#!/bin/sh
# In transformers, drafting changes greedy texts under classifier-free guidance and under the SynthID watermark.
#
# Expected: assisted decoding keeps the tokens that the model would have taken anyway, processors included, so that greedy
# texts with an assistant or with prompt lookup are those without, as they are with penalties and the other watermark.
# Seen: in float64, with guidance_scale=2 and a negative prompt, both kinds of drafts give another text, without an
# error; so do both with SynthID. The processors keep a state of their own (the negative prompt's cache; the last n-gram)
# that moves on with every drafted place that is looked at, be it kept or not. WatermarkingConfig, which keeps none, is safe.
# What follows: a guided text that was made faster by drafts is guided by other logits than the setting says, and a
# watermarked one holds tokens that were taken under another key than the detector will compute.
# Versions: transformers 5.23.0, torch 2.13.0; on a CPU. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
see <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import SynthIDTextWatermarkingConfig, WatermarkingConfig


def llama(seed, layers):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2, initializer_range=0.4)
    ids = dict(eos_token_id=None, bos_token_id=0, pad_token_id=1)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes, **ids)).double().eval()


model, assistant = llama(0, 2), llama(1, 1)
prompt, negative = torch.arange(10, 18)[None], torch.arange(30, 34)[None]


def written(**settings):
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, **settings)[0, 8:].tolist()


cases = {
    "guidance": dict(
        guidance_scale=2.0, negative_prompt_ids=negative, negative_prompt_attention_mask=torch.ones_like(negative)
    ),
    "SynthID": dict(watermarking_config=SynthIDTextWatermarkingConfig(keys=[1, 2, 3, 4], ngram_len=3)),
    "watermark": dict(watermarking_config=WatermarkingConfig()),
    "penalty": dict(repetition_penalty=1.3),
}
drafts = {"an assistant": dict(assistant_model=assistant), "prompt lookup": dict(prompt_lookup_num_tokens=3)}
same = {}
for case, settings in cases.items():
    plain = written(**settings)
    assert plain == written(**settings)  # it repeats itself without drafts
    for name, drafted in drafts.items():
        same[case, name] = written(**settings, **drafted) == plain
        print(f"{case}, drafted by {name}: {'the same text' if same[case, name] else 'ANOTHER TEXT'}")
assert not any(same[case, name] for case in ("guidance", "SynthID") for name in drafts)
assert all(same[case, name] for case in ("watermark", "penalty") for name in drafts)
PY

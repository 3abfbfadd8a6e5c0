#!/bin/sh
# In transformers, `generate(token_healing=True)` writes more than the prompt's last token anew: chat markers, the begin
# token and a closing line break are gone from what the model reads.
#
# Expected: healing takes back the last token of the prompt, lets the model choose among tokens that begin with its text,
# and leaves everything before it alone. A prompt of a chat template keeps its roles, "def f():\n" goes on in a new line.
# Seen: the prompt is decoded without special tokens, stripped at both ends and encoded again. Of a chat of 22 tokens
# nothing is left of <s>, <|user|> and <|assistant|>; "def f():" goes on behind the colon; "<s>abc" becomes "abc", with
# nothing to heal in it. What is returned begins with the shorter prompt, so that the customary cut at the prompt's length
# also takes away the first words of the answer (here: all 3 tokens).
# What follows: on chat models and on code its texts are those of another prompt; a comparison of healing must not use it.
# Versions: transformers 5.23.0, tokenizers 0.23.3, torch 2.13.0; on a CPU. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
see <<'PY'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MARKS = ["<|user|>", "<|assistant|>"]
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocab = {token: at for at, token in enumerate(["<s>", "<pad>", *MARKS, *letters, "ht", "http", "https"])}
inner = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "t")]))
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
inner.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", additional_special_tokens=MARKS
)
torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=len(vocab), eos_token_id=None, bos_token_id=0, pad_token_id=1, **sizes)
).eval()


def written(text, healing):
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, token_healing=healing,
        tokenizer=tokenizer,
    )[0].tolist()
    return found[:-3], len(ids[0]), found[len(ids[0]):]


for text in ("<s><|user|>say hi<|assistant|>the site is ht", "def f():\n", "<s>abc"):
    plain, size, _ = written(text, False)
    healed, _, cut = written(text, True)
    print(f"{text!r}: the model reads {tokenizer.decode(healed)!r}, {len(healed)} tokens for {size}; cut at {size}: {len(cut)}")
    assert tokenizer.decode(plain) == text and len(plain) == size
    kept = text
    for mark in ("<s>", *MARKS):
        kept = kept.replace(mark, "")
    assert tokenizer.decode(healed) == kept.strip() and len(healed) < size
    assert len(cut) == max(0, len(healed) + 3 - size) < 3
PY

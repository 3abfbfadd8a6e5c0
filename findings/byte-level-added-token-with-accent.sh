#!/bin/sh
# A byte-level tokenizer (GPT-2, Llama 3, Qwen) whose added token is a word with an accented Latin letter does not give
# that word back: decode(encode("é")) is U+FFFD, "naïve" becomes "na\ufffdve", while an added token in Japanese survives.
#
# Expected: an added token is decoded as it was added, whatever its letters.
# Seen: the ByteLevel decoder turns every token's letters back into bytes, added ones too. "é" is itself a letter of its
# alphabet (byte E9), so it becomes a lone byte; a token with any letter outside the alphabet is left as it is.
# What follows: a product whose vocabulary is extended with names or words in French, German or Spanish loses them in its
# output, and nothing is said.
# Versions: tokenizers 0.23.3. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare tokenizers==0.23.3
see <<'PY'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer.add_tokens(["naïve", "déjà", "日本"])
seen = {word: tokenizer.decode(tokenizer.encode(word).ids) for word in ("naïve", "déjà", "日本")}
print(seen)
assert seen == {"naïve": "na\ufffdve", "déjà": "d\ufffdj\ufffd", "日本": "日本"}, seen
PY

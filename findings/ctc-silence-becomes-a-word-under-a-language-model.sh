#!/bin/sh
# With a language model, pyctcdecode turns silence into a word: where the acoustic model says 98% "nothing" and 2% "a", the
# text is "a". A text that closes with a space loses to another word in the same way.
#
# Expected: the score is log P(text | sound) + alpha * log P(text) + beta * words, as in the papers on this search and in its
# options. An empty text has no word, so P(</s>) is its whole share of the language model; a closing space changes
# nothing, because the words are the same.
# Seen: at the end, whatever stands behind the last space is scored as a last word, also where nothing stands there. The
# empty string is unknown to the language model, so it costs P(<unk>) and unk_score_offset (10 powers of ten, times alpha)
# and earns one beta. Silence has -12.3 in place of -1.2, and loses to a word that is 1/49 as likely by the sound. "i a"
# before a closing space loses to "i am", although both models hold "i a" for the likelier text; with a blank in place of
# that space "i a" wins. All other scores are the expected ones to four digits.
# What follows: pauses and empty pieces of a recording bring forth words that nobody said (with transformers'
# Wav2Vec2ProcessorWithLM too, which calls it), and where an acoustic model closes with a word boundary, words grow endings.
# The remedies are to strip such frames beforehand, or unk_score_offset=0, which lets unknown words pass too.
# Versions: pyctcdecode 0.5.0, kenlm 0.3.0, numpy 1.26.4. Date: 2026-11-29.
. "$(dirname "$0")/common.sh"
prepare pyctcdecode==0.5.0 kenlm==0.3.0 numpy==1.26.4
FOLDER="$home" see <<'PY'
import math
import os

import kenlm
import numpy as np
from pyctcdecode import build_ctcdecoder

ALPHA, BETA = 0.5, 1.5  # the defaults
LABELS = [" ", "a", "i", "m", ""]  # "" is the blank
UNIGRAMS = {"<unk>": -1.0, "<s>": 0, "</s>": -1.0, "i": -0.5, "am": -0.9, "a": -0.5}
BIGRAMS = {"<s> i": -0.3, "i am": -0.6, "i a": -0.3, "am </s>": -0.3, "a </s>": -0.3}
path = os.path.join(os.environ["FOLDER"], "words.arpa")
with open(path, "w") as file:
    print("\\data\\", f"ngram 1={len(UNIGRAMS)}", f"ngram 2={len(BIGRAMS)}", "", "\\1-grams:", sep="\n", file=file)
    for word, value in UNIGRAMS.items():
        print(value, word, 0, sep="\t", file=file)
    print("\n\\2-grams:", *(f"{value}\t{words}" for words, value in BIGRAMS.items()), "\n\\end\\", sep="\n", file=file)
decoder, model = build_ctcdecoder(LABELS, path, alpha=ALPHA, beta=BETA), kenlm.Model(path)


def sound(*frames):
    rows = np.full((len(frames), len(LABELS)), 1e-12)
    for row, frame in zip(rows, frames):
        for label, chance in frame.items():
            row[LABELS.index(label)] = chance
    return np.log(rows / rows.sum(1, keepdims=True))


def expected(text, chance):
    return math.log(chance) + ALPHA * math.log(10) * model.score(text, bos=True, eos=True) + BETA * len(text.split())


say = [{"i": 1}, {" ": 1}, {"a": 1}]
CASES = {
    "silence": (sound({"": 0.98, "a": 0.02}, {"": 1}), {"": 0.98, "a": 0.02}, "a", True),
    "a closing space": (sound(*say, {" ": 0.98, "m": 0.02}, {"": 1}), {"i a": 0.98, "i am": 0.02}, "i am", True),
    "no closing space": (sound(*say, {"": 0.98, "m": 0.02}, {"": 1}), {"i a": 0.98, "i am": 0.02}, "i a", False),
}
for name, (logits, chances, answer, off) in CASES.items():
    found = {beam[0]: beam[-1] for beam in decoder.decode_beams(logits)}
    text = decoder.decode(logits)
    best = max(chances, key=lambda text: expected(text, chances[text]))
    print(f"{name}: {text!r}, {best!r} has the best expected score")
    for each, chance in chances.items():
        print(f"  {each!r:7} of probability {chance:.2f}: score {found[each]:7.3f}, expected {expected(each, chance):7.3f}")
    assert text == answer and (text != best) == off
    for each, chance in chances.items():
        gap = expected(each, chance) - found[each]
        assert gap > 10 if off and each == best else abs(gap) < 1e-4, (each, gap)
PY

#!/bin/sh
# A checkpoint with the named chat templates "default", "tool_use" and "rag" gets "tool_use" by itself where tools are given,
# but documents leave it with "default", which need not look at them: they are dropped without a word.
#
# Expected: either both are chosen by what is given, or neither.
# Seen: apply_chat_template(tools=...) renders "tool_use"; apply_chat_template(documents=...) renders "default".
# What follows: a retrieval prompt is written without its documents unless chat_template="rag" is said.
# Versions: transformers 5.23.0, tokenizers 0.23.3. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
FOLDER="$home/model" see <<'PY'
import json
import os
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

folder = Path(os.environ["FOLDER"])
folder.mkdir()
Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
named = [
    {"name": "default", "template": "{{ messages[0].content }}"},
    {"name": "tool_use", "template": "{{ tools|length }} tools"},
    {"name": "rag", "template": "{{ documents|length }} documents"},
]
(folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": named})
)
tokenizer, turn = AutoTokenizer.from_pretrained(folder), [{"role": "user", "content": "Who wrote it?"}]
tool = {"type": "function", "function": {"name": "find", "parameters": {}}}
texts = [{"title": "A letter", "text": "Ada wrote it."}]
seen = [
    tokenizer.apply_chat_template(turn, tools=[tool], tokenize=False),
    tokenizer.apply_chat_template(turn, documents=texts, tokenize=False),
    tokenizer.apply_chat_template(turn, documents=texts, chat_template="rag", tokenize=False),
]
print(seen)
assert seen == ["1 tools", "Who wrote it?", "1 documents"], seen
PY

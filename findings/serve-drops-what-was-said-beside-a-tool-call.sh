#!/bin/sh
# `transformers serve` changes a chat's messages before the chat template sees them: an assistant turn that has tool calls
# loses its content, and text parts are joined by a space that nobody wrote.
#
# Expected: the template gets the messages as sent; parts of one text are pieces of it.
# Seen, with a template that writes each message's content and nothing else, and one token per letter: the turns "ab",
# "cd" with a tool call, "efg" are 5 prompt tokens and not 7. "hello" and "world" as two parts of a turn are 11 tokens, as
# many as "hello world" in one.
# What follows: what a model said, or thought, before it called a tool is gone from its next prompt without a word, so an
# agent's later turns are answered from another conversation than the client holds; and a client that splits a text
# (a document in chunks, a word at a cache mark) has a space put into it at each cut.
# Versions: transformers 5.23.0 (`transformers serve`), tokenizers 0.23.3, accelerate 1.15.0, torch 2.13.0, fastapi 0.165.0,
# uvicorn 0.54.0, openai 3.57.0; on a CPU. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
FOLDER="$home" PYTHONPATH="$(dirname "$0")" PYTHONDONTWRITEBYTECODE=1 see <<'PY'
from tiny_serve import serve

call = {"id": "a", "type": "function", "function": {"name": "find", "arguments": "{}"}}
with serve() as ask:
    def tokens(*messages):
        return ask("/v1/chat/completions", messages=messages, max_tokens=1)["usage"]["prompt_tokens"]

    question, result = {"role": "user", "content": "ab"}, {"role": "tool", "tool_call_id": "a", "content": "efg"}
    said = {"role": "assistant", "content": "cd"}
    plain, called = tokens(question, said, result), tokens(question, {**said, "tool_calls": [call]}, result)
    parts = tokens({"role": "user", "content": [{"type": "text", "text": text} for text in ("hello", "world")]})
    whole = tokens({"role": "user", "content": "helloworld"})
print("prompt tokens: without a tool call", plain, "| with one", called, "| two parts", parts, "| in one text", whole)
assert (plain, called, parts, whole) == (7, 5, 11, 10), (plain, called, parts, whole)
PY

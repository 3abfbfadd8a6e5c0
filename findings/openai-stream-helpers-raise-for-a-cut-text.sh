#!/bin/sh
# The openai client's stream helpers have no final answer for a plain text that was cut at the token limit: no tool, no
# schema, nothing to parse, every piece has arrived, and asking for the whole raises.
#
# Expected: the finished answer with finish_reason "length" (or status "incomplete"), as `create` gives it with and
# without stream=True. An error because of the length belongs to answers that are to be parsed.
# Seen: the loop over `chat.completions.stream(...)` ends in peace, then get_final_completion() raises
# LengthFinishReasonError ("Could not parse response content"); the loop over `responses.stream(...)` ends with the event
# response.incomplete, which holds the whole response, then get_final_response() raises RuntimeError ("Didn't receive a
# `response.completed` event."). A text that ended by itself is returned by both.
# What follows: with these two helpers a limit of tokens is an error, also for a chat window that only shows text and wants
# the usage; use `create(stream=True)`, or current_completion_snapshot and the last event.
# Versions: openai 3.57.0, against a server of Python's library that sends the protocol's own events. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare openai==3.57.0
see <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

PIECES = ["Once upon", " a time"]
TEXT = "".join(PIECES)


def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


def chunks(finish):
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in PIECES), chunk({}, finish)]


def completion():
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "length"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def response(status, output):
    return {
        "id": "r", "object": "response", "created_at": 0, "status": status, "model": "m", "output": output, "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None, "instructions": None,
        "metadata": {}, "parallel_tool_calls": False, "temperature": 1, "top_p": 1, "tool_choice": "auto", "tools": [],
    }


def events(status):
    empty, full = ({"type": "output_text", "text": text, "annotations": []} for text in ("", TEXT))
    item = {"id": "o", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    done = {**item, "status": status, "content": [full]}
    place = {"item_id": "o", "output_index": 0, "content_index": 0}
    found = [
        {"type": "response.created", "response": response("in_progress", [])},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": empty},
        *({"type": "response.output_text.delta", **place, "delta": text, "logprobs": []} for text in PIECES),
        {"type": "response.output_text.done", **place, "text": TEXT, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": full},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": f"response.{status}", "response": response(status, [done])},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(found)]


class Server(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = "text/event-stream"
        if self.path.endswith("/responses"):
            found = events("incomplete" if asked.get("max_output_tokens") else "completed")
            body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in found)
        elif asked.get("stream"):
            finish = "length" if asked["max_tokens"] == 4 else "stop"
            body = "".join(f"data: {json.dumps(part)}\n\n" for part in chunks(finish)) + "data: [DONE]\n\n"
        else:
            body, kind = json.dumps(completion()), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0)
chat = {"model": "m", "messages": [{"role": "user", "content": "Tell me a tale."}], "max_tokens": 4}
plain = client.chat.completions.create(**chat).choices[0]
pieces = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**chat, stream=True)]
print("create:", plain.message.content, plain.finish_reason, "| create(stream=True):", pieces)
assert plain.message.content == "".join(pieces) == TEXT

final = {}
for limit in (4, 40):
    with client.chat.completions.stream(**{**chat, "max_tokens": limit}) as stream:
        shown = "".join(event.delta for event in stream if event.type == "content.delta")
        try:
            final[limit] = stream.get_final_completion().choices[0].message.content
        except openai.LengthFinishReasonError as error:
            final[limit] = type(error).__name__
        snapshot = stream.current_completion_snapshot.choices[0]
    print("chat.completions.stream: shown", repr(shown), snapshot.finish_reason, "| final:", final[limit])
    assert shown == snapshot.message.content == TEXT
assert final == {4: "LengthFinishReasonError", 40: TEXT}, final

ends = {}
for limit in ({}, {"max_output_tokens": 4}):
    with client.responses.stream(model="m", input="Tell me a tale.", **limit) as stream:
        last = list(stream)[-1]
        try:
            ends[last.type] = stream.get_final_response().output_text
        except RuntimeError as error:
            ends[last.type] = f"{type(error).__name__}: {error}"
    print("responses.stream, last event", last.type, "holding", repr(last.response.output_text), "| final:", ends[last.type])
    assert last.response.output_text == TEXT
refused = "RuntimeError: Didn't receive a `response.completed` event."
assert ends == {"response.completed": TEXT, "response.incomplete": refused}, ends
PY

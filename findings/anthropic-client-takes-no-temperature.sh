#!/bin/sh
# The anthropic client's `messages.create` takes no temperature, top_p or top_k any more: each raises TypeError before
# anything is sent.
#
# Expected: the three are fields of the Messages protocol since its first version, so the client takes them as arguments, as
# it takes stop_sequences; whether a model still likes them is for the server to say.
# Seen: TypeError ("unexpected keyword argument") for each of the three, from create and from stream, also of the beta
# resource; stop_sequences is sent. extra_body={"temperature": 0.0} reaches the server as an ordinary field.
# What follows: code written for other servers of this protocol (they all sample) stops with a TypeError when the client is
# brought up to date; a test that such a server answers greedily has to go through extra_body.
# Versions: anthropic 2.14.0, against a server of Python's library. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare anthropic==2.14.0
see <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic

bodies = []


class Server(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_POST(self):
        bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = json.dumps({
            "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "Yes."}],
            "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 2},
        }).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)
common = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "Is it so?"}]}
fields = {"temperature": 0.0, "top_p": 0.9, "top_k": 40, "stop_sequences": ["."]}
calls = {
    "create": client.messages.create, "stream": client.messages.stream,
    "beta create": client.beta.messages.create, "beta stream": client.beta.messages.stream,
}
refused = {}
for way, call in calls.items():
    for name, value in fields.items():
        try:
            call(**common, **{name: value})
        except TypeError as error:
            assert "unexpected keyword argument" in str(error), error
            refused.setdefault(way, []).append(name)
sent = [sorted(set(body) - set(common) - {"stream"}) for body in bodies]
client.messages.create(**common, extra_body={"temperature": 0.0, "top_k": 40})
print("refused as an argument:", refused)
print("fields that reached the server as arguments:", sent, "| by extra_body:", sorted(set(bodies[-1]) - set(common)))
assert refused == {way: ["temperature", "top_p", "top_k"] for way in calls}, refused
assert sent == [["stop_sequences"]] * 2 and bodies[-1]["top_k"] == 40 and bodies[-1]["temperature"] == 0.0, bodies
PY

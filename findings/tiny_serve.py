"""`transformers serve` on a random model whose tokens are letters, on 127.0.0.1, for the scripts beside this file."""

import contextlib
import json
import os
import socket
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def make(folder: Path, samples: bool = False) -> None:
    """Save a model of two layers in ``folder``; ``samples`` is what its generation config says of `do_sample`."""
    vocabulary = {letter: place for place, letter in enumerate([*string.ascii_lowercase, " ", "?"])}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="?"))
    letters.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?", chat_template=TEMPLATE).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if samples:
        model.generation_config.do_sample = True
    model.save_pretrained(folder)


@contextlib.contextmanager
def serve(*options: str, samples: bool = False) -> Iterator[Callable[..., dict[str, Any]]]:
    """Start the server and yield ``ask(path, **fields)``, which returns the reply's JSON object."""
    home = Path(os.environ["FOLDER"])
    make(home / "tiny", samples)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(home / "tiny"), "--device", "cpu"]
    where = ["--host", "127.0.0.1", "--port", str(port)]

    def ask(path: str, **fields: Any) -> dict[str, Any]:
        body = json.dumps({"model": str(home / "tiny"), **fields}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    with open(home / "log", "w") as log:
        process = subprocess.Popen([*command, *where, *options], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(150):
            assert process.poll() is None, (home / "log").read_text()
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(1)
        yield ask
    finally:
        process.terminate()
        process.wait(30)

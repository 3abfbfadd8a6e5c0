"""Other engines: the file written for llama.cpp, the child's protocol, and, where they are installed, the engines."""

from __future__ import annotations

import dataclasses
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outpace.bench import BenchOptions, child, run
from outpace.bench.child import Child, ChildError
from outpace.bench.children.outpace_peer.base import Request, finish
from outpace.errors import ModelError
from outpace.quantize.gguf_file import write_plain

FAKE = """
import json, os, sys, time

engine = sys.argv[1]
for line in sys.stdin:
    request = json.loads(line)
    what = request["do"]
    if what == "versions" and engine == "openvino":
        answer = {"error": "It is not installed."}
    elif what == "versions":
        answer = {"ok": {"fake-engine": "1.0"}}
    elif what == "convert" and request["precision"] == "int8":
        answer = {"error": "No room on the disk."}
    elif what == "convert":
        open(request["target"], "w").write("converted")
        answer = {"ok": None}
    elif what == "open":
        precision = request["precision"]
        if precision == "int4":
            print("illegal instruction", file=sys.stderr)
            os._exit(132)
        answer = {"ok": {"libraries": 100}}
    elif what == "memory":
        answer = {"ok": 300}
    else:
        tokens = [(request["ids"][-1] + i) % 512 for i in range(request["max_tokens"])]
        answer = {"ok": {"tokens": tokens, "prefill_s": 0.5, "decode_s": 0.25, "num_decoded": len(tokens) - 1,
                         "finish": "length", "forwards": len(tokens)}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that counts upwards: one of its precisions cannot be converted, one dies, one engine is missing."""
    package = tmp_path / "home" / "outpace_peer"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(FAKE)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(child, "_HOME", package.parent)
    monkeypatch.setenv("OUTPACE_PEERS_PYTHON", sys.executable)
    return tmp_path


def options(model: Path, **changes: Any) -> BenchOptions:
    base = BenchOptions(
        model=str(model),
        methods=("autoregressive",),
        prompts=("stories",),
        peers=("llama.cpp", "openvino"),
        paths=("eager",),
        temperatures=(0.0,),
        num_prompts=1,
        repeats=2,
        max_tokens=12,
        with_memory=False,
    )
    return dataclasses.replace(base, **changes)


def test_engines_are_measured_in_children_and_what_fails_is_named(tiny: Path, fake: Path) -> None:
    report = run(options(tiny, with_memory=True, peer_models=fake / "kept"))
    document = report.to_dict()
    assert document["peers"] == {"fake-engine": "1.0"}
    assert [row["arm"] for row in report.rows] == [
        "autoregressive (eager)",
        "llama.cpp:plain",
        "llama.cpp:prompt-lookup",
    ]
    left_out = {item["name"]: item["reason"] for item in document["skipped"]}
    assert set(left_out) == {"llama.cpp:plain int8", "llama.cpp:plain int4", "openvino"}
    assert left_out["llama.cpp:plain int8"] == "The conversion failed: No room on the disk."
    assert left_out["llama.cpp:plain int4"] == "The engine's process died with status 132: illegal instruction"
    assert left_out["openvino"].startswith("It is not installed.")
    assert all(reason in report.markdown() for reason in left_out.values())
    plain, lookup = report.rows[1:]
    assert plain["tokens_per_s"] == 11 / 0.25
    assert plain["prefill_ms"] == 500
    assert lookup["exactness"] == {"reference": "llama.cpp:plain", "equal": 1, "of": 1, "flips": []}
    memory = {arm["name"]: arm["memory"] for arm in document["arms"]}
    assert memory["llama.cpp:plain"]["peak"] == 200
    kept = sorted(path.name for path in (fake / "kept").rglob("*") if path.is_file())
    assert kept == ["bfloat16.gguf", "int4.gguf"]
    assert str(fake) not in report.markdown()


def test_a_child_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="cannot be run"):
        Child("llama.cpp", 1, python=str(tmp_path / "nowhere"))
    with Child("llama.cpp", 1, python=sys.executable) as server:
        monkeypatch.setattr(child, "_TIMEOUT_S", 30.0)
        with pytest.raises(ChildError, match=r"llama-cpp-python cannot be imported|No such"):
            server.ask("versions")
            server.ask("open", directory=str(tmp_path / "no.gguf"), mode="plain", precision="float32", threads=1,
                       capacity=8, vocab_size=8)  # fmt: skip


def test_what_counts_as_decoded() -> None:
    task = Request([1], 5, 0.0, 0, [9])
    found = finish([4, 5, 9, 6], task, (1.0, 1.5, 3.0), 2, 3)
    assert found == {
        "tokens": [4, 5, 9],
        "prefill_s": 0.5,
        "decode_s": 1.5,
        "num_decoded": 1,
        "finish": "eos",
        "forwards": 3,
    }
    assert finish(list(range(10, 20)), task, (0.0, 1.0, 2.0), 1, 10)["tokens"] == [10, 11, 12, 13, 14]
    assert finish([], task, (0.0, 1.0, 1.0), 0, 0)["num_decoded"] == 0


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, bytes]]]:
    """Read a GGUF file back by the published layout: values by key; shape, type and bytes by tensor."""
    data, at = path.read_bytes(), 24
    assert data[:4] == b"GGUF"
    version, tensors, pairs = struct.unpack("<IQQ", data[4:24])
    assert version == 3

    def take(form: str) -> Any:
        nonlocal at
        values = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return values[0] if len(values) == 1 else values

    def text() -> str:
        nonlocal at
        length = take("<Q")
        at += length
        return data[at - length : at].decode()

    values = {}
    for _ in range(pairs):
        key, kind = text(), take("<I")
        values[key] = text() if kind == 8 else take({4: "<I", 6: "<f"}[kind])
    table = []
    for _ in range(tensors):
        name, dims = text(), take("<I")
        shape = struct.unpack_from(f"<{dims}Q", data, at)
        at += 8 * dims
        table.append((name, shape, *take("<IQ")))
    start = at + -at % 32
    sizes = {0: 4, 30: 2}
    found = {}
    for name, shape, kind, offset in table:
        assert offset % 32 == 0
        length = sizes[kind] * int(torch.Size(shape).numel())
        found[name] = (shape, kind, data[start + offset : start + offset + length])
    return values, found


def test_the_file_for_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    values, tensors = _parse(write_plain(tiny, tmp_path / "tiny.gguf", torch.bfloat16))
    weights = load_file(tiny / "model.safetensors")
    assert values["general.architecture"] == "llama"
    assert values["llama.attention.head_count_kv"] == 2
    assert values["llama.rope.freq_base"] == 10000.0
    assert len(tensors) == len(weights)
    shape, kind, data = tensors["token_embd.weight"]
    assert (shape, kind) == ((64, 512), 30)
    assert data == weights["model.embed_tokens.weight"].view(torch.uint8).numpy().tobytes()
    assert tensors["output_norm.weight"][1] == 0  # float32
    # The halves of each head of 16 are dealt: rows 0, 8, 1, 9, ...
    turned = torch.frombuffer(bytearray(tensors["blk.1.attn_k.weight"][2]), dtype=torch.bfloat16).view(32, 64)
    known = weights["model.layers.1.self_attn.k_proj.weight"]
    order = [head * 16 + half * 8 + i for head in range(2) for i in range(8) for half in range(2)]
    assert torch.equal(turned, known[order])


def test_what_gguf_is_not_written_for(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float64"):
        write_plain(tiny, tmp_path / "a.gguf", torch.float64)
    config = (tiny / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"llama"', '"gpt2"'))
    with pytest.raises(ModelError, match="kind 'gpt2', which is not converted"):
        write_plain(tmp_path, tmp_path / "a.gguf", torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("OUTPACE_PEERS_PYTHON"), reason="OUTPACE_PEERS_PYTHON names no environment")
@pytest.mark.parametrize("engine", ["llama.cpp", "openvino"])
def test_engines_write_our_text_in_float32(tiny: Path, engine: str) -> None:
    """The same weights, greedy: the same ids from every plain mode and from every lookup."""
    report = run(options(tiny, peers=(engine,), dtype="float32", max_tokens=32))
    first = {record["arm"]: record["sample"] for record in report.to_dict()["samples"] if record["repeat"] == 0}
    if not any(name.startswith(engine) for name in first):
        pytest.skip(report.to_dict()["skipped"][0]["reason"])
    ours = first["autoregressive (eager)"]["tokens"]
    same = {name: sample["tokens"] == ours for name, sample in first.items() if "int" not in name}
    assert same == dict.fromkeys(same, True)
    assert {f"{engine}:plain", f"{engine}:prompt-lookup", f"{engine}:plain int8"} <= set(first)

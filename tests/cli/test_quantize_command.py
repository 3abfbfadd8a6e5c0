"""`outpace quantize`: what it tells, and one sentence for each mistake."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tests_cli import Command


def test_size_quality_and_speed_are_told(
    cli: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = importlib.import_module("outpace.cli.quantize")
    monkeypatch.setattr(command, "_ROUNDS", 1)
    monkeypatch.setattr(command, "_NUM_TOKENS", 4)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 20)
    monkeypatch.chdir(tmp_path)
    ended = cli("quantize", tiny, "--to", "int8", "--text", text, "--json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    out = tmp_path / f"{tiny.name}-int8.gguf"
    assert told["path"] == out.name
    assert told["num_bytes"][1] == out.stat().st_size
    assert told["groups"] == {"32": 18}
    assert told["kept"] == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)]
    assert told["matrix_bits_per_weight"] == 8.5
    assert told["bits_per_byte"][1] == pytest.approx(told["bits_per_byte"][0], rel=0.03)
    assert told["bits_per_byte"][0] != told["bits_per_byte"][1]
    assert min(told["tokens_per_s"]) > 0
    scored = json.loads(cli("score", "--model", tiny, "--prompt-file", text, "--json").out)
    assert told["bits_per_byte"][0] == pytest.approx(scored["bits_per_byte"], rel=1e-6)

    again = cli("quantize", tiny, "--to", "int8", "--no-quality", "--no-speed")
    assert again.status == 2
    assert f"{out.name} exists" in again.err
    shown = cli("quantize", tiny, "--to", "int4", "--out", out, "--force", "--no-quality", "--no-speed")
    assert shown.status == 0
    assert "4.50 bits per weight; inputs per scale: 18 of 32." in shown.out
    assert f"Wrote {out}." in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stories-mask"], "which is not converted here"),
        (["translate"], "which is not converted here"),
        (["nowhere"], "There is no model 'nowhere'"),
        (["stories", "--group", "7"], "'7' is not one of"),
        (["stories", "--to", "int3"], "'int3' is not one of"),
        (["stories", "--format", "onnx"], "'onnx' is not one of"),
        (["stories", "--asymmetric", "--to", "int8"], "for int4 in GGUF files only"),
        (["stories", "--text", "nowhere.txt"], "There is no file nowhere.txt"),
        (["stories", "--out", "nowhere/x.gguf"], "There is no folder"),
    ],
)
def test_mistakes_have_one_sentence(
    cli: Command, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("quantize", *arguments, *([] if "--to" in arguments else ["--to", "int4"]))
    assert ended.status == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())

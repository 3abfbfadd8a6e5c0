"""`outpace drafter`: a file is looked at, kept, and written for another engine, on a model that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace import zoo
from outpace.api import drafter_check
from outpace.api.engine import load
from outpace.cli import main
from outpace.heads.files import read_head, save_head
from outpace.heads.model import new_head


def test_a_drafter_is_exported_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drafter_check, "_TOKENS", 8)
    monkeypatch.setattr(drafter_check, "cache_folder", lambda: tmp_path / "cache")  # of verdicts, not of kernels
    target = str(zoo.path("stories"))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    save_head(new_head("medusa", load(target).target, depth=2).net, ours)  # it has learned nothing
    named = ["generate", "Once", "--model", target, "--method", "medusa", "--max-tokens", "4", "-o"]
    assert main([*named, f"draft={ours}"]) == 0 and capsys.readouterr().out
    export = ["drafter", "export", str(ours), "--to", "medusa", "--out", str(theirs), "--target", target]
    assert main(export) == 0 and "tokens a round before" in capsys.readouterr().out
    assert json.loads((theirs / "config.json").read_text())["medusa_num_heads"] == 2
    assert main(export) == 2 and "exists" in capsys.readouterr().err
    small = ["drafter", "export", str(ours), "--to", "int8", "--out", str(tmp_path / "small"), "--target", target]
    assert main(small) == 0 and "int8" in capsys.readouterr().out
    assert (
        read_head(tmp_path / "small")[0].coded and read_head(ours)[0].config == read_head(tmp_path / "small")[0].config
    )
    assert main(["drafter", "check", str(ours), "--target", target]) == 1
    told = capsys.readouterr().out
    assert "layout      Outpace" in told and "useless: It was trained for another target" in told
    check = ["drafter", "check", str(theirs), "--target", target]
    assert main(check) == 1
    told = capsys.readouterr().out
    assert "layout      Medusa" in told and "refused: It was trained for another target" in told
    assert main([*check, "--keep", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_kept"] and found["kind"] == "medusa" and found["tokens_per_round"] < drafter_check.LEAST
    assert main(["drafter", "check", str(tmp_path / "none"), "--target", target]) == 2


def test_a_pard_model_is_written_with_both_names_of_its_mask(tmp_path: Path) -> None:
    from outpace.errors import ModelError
    from outpace.heads.foreign.export import write_pard

    source = tmp_path / "source"
    source.mkdir()
    for file in zoo.path("stories-draft").iterdir():
        (source / file.name).symlink_to(file)
    with pytest.raises(ModelError, match="names no mask"):
        write_pard(source, tmp_path / "out")
    stated = json.loads((source / "config.json").read_text())
    (source / "config.json").unlink()
    (source / "config.json").write_text(json.dumps({**stated, "pard_token": 5}))
    write_pard(source, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["pard_token"] == told["mask_token_id"] == 5
    prompt = "Once upon a time"
    lm = load(zoo.path("stories"))
    results = [
        lm.generate(prompt, method="pard", options={"draft": str(path)}, max_tokens=12)
        for path in (source, tmp_path / "out")
    ]
    assert results[0].tokens == results[1].tokens and results[0].usage == results[1].usage

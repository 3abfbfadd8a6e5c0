"""`outpace train` when the disk is full, the process is killed, or Ctrl-C is pressed: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests_cli import ROOT, Command

from outpace.train import RECIPES, Recipe, checkpoint
from outpace.train.network import LlamaShape
from outpace.train.sources import Source
from outpace.train.trainer import Trainer

STEPS = 6


def recipe() -> Recipe:
    source = Source(
        name="words",
        files=("some.txt",),
        origin="nowhere",
        licence="none",
        note="toy",
        weight=1.0,
        read=lambda data: iter([f"one two {number} {(data / 'some.txt').read_text()}" for number in range(40)]),
    )
    shape = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=300, context=64)
    sizes = {"steps": STEPS, "gpu_steps": STEPS, "rows": 4, "length": 16, "warmup": 2, "checkpoint_every": 2}
    return Recipe(name="toy", summary="A toy.", shape=shape, objective="causal", sources=(source,), **sizes)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments that train a toy in a second or so."""
    monkeypatch.setitem(RECIPES, "toy", recipe())
    monkeypatch.setattr("outpace.train.trainer.shutil.which", lambda name: None)  # no compiler: compiling takes longer
    (tmp_path / "some.txt").write_text("the quick brown fox jumps over the lazy dog")
    return ["train", "toy", "--data", tmp_path, "--threads", 1]


KILL = """
import os, signal, sys
from test_train_command import RECIPES, Trainer, recipe
from outpace.cli import main
import outpace.train.trainer as trainer
trainer.shutil.which = lambda name: None
RECIPES["toy"] = recipe()
advance = Trainer.advance
def die(self):
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)
Trainer.advance = die
main(sys.argv[1:])
"""


def test_a_killed_run_resumes_to_the_same_loss(cli: Command, toy: list[object], tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)])
    command = [sys.executable, "-c", KILL, *map(str, toy), "--out", str(tmp_path / "killed")]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 4
    assert cli(*toy, "--out", tmp_path / "killed", "--resume").status == 0
    assert cli(*toy, "--out", tmp_path / "whole").status == 0
    whole, resumed = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert len(whole["losses"]) == STEPS and whole["losses"] == resumed["losses"]
    assert all(torch.equal(weight, resumed["network"][name]) for name, weight in whole["network"].items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_last_checkpoint(cli: Command, toy: list[object], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli(*toy, "--out", out, "--steps", 2).status == 0
    (out / "checkpoint.part").symlink_to("/dev/full")
    ended = cli(*toy, "--out", out, "--resume")
    errors = [line for line in ended.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert ended.status == 1 and len(errors) == 2 and "Traceback" not in ended.err
    assert "disk is full" in errors[0] and "--resume" in errors[1]
    assert checkpoint.load(out / "checkpoint.pt")["step"] == 2


def test_ctrl_c_saves_a_checkpoint(
    cli: Command, toy: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance

    def press(self: Trainer) -> float:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", press)
    ended = cli(*toy, "--out", tmp_path / "run")
    assert ended.status == 130 and "Traceback" not in ended.err
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4

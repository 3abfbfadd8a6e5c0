"""Many epochs on scarce texts: the bound against every masking there is, where curves cross, and a run in two parts."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.bench.report import read_report
from outpace.bench.scarce import Look, ScarceOptions, crossing, main, run_scarce
from outpace.errors import ConfigError
from outpace.train.bounds import masked_nats
from outpace.train.data import MASK_ID
from outpace.train.network import Llama, LlamaShape

SHAPE = LlamaShape(hidden=16, layers=1, heads=2, kv_heads=2, head_dim=8, ffn=24, vocab=7, context=16, causal=False)
TINY = ScarceOptions(tokens=600, held=4, epochs=4, samples=2, hidden=32, layers=1, vocab=270, length=16, rows=4)
STORY = "Tom had a {}. He saw a {} in the park and gave it to Mia. {}\n<|endoftext|>\n"


def _every_masking(network: Llama, row: Tensor, shift: int) -> float:
    """The bound of one row in nats, as a mean over all counts and all sets of masked places."""
    size, total = len(row) - shift, 0.0
    for count in range(1, size + 1):
        chosen = list(itertools.combinations(range(shift, len(row)), count))
        for places in chosen:
            at = torch.tensor(places)
            logits = network(row.index_fill(0, at, MASK_ID)[None])[0, at - shift]
            logits[:, MASK_ID] = -torch.inf
            nats = F.cross_entropy(logits, row[at], reduction="sum")
            total += float(nats) * size / count / len(chosen) / size
    return total


@pytest.mark.parametrize("shift", [0, 1])
def test_the_bound_is_the_mean_over_every_masking(shift: int) -> None:
    shape = replace(SHAPE, shifted=bool(shift))
    network = Llama(shape, seed=3).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(4)  # far from uniform
        rows = torch.tensor([[0, 2, 6, 3, 3], [4, 5, 2, 2, 6]])
        found = masked_nats(network, rows.repeat(2000, 1), samples=2, seed=5).view(2, 2000, 2)
        for number, row in enumerate(rows):
            exact, drawn = _every_masking(network, row, shift), found[..., number].flatten()
            error = float(drawn.std()) / len(drawn) ** 0.5
            assert error < 0.02 * exact and abs(float(drawn.mean()) - exact) < 3 * error


def _look(arm: str, epoch: float, held: float) -> Look:
    return Look(arm=arm, epoch=epoch, tokens=0, held=held, error=0.0, train=0.0, seconds=0.0)


def test_curves_cross_where_they_do_for_good() -> None:
    causal = [_look("causal", at, held) for at, held in enumerate((5.0, 3.0, 3.5, 4.0, 5.0), 1)]
    masked = [_look("masked", at, held) for at, held in enumerate((4.9, 4.0, 3.6, 3.3, 2.9), 1)]
    found = crossing(causal + masked)
    assert (found.turn, found.causal, found.causal_end, found.masked_then) == (2, 3.0, 5.0, 4.0)
    assert (found.masked_turn, found.masked, found.below, found.beaten) == (5, 2.9, 4, 5)
    never = crossing(masked + [_look("causal", at, 2.0) for at in range(1, 6)])
    assert never.below is None and never.beaten is None
    with pytest.raises(ConfigError, match="no look"):
        crossing(causal)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    things = ("ball", "dog", "kite", "boat", "star", "frog", "hat", "bee")
    stories = "".join(STORY.format(a, b, f"They like the {b}.") for a, b in itertools.permutations(things, 2))
    folder = tmp_path / "data/tinystories"
    folder.mkdir(parents=True)
    (folder / "train.txt.gz").write_bytes(gzip.compress(stories.encode()))
    (folder / "valid.txt").write_text(stories)
    return tmp_path / "data"


def test_a_stopped_run_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    whole = run_scarce(TINY, data, tmp_path / "whole", lambda line: None)
    seen = list[str]()

    def stop(line: str) -> None:
        seen.append(line)
        if len(seen) == 6:  # in the second network
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scarce(TINY, data, tmp_path / "parts", stop)
    again = run_scarce(TINY, data, tmp_path / "parts", seen.append)
    assert len(seen) == 8  # four looks of each, none twice
    times = {"seconds": 0}
    assert [row | times for row in again.rows] == [row | times for row in whole.rows]
    assert whole.rows[3]["held"] < whole.rows[0]["held"] and whole.document["crossing"]["turn"] > 0
    with pytest.raises(ConfigError, match="other options"):
        run_scarce(replace(TINY, seed=1), data, tmp_path / "parts", seen.append)


def test_the_command_writes_what_can_be_read(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--tokens 300 --held 2 --epochs 2 --hidden 32 --layers 1 --vocab 270 --length 8 --rows 4".split()
    files = ["--json", str(tmp_path / "a.json"), "--out", str(tmp_path / "out"), "--data", str(data)]
    assert main([*asked, *files]) == 0
    shown, report = capsys.readouterr().out, read_report(tmp_path / "a.json")
    assert "| causal | masked |" in shown and "The causal loss is lowest at epoch" in shown
    assert report.document["kind"] == "scarce" and len(report.rows) == 4
    assert str(tmp_path) not in json.dumps(report.document)
    assert main([*asked, "--held", "100000", *files]) != 0 and "too few" in capsys.readouterr().err

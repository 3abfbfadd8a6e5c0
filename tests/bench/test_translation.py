"""The benchmark of translation: sides that write one text, and a table that compares seconds per token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outpace import kernels
from outpace.api.engine import LanguageModel
from outpace.bench import translation
from outpace.bench.translation import Answer, Work, measure, own_side, summarise, transformers_side, write_marian
from outpace.models.loading import load_model

TINY = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
}
SOURCES = [[5, 9, 17, 0], [8, 0], [30, 31, 32, 33, 34, 0]]


def test_sides_write_one_text_as_long_as_it_was_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_marian(tmp_path, TINY)
    model = load_model(tmp_path, "float32", kernels=kernels)
    sides = {"outpace float32": own_side(LanguageModel(model)), "transformers float32": transformers_side(tmp_path)}
    works = [Work("tiny", SOURCES[:count], 7, beams) for count, beams in ((1, 1), (3, 1), (1, 4))]
    rows = measure(sides, works, rounds=2, budget_s=60.0)
    assert [row["tokens"] for row in rows] == [7, 7, 21, 21, 7, 7]
    assert all(row["same_texts"] == 1.0 and len(row["seconds"]) == 2 for row in rows)
    assert [row["work"] for row in rows[::2]] == ["batch 1", "batch 3", "batch 1, beam 4"]
    assert not torch.isnan(torch.tensor(rows[0]["tokens_per_s"]))


def test_ratios_are_of_seconds_per_token_round_by_round() -> None:
    answers = {
        "outpace float32": iter([Answer([[1, 2]], 9.0), Answer([[1, 2]], 1.0), Answer([[1, 2]], 2.0)]),
        "other": iter([Answer([[1]], 9.0), Answer([[1]], 2.0), Answer([[1]], 4.0)]),
    }
    sides = {name: lambda work, own=own: next(own) for name, own in answers.items()}  # the first ones warm up
    rows = measure(sides, [Work("m", [[3]], 2, 1)], rounds=2, budget_s=60.0)
    table = summarise(rows)
    assert [row["same_texts"] for row in rows] == [1.0, 0.0]
    assert [cells[4] for cells in table.cells] == ["1.00", "4.00"]  # twice the time for half of the tokens
    assert [cells[5] for cells in table.cells] == ["", ""]


def test_no_further_round_begins_when_the_time_is_up() -> None:
    rows = measure({"one": lambda work: Answer([[1]], 0.1)}, [Work("m", [[3]], 2, 1)], rounds=9, budget_s=0.0)
    assert len(rows[0]["seconds"]) == 1


def test_bad_options_are_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        translation.main(["--batches", "one"])
    assert "is not a list like 1,2,4" in capsys.readouterr().err

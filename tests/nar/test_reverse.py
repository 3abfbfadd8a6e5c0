"""Mixtures of texts: what each teacher writes stands on its side, beside what people wrote."""

from pathlib import Path

import pytest
import torch

from outpace.errors import ConfigError
from outpace.train.nar.reverse import Mixture
from outpace.train.pairs import train_pair_tokenizer
from outpace.train.translation.network import NetworkFiles, PairNetwork

PAIRS = [("a dog", "ein Hund"), ("a cat sleeps", "eine Katze schläft"), ("dogs", "Hunde")]


class _Echo(PairNetwork):
    """A teacher that writes its source once more, its first token left out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def translate(self, sources: torch.Tensor, mask: torch.Tensor, most: int) -> list[list[int]]:
        return [row[1 : int(count) - 1] for row, count in zip(sources.tolist(), mask.sum(1), strict=True)]

    def export(self) -> NetworkFiles:
        raise NotImplementedError


def test_each_teacher_writes_its_own_side(tmp_path: Path) -> None:
    tokenizer = train_pair_tokenizer([], 256 + 3)  # bytes alone, so that a token is a letter
    asked = []

    def open_teacher(name: str) -> tuple:
        asked.append(name)
        return _Echo(), tokenizer, tmp_path / name

    both = Mixture(forward="there", reverse="back", is_raw=True)
    found = both.pairs(PAIRS, open_teacher, "captions-en-de", torch.device("cpu"))
    assert found[:3] == PAIRS
    assert found[3:6] == [(source, source[1:]) for source, _ in PAIRS]
    assert found[6:] == [(target[1:], target) for _, target in PAIRS]
    assert asked == ["there", "back"]
    # What was written is kept, each teacher's beside it.
    kept = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.jsonl"))]
    assert kept == ["back/written/captions-en-de-reverse.jsonl", "there/written/captions-en-de.jsonl"]
    assert Mixture(reverse="back").pairs(PAIRS, open_teacher, "captions-en-de", torch.device("cpu")) == found[6:]


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no texts"):
        Mixture()

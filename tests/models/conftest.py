from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shapes import Lifted


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def exact_softmax() -> Iterator[None]:
    """Lift the softmax that some models take in float32, whose rounding depends on how many slots are padding."""
    with Lifted():
        yield

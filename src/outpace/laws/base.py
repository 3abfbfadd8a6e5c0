"""What every law is: frozen settings, and what they make of a model.

A law file holds one frozen dataclass derived from `Control`: its fields are its settings, its module docstring tells
the paper (`PAPERS` too), the guarantee, the cost and the differences. A law gives a `Guide`, which changes logits by
what a text holds, or another target, whose logits are what the law asks for. The sampler and every draft meet both at
every place, so that what is exact under the model's own law is exact under the changed one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from outpace.errors import ConfigError
from outpace.sampling.guide import Guide
from outpace.sampling.settings import Sampling
from outpace.setting import check, read_options
from outpace.types import Adapter

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Control", "Site"]


@dataclass(frozen=True, slots=True)
class Site:
    """What a law is made for.

    Attributes:
        target: the model.
        tokenizer: of its texts; None = there are only ids.
        name: how the model was asked for.
        directory: of the model's files, where its companions lie; None = it has none.
        load: gives another model's adapter by name, in the target's precision and on its device.
    """

    target: Adapter
    tokenizer: Tokenizer | None
    name: str
    directory: Path | None
    load: Callable[[str], Adapter]

    def companion(self, kind: str) -> Path:
        """Return the directory of what was trained beside the model and lies with its files.

        Raises:
            ConfigError: there is none.
        """
        if self.directory is None or not (self.directory / kind / "config.json").is_file():
            raise ConfigError(f"The model has no {kind} beside its files.", "Train one, and name it with model=DIR.")
        return self.directory / kind


@dataclass(frozen=True)
class Control:
    """Base of all laws: changes nothing."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    is_model: ClassVar[bool] = False
    """It takes the target's place (`target`), so that its texts are written by a run of their own."""
    files: ClassVar[tuple[str, ...]] = ()
    """Settings that name files or models, which a server's clients may not choose."""

    def __post_init__(self) -> None:
        """Hold the settings to the ranges that they declare.

        Raises:
            ConfigError: a value outside its range.
        """
        check(self)

    def guide(self, site: Site) -> Guide | None:
        """Return what changes logits by the text; None = nothing does."""
        del site
        return None

    def target(self, site: Site) -> Adapter:
        """Return the model whose logits are the law's; the target itself where nothing else is asked of it.

        Raises:
            CapabilityError: the target, or what stands beside it, cannot give them.
        """
        return site.target

    def tokenizer(self, site: Site) -> Tokenizer | None:
        """Return what reads prompts and spells texts under this law, where it stands in the model's place.

        Raises:
            CapabilityError: the tokenizer cannot spell what the law writes.
        """
        return site.tokenizer

    def check_beside(self, settings: Sampling, site: Site) -> None:
        """Refuse other settings that contradict this law.

        Raises:
            ConfigError: no text can obey both.
        """
        del settings, site

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Control:
        """Build the law from settings given as values or as command-line strings, whose lists are parted by "+".

        Raises:
            ConfigError: an unknown setting, or a value of the wrong kind.
        """
        lists = {field.name for field in dataclasses.fields(cls) if isinstance(field.default, tuple)}
        settings = {
            key: value.replace("+", ",") if key in lists and isinstance(value, str) else value
            for key, value in settings.items()
        }
        return cls(**read_options(cls, settings, "law"))

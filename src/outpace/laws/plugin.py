"""A small model that weighs the target's next tokens anew, by their probabilities alone.

Paper: Hiranandani et al. (2025), "Logits are All We Need to Adapt Closed Models", arXiv 2502.06806.
Guarantee: the law is p(x) * plugin(x) ** weight, normalised; drafts obey it. A uniform plugin, or `weight=0`, leaves
    the target's texts as they are, token for token.
Cost: a forward of the plugin beside each of the target, over the same places, and its share of the cache.
Differences: the plugin is one that writes by itself (`outpace train stories-plugin` trains one, with the target frozen
    beside it), so any causal model of the target's vocabulary is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from outpace.errors import ConfigError
from outpace.laws.base import Control, Site
from outpace.laws.beside import Beside
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Adapter

__all__ = ["Plugin"]

PAPERS = (
    Paper(
        "Logits are All We Need to Adapt Closed Models",
        "Hiranandani, Wu, Mukherjee, Koyejo",
        2025,
        "2502.06806",
        96,
        "Its data sets and models of billions of parameters were not run.",
        command='outpace generate "The weather" --law plugin:model=runs/stories-plugin',
    ),
)


def reweighted(own: Tensor, other: Tensor, weight: float) -> Tensor:
    """Return the log of own * other ** weight, of log-probabilities [..., V]."""
    return own + weight * other


@dataclass(frozen=True)
class Plugin(Control):
    """The target's law times another model's."""

    name: ClassVar[str] = "plugin"
    summary: ClassVar[str] = "a small model multiplies the next token's probabilities"
    is_model: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("model",)

    model: str = ""
    weight: float = setting(1.0, is_finite=True)

    def target(self, site: Site) -> Adapter:
        """Return the target beside the plugin.

        Raises:
            ConfigError: no plugin is named.
        """
        if not self.model:
            raise ConfigError("The law 'plugin' names no model.", "Name one with model=DIR.")
        if self.weight == 0:
            return site.target
        return Beside(site.target, site.load(self.model), partial(reweighted, weight=self.weight))

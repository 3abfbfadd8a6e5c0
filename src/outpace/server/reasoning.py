"""Reasoning text: the tags around it by name, which of them a chat template writes, and whether a prompt opens them."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.errors import ConfigError, nearest

__all__ = ["TAGS", "Tags", "choose_tags"]


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around reasoning text.

    Attributes:
        open, close: the tags.
    """

    open: str
    close: str

    def is_open(self, prompt: str) -> bool:
        """Return whether a prompt, special tokens shown, ends in an open tag: the model's text then begins inside."""
        return prompt.rstrip().endswith(self.open)


TAGS = {
    "think": Tags("<think>", "</think>"),
    "mistral": Tags("[THINK]", "[/THINK]"),
    "cohere": Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    "seed": Tags("<seed:think>", "</seed:think>"),
    "reasoning": Tags("<reasoning>", "</reasoning>"),
}


def choose_tags(name: str, template: str = "") -> Tags | None:
    """Return the tags of a name: one of `TAGS`, "none", or "auto" for those that a chat template's text writes.

    Raises:
        ConfigError: there is no such name.
    """
    if name == "auto":
        return next((tags for tags in TAGS.values() if tags.close in template), None)
    if name != "none" and name not in TAGS:
        raise ConfigError(f"There is no reasoning format {name!r}.", nearest(name, [*TAGS, "auto", "none"], "format"))
    return TAGS.get(name)

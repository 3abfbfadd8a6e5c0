"""Prompts with parts in no order: from lists to a target that reads them so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outpace.api.prompt import check_tokens
from outpace.arguments import ids as read_ids
from outpace.errors import ConfigError
from outpace.models.unordered import SetPrompt, SetTarget, lay_sets

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Part", "generate_sets", "read_parts"]

Part = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]


def read_parts(parts: Sequence[Part], encode: Callable[[str, bool], list[int]]) -> SetPrompt:
    """Return the tokens of a prompt, and where they stand.

    Args:
        parts: in order; a text or token ids, or a set: a list of texts, or of lists of ids.
        encode: text to ids, told whether it is the beginning.

    Raises:
        ConfigError: parts of another kind, no set, a set of one member, or a member without a token.
    """
    if isinstance(parts, (str, bytes, Mapping)) or not isinstance(parts, Sequence):
        raise ConfigError(
            f"The parts are a {type(parts).__name__}.", 'Give a list, such as ["Pick ", ["a", "b"], "."].'
        )
    found, has_set = list[Any](), False
    for part in parts:
        is_set = isinstance(part, (list, tuple)) and bool(part) and isinstance(part[0], (str, list, tuple))
        if not is_set:
            found.append(encode(part, not found) if isinstance(part, str) else read_ids("a part", part))
            continue
        has_set = True
        # Each member is encoded by itself, so that its tokens do not depend on its neighbours.
        begins = not any(found) and encode("", True)
        found += [begins] if begins else []
        members = [encode(m, False) if isinstance(m, str) else read_ids("a member", m) for m in part]
        if len(members) < 2 or not all(members):
            raise ConfigError("A set has one member, or an empty one.", "Give two members or more, each with a token.")
        found.append(members)
    if not has_set:
        raise ConfigError("No part is a set.", 'Give a list of texts among the parts: ["Pick ", ["a", "b"], "."].')
    return lay_sets([part for part in found if part])


def generate_sets(lm: LanguageModel, parts: Sequence[Part], arguments: Mapping[str, Any]) -> Any:
    """Return what `LanguageModel.generate` returns, of a prompt some parts of which have no order.

    Raises:
        ConfigError: see `read_parts`; or texts are to be recalled, or the prompt is too long or has unknown tokens.
        CapabilityError: the model cannot read sets.
    """
    if arguments.get("recall") is not None:
        raise ConfigError("A prompt with sets is not recalled: its entries are not a plain one's.", "Leave it out.")
    laid = read_parts(parts, lm.encode)
    check_tokens("The prompt holds a token", laid.tokens, lm.target.capabilities.vocab_size)
    other = lm.ending_with(lm.end_tokens)
    other.target = SetTarget.around(lm.target, laid)
    return other.generate(list(laid.tokens), **arguments)

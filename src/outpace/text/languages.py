"""Languages that a translator's tokenizer names: where their tokens stand, and what there is.

NLLB, mBART-50   [source language] text [end]; the written text is forced to begin with the target language
M2M100           the same, with tokens __xx__
mBART            text [end] [source language]; the decoder starts with the target language
Marian           >>target<< text [end], where a model writes several languages
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outpace.errors import ConfigError, nearest

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Frame", "find_frame", "languages_of"]

_TAGS = {
    "NllbTokenizer": r"([a-z]{3}_[A-Z][a-z]{3})",
    "MBart50Tokenizer": r"([a-z]{2}_[A-Z]{2})",
    "MBartTokenizer": r"([a-z]{2}_[A-Z]{2})",
    "M2M100Tokenizer": r"__([a-z]{2,3})__",
    "MarianTokenizer": r">>([^<>]+)<<",
}
_BEHIND = ("MBartTokenizer",)  # the source language follows the text
_SHOWN = 12  # languages that a message lists


@dataclass(frozen=True, slots=True)
class Frame:
    """What languages ask for.

    Attributes:
        before, after: ids around a source.
        forced: the first written token.
        start: the decoder's start token, where it is a language.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    forced: int | None = None
    start: int | None = None


def languages_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the languages that a tokenizer names, with their ids in sources; empty where it names none."""
    pattern = _TAGS.get(tokenizer.kind)
    if pattern is None:
        return {}
    found = {}
    for token in tokenizer.source_tokens:
        match, index = re.fullmatch(pattern, token), tokenizer.source_id(token)
        if match is not None and index is not None:
            found[match[1]] = index
    return dict(sorted(found.items()))


def find_frame(tokenizer: Tokenizer, source: str, target: str) -> Frame:
    """Return what stands around a source, and what makes the model write a language.

    Args:
        tokenizer: the model's.
        source, target: the languages; "" = as the model's files say, or English, as its authors' tokenizer does.

    Raises:
        ConfigError: there is no such language, or none to choose.
    """
    known, kind = languages_of(tokenizer), tokenizer.kind
    if (source or target) and not known:
        raise ConfigError("This model's tokenizer names no languages.", "Leave source and target language out.")
    if kind == "MarianTokenizer" and source:
        raise ConfigError("A Marian model reads one language and is not told which.", "Leave the source language out.")
    end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    read = _chosen(source or _default(tokenizer, known), known, "source") if kind != "MarianTokenizer" else None
    written = _chosen(target or str(tokenizer.setting("tgt_lang") or ""), known, "target")
    if kind == "MarianTokenizer":
        return Frame(() if written is None else (written,), end)
    tag = () if read is None else (read,)
    if kind in _BEHIND or (kind == "NllbTokenizer" and tokenizer.setting("legacy_behaviour")):
        return Frame((), (*end, *tag), *((None, written) if kind in _BEHIND else (written, None)))
    return Frame(tag, end, written)


def _default(tokenizer: Tokenizer, known: dict[str, int]) -> str:
    """Return the source language of the files, or English."""
    named = str(tokenizer.setting("src_lang") or "")
    return named or next((name for name in ("en", "eng_Latn", "en_XX") if name in known), "")


def _chosen(name: str, known: dict[str, int], role: str) -> int | None:
    if not name or not known:
        return None
    if name not in known:
        some = [*known][:_SHOWN]
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        hint = nearest(name, list(known), "language") if len(known) > _SHOWN else ""
        listed = f"{hint} There are {', '.join(some)}{more}.".strip()
        raise ConfigError(f"There is no {role} language {name!r}.", listed)
    return known[name]

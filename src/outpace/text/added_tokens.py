"""Tokens and roles that stand beside a tokenizer.json, read as transformers 5 reads them.

tokenizer_config.json names roles (`eos_token`) and tokens (`added_tokens_decoder`). Where it has no such table, the
older special_tokens_map.json (roles, before those of the config) and added_tokens.json (tokens and their ids) hold too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from outpace.errors import ModelError
from outpace.text.files import AGAIN, read_object

__all__ = ["add_tokens", "said_beside", "token_of"]

_MORE = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def said_beside(folder: Path) -> tuple[dict[str, Any], list[AddedToken]]:
    """Return the settings of a directory, roles included, and the tokens that its files add, in the order of their ids.

    Raises:
        ModelError: a file is no JSON object, or an added token is not described.
    """
    settings = _beside(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        return settings, _described(folder, settings["added_tokens_decoder"])
    settings |= _beside(folder / "special_tokens_map.json")
    named, found = set(_special(settings)), []
    table = _beside(folder / "added_tokens.json")
    if not all(isinstance(index, int) for index in table.values()):
        raise ModelError(f"{folder / 'added_tokens.json'} names no id for a token.", hint=AGAIN)
    for content in sorted(table, key=lambda content: int(table[content])):
        found.append(AddedToken(content, special=content in named, normalized=content not in named))
    return settings, found


def add_tokens(engine: Tokenizer, settings: Mapping[str, Any], added: list[AddedToken]) -> None:
    """Give a tokenizer the tokens of `said_beside` and, as special ones, those with a role that it lacks.

    Args:
        engine: changed in place; a token that it has keeps its id, a new one gets the next id.
        settings: roles and further special tokens.
        added: the tokens.
    """
    present = {token.content: index for index, token in engine.get_added_tokens_decoder().items()}
    named = _special(settings)
    if "added_tokens_decoder" not in settings:  # the legacy table does not change what tokenizer.json says
        added = [token for token in added if token.content not in present]
    for token in added:
        token.special = token.special or token.content in named
    known = {*present, *(token.content for token in added)}
    engine.add_tokens([*added, *(token for content, token in named.items() if content not in known)])


def _special(settings: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Return the tokens that settings call special: those with a role, and further ones."""
    roles = [value for key, value in settings.items() if key.endswith("_token")]
    more: Any = next((settings[key] for key in _MORE if settings.get(key)), [])
    found = {}
    for value in (*roles, *(more.values() if isinstance(more, dict) else more)):
        facts = {"content": value} if isinstance(value, str) else value
        if isinstance(facts, dict) and isinstance(facts.get("content"), str) and facts["content"]:
            found[facts["content"]] = token_of(facts | {"special": True})
    return found


def _described(folder: Path, table: Any) -> list[AddedToken]:
    try:
        return [token_of(table[key]) for key in sorted(table, key=int)]
    except (LookupError, TypeError, ValueError):
        raise ModelError(
            f"{folder / 'tokenizer_config.json'} has an added_tokens_decoder that does not describe tokens by id.",
            hint=AGAIN,
        ) from None


def token_of(facts: Mapping[str, Any]) -> AddedToken:
    """Return the added token that a table describes."""
    return AddedToken(facts["content"], **{name: facts[name] for name in _FLAGS if name in facts})


def _beside(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is no file."""
    return read_object(path) if path.is_file() else {}

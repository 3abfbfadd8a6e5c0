"""Text to ids and back, from a directory's tokenizer.json; chat templates in a sandbox. No transformers."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from outpace.errors import ModelError, check_characters
from outpace.text.added_tokens import add_tokens, said_beside
from outpace.text.byte_pairs import byte_alphabet, has_byte_pairs, read_byte_pairs
from outpace.text.chat import ROLES, Message, choose_template, read_templates, render_chat, unread
from outpace.text.files import AGAIN
from outpace.text.gguf_file import read_gguf
from outpace.text.gguf_tokenizer import gguf_engine, gguf_settings, gguf_templates
from outpace.text.languages import Frame, find_frame
from outpace.text.pieced import ROLES_OF_PIECES, Sides, has_sides, is_pieced, read_pieced, read_sides

__all__ = ["Tokenizer", "spell"]

_OTHER_KINDS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "tekken.json", "vocab.txt")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space


class Tokenizer:
    """A tokenizer and what its directory says about special tokens.

    Args:
        engine: from the tokenizers library.
        settings: the parsed tokenizer_config.json.
        templates: the chat templates by name, "default" first of all; empty if there are none.
        sides: of an encoder-decoder, what cuts its sources and its own texts, where `engine` only names ids.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Mapping[str, Any] | None = None,
        templates: Mapping[str, str] | None = None,
        sides: Sides | None = None,
    ) -> None:
        self._sides = sides
        self._frame: Frame | None = None  # what stands around a source, where its language was named
        self._engine = engine
        self._settings = dict(settings or {})
        self.templates = dict(templates or {})
        self.eos_id = self._special_id("eos_token")
        self.bos_id = self._special_id("bos_token")
        self.pad_id = self._special_id("pad_token")
        if sides is not None:
            self._frame = find_frame(self, "", "")

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Read tokenizer.json, and tokenizer_config.json and chat templates where they exist.

        Tokens and roles that other files add are read as transformers reads them (`said_beside`). Where there is no
        tokenizer.json, vocab.json and merges.txt of the Qwen2 line take its place. A GGUF file holds all of it.

        Raises:
            ModelError: there is no tokenizer of these kinds, or a file cannot be read.
        """
        folder = Path(directory)
        if folder.is_file():
            gguf = read_gguf(folder)
            return cls(gguf_engine(gguf), gguf_settings(gguf), gguf_templates(gguf))
        path = folder / "tokenizer.json"
        settings, added = said_beside(folder)
        if path.is_file():
            engine = _read_engine(path)
        elif has_byte_pairs(folder, settings):
            engine = read_byte_pairs(folder, settings)
        elif is_pieced(folder, settings):
            engine = read_pieced(folder, settings)
            known = {role: token for role, token in ROLES_OF_PIECES.items() if engine.token_to_id(token) is not None}
            settings = known | settings
        elif has_sides(folder, settings):
            sides, settings = read_sides(folder, settings), ROLES_OF_PIECES | settings
            return cls(sides.written, settings, read_templates(folder, settings), sides)
        else:
            kinds = (name for name in _OTHER_KINDS if (folder / name).is_file())
            raise ModelError(
                f"{directory} has no tokenizer.json" + "".join(f"; {kind} alone is not read" for kind in kinds) + ".",
                hint="Save a fast tokenizer there (transformers: AutoTokenizer.from_pretrained(...).save_pretrained).",
            )
        add_tokens(engine, settings, added)
        return cls(engine, settings, read_templates(folder, settings))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._engine.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, is_special: bool = True) -> list[int]:
        """Return the ids of a text; `is_special` adds what the tokenizer puts around it (a start token, say).

        A text that begins with the start token, as a rendered chat may, gets no second one.

        Raises:
            ConfigError: the text holds half of a surrogate pair, which is no character.
        """
        check_characters(text, "The text")
        if self._sides is not None and not is_special:
            return self._sides.encode_target(text)
        if self._frame is not None and is_special:
            return [*self._frame.before, *self._cut(text), *self._frame.after]
        ids = list(self._engine.encode(text, add_special_tokens=is_special).ids)
        if is_special and self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            own = self._engine.encode(text, add_special_tokens=False).ids
            return ids[1:] if len(own) < len(ids) else ids
        return ids

    def _cut(self, text: str) -> list[int]:
        """Return the ids of a source alone."""
        if self._sides is not None:
            return self._sides.encode_source(text)
        return list(self._engine.encode(text, add_special_tokens=False).ids)

    def speak(self, source: str, target: str) -> Frame:
        """Name the languages of what is read and of what is to be written, once and for all; "" = as the files say.

        Returns:
            What tells the model, beside what stands around a source from now on.

        Raises:
            ConfigError: the tokenizer has no such language, or names none at all.
        """
        self._frame = find_frame(self, source, target)
        return self._frame

    @property
    def kind(self) -> str:
        """The class that tokenizer_config.json names, without "Fast"; "" where it names none."""
        named = str(self._settings.get("tokenizer_class") or "").removesuffix("Fast")
        return named or ("" if self._sides is None else "MarianTokenizer")

    def setting(self, name: str) -> Any:
        """Return what tokenizer_config.json says under a name, None where it says nothing."""
        return self._settings.get(name)

    def rewritten(self, source: Sequence[int]) -> list[int]:
        """Return a source's text, and its end, in the ids of what is written; special tokens before it are left out."""
        end = self._special("eos_token")
        if self._sides is None:
            special = {*self.special_ids.values()} - {self.eos_id}
            first = next((at for at, token in enumerate(source) if token not in special), len(source))
            return list(source[first:])
        is_ended = bool(source) and end is not None and source[-1] == self.source_id(end) and self.eos_id is not None
        words = self._sides.encode_target(self._sides.source_text(source, self.special_ids.keys()))
        return [*words, self.eos_id] if is_ended and self.eos_id is not None else words

    def source_id(self, token: str) -> int | None:
        """Return the id of a token in sources."""
        return self.token_id(token) if self._sides is None else self._sides.source_id(token)

    @property
    def source_tokens(self) -> list[str]:
        """Return the spellings of all tokens of sources."""
        if self._sides is None:
            return list(self._engine.get_vocab(with_added_tokens=True))
        return self._sides.source_tokens

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids; bytes that do not make a character yet show as U+FFFD."""
        return str(self._engine.decode(list(ids), skip_special_tokens=skip_special))

    def token(self, index: int) -> str:
        """Return how the vocabulary spells an id."""
        found = self._engine.id_to_token(index)
        return "" if found is None else str(found)

    def token_id(self, token: str) -> int | None:
        """Return the id of a vocabulary entry."""
        found = self._engine.token_to_id(token)
        return None if found is None else int(found)

    def byte(self, index: int) -> int | None:
        """Return the byte that an id stands for, where a decoder joins runs of bytes (ByteFallback); None for others.

        Such a run is text if all of it is UTF-8; else each of its bytes shows as U+FFFD.
        """
        return self._single_bytes.get(index)

    @functools.cached_property
    def decoder_kinds(self) -> set[str]:
        """The kinds of decoder that ids go through, "?" for one that does not just join bytes."""
        if self._engine.decoder is None:  # joins with spaces
            return {"?"}
        state = json.loads(self._engine.decoder.__getstate__())
        parts = state.get("decoders", [state])
        joins = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Strip"}
        is_known = [
            part["type"] in joins or (part.get("pattern") == {"String": _SPACE} and part.get("content") == " ")
            for part in parts
        ]
        return {part["type"] if known else "?" for part, known in zip(parts, is_known, strict=True)}

    @functools.cached_property
    def _single_bytes(self) -> dict[int, int]:
        if "ByteFallback" not in self.decoder_kinds:
            return {}
        hidden = self.special_ids.values()
        named = {self.token_id(name): byte for byte in range(256) for name in (f"<0x{byte:02x}>", f"<0x{byte:02X}>")}
        return {index: byte for index, byte in named.items() if index is not None and index not in hidden}

    @functools.cached_property
    def spellings(self) -> list[bytes | None]:
        """The bytes that each id writes; None for special tokens, and for all if decoding is more than joining bytes.

        What a decoder does at the very beginning of a text (dropping a space) is left out.
        """
        vocab, kinds = self._engine.get_vocab(with_added_tokens=True), self.decoder_kinds
        added = self._engine.get_added_tokens_decoder()
        found: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
        for token, index in vocab.items():
            if index not in added:
                found[index] = spell(token, kinds)
            elif not added[index].special and "?" not in kinds:  # bytes only if every letter stands for one
                found[index] = spell(token, kinds) or token.encode()
        return found

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens, by what they are called."""
        added = self._engine.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    def to_json(self) -> str:
        """Return the tokenizer.json that is in use."""
        return str(self._engine.to_str())

    def _special_id(self, role: str) -> int | None:
        text = self._special(role)
        return None if text is None else self.token_id(text)

    def _special(self, role: str) -> str | None:
        found = self._settings.get(role)
        return found.get("content") if isinstance(found, dict) else found

    # Chat

    @property
    def has_chat(self) -> bool:
        """Whether the directory brings a chat template."""
        return bool(self.templates)

    def render_chat(
        self,
        messages: Sequence[Message],
        is_open: bool = True,
        tools: Any = None,
        *,
        documents: Any = None,
        template: str | None = None,
        is_continued: bool = False,
        **variables: Any,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: {"role": ..., "content": ...} each; content is a text, a list of parts, or None.
            is_open: end with the words that make the model answer.
            tools: JSON schemas of functions that the model may call.
            documents: what it may quote, {"title": ..., "text": ...} each.
            template: the name of one of several templates, or a template; None = the one that fits.
            is_continued: the last message is unfinished, and the model goes on with it.
            **variables: further variables of the template, such as enable_thinking.

        Raises:
            ConfigError: there is no template, or it refuses the messages.
        """
        chosen = choose_template(self.templates, template, tools, documents)
        specials = {role: text for role in ROLES if (text := self._special(role)) is not None}
        return render_chat(
            chosen,
            messages,
            is_open=is_open,
            is_continued=is_continued,
            tools=tools,
            documents=documents,
            variables=specials | variables,
        )

    def unread_by_chat(self, names: Sequence[str], template: str | None, tools: Any, documents: Any) -> list[str]:
        """Return those of some variables that the template chosen for these tools and documents never looks at."""
        return unread(choose_template(self.templates, template, tools, documents), names)

    def encode_chat(self, messages: Sequence[Message], is_open: bool = True, **extra: Any) -> list[int]:
        """Return the ids of a conversation; the template brings its own special tokens.

        Takes the arguments of `render_chat`.
        """
        return self.encode(self.render_chat(messages, is_open, **extra), is_special=False)


def _read_engine(path: Path) -> Engine:
    try:
        engine = Engine.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} is not a readable tokenizer.", hint=AGAIN) from error
    engine.no_padding()
    engine.no_truncation()
    return engine


def spell(token: str, kinds: Collection[str]) -> bytes | None:
    """Return the bytes of a vocabulary entry under a decoder of these kinds, as `decoder_kinds` names them, or None."""
    if "?" in kinds:
        return None
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        return bytes(alphabet[letter] for letter in token) if all(letter in alphabet for letter in token) else None
    if "ByteFallback" in kinds and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return (token.replace(_SPACE, " ") if "Metaspace" in kinds or "Replace" in kinds else token).encode()

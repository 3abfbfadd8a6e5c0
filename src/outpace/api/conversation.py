"""A conversation: what was said so far, how it is answered, and the file that it is kept in."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from outpace import store
from outpace.api.recall import Recall
from outpace.api.request import Options, split
from outpace.arguments import given
from outpace.errors import ConfigError, StorageError, check_characters
from outpace.methods.base import Method
from outpace.methods.registry import load_method

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.api.result import Result
    from outpace.run.row import Row
    from outpace.types import Outcome

__all__ = ["MOST_TOKENS", "Conversation", "How"]

MOST_TOKENS = 1024  # of an answer, where neither a call nor the model's files say
_KIND, _VERSION = "outpace-conversation", 1
_MOST_BYTES = 1 << 28  # no conversation is longer
_UNSAVED = ("canvas_constraint", "constraint", "memory", "models", "watch")
_MESSAGE = {"role", "content"}


class How(TypedDict, total=False):
    """How an answer is followed while it is written.

    Attributes:
        on_text, is_cancelled: as for `LanguageModel.generate`.
        watch: called after each step; see `outpace.api.request.Request`.
    """

    on_text: Callable[[int, str], None] | None
    is_cancelled: Callable[[], bool] | None
    watch: Callable[[Sequence[Row], Outcome], None] | None


class Conversation:
    """A conversation with a model.

        talk = outpace.Conversation(lm, system="Answer in one sentence.", method="auto")
        print(talk.say("What is the capital of France?").text)
        print(talk.say("And of Spain?").text)

    Each answer is what `LanguageModel.chat` gives for `told(text)`, whatever is drafted. Where the context has no room
    for all of it, the oldest turns are left out of what the model is told, and a note of the result says so; they stay
    in `messages`. What was read and written before is not read again where a `Recall` serves; no text depends on it.

    Args:
        lm: what answers.
        system: what it is told first; None = nothing. It may be changed between two answers.
        is_plain: no chat template: the model goes on with all that was written, as plain text.
        template, variables: of the chat; see `LanguageModel.chat`.
        **settings: the arguments of `LanguageModel.stream`. An answer has at most 1,024 tokens if max_tokens says
            nothing else.

    Attributes:
        messages: {"role": "user" | "assistant", "content": ...} each, in turn.
        model: the name of the model that the messages are of.
        recall: what earlier turns left; conversations with one model may share theirs, None = each turn is read whole.

    Raises:
        ConfigError: a setting that is none, or the model has no chat template.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        system: str | None = None,
        is_plain: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        **settings: Unpack[Options],
    ) -> None:
        chosen: dict[str, Any] = given(settings)
        if isinstance(method := chosen.get("method"), Method) and not chosen.get("options"):  # so that it can be saved
            chosen |= {"method": method.name, "options": method.to_dict()}
        request, _ = split(chosen)  # refuses what is no setting, and what is out of range
        if isinstance(request.method, str):
            load_method(request.method).from_settings(request.options or {})
        if "num_samples" in chosen:
            raise ConfigError("A conversation has one answer at a time.", "Leave num_samples out.")
        if not {"max_tokens", "max_length"} & {*chosen, *lm.generation.law}:
            chosen["max_tokens"] = MOST_TOKENS
        if lm.tokenizer is None:
            raise ConfigError(f"{lm.name} has no tokenizer.", "Use generate, which takes ids.")
        if not is_plain and not lm.tokenizer.has_chat:
            raise ConfigError(f"{lm.name} has no chat template.", "Its plain continuation can be had: is_plain=True.")
        if is_plain and system is not None:
            raise ConfigError("A plain text has no system prompt.", "Write it at the beginning of the text.")
        self.lm, self.system, self.is_plain, self.settings = lm, system, is_plain, chosen
        self.template, self.variables = template, dict(variables or {})
        self.messages: list[dict[str, str]] = []
        self.model = lm.name
        self.recall: Recall | None = Recall()

    def say(self, text: str, **how: Unpack[How]) -> Result:
        """Say something and return the answer.

        An answer that was cancelled stays as far as it was written; if nothing was, the conversation is as before.

        Args:
            text: what is said.
            **how: see `How`.

        Raises:
            ConfigError: it is empty, too long for the context, or the chat template refuses it.
        """
        if not text:
            raise ConfigError("Nothing was said.", "Give at least one character.")
        check_characters(text, "What was said")
        return self._answer(text, self.messages, how)

    def retry(self, **how: Unpack[How]) -> Result:
        """Put another answer in the last one's place, with the next seed from here on; greedy ones are all the same.

        Raises:
            ConfigError: nothing was said yet.
        """
        self._check_turn()
        before = self.settings
        self.settings = {**before, "seed": int(before.get("seed", 0)) + 1}
        try:
            return self._answer(self.messages[-2]["content"], self.messages[:-2], how)
        except BaseException:
            self.settings = before
            raise

    def undo(self) -> str:
        """Take back the last turn and return what was said in it.

        Raises:
            ConfigError: nothing was said yet.
        """
        self._check_turn()
        taken = self.messages[-2]["content"]
        del self.messages[-2:]
        return taken

    def told(self, text: str) -> list[dict[str, str]]:
        """Return the messages that the model gets when a text is said now, the system prompt first."""
        return self._fitting(text, self.messages)[0]

    def save(self, path: str | Path) -> None:
        """Write messages and settings to a file, whole or not at all.

        Raises:
            ConfigError: a setting is no JSON value, such as a memory.
            StorageError: the file cannot be written; what was there stays.
        """
        for name in _UNSAVED:
            if name in self.settings:
                raise ConfigError(f"A conversation with {name} cannot be saved.", "Leave that setting out.")
        names = ("model", "system", "is_plain", "template", "variables", "settings", "messages")
        record = {"kind": _KIND, "version": _VERSION, **{name: getattr(self, name) for name in names}}
        target = Path(path).expanduser()
        try:
            content = json.dumps(record, ensure_ascii=False, indent=1).encode()
            with store.replacing(target) as file:
                file.write(content + b"\n")
        except (TypeError, ValueError) as error:
            raise ConfigError(f"A setting of the conversation is no JSON value ({error}).", "Leave it out.") from None
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror}.", "Name another file.") from error

    @classmethod
    def load(cls, path: str | Path, lm: LanguageModel) -> Conversation:
        """Return a conversation as it was saved, to be gone on with by a model, perhaps another one.

        Raises:
            ConfigError: there is no such file, or it holds something else.
        """
        record = _read(Path(path).expanduser())
        settings = dict(record["settings"])
        if isinstance(bias := settings.get("logit_bias"), dict) and all(key.lstrip("-").isdigit() for key in bias):
            settings["logit_bias"] = {int(key): value for key, value in bias.items()}  # JSON has only names
        try:
            names = ("system", "is_plain", "template", "variables")
            talk = cls(lm, **{name: record[name] for name in names}, **settings)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}", error.hint) from error
        talk.messages, talk.model = record["messages"], record["model"]
        return talk

    def _check_turn(self) -> None:
        if not self.messages:
            raise ConfigError("Nothing was said yet.", "Say something first.")

    def _answer(self, text: str, before: list[dict[str, str]], how: How) -> Result:
        """Return the answer to a text behind some messages, and make all of it the conversation."""
        told, num_left_out = self._fitting(text, before)
        arguments: dict[str, Any] = {**self.settings, **how, "recall": self.recall}
        if self.is_plain:
            found: Any = self.lm.generate(_as_text(told), **arguments)
        else:
            found = self.lm.chat(told, template=self.template, variables=self.variables, **arguments)
        result: Result = found[0] if isinstance(found, list) else found  # of a search, its best text
        if num_left_out:
            turns = f"{num_left_out} oldest turns are" if num_left_out > 1 else "oldest turn is"
            size = f"{self.lm.target.capabilities.max_positions:,} tokens"
            result.notes.append(f"The context of {size} is full: the {turns} no longer told to the model.")
        if result.text or result.finish_reason not in ("cancelled", "error"):
            asked, answer = {"role": "user", "content": text}, {"role": "assistant", "content": result.text}
            self.messages, self.model = [*before, asked, answer], self.lm.name
        return result

    def _fitting(self, text: str, before: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], int]:
        """Return what the model is told, and how many of the oldest turns are left out for want of room."""
        offered = self.lm.target.capabilities
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        most = int(self.settings.get("max_tokens") or self.lm.generation.law.get("max_tokens") or MOST_TOKENS)
        room = offered.max_positions - min(most, offered.max_positions // 4)  # a quarter at most is kept for the answer

        def without(turns: int) -> list[dict[str, str]]:
            return [*system, *before[2 * turns :], {"role": "user", "content": text}]

        def is_short(turns: int) -> bool:
            told = without(turns)
            ids = self.lm.encode(_as_text(told)) if self.is_plain else self._encode(told)
            return len(ids) <= room

        last = len(before) // 2
        if offered.is_encoder_decoder or not last or is_short(0):
            return without(0), 0
        turns = bisect.bisect_left(range(last), True, key=is_short)
        return without(turns), turns

    def _encode(self, told: Sequence[dict[str, str]]) -> list[int]:
        return self.lm.encode_chat(told, template=self.template, **self.variables)


def _as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return what was written so far as one text: each answer behind what it goes on from, each turn in a new line."""
    starts = ("" if index == 0 or message["role"] == "assistant" else "\n" for index, message in enumerate(messages))
    return "".join(start + message["content"] for start, message in zip(starts, messages, strict=True))


def _read(path: Path) -> dict[str, Any]:
    """Return what a saved conversation holds, each part of it of its kind."""
    hint = "Name a file that was saved from a conversation."
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint) from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no saved conversation, or is damaged.", hint) from None
    if not isinstance(record, dict) or record.get("kind") != _KIND:
        raise ConfigError(f"{path} is no saved conversation.", hint)
    if record.get("version") != _VERSION:
        raise ConfigError(f"{path} was saved by another version ({record.get('version')!r}).", hint)
    record = {"system": None, "is_plain": False, "template": None, "variables": {}, **record}
    is_sound = (
        isinstance(record["system"], str | None)
        and isinstance(record["template"], str | None)
        and isinstance(record["is_plain"], bool)
        and isinstance(record["variables"], dict)
        and isinstance(record.get("model"), str)
        and isinstance(record.get("settings"), dict)
        and not set(_UNSAVED) & set(record["settings"])
        and _are_turns(record.get("messages"))
    )
    if not is_sound:
        raise ConfigError(f"{path} is a damaged conversation: a part is missing, or of another kind.", hint)
    return record


def _are_turns(messages: Any) -> bool:
    """Return whether these are messages, by user and assistant in turn, texts all."""
    return (
        isinstance(messages, list)
        and len(messages) % 2 == 0
        and all(
            isinstance(message, dict)
            and set(message) == _MESSAGE
            and message["role"] == ("assistant" if index % 2 else "user")
            and isinstance(message["content"], str)
            for index, message in enumerate(messages)
        )
    )

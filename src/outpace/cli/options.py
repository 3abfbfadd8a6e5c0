"""Options that settings declare (`outpace.setting`), as parameters that typer reads; and those that commands share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from outpace.cli.values import Device, Dtype, biases, json_schema, text_file
from outpace.sampling.settings import SamplingOptions
from outpace.setting import Option, option_of

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = [
    "CHAT",
    "LAW",
    "LIMITS",
    "OUT",
    "RUN",
    "AdapterName",
    "CacheDtype",
    "Cards",
    "ChatVariables",
    "CutSource",
    "DeviceName",
    "DtypeName",
    "GenerationConfigName",
    "MethodOptions",
    "ModelName",
    "NoCompile",
    "SearchName",
    "SourceLanguage",
    "TargetLanguage",
    "TemplateName",
    "Threads",
    "bad_word_ids",
    "declares",
    "read_settings",
]

RUN, CHAT, LAW, OUT, LIMITS = "Run", "Conversation", "Law of the next token", "Output", "Limits"
PANELS = ("", RUN, CHAT, LAW, OUT, LIMITS)  # of a command's help, in order
_Command = TypeVar("_Command", bound=Callable[..., Any])
_READERS: dict[str, Callable[[Any], Any]] = {"logit_bias": biases, "json_schema": json_schema, "grammar": text_file}
_KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": float, "Sequence[int]": list[int]}

ModelName = Annotated[str, typer.Option("--model", help="A shipped model, a directory, a GGUF file or a hub id.")]
AdapterName = Annotated[
    str | None, typer.Option("--adapter", metavar="DIR", help="A LoRA (PEFT) to merge into the model.")
]
SourceLanguage = Annotated[
    str | None,
    typer.Option("--source-language", metavar="NAME", help="The language read, of a translator.", rich_help_panel=RUN),
]
TargetLanguage = Annotated[
    str | None,
    typer.Option(
        "--target-language", metavar="NAME", help="The language written, of a translator.", rich_help_panel=RUN
    ),
]
CutSource = Annotated[
    bool, typer.Option("--cut-source", help="Read the beginning of a source that is too long.", rich_help_panel=RUN)
]
Cards = Annotated[
    list[str] | None,
    typer.Option("--card", metavar="KEY=VALUE", help="What the model's capability card should say instead."),
]
DtypeName = Annotated[Dtype, typer.Option("--dtype", help="Precision; auto = as stored.", rich_help_panel=RUN)]
DeviceName = Annotated[Device, typer.Option("--device", help="Where to compute.", rich_help_panel=RUN)]
CacheDtype = Annotated[
    str, typer.Option(metavar="auto|int8", help="Keys and values: as computed, or bytes.", rich_help_panel=RUN)
]
NoCompile = Annotated[bool, typer.Option("--no-compile", help="Use no compiled kernels.", rich_help_panel=RUN)]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the search or method.")
]
SearchName = Annotated[
    str | None,
    typer.Option("--search", metavar="NAME", help="Hold several texts and return the best; `outpace searches` lists."),
]
GenerationConfigName = Annotated[
    str, typer.Option(metavar="model|none", help="Obey the model's generation_config.json.", rich_help_panel=RUN)
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; without it, as many as are free.", rich_help_panel=RUN)
]
TemplateName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which of several chat templates.", rich_help_panel=CHAT)
]
ChatVariables = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A variable of the chat template.", rich_help_panel=CHAT),
]


def declares(*groups: tuple[type, str, Mapping[str, str | None]]) -> Callable[[_Command], _Command]:
    """Give a command the options that settings declare; it gets them by the fields' names in its keyword arguments.

    Args:
        *groups: a dataclass, the panel of the help that shows its options, and other panels by field (None = the
            command has no such option). In each panel they stand before the command's own options.
    """

    def widen(command: _Command) -> _Command:
        own = [
            part
            for part in inspect.signature(command, eval_str=True).parameters.values()
            if part.kind != part.VAR_KEYWORD
        ]
        made = [
            _parameter(field, option, shown)
            for kind, panel, panels in groups
            for field in dataclasses.fields(kind)
            if (option := option_of(field)) is not None and (shown := panels.get(field.name, panel)) is not None
        ]
        both = sorted([*made, *own], key=lambda part: PANELS.index(_panel(part)))
        # Keyword parameters follow those that may be given by place; typer takes them all by name.
        parts = [part.replace(kind=part.KEYWORD_ONLY) for part in both]
        command.__signature__ = inspect.Signature(parts)  # type: ignore[attr-defined]
        return command

    return widen


def _panel(parameter: inspect.Parameter) -> str:
    return next((str(part.rich_help_panel or "") for part in parameter.annotation.__metadata__), "")


def _parameter(field: dataclasses.Field[Any], option: Option, panel: str) -> inspect.Parameter:
    """Return a field as a parameter; None = not given, so that the model's own files may say something."""
    said, flag = str(field.type), option.flag or "--" + field.name.replace("_", "-")
    kind = _KINDS.get(said) or (list[str] if said.startswith(("Sequence", "Mapping")) else str)
    is_flag = kind is bool
    asked = typer.Option(flag, help=option.help, metavar=option.metavar or None, rich_help_panel=panel)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default if is_flag or option.is_shown else None,
        annotation=Annotated[kind if is_flag or option.is_shown else kind | None, asked],
    )


def read_settings(declared: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Sort what a command got for declared options into what is written, the law of the next token, and bad words.

    What was not given is left out: the model's own files may say something.
    """
    given = {
        name: _READERS[name](value) if name in _READERS else value
        for name, value in declared.items()
        if value not in (None, [])
    }
    bad_words = given.pop("bad_words", [])
    law = {name: given.pop(name) for name in SamplingOptions.__annotations__ if name in given}
    return given, law, bad_words


def bad_word_ids(words: Sequence[str], lm: LanguageModel) -> list[list[int]]:
    """Return each word's tokens, at the start of a text and after a space."""
    if lm.tokenizer is None:
        return []
    spellings = [text for word in words for text in (word, f" {word}")]
    return [lm.tokenizer.encode(text, is_special=False) for text in spellings]

"""Options that settings declare (`outpace.setting`), as parameters that typer reads; and those that commands share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from outpace.cli.values import Device, Dtype
from outpace.setting import Option, option_of

__all__ = ["CHAT", "LAW", "OUT", "RUN", "Cards", "DeviceName", "DtypeName", "ModelName", "NoCompile", "declares"]

RUN, CHAT, LAW, OUT = "Run", "Conversation", "Law of the next token", "Output"
PANELS = ("", RUN, CHAT, LAW, OUT)  # of a command's help, in order
_Command = TypeVar("_Command", bound=Callable[..., Any])
_KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": float, "Sequence[int]": list[int]}

ModelName = Annotated[str, typer.Option("--model", help="A shipped model, a directory, a GGUF file or a hub id.")]
Cards = Annotated[
    list[str] | None,
    typer.Option("--card", metavar="KEY=VALUE", help="What the model's capability card should say instead."),
]
DtypeName = Annotated[Dtype, typer.Option("--dtype", help="Precision; auto = as stored.", rich_help_panel=RUN)]
DeviceName = Annotated[Device, typer.Option("--device", help="Where to compute.", rich_help_panel=RUN)]
NoCompile = Annotated[bool, typer.Option("--no-compile", help="Use no compiled kernels.", rich_help_panel=RUN)]


def declares(*groups: tuple[type, str, Mapping[str, str]]) -> Callable[[_Command], _Command]:
    """Give a command the options that settings declare; it gets them by the fields' names in its keyword arguments.

    Args:
        *groups: a dataclass, the panel of the help that shows its options, and other panels by field. In each panel
            they stand before the command's own options.
    """

    def widen(command: _Command) -> _Command:
        own = [
            part
            for part in inspect.signature(command, eval_str=True).parameters.values()
            if part.kind != part.VAR_KEYWORD
        ]
        made = [
            _parameter(field, option, panels.get(field.name, panel))
            for kind, panel, panels in groups
            for field in dataclasses.fields(kind)
            if (option := option_of(field)) is not None
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

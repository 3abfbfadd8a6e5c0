"""`outpace certify`: prove a method's guarantee on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outpace.cli.checks import check_method
from outpace.cli.values import Device, Dtype, options, read_text

__all__ = ["certify"]


def certify(
    model: Annotated[str, typer.Option(help="A shipped model, a directory or a hub id.")] = "stories",
    method: Annotated[str, typer.Option(help="The method to prove.")] = "prompt-lookup",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, parted by empty lines.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision.")] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as one object.")] = False,
) -> int:
    """Compare a method with plain decoding under every sampler setting; exit 0 only if its guarantee holds."""
    texts = None if prompts is None else read_text(prompts, "prompt file")
    check_method(model, method, options(option or []))
    raise NotImplementedError(texts, dtype, device, json)

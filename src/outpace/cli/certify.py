"""`outpace certify`: put a method's guarantee to the test on a real model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.checks import check_method
from outpace.cli.output import print_json
from outpace.cli.values import Device, Dtype, options

if TYPE_CHECKING:
    from outpace.testing.certify import Line

__all__ = ["certify"]


def certify(
    model: Annotated[str, typer.Option(help="A shipped model, a directory or a hub id.")] = "stories",
    method: Annotated[str, typer.Option(help="The method to prove.")] = "prompt-lookup",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file: JSON lines with a text each, or texts parted by empty lines.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Where flips are listed; float64 = only prove.")] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Begin no new round of texts after these seconds.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as one object.")] = False,
) -> int:
    """Compare a method with plain decoding under every kind of sampling, and print a certificate.

    The exit status is 0 only if the guarantee held and enough was seen to tell; an approximate method gets none.
    """
    texts = None if prompts is None else _texts(prompts)
    chosen, _ = check_method(model, method, options(option or []))
    from outpace.testing.certify import certify as prove

    certificate = prove(
        model,
        chosen,
        texts,
        dtype=dtype.value,
        device=device.value,
        seed=seed,
        limit_s=time_limit,
        on_line=_tell if sys.stderr.isatty() else None,
    )
    print_json(certificate.to_dict()) if json else typer.echo(certificate.render())
    return certificate.exit_status


def _texts(file: Path) -> list[str]:
    from outpace.bench.prompts import read_prompts

    return [prompt.text for prompt in read_prompts(str(file))]


def _tell(line: Line) -> None:
    """Say on the terminal that one setting is done."""
    print(f"{line.setting}, {line.dtype}: {'holds' if line.holds else 'FAILS'}", file=sys.stderr, flush=True)

"""The typer application: which commands there are, in the order that `--help` shows them."""

from __future__ import annotations

from typing import Annotated

import typer

import outpace
from outpace.cli import (
    batch,
    bench,
    certify,
    chat,
    cite,
    drafter,
    generate,
    get,
    graph,
    index,
    methods,
    models,
    new_method,
    papers,
    quantize,
    retrieve,
    roles,
    score,
    serve,
    trace,
    train,
    tune,
)

__all__ = ["app"]

app = typer.Typer(
    name="outpace",
    help="Token sequences faster than one token at a time: one decoding loop, many methods, the same text.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"outpace {outpace.__version__}")
        raise typer.Exit


@app.callback()
def outpace_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Token sequences faster than one token at a time: one decoding loop, many methods, the same text."""


app.command("generate")(generate.generate)
app.command("batch")(batch.batch)
app.command("graph")(graph.graph)
app.command("score")(score.score)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("get")(get.get)
app.command("methods")(methods.methods)
app.command("searches")(roles.searches)
app.command("laws")(roles.laws)
app.command("models")(models.models)
app.command("certify")(certify.certify)
app.command("bench")(bench.bench)
app.add_typer(train.app, name="train")
app.add_typer(drafter.drafter, name="drafter")
app.command("quantize")(quantize.quantize)
app.command("index")(index.index)
app.command("retrieve")(retrieve.retrieve)
app.command("tune")(tune.tune)
app.command("trace")(trace.trace)
app.command("new-method")(new_method.new_method)
app.command("papers")(papers.papers)
app.command("cite")(cite.cite)

"""`outpace index`: make a datastore of a corpus, for the retrieval method."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from outpace.cli.output import print_json
from outpace.errors import ConfigError
from outpace.failures import tell

__all__ = ["index"]


def index(
    corpus: Annotated[list[Path], typer.Argument(help="Text files, folders, or .jsonl files with a text per line.")],
    out: Annotated[Path, typer.Option(help="The datastore to write.")],
    model: Annotated[str, typer.Option(help="The model whose tokenizer is used.")] = "stories",
    sources: Annotated[
        Path | None, typer.Option(help="Of an encoder-decoder: what the corpus' lines were written for, line by line.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one object.")] = False,
) -> int:
    """Make a datastore that `--method retrieval -o index=FILE` drafts from.

    It answers for any model with the same tokenizer. The file is written beside the old one and then swapped in. Of an
    encoder-decoder each line of the corpus is a text, and a translation memory gives its other side with --sources.
    """
    if out.exists() and not force:
        raise ConfigError(f"{str(out)!r} exists.", "Name another file with --out, or add --force.")
    if out.is_dir():
        raise ConfigError(f"{str(out)!r} is a folder.", "Name a file with --out.")
    _check_place(out)
    from outpace.draft.corpus import Corpus
    from outpace.draft.datastore import vocabulary_mark, write_datastore
    from outpace.draft.translations import read_translations
    from outpace.models.opening import locate
    from outpace.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(locate(model)[0])
    start, found, began = _decoder_start(model, sources), Corpus(), time.perf_counter()
    if start is not None:
        read_translations(found, corpus, sources, tokenizer, start)
    else:
        with _progress(corpus) as advance:
            found.read(corpus, lambda text: tokenizer.encode(text, is_special=False), advance)
    encoded = time.perf_counter()
    size = write_datastore(out, found.texts, tokenizer.vocab_size, vocabulary_mark(tokenizer))
    ended = time.perf_counter()
    for path in found.skipped:
        tell(f"Skipped {path}: no UTF-8 text")
    figures: dict[str, Any] = {
        "file": str(out),
        "texts": len(found.texts),
        "tokens": found.num_tokens,
        "text_mb": found.num_bytes / 1e6,
        "mb_per_s": found.num_bytes / 1e6 / (ended - began),
        "encode_s": encoded - began,
        "sort_s": ended - encoded,
        "bytes": size,
        "bytes_per_token": size / found.num_tokens,
    }
    print_json(figures) if json else typer.echo(_sentence(figures))
    return 0


def _decoder_start(model: str, sources: Path | None) -> int | None:
    """Return what an encoder-decoder's texts begin with; None for a model that has no encoder.

    Raises:
        ConfigError: sources for such a model.
    """
    from outpace.models.loading import read_config
    from outpace.models.opening import locate, open_model

    place = locate(model)[0]
    if place.is_dir() and read_config(place).get("is_encoder_decoder"):
        return open_model(model, "auto", "cpu").start_token
    if sources is not None:
        raise ConfigError(f"Sources were given, but {model} has no encoder.", "Leave --sources out.")
    return None


def _check_place(out: Path) -> None:
    """Raise before a long corpus is read, not after, if nothing can be written there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{str(out)!r} cannot be written: {error.strerror}.", "Name a file with --out.") from None


def _sentence(figures: dict[str, Any]) -> str:
    return (
        f"{figures['file']}: {figures['texts']:,} texts, {figures['tokens']:,} tokens, "
        f"{figures['text_mb']:.1f} MB of text at {figures['mb_per_s']:.1f} MB/s "
        f"({figures['encode_s']:.1f} s to encode, {figures['sort_s']:.1f} s to sort and write), "
        f"{figures['bytes_per_token']:.1f} bytes per token"
    )


@contextmanager
def _progress(corpus: list[Path]) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on the terminal while bytes go by; nothing where nobody looks on."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    inner = [file for path in corpus for file in (path.rglob("*") if path.is_dir() else [path])]
    total = sum(file.stat().st_size for file in inner if file.is_file())
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.update(task, advance=size)

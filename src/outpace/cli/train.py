"""`outpace train`: make a model of the zoo again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    recipe: Annotated[
        str, typer.Argument(help="stories, stories-mask, stories-block, stories-draft, translate and others.")
    ],
    out: Annotated[Path | None, typer.Option(help="Directory of the run (default: runs/RECIPE).")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of texts (default: ./data).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in the directory.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the whole run (default: the recipe's).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes weights, order of the data and masks.")] = 0,
) -> int:
    """Train a model of the zoo: tokenizer, checkpoints, log, weights and card.

    Ctrl-C saves a checkpoint first; --resume goes on from it to the same result.
    """
    from outpace.train import train as run

    return run(recipe, out or Path("runs") / recipe, data=data, resume=resume, steps=steps, threads=threads, seed=seed)

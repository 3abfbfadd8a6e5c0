"""`outpace train`: make a model of the zoo again, or train a drafter for a model of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from outpace.cli.values import Device, json_values

__all__ = ["app", "drafter", "train"]


class _Words(TyperGroup):
    """Words of their own, and recipes: `outpace train NAME` means `outpace train recipe NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the word before what is no word."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["recipe", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Words, help="Train a model of the zoo (outpace train RECIPE), or a drafter for a model.")


@app.command("recipe")
def train(
    recipe: Annotated[
        str, typer.Argument(help="stories, stories-mask, stories-block, stories-draft, translate, correct and others.")
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


@app.command("drafter")
def drafter(
    kind: Annotated[str, typer.Option(help="medusa and others; `outpace methods` tells which method reads which.")],
    target: Annotated[str, typer.Option(help="The model that it drafts for: whatever --model takes.")],
    out: Annotated[Path | None, typer.Option(help="Its directory (default: where methods look for it).")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="What the target answers: a file, or a shipped set (repeatable).")
    ] = None,
    texts: Annotated[int, typer.Option(min=2, help="Texts that the target writes.")] = 2000,
    max_tokens: Annotated[int, typer.Option(min=4, help="Most tokens of each.")] = 320,
    texts_from: Annotated[Path | None, typer.Option(metavar="FILE", help="Texts that are there already.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole run.")] = 1000,
    depth: Annotated[int | None, typer.Option(min=1, help="Tokens that it drafts ahead (default: the kind's).")] = None,
    draft_vocab: Annotated[int, typer.Option(min=0, help="Draft only the N most frequent tokens; 0 = all.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Texts in a batch; of short ones there are more.")] = 8,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a text that are read.")] = 512,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate of matrices (Muon).")] = 5e-3,
    other_rate: Annotated[float, typer.Option(min=0, help="That of tables, norms and biases (AdamW).")] = 3e-3,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A setting of the kind.")
    ] = None,
    states: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the target's states are kept.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no states: compute them in each step.")] = False,
    check_every: Annotated[int, typer.Option(min=1, help="Steps between two looks at held-out texts.")] = 100,
    patience: Annotated[int, typer.Option(min=0, help="Looks without gain before it ends early; 0 = never.")] = 0,
    time_limit: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Stop then, to be resumed; 0 = none.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in the directory.")] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes weights, order of the texts and every draw.")] = 0,
) -> int:
    """Train a drafter for a model, on texts that the model writes itself.

    Ctrl-C saves what was done; the same command goes on with texts and states, --resume with the training.
    """
    from outpace.bench.prompts import read_prompts
    from outpace.train.drafter import Plan, Writing, train_drafter

    asked = [prompt for name in prompts or () for prompt in read_prompts(name)]
    plan = Plan(
        steps=steps,
        rows=rows,
        length=length,
        matrix_rate=rate,
        other_rate=other_rate,
        draft_vocab=draft_vocab,
        check_every=check_every,
        patience=patience,
        limit_min=time_limit,
        seed=seed,
    )
    settings = json_values(option or (), "option")
    return train_drafter(
        kind,
        target,
        out,
        prompts=[[{"role": "user", "content": one.text}] if one.is_asked else one.text for one in asked],
        texts=texts_from,
        writing=Writing(count=texts, max_tokens=max_tokens, seed=seed),
        plan=plan,
        settings=settings if depth is None else {**settings, "depth": depth},
        states=states,
        has_cache=not no_cache,
        resume=resume,
        threads=threads,
        device=device.value,
    )

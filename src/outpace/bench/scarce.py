"""Scarce texts, many epochs: held-out loss of a causal and a masked diffusion network, alike in all but the objective.

    python -m outpace.bench.scarce --data DATA --out runs/scarce --json scarce.json --plot scarce.png

Both have the same sizes, tokenizer, rows in the same order, optimiser and rates, and are judged on the same held-out
tokens, each window given its first token. The causal figure is the negative log-likelihood, the masked one an upper
bound on it: a masked curve below the causal one is a better model, one above it need not be a worse one. The masks of
the bound are the same at every look, so that a curve moves with the weights alone.

Source: Prabhudesai et al. (2025), arXiv 2507.15857. Differences: networks and texts of minutes on a CPU; one run each,
without a sweep of sizes and rates; the loss is looked at during one run, whose rates fall to zero at its end.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.failures import interruptible
from outpace.papers import Paper
from outpace.train import checkpoint
from outpace.train.bounds import masked_nats
from outpace.train.data import DataMixture, Tokens, encode_stream, find_data, train_tokenizer
from outpace.train.network import Llama, LlamaShape
from outpace.train.recipes import Recipe
from outpace.train.sources import held_out_stories, tiny_stories
from outpace.train.trainer import Trainer

__all__ = ["PAPERS", "Crossing", "Look", "ScarceOptions", "crossing", "main", "matched_trainer", "run_scarce"]

PAPERS = (
    Paper(
        "Diffusion Beats Autoregressive in Data-Constrained Settings",
        "Prabhudesai et al.",
        2025,
        "2507.15857",
        323,
        "Sweeps of sizes, and the fits of its scaling laws.",
        "python -m outpace.bench.scarce",
    ),
)
Arm = Literal["causal", "masked"]
ARMS: tuple[Arm, Arm] = ("causal", "masked")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScarceOptions:
    """What is trained.

    Attributes:
        tokens: of the training texts.
        held: windows of held-out text.
        epochs: passes over the training texts; tokens seen over tokens there are.
        every: epochs between two looks.
        samples: maskings of each held-out window.
        hidden: width; heads are of 32.
        layers: of the network.
        vocab: tokens of the vocabulary, learned from the training texts alone.
        length: tokens scored in a row.
        rows: in a batch.
        seed: of weights, order and masks.
    """

    tokens: int = 25_000
    held: int = 96
    epochs: int = 100
    every: int = 1
    samples: int = 4
    hidden: int = 128
    layers: int = 2
    vocab: int = 512
    length: int = 64
    rows: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at one network saw.

    Attributes:
        arm: "causal" or "masked".
        epoch: passes over the texts so far.
        tokens: seen so far.
        held: nats per held-out token, of the masked network an upper bound.
        error: standard error of `held` from the masks that were drawn; 0 where none are.
        train: mean loss of the steps since the look before, in nats per token.
        seconds: spent in steps so far.
    """

    arm: str
    epoch: float
    tokens: int
    held: float
    error: float
    train: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """What two curves say.

    Attributes:
        turn: epoch of the lowest causal loss.
        causal: that loss, in nats per token.
        causal_end: the last one.
        masked_turn: epoch of the lowest masked bound.
        masked: that bound.
        masked_then: the masked bound at `turn`.
        below: first epoch from which on the masked bound stays below the causal loss of the same epoch; None = never.
        beaten: first epoch with a masked bound below the lowest causal loss of all epochs; None = none.
    """

    turn: float
    causal: float
    causal_end: float
    masked_turn: float
    masked: float
    masked_then: float
    below: float | None
    beaten: float | None


def crossing(looks: Sequence[Look]) -> Crossing:
    """Return where the causal loss turns up, and where the masked bound passes it.

    Raises:
        ConfigError: a curve has no look.
    """
    causal, masked = ([look for look in looks if look.arm == arm] for arm in ARMS)
    if not causal or not masked:
        raise ConfigError("A curve has no look.", "Train for at least as many epochs as lie between two looks.")
    low, best = (min(curve, key=lambda look: look.held) for curve in (causal, masked))
    pairs = list(zip(causal, masked, strict=False))
    last_above = max((at for at, (one, two) in enumerate(pairs) if two.held >= one.held), default=-1)
    beaten = next((look.epoch for look in masked if look.held < low.held), None)
    return Crossing(
        turn=low.epoch,
        causal=low.held,
        causal_end=causal[-1].held,
        masked_turn=best.epoch,
        masked=best.held,
        masked_then=min(masked, key=lambda look: abs(look.epoch - low.epoch)).held,
        below=pairs[last_above + 1][1].epoch if last_above + 1 < len(pairs) else None,
        beaten=beaten,
    )


def _texts(asked: ScarceOptions, data: Path) -> tuple[Tokenizer, Tokens, torch.Tensor]:
    """Return the tokenizer, the training stream, and held-out windows int64 [held, length + 1] of the same source."""
    documents = list(tiny_stories().read(data))
    # Four letters a token is more than such a vocabulary reaches; the tokenizer sees little beyond what is trained on.
    size, near = 0, list[str]()
    for text in documents:
        near.append(text)
        size += len(text)
        if size > 4 * asked.tokens:
            break
    tokenizer = train_tokenizer(near, asked.vocab)
    stream = encode_stream(tokenizer, near)[: asked.tokens]
    held = encode_stream(tokenizer, held_out_stories(data)).astype(np.int64)
    width, num = asked.length + 1, asked.held
    if len(held) < num * width or len(stream) < width:
        raise ConfigError(f"The texts have {len(held)} held-out tokens, too few.", "Ask for fewer or shorter windows.")
    return tokenizer, stream, torch.from_numpy(held[: num * width].reshape(num, width))


def matched_trainer(arm: Arm, asked: ScarceOptions, tokenizer: Tokenizer, stream: Tokens, steps: int) -> Trainer:
    """Return the trainer of one of two networks that differ in their objective alone."""
    # Rows of both are the same tokens: a shifted network scores the same places of them as a causal one.
    is_causal = arm == "causal"
    shape = LlamaShape(
        hidden=asked.hidden,
        layers=asked.layers,
        heads=asked.hidden // 32,
        kv_heads=asked.hidden // 32,
        head_dim=32,
        ffn=asked.hidden * 8 // 3,
        vocab=tokenizer.get_vocab_size(),
        context=asked.length + 2,
        causal=is_causal,
        shifted=not is_causal,
    )
    recipe = Recipe(
        name=f"scarce-{arm}",
        summary="",
        objective=arm,
        shape=shape,
        steps=steps,
        gpu_steps=steps,
        rows=asked.rows,
        length=asked.length + (0 if is_causal else 1),
        long_share=0.0,
        sources=(),
    )
    return Trainer(
        recipe=recipe,
        network=Llama(shape, asked.seed),
        teacher=None,
        mixture=DataMixture((stream,), (1.0,), asked.seed),
        tokenizer=tokenizer,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        seed=asked.seed,
        steps=steps,
    )


@torch.inference_mode()
def _held_out(network: Llama, rows: torch.Tensor, samples: int) -> tuple[float, float]:
    """Return nats per token of `rows` int64 [B, T + 1], the first of each given, and their standard error."""
    size = rows.shape[0] * (rows.shape[1] - 1)
    rows = rows.to(next(network.parameters()).device)
    if network.shape.causal:
        law = network(rows[:, :-1]).double().log_softmax(-1)
        return -float(law.gather(-1, rows[:, 1:, None]).sum()) / size, 0.0
    # Bounds [samples, B]: masks are drawn apart, so the error of a sum of windows is that of their sums.
    found = masked_nats(network, rows, samples)
    error = found.var(0).sum().sqrt() / samples**0.5 if samples > 1 else torch.zeros(())
    return float(found.mean(0).sum()) / size, float(error) / size


def _curve(
    trainer: Trainer, asked: ScarceOptions, held: torch.Tensor, out: Path, tell: Callable[[str], None]
) -> Iterator[Look]:
    """Yield each look of one network, those of an earlier run first; what is trained is kept after each look."""
    arm, path = trainer.recipe.objective, out / f"{trainer.recipe.objective}.pt"
    looks, told = list[dict[str, Any]](), asdict(asked)
    if path.is_file():
        state = checkpoint.load(path)
        if state["options"] != told:
            raise ConfigError(f"{path} is of a run with other options.", "Give the same ones, or another --out.")
        trainer.restore(state)
        looks = list(state["looks"])
    yield from (Look(**look) for look in looks)
    per_epoch = len(trainer.mixture.streams[0]) / (asked.rows * asked.length)
    since = trainer.step
    with interruptible(signal.SIGINT, signal.SIGTERM, is_patient=True) as is_stopping:
        while trainer.step < trainer.steps:
            trainer.advance()
            due = round((len(looks) + 1) * asked.every * per_epoch)
            if trainer.step < min(due, trainer.steps):
                if is_stopping():
                    raise KeyboardInterrupt  # the last look is kept
                continue
            nats, error = _held_out(trainer.network, held, asked.samples)
            loss = float(np.mean(trainer.losses[since:]))
            since = trainer.step
            seen, epoch = since * asked.rows * asked.length, since / per_epoch
            look = Look(
                arm=arm, epoch=round(epoch, 2), tokens=seen, held=nats, error=error, train=loss, seconds=trainer.seconds
            )
            looks.append(asdict(look))
            checkpoint.save(trainer.state() | {"options": told, "looks": looks}, path)
            tell(f"{arm}: epoch {epoch:.1f} of {asked.epochs}, held out {nats:.4f}, trained {loss:.4f} nats per token")
            yield look


def run_scarce(asked: ScarceOptions, data: Path, out: Path, tell: Callable[[str], None]) -> Report:
    """Train both networks, or go on where `out` ends.

    Raises:
        ConfigError: too few texts, or `out` holds a run with other options.
    """
    if min(asked.epochs, asked.every, asked.samples, asked.held) < 1 or asked.hidden % 32:
        raise ConfigError(
            "A number of epochs, samples or windows is below 1, or the width is no multiple of 32.", "Ask for more."
        )
    tokenizer, stream, held = _texts(asked, data)
    steps = round(asked.epochs * len(stream) / (asked.rows * asked.length))
    looks = list[Look]()
    for arm in ARMS:
        looks += _curve(matched_trainer(arm, asked, tokenizer, stream, steps), asked, held, out, tell)
    found = crossing(looks)
    rows = [asdict(look) for look in looks]
    notes = [*_said(found), "held: nats per token, of the masked network an upper bound; error: of the drawn masks."]
    more: dict[str, Any] = {
        "crossing": asdict(found),
        "train_tokens": len(stream),
        "held_tokens": held.shape[0] * asked.length,
    }
    return new_report("scarce", asked, describe(), rows, tables=[_table(looks)], notes=notes, **more)


def _said(found: Crossing) -> list[str]:
    """Return what the curves show, in sentences."""
    below = "stays above it to the end" if found.below is None else f"stays below it from epoch {found.below:g} on"
    beaten = "never passes" if found.beaten is None else f"passes at epoch {found.beaten:g}"
    return [
        f"The causal loss is lowest at epoch {found.turn:g}, {found.causal:.3f}, and ends at {found.causal_end:.3f}.",
        f"The masked bound is {found.masked_then:.3f} there, best at epoch {found.masked_turn:g}: {found.masked:.3f}.",
        f"Epoch by epoch the masked bound {below}; the lowest causal loss of all it {beaten}.",
    ]


def _table(looks: Sequence[Look]) -> Table:
    """Return a dozen looks of each, side by side."""
    causal, masked = ([look for look in looks if look.arm == arm] for arm in ARMS)
    num = min(len(causal), len(masked))
    shown = sorted({round(at) for at in np.geomspace(1, num, 12)})
    pairs = [(causal[at - 1], masked[at - 1]) for at in shown]
    cells = [
        [
            f"{one.epoch:g}",
            f"{one.held:.3f}",
            f"{two.held:.3f}",
            f"{two.error:.3f}",
            f"{one.train:.3f}",
            f"{two.train:.3f}",
        ]
        for one, two in pairs
    ]
    return Table("", ("epoch", "causal", "masked", "error", "causal, trained on", "masked, trained on"), cells, left=0)


def _work(given: argparse.Namespace) -> None:
    asked = ScarceOptions()
    asked = replace(asked, **{name: getattr(given, name) for name in asdict(asked)})
    report = run_scarce(asked, find_data(given.data), given.out, lambda line: print(line, file=sys.stderr, flush=True))
    report.write(given.json, given.plot)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the curves; return the exit status."""
    parser = new_parser("scarce", __doc__, threads=1)
    plain = ScarceOptions()
    for name, told in (
        ("tokens", "of training text"),
        ("held", "windows of held-out text"),
        ("epochs", "passes over the training text"),
        ("every", "epochs between two looks"),
        ("samples", "maskings of a held-out window"),
        ("hidden", "width of the networks, a multiple of 32"),
        ("layers", "of the networks"),
        ("vocab", "tokens of the vocabulary"),
        ("length", "tokens scored in a row"),
        ("rows", "in a batch"),
        ("seed", "of weights, order and masks"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(plain, name), help=f"{told} (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of texts (default: ./data)")
    parser.add_argument("--out", type=Path, default=Path("runs/scarce"), help="kept there; the same call goes on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the curves here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

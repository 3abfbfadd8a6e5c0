"""The training loop: fixed steps, step-indexed data, checkpoints, progress, and a clean stop."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor

from outpace.errors import ConfigError, NumericalError, nearest

from . import checkpoint
from .data import Mixture, find_data, mix, read_documents, train_tokenizer
from .export import Run, export, load_network, load_tokenizer
from .network import Llama
from .objectives import causal_loss, distilled_loss, mask_tokens, masked_loss
from .recipes import RECIPES, Recipe

log = logging.getLogger("outpace.train")
EXIT_INTERRUPTED = 130


@dataclass(slots=True)
class Trainer:
    """Everything that changes while one model trains.

    Attributes:
        recipe: The settings.
        network: The model, in float32.
        teacher: The parent's model where the objective needs it.
        mixture: The data.
        device: Where it runs.
        seed: Seed of weights, data order and masks.
        steps: Steps of the whole run.
        step: Steps done.
        losses: Loss of each step done, in nats per token.
        seconds: Time spent in steps so far.
    """

    recipe: Recipe
    network: Llama
    teacher: Llama | None
    mixture: Mixture
    device: torch.device
    seed: int
    steps: int
    compiled: bool = False
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    _loss: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimisers, and compile the loss where that is possible."""
        self.network.to(self.device)
        self.optimisers = _optimisers(self.network, self.recipe, self.device)
        functions: dict[str, Callable[..., Tensor]] = {
            "causal": causal_loss,
            "masked": masked_loss,
            "distilled": distilled_loss,
        }
        loss = functions[self.recipe.objective]
        self._loss = torch.compile(loss, dynamic=False) if self.compiled else loss

    def advance(self) -> float:
        """Do one step; returns its loss in nats per token."""
        started = time.perf_counter()
        self._set_rates()
        # Weights and optimiser stay in float32; bfloat16 products double the speed where the CPU has them.
        # The context is entered anew in each step, because inside it the weights are cast once and then remembered.
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self._loss(self.network, *self._arguments())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if value != value:
            raise NumericalError(f"the loss became NaN at step {self.step}", "Resume, or lower the learning rates.")
        self.step += 1
        self.losses.append(value)
        self.seconds += time.perf_counter() - started
        return value

    def _arguments(self) -> tuple[Tensor | Llama, ...]:
        recipe = self.recipe
        is_long = self.step >= self.steps * (1 - recipe.long_share)
        length, rows = (recipe.length * 2, recipe.rows // 2) if is_long else (recipe.length, recipe.rows)
        extra = 0 if recipe.objective == "masked" else 1
        tokens = self.mixture.batch(self.step, rows, length + extra).to(self.device)
        if recipe.objective == "masked":
            masked, weights = mask_tokens(tokens, self.step, self.seed)
            return masked, tokens, weights
        return (tokens,) if self.teacher is None else (tokens, self.teacher)

    def _set_rates(self) -> None:
        # A linear ramp, then a straight line to zero, which for short runs ends lower than a cosine.
        factor = min((self.step + 1) / self.recipe.warmup, max(1 - self.step / self.steps, 0.01))
        peaks = (self.recipe.matrix_rate, self.recipe.other_rate)
        for optimiser, peak in zip(self.optimisers, peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: When it is of another recipe or seed.
        """
        if (state["recipe"], state["seed"]) != (self.recipe.name, self.seed):
            raise ConfigError(
                f"the checkpoint is of {state['recipe']} with seed {state['seed']}, "
                f"not of {self.recipe.name} with seed {self.seed}",
                "Give another --out, or leave out --resume.",
            )
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.losses, self.seconds = state["step"], list(state["losses"]), state["seconds"]


def _optimisers(network: Llama, recipe: Recipe, device: torch.device) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (Jordan et al., 2024), AdamW for embeddings and norms."""
    named = list(network.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def _parent_directory(recipe: Recipe, out: Path) -> Path:
    """The parent trained beside `out`, else the one that ships."""
    assert recipe.parent is not None
    beside = out.resolve().parent / recipe.parent
    return beside if (beside / "model.safetensors").is_file() else Path(__file__).parent.parent / "zoo" / recipe.parent


def build(
    recipe: Recipe, out: Path, data: Path | None, *, steps: int | None, seed: int, compiled: bool | None
) -> tuple[Trainer, Tokenizer]:
    """Read the data and make the networks of a run (or take them from the parent)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    documents = read_documents(recipe.sources, find_data(data))
    network, teacher = Llama(recipe.shape, seed), None
    if recipe.parent is None:
        saved = out / "tokenizer.json"
        tokenizer = (
            Tokenizer.from_file(str(saved))
            if saved.is_file()
            else train_tokenizer(chain.from_iterable(documents), recipe.shape.vocab)
        )
    else:
        directory = _parent_directory(recipe, out)
        tokenizer = load_tokenizer(directory)
        parent = load_network(directory)
        if recipe.objective == "masked":
            network.load_state_dict(parent.state_dict())
        else:
            teacher = parent.to(device).requires_grad_(False).eval()
    mixture = mix(recipe.sources, documents, tokenizer, seed)
    for source, stream in zip(recipe.sources, mixture.streams, strict=True):
        log.info("%s: %d tokens, %.0f%% of the rows", source.name, len(stream), 100 * source.weight)
    has_compiler = shutil.which("g++") is not None or device.type == "cuda"
    trainer = Trainer(
        recipe=recipe,
        network=network,
        teacher=teacher,
        mixture=mixture,
        device=device,
        seed=seed,
        steps=steps or (recipe.gpu_steps if device.type == "cuda" else recipe.steps),
        compiled=has_compiler if compiled is None else compiled,
    )
    return trainer, tokenizer


def train(
    recipe: str | Recipe,
    out: Path,
    data: Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    compiled: bool | None = None,
) -> int:
    """Train one model of the zoo and export it.

    Args:
        recipe: A name in `RECIPES`, or a recipe.
        out: Directory for the checkpoint, the log and the exported model.
        data: Folder of training texts (default: ./data or ../shared/data).
        resume: Continue from the checkpoint in `out`.
        steps: Steps of the whole run (default: the recipe's, which is larger where there is a GPU).
        threads: CPU threads (default: PyTorch's choice).
        seed: Seed of weights, data order and masks.
        compiled: Whether to compile the step (default: where a C++ compiler is found).

    Returns:
        Exit status: 0, or 130 when it was interrupted (a checkpoint is then saved).

    Raises:
        OutpaceError: For a missing text, a full disk, a checkpoint that does not fit, and the like.
    """
    chosen = _find(recipe)
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    with _logging_to(out / "train.log"):
        trainer, tokenizer = build(chosen, out, data, steps=steps, seed=seed, compiled=compiled)
        tokenizer.save(str(out / "tokenizer.json"))
        if resume:
            trainer.restore(checkpoint.load(out / "checkpoint.pt"))
            log.info("resumed at step %d", trainer.step)
        return _run(trainer, tokenizer, out)


def _find(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}", nearest(recipe, RECIPES, "recipe"))
    return RECIPES[recipe]


def _run(trainer: Trainer, tokenizer: Tokenizer, out: Path) -> int:
    recipe = trainer.recipe
    parameters = sum(weight.numel() for weight in trainer.network.parameters())
    log.info("%s: %d parameters, %d steps on %s", recipe.name, parameters, trainer.steps, trainer.device)

    def keep() -> None:
        checkpoint.save(trainer.state(), out / "checkpoint.pt")
        export(trainer.network, tokenizer, _describe(trainer), out)

    with _stop_requests() as is_stopping, _progress(trainer) as show:
        while trainer.step < trainer.steps:
            loss = trainer.advance()
            show(loss)
            if is_stopping():
                keep()
                log.info("interrupted; the checkpoint at step %d is saved, --resume continues it", trainer.step)
                return EXIT_INTERRUPTED
            if trainer.step % recipe.checkpoint_every == 0:
                keep()
    keep()
    return 0


def _describe(trainer: Trainer) -> Run:
    recipe = trainer.recipe
    return Run(
        recipe=recipe,
        step=trainer.step,
        steps=trainer.steps,
        tokens=trainer.step * recipe.rows * recipe.length,
        seed=trainer.seed,
        losses=tuple(trainer.losses),
        seconds=trainer.seconds,
        device=trainer.device.type,
        date=datetime.now(UTC).date().isoformat(),
        stream_tokens=tuple(len(stream) for stream in trainer.mixture.streams),
    )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and termination into a question asked between two steps."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = [signal.signal(number, lambda caught, _: asked.append(caught)) for number in numbers]
    except ValueError:  # Not the main thread: the caller owns the signals.
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log lines to a file, and to standard error when it is no terminal (a progress bar is shown there)."""
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    if not Console(stderr=True).is_terminal:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


@contextmanager
def _progress(trainer: Trainer) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, a log line every 20 steps everywhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(trainer.recipe.name, total=trainer.steps, completed=trainer.step, loss="")
        mark = [time.perf_counter(), float(trainer.step)]

        def show(loss: float) -> None:
            bar.update(task, completed=trainer.step, loss=f"loss {loss:.3f}")
            if trainer.step % 20 == 0 or trainer.step == trainer.steps:
                now, done = time.perf_counter(), trainer.step - mark[1]
                rate = done * trainer.recipe.rows * trainer.recipe.length / (now - mark[0])
                recent = trainer.losses[-20:]
                log.info(
                    "step %d/%d loss %.4f, %.0f tokens/s", trainer.step, trainer.steps, sum(recent) / len(recent), rate
                )
                mark[:] = [now, float(trainer.step)]

        yield show

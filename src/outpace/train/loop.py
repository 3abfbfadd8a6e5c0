"""The training loop that all recipes share: fixed steps, checkpoints, progress, and a clean stop."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor, nn

from outpace import zoo
from outpace.errors import ConfigError, ModelError, NumericalError
from outpace.failures import interruptible

from . import checkpoint
from .export import Export, load_tokenizer, write_model
from .recipes import AnyRecipe

log = logging.getLogger("outpace.train")
EXIT_INTERRUPTED = 130


@dataclass(slots=True, kw_only=True)
class Steps:
    """Everything that changes while one network trains; a subclass says what a step's loss is and what is exported.

    Attributes:
        recipe: The settings.
        network: The model, in float32.
        device: Where it runs.
        seed: Seed of weights, data order and masks.
        steps: Steps of the whole run.
        step: Steps done.
        losses: Loss of each step done, in nats per token.
        seconds: Time spent in steps so far.
    """

    recipe: AnyRecipe
    network: nn.Module
    device: torch.device
    seed: int
    steps: int
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    optimisers: list[torch.optim.Optimizer] = field(init=False)
    peaks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimisers."""
        self.network.to(self.device)
        self.optimisers, self.peaks = _optimisers(self.network, self.recipe)

    def loss(self) -> Tensor:
        """Return the loss of step `self.step`, in nats per token; a pure function of weights, step and seed."""
        raise NotImplementedError

    def keep(self, out: Path) -> None:
        """Write a checkpoint, and the model as it is now."""
        raise NotImplementedError

    def is_over(self) -> str:
        """Return why the run ends before its last step, "" while it does not."""
        return ""

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step, for the speed that the log shows."""
        raise NotImplementedError

    def advance(self) -> float:
        """Do one step; returns its loss in nats per token."""
        started = time.perf_counter()
        self._set_rates()
        # 1) The loss. Weights and optimiser stay in float32; bfloat16 products double the speed where the CPU has them.
        # The context is entered anew in each step, because inside it the weights are cast once and then remembered.
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss()
        # 2) The update. The gradient is bounded: one odd batch must not undo what many have taught.
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        # 3) The record. The loss is read here, once; a step that went wrong is not counted, and no checkpoint keeps it.
        value = float(loss.detach())
        if value != value:
            raise NumericalError(f"the loss became NaN at step {self.step}", "Resume, or lower the learning rates.")
        self.step += 1
        self.losses.append(value)
        self.seconds += time.perf_counter() - started
        return value

    def _set_rates(self) -> None:
        # A linear ramp, then a straight line to zero, which for short runs ends lower than a cosine.
        factor = min((self.step + 1) / self.recipe.warmup, max(1 - self.step / self.steps, 0.01))
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
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
        # Data, masks and dropout are functions of seed and step: the same recipe and seed go on as if never stopped.
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


@dataclass(slots=True, kw_only=True)
class Loop(Steps):
    """A model of the zoo while it trains.

    Attributes:
        tokenizer: Exported with the weights.
    """

    tokenizer: Tokenizer

    def described(self) -> Export:
        """Return the model as it is now, as its files tell it."""
        raise NotImplementedError

    def keep(self, out: Path) -> None:
        """Write a checkpoint, and the model as a Hugging Face directory with a card."""
        checkpoint.save(self.state(), out / "checkpoint.pt")
        write_model(self, self.described(), out)


_TABLE = 8  # times as many rows as columns, or the other way round: a table of tokens, whatever its name


def _optimisers(network: nn.Module, recipe: AnyRecipe) -> tuple[list[torch.optim.Optimizer], list[float]]:
    """Muon for the layers' matrices (Jordan et al., 2024), AdamW for embeddings, norms and biases; and their rates."""
    # Muon makes an update's directions equally strong, which fits maps from vectors to vectors. Rows of a table of
    # tokens are vectors of their own, touched when their token comes up.
    matrices, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            (matrices if _is_matrix(name, weight) else others).append(weight)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        rate, decay = recipe.matrix_rate, recipe.weight_decay
        found.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        found.append(torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    return found, [recipe.matrix_rate] * bool(matrices) + [recipe.other_rate] * bool(others)


def _is_matrix(name: str, weight: Tensor) -> bool:
    is_named = any(part in name for part in ("embed", "shared"))
    return weight.ndim == 2 and not is_named and max(weight.shape) < _TABLE * min(weight.shape)


def inherited(recipe: AnyRecipe, out: Path, make: Callable[[], Tokenizer]) -> tuple[Tokenizer, Path | None]:
    """Return the tokenizer of a run and its parent's directory: one trained beside `out`, else the one that ships.

    Without a parent the tokenizer is that of an earlier run in `out`, else made anew.

    Raises:
        ModelError: When the parent is nowhere, or has no tokenizer.
    """
    if recipe.parent is None:
        return load_tokenizer(out) if (out / "tokenizer.json").is_file() else make(), None
    parent = beside(recipe.parent, out)
    return load_tokenizer(parent), parent


def beside(name: str, out: Path) -> Path:
    """Return the directory of another recipe's model: the one trained beside `out`, else the one that ships.

    Raises:
        ModelError: It is nowhere; the hint says how to train it.
    """
    trained, shipped = out.resolve().parent / name, zoo.home() / name
    if (trained / "model.safetensors").is_file():
        return trained
    if not (shipped / "model.safetensors").is_file():
        reason = f"This training begins with {name}, which does not ship and was not trained beside {out}."
        raise ModelError(reason, f"Train it first: outpace train {name} --out {trained}")
    return shipped


def run_loop(loop: Steps, out: Path, *, resume: bool) -> int:
    """Do the steps that are left, keeping checkpoints in `out`.

    Returns:
        Exit status: 0, or 130 when it was interrupted (a checkpoint is then saved).

    Raises:
        OutpaceError: For a full disk, a checkpoint that does not fit, a loss that became NaN.
    """
    if resume:
        loop.restore(checkpoint.load(out / "checkpoint.pt"))
        log.info("resumed at step %d", loop.step)
    parameters = sum(weight.numel() for weight in loop.network.parameters() if weight.requires_grad)
    log.info("%s: %d parameters, %d steps on %s", loop.recipe.name, parameters, loop.steps, loop.device)
    # A stop is asked for at any moment and obeyed between two steps, where the state is whole.
    reason = ""
    with interruptible(signal.SIGINT, signal.SIGTERM, is_patient=True) as is_stopping, _progress(loop) as show:
        while loop.step < loop.steps and not (reason := loop.is_over()):
            show(loop.advance())
            if is_stopping():
                loop.keep(out)
                log.info("interrupted; the checkpoint at step %d is saved, --resume continues it", loop.step)
                return EXIT_INTERRUPTED
            if loop.recipe.is_checkpoint(loop.step):
                loop.keep(out)
        if loop.step < loop.steps:
            log.info("ended at step %d: %s", loop.step, reason)
    loop.keep(out)
    return 0


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
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
def _progress(loop: Steps) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, a log line every 20 steps everywhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(loop.recipe.name, total=loop.steps, completed=loop.step, loss="")
        mark = [time.perf_counter(), float(loop.step)]

        def show(loss: float) -> None:
            bar.update(task, completed=loop.step, loss=f"loss {loss:.3f}")
            if loop.step % 20 == 0 or loop.step == loop.steps:
                now, done = time.perf_counter(), loop.step - mark[1]
                rate = done * loop.tokens_per_step / (now - mark[0])
                recent = loop.losses[-20:]
                log.info("step %d/%d loss %.4f, %.0f tokens/s", loop.step, loop.steps, sum(recent) / len(recent), rate)
                mark[:] = [now, float(loop.step)]

        yield show

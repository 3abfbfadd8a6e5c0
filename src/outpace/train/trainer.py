"""Training the Llama-shaped models of the zoo: causal, masked and distilled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from outpace.errors import ConfigError, nearest

from .data import Mixture, find_data, mix, read_documents, train_tokenizer
from .export import Run, export, load_network, load_tokenizer
from .loop import EXIT_INTERRUPTED, Loop, log, logging_to, run
from .network import Llama
from .objectives import Canvas, annealed, causal_loss, distilled_loss, masked_loss, response_places, whole_canvas
from .objectives_block import block_canvas
from .recipes import RECIPES, TRANSLATIONS, Recipe, TranslationRecipe

__all__ = ["EXIT_INTERRUPTED", "Trainer", "build", "train"]


@dataclass(slots=True, kw_only=True)
class Trainer(Loop):
    """A Llama in training.

    Attributes:
        recipe: The settings.
        llama: The network, by its own type.
        teacher: The parent's model where the objective needs it.
        mixture: The data.
        tokenizer: Exported with the weights.
        compiled: Whether the loss is compiled.
    """

    recipe: Recipe
    llama: Llama
    teacher: Llama | None
    mixture: Mixture
    tokenizer: Tokenizer
    compiled: bool = False
    _loss: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimisers, and compile the loss where that is possible."""
        Loop.__post_init__(self)
        functions: dict[str, Callable[..., Tensor]] = {
            "causal": causal_loss,
            "masked": masked_loss,
            "block": masked_loss,
            "distilled": distilled_loss,
        }
        loss = functions[self.recipe.objective]
        self._loss = torch.compile(loss, dynamic=False) if self.compiled else loss

    def loss(self) -> Tensor:
        """Return the loss of the step's rows."""
        return self._loss(self.llama, *self._arguments())

    def export(self, out: Path) -> None:
        """Write config, weights, tokenizer and card."""
        export(self.llama, self.tokenizer, _describe(self), out)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step."""
        return self.recipe.rows * self.recipe.length

    def _arguments(self) -> tuple[Tensor | Llama, ...] | Canvas:
        recipe, shape = self.recipe, self.recipe.shape
        is_long = self.step >= self.steps * (1 - recipe.long_share)
        length, rows = (recipe.length * 2, recipe.rows // 2) if is_long else (recipe.length, recipe.rows)
        extra = 1 if shape.causal else 0
        tokens = self.mixture.batch(self.step, rows, length + extra).to(self.device)
        if recipe.objective == "masked":
            markers = [self.tokenizer.encode(text).ids for text in recipe.responses_after]
            is_open = response_places(tokens, markers) if markers else None
            canvas = whole_canvas(tokens, self.step, self.seed, shape.shifted, is_open)
            share = self.step / (recipe.anneal * self.steps) if recipe.anneal else 1.0
            return canvas._replace(pieces=annealed(length, share, self.step, self.seed, self.device))
        if recipe.objective == "block":
            return block_canvas(tokens, shape.block, self.step, self.seed, recipe.complementary)
        return (tokens,) if self.teacher is None else (tokens, self.teacher)


def _parent_directory(recipe: Recipe, out: Path) -> Path:
    """The parent trained beside `out`, else the one that ships."""
    assert recipe.parent is not None
    beside = out.resolve().parent / recipe.parent
    return beside if (beside / "model.safetensors").is_file() else Path(__file__).parent.parent / "zoo" / recipe.parent


def build(
    recipe: Recipe, out: Path, data: Path | None, *, steps: int | None, seed: int, compiled: bool | None
) -> Trainer:
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
        if recipe.objective == "distilled":
            teacher = parent.to(device).requires_grad_(False).eval()
        elif not recipe.from_scratch:
            network.load_state_dict(parent.state_dict())
    mixture = mix(recipe.sources, documents, tokenizer, seed)
    for source, stream in zip(recipe.sources, mixture.streams, strict=True):
        log.info("%s: %d tokens, %.0f%% of the rows", source.name, len(stream), 100 * source.weight)
    has_compiler = shutil.which("g++") is not None or device.type == "cuda"
    return Trainer(
        schedule=recipe,
        recipe=recipe,
        network=network,
        llama=network,
        teacher=teacher,
        mixture=mixture,
        tokenizer=tokenizer,
        device=device,
        seed=seed,
        steps=steps or (recipe.gpu_steps if device.type == "cuda" else recipe.steps),
        compiled=has_compiler if compiled is None else compiled,
    )


def train(
    recipe: str | Recipe | TranslationRecipe,
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
        recipe: A name in `RECIPES` or `TRANSLATIONS`, or a recipe.
        out: Directory for the checkpoint, the log and the exported model.
        data: Folder of training texts (default: ./data).
        resume: Continue from the checkpoint in `out`.
        steps: Steps of the whole run (default: the recipe's, which is larger where there is a GPU).
        threads: CPU threads (default: PyTorch's choice).
        seed: Seed of weights, data order and masks.
        compiled: Whether to compile the step (default: where a C++ compiler is found; a translator never is).

    Returns:
        Exit status: 0, or 130 when it was interrupted (a checkpoint is then saved).

    Raises:
        OutpaceError: For a missing text, a full disk, a checkpoint that does not fit, and the like.
    """
    chosen = _find(recipe)
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    with logging_to(out / "train.log"):
        trainer: Loop
        if isinstance(chosen, TranslationRecipe):
            from .seq2seq import build_translator  # transformers, which is optional

            trainer = build_translator(chosen, out, data, steps=steps, seed=seed)
        else:
            trainer = build(chosen, out, data, steps=steps, seed=seed, compiled=compiled)
            trainer.tokenizer.save(str(out / "tokenizer.json"))
        return run(trainer, out, resume=resume)


def _find(recipe: str | Recipe | TranslationRecipe) -> Recipe | TranslationRecipe:
    if not isinstance(recipe, str):
        return recipe
    known: dict[str, Recipe | TranslationRecipe] = {**RECIPES, **TRANSLATIONS}
    if recipe not in known:
        raise ConfigError(f"there is no recipe {recipe!r}", nearest(recipe, known, "recipe"))
    return known[recipe]


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

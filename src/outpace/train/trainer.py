"""Training the Llama-shaped models of the zoo: causal, masked and distilled."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ConfigError, nearest

from .data import EOS_ID, MASK_ID, DataMixture, find_data, mix, read_documents, train_tokenizer
from .export import Export, load_network
from .loop import EXIT_INTERRUPTED, Loop, inherited, log, logging_to, run_loop
from .network import Llama, hf_config
from .objectives import (
    DenoisingBatch,
    annealed,
    behind_prefix,
    causal_loss,
    distilled_loss,
    masked_loss,
    response_places,
    reweighted_loss,
    sorted_loss,
    whole_canvas,
)
from .objectives_backspace import BacktrackedBatch, backtracked, match_loss
from .objectives_block import block_canvas, set_block_canvas
from .objectives_codes import coded_loss, start_codes
from .objectives_parallel import parallel_canvas
from .objectives_steps import TaughtBatch, ToldBatch, cleaner_view, matched_loss, rolled_out, told_before, told_loss
from .objectives_window import window_canvas
from .recipes import (
    ENERGIES,
    FLOWS,
    JOINTS,
    ORDERS,
    RECIPES,
    RECURRENT,
    TRANSLATIONS,
    EnergyRecipe,
    FlowRecipe,
    JointRecipe,
    OrderRecipe,
    Recipe,
    RecurrentRecipe,
    TranslationRecipe,
)
from .seq3 import COMPRESSIONS, CompressionRecipe, build_compressor

__all__ = ["EXIT_INTERRUPTED", "Trainer", "build_llama", "train"]
_TAUGHT = ("distilled", "reweighted", "unrolled", "consistent", "residual")
_Batch = DenoisingBatch | TaughtBatch | ToldBatch | BacktrackedBatch
_OwnLoss = JointRecipe | FlowRecipe | EnergyRecipe
AnyOfThem = Recipe | TranslationRecipe | CompressionRecipe | OrderRecipe | RecurrentRecipe | _OwnLoss


def _same_gradients(
    network: Llama, one: Callable[..., Tensor], other: Callable[..., Tensor], arguments: Sequence[Any]
) -> bool:
    """Tell whether two ways to compute a loss have the same gradients, up to a tenth of their size."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    first, second = (
        torch.autograd.grad(loss(network, *arguments), weights, allow_unused=True, materialize_grads=True)
        for loss in (one, other)
    )
    apart = sum(float((a - b).float().square().sum()) for a, b in zip(first, second, strict=True))
    return apart <= 0.01 * sum(float(b.float().square().sum()) for b in second)


@dataclass(slots=True, kw_only=True)
class Trainer(Loop):
    """A Llama in training.

    Attributes:
        teacher: The parent's model where the objective needs it.
        mixture: The data.
        compiled: Whether the loss is compiled.
    """

    recipe: Recipe
    network: Llama
    teacher: Llama | None
    mixture: DataMixture
    compiled: bool = False
    _loss: Callable[..., Tensor] = field(init=False)
    _compiled: Callable[..., Tensor] | None = field(init=False)  # None = not used
    _tried: set[tuple[int, ...]] = field(init=False, default_factory=set)  # shapes that it was tried with

    def __post_init__(self) -> None:
        """Build the optimisers, and compile the loss where that is possible."""
        Loop.__post_init__(self)
        functions: dict[str, Callable[..., Tensor]] = {
            "causal": causal_loss,
            "masked": masked_loss,
            "block": masked_loss,
            "set-block": masked_loss,
            "distilled": distilled_loss,
            "reweighted": reweighted_loss,
            "parallel": masked_loss,
            "sorted": sorted_loss,
            "unrolled": matched_loss,
            "consistent": matched_loss,
            "residual": told_loss,
            "windows": masked_loss,
            "backspace": match_loss,
            "codes": coded_loss,
        }
        loss = functions[self.recipe.objective]
        self._loss, self._compiled = loss, torch.compile(loss, dynamic=False) if self.compiled else None

    def loss(self) -> Tensor:
        """Return the loss of the step's rows."""
        arguments = self._arguments()
        if self._compiled is None:
            return self._loss(self.network, *arguments)
        # PyTorch 2.13 compiles SequenceMatch to the right loss with wrong gradients: its word is not taken for it, nor
        # for another size of the rows, which is compiled anew.
        shape = tuple(next(one for one in arguments if isinstance(one, Tensor)).shape)
        if shape not in self._tried:
            self._tried.add(shape)
            if not _same_gradients(self.network, self._compiled, self._loss, arguments):
                log.warning("compiled, the loss has other gradients: it is computed as it is written")
                self._compiled = None
                return self._loss(self.network, *arguments)
        return self._compiled(self.network, *arguments)

    def described(self) -> Export:
        """Return the model as it is now, as its files tell it."""
        recipe, streams = self.recipe, self.mixture.streams
        rows = [
            f"| {source.name} | {source.note} | {source.origin} | {source.licence} | {len(stream):,} "
            f"| {source.weight:.0%} |"
            for source, stream in zip(recipe.sources, streams, strict=True)
        ]
        return Export(
            weights=self.network.state_dict(),
            config=hf_config(recipe.shape, eos_id=EOS_ID, mask_id=MASK_ID) | _named(recipe),
            generation={"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
            context=recipe.shape.context,
            seen=f"{self.step * self.tokens_per_step:,} tokens",
            data=(
                f"The library is that of Python {platform.python_version()}; another version gives other token counts.",
                "",
                "| source | used | origin | licence | tokens | share of rows |",
                "|---|---|---|---|---|---|",
                *rows,
                "",
                "Held out: TinyStories' `valid.txt`, about 4% of the library's files, MBPP's test split.",
            ),
            licence=(
                "The weights ship under Apache-2.0 as part of Outpace; the texts keep the licences above.",
                "A test and teaching model: it knows nothing, it invents, and it must not be relied on for anything.",
            ),
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a step."""
        return self.recipe.rows * self.recipe.length

    def _arguments(self) -> tuple[Tensor | Llama | tuple[int, ...], ...] | _Batch:
        recipe, shape = self.recipe, self.recipe.shape
        is_long = self.step >= self.steps * (1 - recipe.long_share)
        length, rows = (recipe.length * 2, recipe.rows // 2) if is_long else (recipe.length, recipe.rows)
        extra = 1 if shape.causal else 0
        tokens = self.mixture.batch(self.step, rows, length + extra).to(self.device)
        if recipe.objective == "masked":
            markers = [self.tokenizer.encode(text).ids for text in recipe.responses_after]
            is_open = response_places(tokens, markers) if markers else None
            if recipe.has_prefix:
                is_open = behind_prefix(tokens, self.step, self.seed)
            noise = (recipe.uniform, shape.vocab)
            canvas = whole_canvas(tokens, self.step, self.seed, shape.shifted, is_open, *noise)
            share = self.step / (recipe.anneal * self.steps) if recipe.anneal else 1.0
            return canvas._replace(pieces=annealed(length, share, self.step, self.seed, self.device))
        if recipe.objective == "block":
            return block_canvas(tokens, shape.block, self.step, self.seed, recipe.complementary)
        if recipe.objective == "set-block":
            return set_block_canvas(tokens, recipe.levels, self.step, self.seed)
        if recipe.objective == "parallel":
            return parallel_canvas(tokens, recipe.levels, recipe.kept, self.step, self.seed)
        if recipe.objective == "windows":
            return window_canvas(tokens, recipe.levels, recipe.asked, self.step, self.seed)
        if recipe.objective == "backspace":
            return backtracked(self.network, tokens, recipe.asked, self.step, self.seed, self.step / self.steps)
        if recipe.objective == "sorted":
            return tokens, recipe.exits
        if self.teacher is not None and recipe.objective == "unrolled":
            asked = (recipe.rollout, recipe.stride, recipe.asked, self.step, self.seed)
            return rolled_out(tokens, self.teacher, *asked)
        if self.teacher is not None and recipe.objective == "consistent":
            return cleaner_view(tokens, self.teacher, recipe.asked, self.step, self.seed)
        if self.teacher is not None and recipe.objective == "residual":
            return told_before(tokens, self.teacher, recipe.stride, recipe.asked, self.step, self.seed)
        return (tokens,) if self.teacher is None else (tokens, self.teacher)


def _named(recipe: Recipe) -> dict[str, Any]:
    """Return what config.json says of a drafter: its mask, as PARD's files do, or its exits."""
    if recipe.objective in ("parallel", "set-block"):
        return {"pard_token": MASK_ID}
    return {"exit_layers": list(recipe.exits)} if recipe.exits else {}


def build_llama(
    recipe: Recipe, out: Path, data: Path | None, *, steps: int, seed: int, compiled: bool | None
) -> Trainer:
    """Read the data and make the networks of a run (or take them from the parent)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    documents = read_documents(recipe.sources, find_data(data))
    network, teacher = Llama(recipe.shape, seed), None
    tokenizer, parent = inherited(
        recipe, out, lambda: train_tokenizer(chain.from_iterable(documents), recipe.shape.vocab)
    )
    if parent is not None and recipe.objective in _TAUGHT:
        teacher = load_network(parent).to(device).requires_grad_(False)
    if parent is not None and recipe.objective not in ("distilled", "reweighted") and not recipe.from_scratch:
        network.load_state_dict(load_network(parent).state_dict(), strict=not recipe.shape.codes)
    mixture = mix(recipe.sources, documents, tokenizer, seed)
    if parent is not None and recipe.objective == "codes":
        start_codes(network, load_network(parent), mixture.batch(0, 16, recipe.length), seed)
    for source, stream in zip(recipe.sources, mixture.streams, strict=True):
        log.info("%s: %d tokens, %.0f%% of the rows", source.name, len(stream), 100 * source.weight)
    has_compiler = shutil.which("g++") is not None or device.type == "cuda"
    return Trainer(
        recipe=recipe,
        network=network,
        teacher=teacher,
        mixture=mixture,
        tokenizer=tokenizer,
        device=device,
        seed=seed,
        steps=steps,
        compiled=has_compiler if compiled is None else compiled,
    )


def train(
    recipe: str | AnyOfThem,
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
        recipe: A name in `RECIPES`, `TRANSLATIONS`, `COMPRESSIONS`, `ORDERS`, `RECURRENT`, `JOINTS`, `FLOWS` or
            `ENERGIES`, or a recipe.
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
    steps = steps or (chosen.gpu_steps if torch.cuda.is_available() else chosen.steps)
    out.mkdir(parents=True, exist_ok=True)
    with logging_to(out / "train.log"):
        trainer: Loop
        if isinstance(chosen, TranslationRecipe):
            from .translation.trainer import build_translator

            trainer = build_translator(chosen, out, data, steps=steps, seed=seed)
        elif isinstance(chosen, CompressionRecipe):
            trainer = build_compressor(chosen, out, data, steps=steps, seed=seed)
        elif isinstance(chosen, OrderRecipe):
            from .any_order import build_any_order

            trainer = build_any_order(chosen, out, data, steps=steps, seed=seed)
        elif isinstance(chosen, FlowRecipe):
            from .flow import build_flow

            trainer = build_flow(chosen, out, data, steps=steps, seed=seed)
        elif isinstance(chosen, RecurrentRecipe):
            from .recurrent import build_recurrent

            trainer = build_recurrent(chosen, out, data, steps=steps, seed=seed)
        elif isinstance(chosen, JointRecipe):
            from .joint import build_joint

            trainer = build_joint(chosen, out, data, steps=steps, seed=seed)
        elif isinstance(chosen, EnergyRecipe):
            from .energy import build_energy

            trainer = build_energy(chosen, out, data, steps=steps, seed=seed)
        else:
            trainer = build_llama(chosen, out, data, steps=steps, seed=seed, compiled=compiled)
        trainer.tokenizer.save(str(out / "tokenizer.json"))
        return run_loop(trainer, out, resume=resume)


def _find(recipe: str | AnyOfThem) -> AnyOfThem:
    if not isinstance(recipe, str):
        return recipe
    known: dict[str, AnyOfThem] = {
        **RECIPES,
        **TRANSLATIONS,
        **COMPRESSIONS,
        **ORDERS,
        **RECURRENT,
        **JOINTS,
        **FLOWS,
        **ENERGIES,
    }
    if recipe not in known:
        raise ConfigError(f"there is no recipe {recipe!r}", nearest(recipe, known, "recipe"))
    return known[recipe]

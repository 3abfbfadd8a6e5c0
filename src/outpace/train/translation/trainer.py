"""A network in training on sentence pairs: its loss, its looks at held-out text, its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from outpace.errors import ConfigError, nearest
from outpace.train import checkpoint
from outpace.train.data import find_data
from outpace.train.export import Export, load_tokenizer, write_model
from outpace.train.loop import Loop, beside, inherited, log
from outpace.train.nar.infilling import fragments
from outpace.train.nar.objectives import Objective
from outpace.train.nar.reverse import Teacher
from outpace.train.pairs import Pair, PairBatches, encode_pairs, join_neighbours, train_pair_tokenizer
from outpace.train.recipes import TRANSLATIONS, TranslationRecipe

from .criteria import CrossEntropy, Taught
from .look import HeldOut, draw_curves
from .network import Criterion, PairNetwork
from .noise import noiser
from .snapshots import averaged, deepened, drop_others, keep_snapshot, recent_snapshots
from .written import store_of, written_pairs

__all__ = ["PairTrainer", "batches_of", "build_translator"]


@dataclass(slots=True, kw_only=True)
class PairTrainer(Loop):
    """A network in training.

    Attributes:
        criterion: What is minimised.
        batches: The data.
        held_out: Pairs to look at; None = no looks.
        looks: What was seen: step, loss, held_out and bleu of each look.
        num_tokens: Tokens in the pairs, both sides.
    """

    recipe: TranslationRecipe
    network: PairNetwork
    criterion: Criterion
    batches: PairBatches
    held_out: HeldOut | None = None
    looks: list[dict[str, float]] = field(default_factory=list)
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimisers and count the data."""
        Loop.__post_init__(self)
        self.num_tokens = sum(len(ids) for side in (self.batches.sources, self.batches.targets) for ids in side)

    def loss(self) -> Tensor:
        """Return the loss of the step's pairs; dropout's and the criterion's draws depend on seed and step alone."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        self.network.progress = self.step / self.steps
        return self.network.loss(self.batches.batch(self.step).to(self.device), self.criterion)

    def advance(self) -> float:
        """Do one step, and look at the held-out pairs where it is time; returns the loss in nats per token."""
        loss = Loop.advance(self)
        every = self.recipe.look_every
        if self.held_out is not None and every and (self.step % every == 0 or self.step == self.steps):
            recent = self.losses[-every:]
            look = {"step": float(self.step), "loss": sum(recent) / len(recent)}
            self.looks.append(look | self.held_out.look(self.network, self.device))
            log.info("step %d: held-out loss %.4f, BLEU %.2f", self.step, *list(self.looks[-1].values())[2:])
        return loss

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return Loop.state(self) | {"looks": self.looks}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; see `Steps.restore`."""
        Loop.restore(self, state)
        self.looks = list(state["looks"])

    def keep(self, out: Path) -> None:
        """Write a checkpoint and the model: its weights, or the mean of the last ones where the recipe asks for it."""
        recipe = self.recipe
        for note in self.network.notes():
            log.warning("%s", note)
        checkpoint.save(self.state(), out / "checkpoint.pt")
        (out / "looks.json").write_text(json.dumps(self.looks, indent=1) + "\n", encoding="utf-8")
        draw_curves(self.looks, recipe.name, out / "curves.png")
        if not recipe.averaged:
            if recipe.keeps_all:
                keep_snapshot(self.network, out, self.step)
            return write_model(self, self.described(), out)
        own = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        keep_snapshot(self.network, out, self.step)
        last = recent_snapshots(out, self.step, recipe.checkpoint_every, recipe.averaged)
        self.network.load_state_dict(averaged(last))
        write_model(self, self.described(), out)
        self.network.load_state_dict(own)
        if not recipe.keeps_all:
            drop_others(out, last)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of both sides in a mean step."""
        return self.num_tokens // self.batches.steps_per_epoch

    def described(self) -> Export:
        """Return the model as it is now, as its files tell it."""
        recipe, files = self.recipe, self.network.export()
        source = recipe.source
        is_free = "research" not in source.licence
        return Export(
            weights=files.weights,
            config=files.config,
            generation=dict(files.generation),
            context=files.context,
            facts=(
                f"- architecture: {files.architecture}",
                f"- direction: {recipe.direction or source.directions[0]}, criterion: {recipe.criterion}",
                *([f"- method: {recipe.method}"] if recipe.method else []),
                *([f"- weights: the mean of the last {recipe.averaged} checkpoints"] if recipe.averaged else []),
                *_look_lines(self.looks),
            ),
            seen=f"{self.step / self.batches.steps_per_epoch:.1f} epochs",
            data=(
                "| source | used | origin | licence | pairs | tokens |",
                "|---|---|---|---|---|---|",
                f"| {source.name} | {source.note} | {source.origin} | {source.licence} "
                f"| {len(self.batches.sources):,} | {self.num_tokens:,} |",
                "",
                f"A share of {recipe.joined:.0%} of the pairs was made by joining two or three others.",
                "Held out: the splits `valid` and `test`.",
            ),
            licence=(
                _SHIPPED.format(source=source) if is_free else _KEPT,
                "A test and teaching model: it gets much wrong, and it must not be relied on for anything.",
            ),
        )


_KEPT = "The texts are for research only: neither they nor these weights may be passed on."
_SHIPPED = (
    "The weights ship under Apache-2.0 as part of Outpace; the texts keep the licence above "
    "(attribution: {source.origin})."
)


def _look_lines(looks: Sequence[dict[str, float]]) -> list[str]:
    if not looks:
        return []
    last = looks[-1]
    return [f"- held-out pairs, last weights: loss {last['held_out']:.3f} nats per token, BLEU {last['bleu']:.1f}"]


def build_translator(recipe: TranslationRecipe, out: Path, data: Path | None, *, steps: int, seed: int) -> PairTrainer:
    """Read the pairs and make the networks of a run (or take them from the parent).

    Raises:
        OutpaceError: For a missing text, a parent that is not there, transformers not installed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, source = find_data(data), recipe.source
    raw = pairs = source.pairs(folder, "train", recipe.direction)
    tokenizer, directory = inherited(recipe, out, lambda: _tokenizer(recipe, out, pairs))
    parent = None if directory is None else _load_parent(recipe.parent, directory, recipe).to(device)
    torch.manual_seed(seed)
    network = _started(recipe.shape.build(recipe.vocab), recipe, parent, out)
    name = f"{source.name}-{recipe.direction or source.directions[0]}"
    if parent is not None and recipe.parent is not None and recipe.objective == "written":
        pairs = written_pairs(parent, tokenizer, pairs, store_of(recipe.parent, out) / f"{name}.jsonl", device)
        if recipe.has_own_tokenizer or recipe.start:
            tokenizer = _tokenizer(recipe, out, pairs)
    if recipe.mixture is not None:
        pairs = recipe.mixture.pairs(raw, lambda teacher: _open_teacher(teacher, out), name, device)
    batches = batches_of(recipe, tokenizer, pairs, seed)
    network.prepare(batches, tokenizer)
    if recipe.curriculum is not None:
        batches = recipe.curriculum.staged(batches, tokenizer, pairs, steps)
    log.info("%s: %d pairs, %d steps an epoch", source.name, len(batches.sources), batches.steps_per_epoch)
    is_looking = recipe.look_every > 0
    return PairTrainer(
        recipe=recipe,
        network=network,
        criterion=_criterion(recipe, parent, lambda: batches_of(recipe, tokenizer, raw, seed)),
        batches=batches,
        held_out=HeldOut(source.pairs(folder, "valid", recipe.direction), tokenizer) if is_looking else None,
        tokenizer=tokenizer,
        device=device,
        seed=seed,
        steps=steps,
    )


def _tokenizer(recipe: TranslationRecipe, out: Path, pairs: Sequence[Pair]) -> Tokenizer:
    """Return the tokenizer that does not come from a parent: that of `start`, of an earlier run, or a new one."""
    if recipe.start is not None:
        return load_tokenizer(beside(recipe.start, out))
    if (out / "tokenizer.json").is_file():
        return load_tokenizer(out)
    return train_pair_tokenizer(pairs, recipe.vocab, recipe.source.tags, recipe.source.is_spaced)


def _started(network: PairNetwork, recipe: TranslationRecipe, parent: PairNetwork | None, out: Path) -> PairNetwork:
    """Put an earlier network's weights into a new one where the recipe goes on from them."""
    if recipe.start is not None:
        first = _load_parent(recipe.start, beside(recipe.start, out), recipe)
        if network.adopt(first.state_dict()):
            return network
        return _fitted(network, first, recipe.start)
    if parent is not None and recipe.is_deepened:
        network.load_state_dict(deepened(parent, network))
    elif parent is not None and recipe.objective in ("translation", "denoising", "infilling"):
        network.load_state_dict(parent.state_dict())
    return network


def _fitted(network: PairNetwork, first: PairNetwork, name: str) -> PairNetwork:
    """Put those weights of another network into a new one whose names and shapes are the same."""
    own = network.state_dict()
    found = dict[str, Tensor]()
    for key, weight in first.state_dict().items():
        if key.endswith("embed_tokens.weight") and key in own:  # symbols beyond the tokens, such as a blank, are left
            weight = weight[: len(own[key])]
        if key in own and own[key].shape == weight.shape:
            found[key] = weight
    if not found:
        raise ConfigError(f"No weight of {name} fits into the new network.", "Start from one of the same sizes.")
    network.load_state_dict({**own, **found})
    log.info("%d of %d weights are those of %s", len(found), len(own), name)
    return network


def batches_of(recipe: TranslationRecipe, tokenizer: Tokenizer, pairs: Sequence[Pair], seed: int) -> PairBatches:
    """Return the batches that a recipe makes of pairs.

    Raises:
        ConfigError: When no pair is short enough.
    """
    if recipe.objective in ("denoising", "infilling"):
        pairs = [(text, text) for pair in pairs for text in dict.fromkeys(pair)]
    batches = encode_pairs(tokenizer, join_neighbours(pairs, recipe.joined, seed), recipe.budget, recipe.longest, seed)
    if not batches.sources:
        hint = "Give texts with shorter lines, or a parent that ends its sentences."
        raise ConfigError(f"No pair of {recipe.source.name} has at most {recipe.longest} tokens a side.", hint)
    if recipe.objective == "infilling":
        return replace(batches, split=fragments(*recipe.fragment))
    return replace(batches, spoil=noiser(recipe.noise, tokenizer)) if recipe.objective == "denoising" else batches


def _load_parent(name: str | None, directory: Path, recipe: TranslationRecipe) -> PairNetwork:
    known = TRANSLATIONS.get(name or "", recipe)
    return known.shape.load(directory).requires_grad_(False)


def _open_teacher(name: str, out: Path) -> Teacher:
    """Return a teacher: the network of a run beside `out` or of a shipped model, and where its texts are kept."""
    if name not in TRANSLATIONS:
        raise ConfigError(f"There is no recipe {name!r} to teach.", nearest(name, TRANSLATIONS, "recipe"))
    directory = beside(name, out)
    network = TRANSLATIONS[name].shape.load(directory).requires_grad_(False)
    return network, load_tokenizer(directory), store_of(name, out)


def _criterion(recipe: TranslationRecipe, parent: PairNetwork | None, raw: Callable[[], PairBatches]) -> Criterion:
    if isinstance(recipe.criterion, Objective) and recipe.criterion.wants_raw:
        return recipe.criterion.prepared(raw())
    if parent is None or recipe.objective != "distilled":
        return recipe.criterion
    if not isinstance(recipe.criterion, CrossEntropy):
        hint = "Use CrossEntropy, or targets that the parent writes (objective `written`)."
        raise ConfigError(f"A parent's laws cannot be learnt beside {recipe.criterion}.", hint)
    return Taught(parent, recipe.criterion.smoothing)

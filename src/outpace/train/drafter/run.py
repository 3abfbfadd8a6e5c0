"""`outpace train drafter` from beginning to end: texts, states, training."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from outpace import kernels
from outpace.errors import ConfigError
from outpace.failures import interruptible
from outpace.heads.find import drafters_folder, head_name, target_word
from outpace.heads.net import Frozen, HeadNet, load_kind
from outpace.models.loading import read_end_tokens
from outpace.models.opening import locate, open_model
from outpace.text.chat import is_chat
from outpace.text.fingerprint import fingerprint
from outpace.text.tokenizer import Tokenizer
from outpace.train import checkpoint
from outpace.train.drafter.batches import Shape, draftable
from outpace.train.drafter.frozen import freeze
from outpace.train.drafter.states import States
from outpace.train.drafter.texts import Text, Writing, read_texts, write_texts
from outpace.train.drafter.trainer import DrafterTrainer
from outpace.train.loop import EXIT_INTERRUPTED, log, logging_to, run_loop
from outpace.train.recipes import AnyRecipe
from outpace.types import Adapter

if TYPE_CHECKING:
    from outpace.api.prompt import Prompt

__all__ = ["Plan", "train_drafter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a drafter is trained.

    Attributes:
        steps: optimiser steps.
        rows, length: texts of a batch, and tokens of a text; of shorter texts a batch holds more.
        matrix_rate: peak learning rate of Muon, for matrices.
        other_rate: peak learning rate of AdamW, for tables, norms and biases.
        warmup: steps until the full rates.
        clip: largest norm of the gradient.
        draft_vocab: the tokens that can be drafted: so many of the answers' most frequent; 0 = all.
        check_every: steps between two looks at held-out texts.
        patience: looks without a longer accepted length before the run ends; 0 = never.
        limit_min: minutes after which it stops, to be resumed; 0 = none.
        seed: fixes weights, order of the texts and every draw.
    """

    steps: int = 1000
    rows: int = 8
    length: int = 512
    matrix_rate: float = 5e-3
    other_rate: float = 3e-3
    warmup: int = 50
    clip: float = 1.0
    draft_vocab: int = 0
    check_every: int = 100
    patience: int = 0
    limit_min: float = 0.0
    seed: int = 0


def train_drafter(
    kind: str,
    target: str,
    out: Path | None = None,
    *,
    prompts: Sequence[Prompt] = (),
    texts: Path | None = None,
    writing: Writing | None = None,
    plan: Plan | None = None,
    settings: Mapping[str, Any] | None = None,
    states: Path | None = None,
    has_cache: bool = True,
    resume: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> int:
    """Train a drafter of a kind for a target.

    Args:
        kind: names its network.
        target: what `outpace.load` takes.
        out: its directory; None = where `draft=auto` finds it (`outpace.heads.find`).
        prompts: what the target answers; none = it writes from its start token on.
        texts: a file of texts that are there already; None = they are written, once for all kinds.
        writing: how.
        plan: how it is trained.
        settings: of the kind, e.g. {"depth": 4}.
        states: where the target's states of the texts are kept; None = beside the texts.
        has_cache: keep them; False = compute them anew for each batch.
        resume: go on from the checkpoint in `out`.
        threads: CPU threads; None = torch's number.
        device: "auto", "cpu" or "cuda".

    Returns:
        Exit status: 0, or 130 when it was interrupted (what was done is kept).

    Raises:
        OutpaceError: an unknown kind or target, texts or states of another target, a full disk, and the like.
    """
    network, plan, writing = load_kind(kind), plan or Plan(), writing or Writing()
    if threads:
        torch.set_num_threads(threads)
    out = out or drafters_folder() / head_name(target, kind)
    out.mkdir(parents=True, exist_ok=True)
    with logging_to(out / "train.log"):
        file = texts or drafters_folder() / f"{target_word(target)}-texts" / "texts.jsonl"
        if texts is None and not _write(target, prompts, file, writing, device):
            return EXIT_INTERRUPTED
        model = open_model(target, "auto", device, None)  # kernels would free the matrices that training needs
        read = read_texts(file, model.capabilities.vocab_size)
        saved = checkpoint.load(out / "checkpoint.pt") if resume else None
        if saved is not None:  # a file that has grown since changes nothing
            read = read[: saved["texts"]]
        net, ids = _new_net(network, model, target, read, plan, dict(settings or {}), saved)
        folder = (states or file.parent / _states_word(net, plan.length)) if has_cache else None
        reader = open_model(target, "auto", device, kernels)
        kept = States(reader, target, read, net.config.outputs, plan.length, folder)
        if not _fill(kept):
            return EXIT_INTERRUPTED
        frozen = freeze(model, ids)
        net.begin(frozen)  # where it goes on, its weights are read over
        trainer = _trainer(net, frozen, read, kept, plan, head_name(target, kind), target, model.device)
        log.info("%d texts to learn from, %d batches held out", len(trainer._learn), len(trainer._held))
        return run_loop(trainer, out, resume=resume)


def _states_word(net: HeadNet, length: int) -> str:
    layers = "-".join(map(str, net.config.layers)) or "last"
    return f"states-{layers}-{length}"


def _new_net(
    network: type[HeadNet],
    model: Adapter,
    target: str,
    texts: Sequence[Text],
    plan: Plan,
    settings: dict[str, Any],
    saved: Mapping[str, Any] | None,
) -> tuple[HeadNet, Tensor | None]:
    """Return the untrained network, and the tokens that it drafts; those of a run that is resumed stay as they are."""
    offered = model.capabilities
    ends = read_end_tokens(locate(target)[0])
    width = model.embed(torch.zeros(1, 1, dtype=torch.int64, device=model.device)).shape[-1]
    ids = draftable(texts, offered.vocab_size, plan.draft_vocab, ends) if saved is None else saved["ids"]
    config = network.made_for(width, offered.vocab_size, offered.num_layers, target_word(target), **settings)
    tokenizer = Tokenizer.from_directory(locate(target)[0])
    config = replace(
        config,
        target=target_word(target),
        draft_vocab=0 if ids is None else len(ids),
        vocabulary=fingerprint(tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        net = network(config)
    return net, None if ids is None else ids.to(model.device)


def _trainer(
    net: HeadNet,
    frozen: Frozen,
    texts: Sequence[Text],
    states: States,
    plan: Plan,
    name: str,
    target: str,
    device: torch.device,
) -> DrafterTrainer:
    recipe = AnyRecipe(
        name=name,
        summary=f"A drafter of the kind `{net.kind}` for `{target}`: it changes the speed, never the text.",
        objective="drafter",
        parent=target,
        steps=plan.steps,
        gpu_steps=plan.steps,
        warmup=plan.warmup,
        matrix_rate=plan.matrix_rate,
        other_rate=plan.other_rate,
        clip=plan.clip,
        checkpoint_every=plan.check_every,
    )
    return DrafterTrainer(
        recipe=recipe,
        network=net.float(),
        device=device,
        seed=plan.seed,
        steps=plan.steps,
        frozen=frozen,
        texts=texts,
        states=states,
        shape=Shape(rows=plan.rows, length=plan.length),
        check_every=plan.check_every,
        patience=plan.patience,
        limit_s=60 * plan.limit_min,
    )


def _write(target: str, prompts: Sequence[Prompt], file: Path, writing: Writing, device: str) -> bool:
    """Let the target write what is missing; return False where it was interrupted."""
    from outpace.api.engine import load  # it imports most of the package

    lm = load(target, device=device)
    if not prompts and lm.target.capabilities.is_encoder_decoder:
        raise ConfigError("There is no source to read.", "Give --prompts FILE (sources), or --texts-from.")
    if not prompts:
        # A model that knows no start token was trained on texts that follow an end token, as GPT-2 and its kin.
        is_asked = lm.tokenizer is None or lm.tokenizer.has_chat
        start = [] if is_asked else lm.encode("") or list(lm.end_tokens[:1])
        if not start:
            raise ConfigError(
                "There is no prompt to answer.", "Give --prompts FILE (a set of texts or questions), or --texts-from."
            )
        prompts = [start]
        writing = replace(writing, greedy_share=0.0, temperature=1.0)
    elif lm.tokenizer is None or not lm.tokenizer.has_chat:
        prompts = [prompt if _is_plain(prompt) else prompt[-1]["content"] for prompt in prompts]  # type: ignore[index]
    with _bar("texts", writing.count) as bar, _stopping() as is_stopping:

        def show(texts: int, tokens: int) -> None:
            bar(texts, f"{tokens:,} tokens")

        write_texts(lm, prompts, file, writing, is_stopping=is_stopping, show=show)
        return not is_stopping()


def _is_plain(prompt: Prompt) -> bool:
    return isinstance(prompt, str) or not is_chat(prompt)


def _fill(states: States) -> bool:
    if not states.missing:
        return True
    with _bar("states", len(states)) as show, _stopping() as is_stopping:
        states.fill(is_stopping, lambda done: show(done, ""))
        return not is_stopping()


def _stopping() -> Any:
    return interruptible(signal.SIGINT, signal.SIGTERM, is_patient=True)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, a log line at every twentieth part everywhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[more]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, told = bar.add_task(what, total=total, more=""), [-1]

        def show(done: int, more: str) -> None:
            bar.update(task, completed=done, more=more)
            if (part := 20 * done // max(1, total)) != told[0]:
                told[0] = part
                log.info("%s: %d of %d%s", what, done, total, f", {more}" if more else "")

        yield show

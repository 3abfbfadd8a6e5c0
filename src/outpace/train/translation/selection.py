"""Which checkpoint of a teacher teaches best: one student learns from what each of them writes.

    python -m outpace.train.translation.selection runs/captions-teacher --student nar-ctc-raw --at 200 800 2700

Source: Voita, Sennrich and Titov (2021, arXiv 2109.01396), section 6: a translator gets better for long after it has
learnt to translate word by word, by reordering more; an earlier checkpoint writes simpler targets, and a student that
writes in one pass may learn more from it than from the last one. Students have equal weights at the start, equal steps
and the same sources. The paper's student is a vanilla one-pass model with lengths, trained for days.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.train import checkpoint
from outpace.train.bleu import bleu
from outpace.train.data import find_data
from outpace.train.export import load_tokenizer
from outpace.train.pairs import Pair, train_pair_tokenizer
from outpace.train.recipes import TRANSLATIONS, TranslationRecipe

from .dynamics import Order
from .look import translate_all, write_all
from .network import PairNetwork
from .snapshots import load_snapshot, snapshots
from .trainer import PairTrainer, batches_of
from .written import written_pairs

__all__ = ["Lesson", "lesson", "main"]
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a student learnt from one checkpoint.

    Attributes:
        step: Of the teacher's training.
        teacher: BLEU of that checkpoint.
        monotone: Mean fuzzy reordering score of what it writes; 1 = the source's order.
        student: BLEU of the student.
        student_loss: Its loss over the last tenth of its steps, on what the teacher wrote, nats per token.
    """

    step: int
    teacher: float
    monotone: float
    student: float
    student_loss: float


def lesson(
    teacher: PairNetwork,
    tokenizer: Tokenizer,
    step: int,
    recipe: TranslationRecipe,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    *,
    steps: int,
    out: Path,
    order: Order,
) -> Lesson:
    """Train one student on what a teacher writes.

    Args:
        teacher: with the checkpoint's weights.
        tokenizer: the teacher's.
        step: of the checkpoint.
        recipe: of the student; its tokenizer is made from the pairs, so that all students read alike.
        pairs: their sources are translated.
        held_out: pairs that both are measured on.
        steps: of the student.
        out: folder of the targets that were written.
        order: tells how monotone its texts are.
    """
    sources, references = [source for source, _ in held_out], [target for _, target in held_out]
    rows = write_all(teacher, tokenizer, sources, CPU)
    written = written_pairs(teacher, tokenizer, pairs, out / f"{step:06d}.jsonl", CPU)
    own = train_pair_tokenizer(pairs, recipe.vocab, recipe.source.tags, recipe.source.is_spaced)
    torch.manual_seed(0)
    network, batches = recipe.shape.build(recipe.vocab), batches_of(recipe, own, written, seed=0)
    network.prepare(batches, own)
    trainer = PairTrainer(
        recipe=recipe,
        network=network,
        criterion=recipe.criterion,
        batches=batches,
        tokenizer=own,
        device=CPU,
        seed=0,
        steps=steps,
    )
    while trainer.step < steps:
        trainer.advance()
    last = trainer.losses[-max(1, steps // 10) :]
    return Lesson(
        step=step,
        teacher=bleu(tokenizer.decode_batch(rows), references),
        monotone=order.monotone(sources, rows),
        student=bleu(translate_all(trainer.network, own, sources, CPU), references),
        student_loss=sum(last) / len(last),
    )


_HEAD = "| checkpoint | its BLEU | how monotone | student's loss on its texts | student's BLEU |\n|---|---|---|---|---|"


def _line(one: Lesson) -> str:
    return f"| {one.step} | {one.teacher:.2f} | {one.monotone:.3f} | {one.student_loss:.3f} | {one.student:.2f} |"


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.translation.selection", description=__doc__)
    parser.add_argument("directory", type=Path, help="of a run that kept its checkpoints")
    parser.add_argument("--student", default="nar-ctc-raw", help="recipe of the students")
    parser.add_argument("--at", nargs="+", type=int, default=[], help="steps of the checkpoints (default: all)")
    parser.add_argument("--pairs", type=int, default=8000, help="sources that each checkpoint translates")
    parser.add_argument("--steps", type=int, default=300, help="of each student")
    parser.add_argument("--count", type=int, default=500, help="held-out sentences")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="note the figures here")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _teach_all(given), [])


def _teach_all(given: argparse.Namespace) -> int:
    name, student = checkpoint.load(given.directory / "checkpoint.pt")["recipe"], TRANSLATIONS.get(given.student)
    kept = dict(snapshots(given.directory))
    missing = [step for step in given.at if step not in kept]
    if name not in TRANSLATIONS or student is None or not kept or missing:
        raise ConfigError(
            f"{given.directory} has no checkpoint {missing[0]}." if missing and kept else "There is nothing to teach.",
            f"Kept: {', '.join(map(str, kept)) or 'none'}; a student is one of {', '.join(TRANSLATIONS)}.",
        )
    recipe, folder = TRANSLATIONS[name], find_data(given.data)
    pairs = recipe.source.pairs(folder, "train", recipe.direction)[: given.pairs]
    held_out = recipe.source.pairs(folder, "valid", recipe.direction)[: given.count]
    teacher, tokenizer, found = recipe.shape.build(recipe.vocab), load_tokenizer(given.directory), list[Lesson]()
    student, order = replace(student, look_every=0), Order.learnt(tokenizer, pairs)
    print(_HEAD)
    for step in given.at or kept:
        load_snapshot(teacher, kept[step])
        out = given.directory / "written"
        found.append(
            lesson(teacher, tokenizer, step, student, pairs, held_out, steps=given.steps, out=out, order=order)
        )
        print(_line(found[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

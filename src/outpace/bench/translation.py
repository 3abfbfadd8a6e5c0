"""Translate with our kernels, with transformers and with CTranslate2, on the same weights, in turns.

    python -m outpace.bench.translation [--threads 2] [--rounds 5] [--json out.json]

Two models: the shipped `translate` on sentences of its kind, and a random Marian of the usual size (6 + 6 layers, 512
wide, 58,101 words) that writes as many tokens as it is asked for. CTranslate2 runs in a process of its own, by the
Python that OUTPACE_PEERS_PYTHON names; without it the table has the other sides. A side's first round is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.child import Child, ChildError
from outpace.bench.command import new_parser, numbers, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.bench.rounds import in_turns
from outpace.methods.registry import method_names
from outpace.models.loading import ZOO, load_model

__all__ = ["Answer", "Work", "main", "measure", "summarise", "write_marian"]

_USUAL = {
    "vocab_size": 58101,
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "max_position_embeddings": 512,
}
_SENTENCES = (
    "Ein Mann fährt mit dem Fahrrad durch die Stadt.",
    "Zwei Kinder spielen im Park mit einem roten Ball.",
    "Eine Frau liest ein Buch, während der Hund neben ihr schläft.",
    "Mehrere Menschen warten an einer Haltestelle auf den Bus.",
    "Ein Junge springt in das Wasser.",
    "Drei Männer arbeiten auf dem Dach eines Hauses.",
    "Ein Mädchen in einem blauen Kleid läuft über die Wiese.",
    "Die Leute sitzen vor einem Café und trinken Kaffee.",
)


@dataclass(frozen=True)
class Answer:
    """What one side wrote, and how long it took.

    Attributes:
        tokens: per source, without an end token.
        seconds: from sources to tokens.
        passes: forwards of the model; 0 = the side does not tell.
    """

    tokens: list[list[int]]
    seconds: float
    passes: int = 0


@dataclass(frozen=True)
class Work:
    """What all sides are asked for.

    Attributes:
        name: of the model.
        sources: token ids, ended as the model's sources are.
        max_tokens: of a text.
        beams: 1 = greedy.
    """

    name: str
    sources: list[list[int]]
    max_tokens: int
    beams: int

    @property
    def label(self) -> str:
        """Batch, and beams where there are some."""
        batch = f"batch {len(self.sources)}"
        return batch if self.beams == 1 else f"{batch}, beam {self.beams}"


Side = Callable[[Work], Answer]


def write_marian(folder: Path, shape: Mapping[str, int], seed: int = 0) -> None:
    """Write a random Marian checkpoint that never ends a text.

    Args:
        folder: where to.
        shape: of `MarianConfig`.
        seed: of its weights.
    """
    from transformers import MarianConfig, MarianMTModel

    last = shape["vocab_size"] - 1
    settings: dict[str, Any] = {"activation_function": "swish", "scale_embedding": True, "eos_token_id": 0}
    settings |= {"pad_token_id": last, "decoder_start_token_id": last, "bos_token_id": 0, "forced_eos_token_id": None}
    torch.manual_seed(seed)
    model: Any = MarianMTModel(MarianConfig(**settings, **dict[str, Any](shape)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.05 * torch.randn_like(weight))
            elif "embed" not in name:
                weight.mul_(3)  # the layers, not the last token, decide what is written
        model.final_logits_bias[0, [0, last]] = -1e4
    model.save_pretrained(folder)


def own_side(lm: LanguageModel) -> Side:
    """Return our loop on a model."""

    def run(work: Work) -> Answer:
        chosen: dict[str, Any] = {}
        if work.beams > 1:
            chosen = {"method": "beam-search", "options": {"beams": work.beams}}
        began = time.perf_counter()
        found = lm.generate(work.sources, max_tokens=work.max_tokens, **chosen)
        seconds = time.perf_counter() - began
        return Answer([_until(list(one.tokens), lm.end_tokens) for one in found], seconds)

    return run


def transformers_side(directory: Path) -> Side:
    """Return transformers' `generate` in float32."""
    import transformers

    model: Any = transformers.MarianMTModel.from_pretrained(directory, dtype=torch.float32).eval()
    pad, ends = model.config.pad_token_id, (model.config.eos_token_id,)
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=pad, eos_token_id=ends[0], decoder_start_token_id=model.config.decoder_start_token_id
    )

    def run(work: Work) -> Answer:
        began = time.perf_counter()
        longest = max(map(len, work.sources))
        ids = torch.tensor([[*source, *([pad] * (longest - len(source)))] for source in work.sources])
        lengths = torch.tensor([[len(source)] for source in work.sources])
        mask = (torch.arange(longest) < lengths).long()
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=work.beams, max_new_tokens=work.max_tokens
        )
        tokens = out[:, 1:].tolist()
        return Answer([_until(one, ends) for one in tokens], time.perf_counter() - began)

    return run


def peer_side(child: Child) -> Side:
    """Return CTranslate2 in its process; its own clock counts."""

    def run(work: Work) -> Answer:
        found = child.ask("translate", sources=work.sources, max_tokens=work.max_tokens, beams=work.beams)
        return Answer(**found)

    return run


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]


def measure(sides: Mapping[str, Side], works: Sequence[Work], rounds: int, budget_s: float) -> list[dict[str, Any]]:
    """Let all sides do all works in turns; return one object per work and side.

    Args:
        sides: by name; the first is ours, and the others' texts are compared with its.
        works: what is asked for.
        rounds: counted ones.
        budget_s: seconds after which a work begins no further round.
    """
    found = []
    for work in works:
        began = time.perf_counter()
        runs = {name: _bound(side, work) for name, side in sides.items()}
        answers = in_turns(runs, rounds, begin=lambda number, began=began: number == 0 or _left(began, budget_s))  # type: ignore[misc]
        own = next(iter(answers.values()))
        for name, side in answers.items():
            same = sum(a == b for a, b in zip(own[0].tokens, side[0].tokens, strict=True)) / len(work.sources)
            tokens = sum(map(len, side[0].tokens))
            seconds = [answer.seconds for answer in side]
            found.append(
                {
                    "model": work.name,
                    "work": work.label,
                    "side": name,
                    "seconds": seconds,
                    "tokens": tokens,
                    "tokens_per_s": tokens / statistics.median(seconds),
                    "same_texts": same,
                }
            )
    return found


def _bound(side: Side, work: Work) -> Callable[[], Answer]:
    return lambda: side(work)


def _left(began: float, budget_s: float) -> bool:
    return time.perf_counter() - began < budget_s


def summarise(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line per work and side: tokens per second, and how much faster ours are, round by round."""
    cells = []
    for row in rows:
        ratios = []
        for own in ("outpace float32", "outpace int8"):
            ours = next(
                (r for r in rows if (r["model"], r["work"], r["side"]) == (row["model"], row["work"], own)), None
            )
            # Texts may differ in length: seconds per token are compared.
            ratios.append("" if ours is None else f"{_ratio(ours, row):.2f}")
        speed, same = f"{row['tokens_per_s']:.0f}", f"{100 * row['same_texts']:.0f} %"
        cells.append([row["model"], row["work"], row["side"], speed, *ratios, same])
    columns = ("model", "work", "side", "tokens/s", "float32 is x", "int8 is x", "texts of the first")
    return Table("", columns, cells, left=3)


def _job(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["model"], row["work"]


def _ratio(ours: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the median over rounds of how many times faster a side is than another."""
    pairs = zip(ours["seconds"], other["seconds"], strict=False)
    return float(statistics.median((b / other["tokens"]) / (a / ours["tokens"]) for a, b in pairs))


def _sides(
    directory: Path, threads: int, folder: Path, stack: ExitStack, tell: Callable[[str], None]
) -> dict[str, Side]:
    if directory.parent == ZOO:
        plain, small = (load(str(directory), dtype="float32", quantize=kind) for kind in ("none", "int8"))
    else:
        plain, small = (_bare(directory, kind) for kind in ("none", "int8"))
    sides = {"outpace float32": own_side(plain), "outpace int8": own_side(small)}
    try:
        sides["transformers float32"] = transformers_side(directory)
    except ImportError:
        tell("transformers is not installed, and left out.")
    try:
        for precision in ("float32", "int8"):
            child = stack.enter_context(Child("ctranslate2", threads))
            child.ask("versions")
            if not (folder / "model.bin").exists():
                child.ask("convert", source=str(directory), target=str(folder), precision="float32")
            job = {"mode": "plain", "precision": precision, "threads": threads, "capacity": 0, "vocab_size": 0}
            child.ask("open", directory=str(folder), **job)
            sides[f"ctranslate2 {precision}"] = peer_side(child)
    except ChildError as error:
        tell(f"CTranslate2 is left out: {error}")
    return sides


def _bare(directory: Path, quantize: str) -> LanguageModel:
    """Open a checkpoint that has no tokenizer."""
    from outpace import kernels
    from outpace.kernels.rounded import RoundedKernels

    chosen = kernels if quantize == "none" else RoundedKernels()
    return LanguageModel(load_model(directory, "float32", kernels=chosen), None, name=directory.name)


def _works(name: str, sources: list[list[int]], max_tokens: int, batches: Sequence[int]) -> list[Work]:
    works = [Work(name, [sources[i % len(sources)] for i in range(batch)], max_tokens, 1) for batch in batches]
    if "beam-search" in method_names():
        works.append(Work(name, sources[:1], max_tokens, 4))
    return works


def _random_sources(count: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(1)
    return [[*torch.randint(3, 58000, (12 + i % 9,), generator=source).tolist(), 0] for i in range(count)]


def _measure_models(given: argparse.Namespace, folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    threads = given.threads or torch.get_num_threads()
    with ExitStack() as stack:
        directory = ZOO / "translate"
        lm = load(str(directory))
        sources = [lm.encode(sentence) for sentence in _SENTENCES]
        tell("The shipped model.")
        sides = _sides(directory, threads, folder / "shipped", stack, tell)
        rows += measure(sides, _works("translate", sources, 64, given.batches), given.rounds, given.budget)
    with ExitStack() as stack:
        tell("A random Marian of the usual size.")
        directory = folder / "marian"
        write_marian(directory, _USUAL)
        sides = _sides(directory, threads, folder / "usual", stack, tell)
        works = _works("random Marian", _random_sources(max(given.batches)), given.tokens, given.batches)
        rows += measure(sides, works, given.rounds, given.budget)
    return rows


def _work(given: argparse.Namespace) -> None:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        rows = _measure_models(given, Path(folder), tell)
    table = summarise(rows)
    print(table.markdown())
    new_report("translation", vars(given), describe(), rows, tables=[table]).write(given.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("translation", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each work")
    parser.add_argument("--tokens", type=int, default=32, help="of each text of the random model")
    parser.add_argument("--batches", type=numbers, default=[1, 32], help="sources at once, comma-separated")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds after which a work begins no further round")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

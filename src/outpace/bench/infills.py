"""Samplers of infills: against an exact posterior, and against prompting and supervised tuning.

    python -m outpace.bench.infills
    python -m outpace.bench.infills --models stories-draft runs/stories-infill-told runs/stories-infill --data data

Without models: a tiny random model and a gap of up to three tokens, whose posterior is enumerated. The sampler's own
law is enumerated too, so that the distance between both is exact, while subtrajectory balance trains it.

With models: each fills gaps of one sentence in held-out stories, several times. Shown are the mean log-probability,
under `stories-draft`, of the gap and the sentence behind it, and how different the texts for one gap are: 1 less the
mean share of words that two of them have in common (Jaccard). Any sampler trades one for the other by its temperature,
so each writes at several.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError, ModelError
from outpace.train.data import EOS_ID
from outpace.train.flow import STOP, FlowTrainer, Gap, drawn, gaps, log_law, log_rewards, prompt_of
from outpace.train.network import Llama, LlamaShape
from outpace.train.recipes.flow import FLOWS, FlowRecipe

__all__ = ["distance", "main", "posterior", "run_stories", "run_toy", "sampler_law", "toy_trainer"]

MOST = 3
_GAP = Gap((1, 2), (1,), (3,))
_TELLER = "stories-draft"


def _texts(vocab: int) -> list[list[int]]:
    """Return every text of up to `MOST` tokens, the end left out."""
    return [list(text) for size in range(MOST + 1) for text in itertools.product(range(1, vocab), repeat=size)]


def posterior(teller: Llama, gap: Gap, temperature: float) -> Tensor:
    """Return [N] the exact law over all texts in the gap, by summing rewards."""
    rewards = [float(log_rewards(teller, gap, text, MOST)[len(text)]) for text in _texts(teller.shape.vocab)]
    return (torch.tensor(rewards, dtype=torch.float64) / temperature).softmax(0)


@torch.no_grad()
def sampler_law(network: Llama, gap: Gap) -> Tensor:
    """Return [N] the exact law by which a sampler draws each text."""
    texts = _texts(network.shape.vocab)
    tokens, ends = log_law(network, [prompt_of(gap)] * len(texts), texts, MOST)
    found = [tokens[at, : len(text)].sum() + ends[at, len(text)] for at, text in enumerate(texts)]
    return torch.stack(found).double().exp()


def distance(one: Tensor, other: Tensor) -> float:
    """Return the total variation distance of two laws."""
    return float((one - other).abs().sum()) / 2


def toy_trainer(steps: int, seed: int, **changes: Any) -> FlowTrainer:
    """Return a trainer whose posterior can be enumerated."""
    shape = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=2, head_dim=16, ffn=64, vocab=5, context=16)
    network = Llama(shape, seed)
    for weight in network.parameters():
        weight.data *= 8 if weight.ndim == 2 else 1  # a law far from even
    told: dict[str, Any] = {"name": "toy", "summary": "", "objective": "subtrajectory balance"}
    told |= {"steps": steps, "gpu_steps": steps, "matrix_rate": 2e-2, "other_rate": 1e-2, "weight_decay": 0.0}
    told |= {"contexts": 1, "draws": 32, "most": MOST, "warmup": 10}
    recipe = FlowRecipe(**told | changes)
    return FlowTrainer(
        recipe=recipe,
        network=network,
        teller=copy.deepcopy(network).requires_grad_(False),
        gaps=[_GAP],
        tokenizer=None,  # type: ignore[arg-type]  # nothing is written
        device=torch.device("cpu"),
        seed=seed,
        steps=steps,
    )


def run_toy(steps: int, seed: int = 0) -> Report:
    """Train on the toy; tell the distance to the posterior before, now and then, and after.

    Raises:
        ConfigError: no step.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps were asked for.", "Train for one or more.")
    trainer = toy_trainer(steps, seed)
    exact = posterior(trainer.teller, _GAP, 1.0)
    rows = [{"step": 0, "distance": distance(sampler_law(trainer.network, _GAP), exact)}]
    marks = {max(1, steps * part // 4) for part in range(1, 5)}
    while trainer.step < steps:
        trainer.advance()
        if trainer.step in marks:
            rows.append({"step": trainer.step, "distance": distance(sampler_law(trainer.network, _GAP), exact)})
    drawn_again = _drawn_law(trainer.network, len(exact), seed)
    noise = distance(drawn_again, sampler_law(trainer.network, _GAP))
    table = Table("", ("step", "distance to the posterior"), [[str(r["step"]), f"{r['distance']:.4f}"] for r in rows])
    notes = [
        f"Total variation over {len(exact)} texts. 4,000 texts drawn from the trained sampler lie "
        f"{distance(drawn_again, exact):.4f} from the posterior, and {noise:.4f} from its own law."
    ]
    return new_report("infills-toy", {"steps": steps, "seed": seed}, describe(), rows, tables=[table], notes=notes)


def _drawn_law(network: Llama, count: int, seed: int, draws: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    texts = drawn(network, [prompt_of(_GAP)] * draws, MOST, [1.0] * draws, generator)
    places = {tuple(text): at for at, text in enumerate(_texts(network.shape.vocab))}
    counts = torch.bincount(torch.tensor([places[tuple(text)] for text in texts]), minlength=count)
    return counts.double() / draws


def run_stories(
    models: Sequence[str],
    data: Path | None,
    count: int,
    draws: int,
    seed: int = 0,
    temperatures: Sequence[float] = (1.0,),
) -> Report:
    """Let models fill gaps of held-out stories, and `stories-draft` go on from what stands before them.

    Args:
        models: directories or names of models in the vocabulary of `stories-draft`.
        data: folder of public texts.
        count: gaps.
        draws: texts for each.
        seed: of the draws.
        temperatures: of the draws.

    Raises:
        ConfigError: no gap, fewer than two draws, or a temperature below 0.01 or above 100.
        ModelError: a directory that `outpace train` did not write, a masked model, or one of another vocabulary.
    """
    from outpace.models.loading import resolve
    from outpace.train.data import find_data
    from outpace.train.export import load_network, load_tokenizer
    from outpace.train.sources import held_out_stories

    if count < 1 or draws < 2 or not all(0.01 <= heat <= 100 for heat in temperatures):
        reason = "Ask for a gap or more, two draws or more, and temperatures from 0.01 to 100."
        raise ConfigError("Texts are compared.", reason)
    teller, tokenizer = load_network(resolve(_TELLER)), load_tokenizer(resolve(_TELLER))
    [stop] = tokenizer.encode(STOP).ids
    most = FLOWS["stories-infill"].most
    found = gaps(held_out_stories(find_data(data)), lambda text: tokenizer.encode(text).ids, most)[:count]
    asked = {Path(name).name: (load_network(resolve(name)), prompt_of) for name in models}
    for name, (network, _) in asked.items():
        if not network.shape.causal or network.shape.vocab != teller.shape.vocab:
            raise ModelError(f"{name} does not write from left to right in the words of {_TELLER}.", "Leave it out.")
    rows = []
    for name, (network, prompt) in ({f"{_TELLER}, from the left": (teller, _from_left)} | asked).items():
        prompts = [prompt(gap) for gap in found for _ in range(draws)]
        for heat in temperatures:
            generator = torch.Generator().manual_seed(seed)
            texts = drawn(network, prompts, most, [heat] * len(prompts), generator, stop)
            reward = [
                float(log_rewards(teller, found[at // draws], text, most, stop)[len(text)])
                for at, text in enumerate(texts)
            ]
            row = {"model": name, "temperature": heat, "log_reward": sum(reward) / len(reward)}
            words = [set(tokenizer.decode(text).split()) for text in texts]
            rows.append(row | {"diversity": _parted(words, draws), "tokens": sum(map(len, texts)) / len(texts)})
    cells = [[str(r["model"]), f"{r['temperature']:g}", *(f"{r[k]:.{n}f}" for k, n in _SHOWN.items())] for r in rows]
    table = Table("", ("model", "temperature", "log-reward", "diversity", "tokens"), cells)
    given = {"gaps": len(found), "draws": draws, "seed": seed}
    return new_report("infills", given, describe(), rows, tables=[table])


_SHOWN = {"log_reward": 2, "diversity": 3, "tokens": 1}


def _from_left(gap: Gap) -> list[int]:
    return [EOS_ID, *gap.before]


def _parted(words: Sequence[set[str]], draws: int) -> float:
    """Return 1 less the mean share of words that two of the texts for one gap, `draws` in a row, have in common."""
    found = [
        1 - len(a & b) / max(1, len(a | b))
        for at in range(0, len(words), draws)
        for a, b in itertools.combinations(words[at : at + draws], 2)
    ]
    return sum(found) / len(found)


def _work(given: argparse.Namespace) -> None:
    if given.models:
        report = run_stories(given.models, given.data, given.gaps, given.draws, given.seed, given.temperatures)
    else:
        report = run_toy(given.steps, given.seed)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("infills", __doc__, threads=1)
    parser.add_argument("--models", nargs="+", default=[], help="that fill gaps of stories; none = the toy")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--gaps", type=int, default=40, help="of held-out stories (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=6, help="texts for each (default: %(default)s)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="of the draws (default: 1)")
    parser.add_argument("--steps", type=int, default=400, help="of the toy's training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

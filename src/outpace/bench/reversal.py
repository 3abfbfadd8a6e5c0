"""The reversal task: told "A is B" in one order, which of two networks, causal and masked, knows A of B?

    python -m outpace.bench.reversal --json reversal.json

Facts are made up: two symbols are two others, and only both together tell the fact. A causal network is asked for B
after "A is", and for A after "B is", the one way in which it can be asked; a masked one fills B in "A is _", and A in
"_ is B", one place per step, the surest first. Both see the same rows, "A is B" and never "B is A".

Source: Nie et al. (2025), arXiv 2502.09992 (section 3.3, lines of poems), after the reversal curse of Berglund et al.
(2023), arXiv 2309.12288. Differences: facts in place of poems, and networks that know nothing else.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.bench.scarce import ARMS, ScarceOptions, matched_trainer
from outpace.errors import ConfigError
from outpace.train.data import EOS_ID, MASK_ID, Tokens
from outpace.train.network import Llama

__all__ = ["facts", "main", "run_reversal", "share_known"]

IS, FIRST = 2, 3  # tokens: the word between, and the first symbol
SYMBOLS = 16  # of each of the four places
_REPEATS = 40  # orders in which the stream holds the facts


def facts(num: int, seed: int) -> list[list[int]]:
    """Return facts as tokens [a, a', IS, b, b']; no two share an A or a B.

    Raises:
        ConfigError: more than there are pairs of symbols, or none.
    """
    if not 1 <= num <= SYMBOLS**2:
        raise ConfigError(f"{num} facts were asked for.", f"There are 1 to {SYMBOLS**2}.")
    draw = random.Random(seed)
    sides = [draw.sample(range(SYMBOLS**2), num) for _ in range(2)]
    places = [[FIRST + SYMBOLS * (2 * side) + pair // SYMBOLS for pair in sides[side]] for side in range(2)]
    others = [[FIRST + SYMBOLS * (2 * side + 1) + pair % SYMBOLS for pair in sides[side]] for side in range(2)]
    return [list(fact) for fact in zip(places[0], others[0], [IS] * num, places[1], others[1], strict=True)]


def _stream(known: Sequence[list[int]], seed: int) -> Tokens:
    draw, tokens = random.Random(seed), [EOS_ID]
    for _ in range(_REPEATS):
        for fact in draw.sample(known, len(known)):
            tokens += [*fact, EOS_ID]
    return np.array(tokens, dtype=np.uint16)


@torch.inference_mode()
def share_known(network: Llama, known: Sequence[list[int]], *, is_reversed: bool) -> float:
    """Return the share of facts whose missing side the network writes, both symbols right.

    Args:
        network: causal, or masked with shifted logits.
        known: from `facts`.
        is_reversed: ask for A of B; else for B of A.
    """
    text = torch.tensor([[EOS_ID, *fact, EOS_ID] for fact in known])
    asked, given = ((1, 2), (4, 5)) if is_reversed else ((4, 5), (1, 2))
    wanted = text[:, list(asked)]
    if network.shape.causal:
        ends, between = torch.full((len(known), 1), EOS_ID), torch.full((len(known), 1), IS)
        told = torch.cat([ends, text[:, list(given)], between], 1)
        for _ in asked:
            told = torch.cat([told, network(told)[:, -1].argmax(-1, keepdim=True)], 1)
        return float((told[:, -2:] == wanted).all(1).float().mean())
    text[:, list(asked)] = MASK_ID
    for _ in asked:
        text = _fill_surest(network, text)
    return float((text[:, list(asked)] == wanted).all(1).float().mean())


def _fill_surest(network: Llama, text: Tensor) -> Tensor:
    """Write the masked place of each row whose likeliest token is the surest."""
    law = network(text).index_fill(-1, torch.tensor([MASK_ID]), -torch.inf).softmax(-1)
    sure, token = law.max(-1)
    sure, token = sure.roll(1, 1), token.roll(1, 1)  # row i speaks of place i + 1
    place = torch.where(text == MASK_ID, sure, -1.0).argmax(1, keepdim=True)
    return text.scatter(1, place, token.gather(1, place))


def run_reversal(num: int, steps: int, seed: int = 0) -> Report:
    """Train both networks on facts told in one order, and ask in both.

    Raises:
        ConfigError: too few or too many facts, or no step.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps were asked for.", "Train for one or more.")
    known, rows = facts(num, seed), []
    vocab = FIRST + 4 * SYMBOLS
    tokenizer = Tokenizer(models.WordLevel({str(token): token for token in range(vocab)}, unk_token="0"))
    asked = ScarceOptions(hidden=64, length=12, rows=32, seed=seed)
    for arm in ARMS:
        trainer = matched_trainer(arm, asked, tokenizer, _stream(known, seed), steps)
        while trainer.step < steps:
            trainer.advance()
        network = trainer.network.to("cpu").eval()
        told, back = (share_known(network, known, is_reversed=way) for way in (False, True))
        rows.append({"arm": arm, "told": told, "reversed": back, "seconds": trainer.seconds})
    cells = [[str(row["arm"]), f"{row['told']:.0%}", f"{row['reversed']:.0%}"] for row in rows]
    table = Table("", ("network", "B of A, as told", "A of B, reversed"), cells)
    notes = [f"Shares of {num} facts; a guess is right once in {SYMBOLS**2}."]
    return new_report(
        "reversal", {"facts": num, "steps": steps, "seed": seed}, describe(), rows, tables=[table], notes=notes
    )


def _work(given: argparse.Namespace) -> None:
    report = run_reversal(given.facts, given.steps, given.seed)
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("reversal", __doc__, threads=1)
    parser.add_argument("--facts", type=int, default=60, help="to be learned (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="of each network (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of facts, weights and masks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())

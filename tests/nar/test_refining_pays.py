"""Passes make texts agree with themselves, where one pass mixes two ways to say a thing.

Sources are symbols; a target says them all in one of two alphabets, drawn for each text, which no source tells. A place
by itself can but guess the alphabet; a text is right if its places guessed alike.
"""

from __future__ import annotations

import torch

from outpace.methods.whole.mask_predict import MaskPredict
from outpace.methods.whole.refinement import Refinement
from outpace.methods.whole.sundae import Sundae
from outpace.models.nar.cmlm import Cmlm, CmlmConfig
from outpace.models.nar.model import NarModel
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing.world import drive, make_run
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.refining import Masked, Unrolled
from outpace.train.pairs import make_batch
from outpace.train.translation.network import Criterion

SYMBOLS = 8


def pairs(count: int, generator: torch.Generator) -> tuple[list[list[int]], list[list[int]]]:
    """Sources of 5 to 8 symbols, and targets in an alphabet."""
    sources, targets = list[list[int]](), list[list[int]]()
    for _ in range(count):
        length, alphabet = (int(torch.randint(*span, (), generator=generator)) for span in ((5, 9), (0, 2)))
        symbols = (torch.randint(SYMBOLS, (length,), generator=generator) + 3).tolist()
        sources.append([*symbols, 0])
        targets.append([*(symbol + alphabet * SYMBOLS for symbol in symbols), 0])
    return sources, targets


def trained(objective: Criterion, blank: str) -> NarModel:
    torch.manual_seed(0)
    sizes = {"width": 32, "heads": 2, "ffn": 64, "encoder_layers": 1, "decoder_layers": 1, "reach": 4}
    config = CmlmConfig(vocab_size=3 + 2 * SYMBOLS, blank=blank, dropout=0.0, max_source=16, max_positions=24, **sizes)  # type: ignore[arg-type]
    network, generator = TrainedNar(Cmlm(config)), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        objective(network, make_batch(*pairs(16, generator))).backward()  # type: ignore[arg-type, no-untyped-call]
        optimiser.step()
    return NarModel(network.net)


def right(model: NarModel, method: Refinement) -> float:
    """The share of 100 texts that say all symbols in one alphabet."""
    sources, _ = pairs(100, torch.Generator().manual_seed(9))
    rows = [Row([2], 1, row_key(1, at), 40, (0,), source=source) for at, source in enumerate(sources)]
    drive(make_run(method, target=model), rows)
    return sum(
        row.written[:-1] in ([symbol + more for symbol in source[:-1]] for more in (0, SYMBOLS))
        for row, source in zip(rows, sources, strict=True)
    ) / len(rows)


def test_more_passes_of_mask_predict_are_right_more_often() -> None:
    model = trained(Masked(smoothing=0.0), "mask")
    shares = [right(model, MaskPredict(passes=passes)) for passes in (1, 2, 4, 8)]
    assert shares == sorted(shares)
    assert shares[-1] > max(shares[0] + 0.1, 0.95)


def test_more_steps_of_denoising_are_right_more_often() -> None:
    model = trained(Unrolled(), "noise")
    assert right(model, Sundae(passes=8)) > right(model, Sundae(passes=1)) + 0.2

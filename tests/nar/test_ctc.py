"""CTC against every alignment written out, in float64; glancing against its definition."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from outpace.models.nar.cmlm import CmlmConfig
from outpace.models.nar.ctc import Ctc, CtcConfig, best_alignment, ctc_nll, repeats_of
from outpace.models.nar.fertility import FertilityConfig
from outpace.models.nar.files import kind_of
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import UNSAID, Pass
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.objectives import Glancing, Likelihood, shown_places
from outpace.train.pairs import make_batch

CONFIG = CtcConfig(vocab_size=9, width=16, heads=2, ffn=24, encoder_layers=1, decoder_layers=2, factor=2)


def collapse(path: tuple[int, ...], blank: int) -> list[int]:
    """Return what an alignment says: runs once, blanks not at all."""
    return [c for at, c in enumerate(path) if c != blank and (at == 0 or path[at - 1] != c)]


def alignments(places: int, target: list[int], blank: int) -> list[tuple[int, ...]]:
    """Return every alignment of so many places to a target."""
    return [path for path in product(range(blank + 1), repeat=places) if collapse(path, blank) == target]


def mass(log_probs: Tensor, path: tuple[int, ...]) -> Tensor:
    """Return the log-probability of an alignment."""
    return sum((log_probs[at, symbol] for at, symbol in enumerate(path)), start=log_probs.new_zeros(()))


TARGETS = torch.tensor([[0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
LENGTHS, PLACES = torch.tensor([3, 2, 1, 0, 3]), torch.tensor([5, 4, 3, 2, 4])  # the last target does not fit
BLANK = 2


@pytest.mark.parametrize("is_law", [True, False])
def test_the_loss_sums_all_alignments(is_law: bool) -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(5, 5, 3, dtype=torch.float64)
    log_probs = (log_probs.log_softmax(-1) if is_law else log_probs).requires_grad_()
    found = ctc_nll(log_probs, PLACES, TARGETS, LENGTHS, BLANK)
    rows = []
    for row in range(4):
        paths = alignments(int(PLACES[row]), TARGETS[row, : LENGTHS[row]].tolist(), BLANK)
        rows.append(-torch.stack([mass(log_probs[row], path) for path in paths]).logsumexp(0))
    wanted = torch.stack(rows)
    torch.testing.assert_close(found[:4], wanted, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(side.sum(), log_probs, retain_graph=True)[0] for side in (found[:4], wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-10)


def test_a_target_that_does_not_fit_has_no_gradient() -> None:
    log_probs = torch.randn(5, 5, 3, dtype=torch.float64).log_softmax(-1).requires_grad_()
    found = ctc_nll(log_probs, PLACES, TARGETS, LENGTHS, BLANK)
    assert not alignments(4, [1, 1, 1], BLANK) and float(found[4].detach()) == 1e30
    assert repeats_of(TARGETS, LENGTHS).tolist() == [0, 1, 0, 0, 2]
    (slope,) = torch.autograd.grad(found.sum(), log_probs)
    assert not bool(slope[4].any()) and bool(slope.isfinite().all())


def test_the_likeliest_alignment_is_found() -> None:
    torch.manual_seed(1)
    for _ in range(5):
        log_probs = torch.randn(5, 5, 3, dtype=torch.float64).log_softmax(-1)
        found = best_alignment(log_probs, PLACES, TARGETS, LENGTHS, BLANK)
        for row in range(4):
            count = int(PLACES[row])
            paths = alignments(count, TARGETS[row, : LENGTHS[row]].tolist(), BLANK)
            best = max(paths, key=lambda path: float(mass(log_probs[row], path)))
            assert found[row].tolist() == [*best, *[UNSAID] * (5 - count)]
        assert found[4].tolist() == [UNSAID] * 5


def test_a_row_alone_is_itself_in_a_batch() -> None:
    torch.manual_seed(2)
    model = NarModel(Ctc(CONFIG).double())
    rows = [[3, 4, 5, 6, 7, 0], [8, 0], [4, 4, 3, 0]]
    with torch.no_grad():
        together, alone = model.write(rows), [model.write([row])[0] for row in rows]
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_the_likeliest_text_is_collapsed() -> None:
    net = Ctc(CONFIG)
    symbols = torch.tensor([[4, 4, 9, 4, 9, 9, 5, 5], [9, 9, 3, 3, 3, 6, 7, 7]])
    log_probs = torch.nn.functional.one_hot(symbols, 10).float().log_softmax(-1)
    is_place = torch.tensor([[True] * 8, [True] * 6 + [False] * 2])
    laws = net.laws([log_probs], is_place)
    assert [law.argmax(-1).tolist() for law in laws] == [[4, 4, 5], [3, 6]]


def batch_of(rows: list[tuple[list[int], list[int]]]) -> object:
    """Return pairs side by side."""
    import numpy as np

    return make_batch(*([np.array(side, dtype=np.int64) for side in sides] for sides in zip(*rows, strict=True)))


PAIRS = batch_of([([3, 4, 5, 0], [6, 7, 7, 0]), ([8, 0], [5, 0]), ([3, 8, 8, 4, 0], [4, 3, 8, 6, 5, 0])])


def test_so_much_is_shown_as_was_wrong() -> None:
    torch.manual_seed(3)
    wanted = torch.randint(0, 4, (6, 12))
    wanted[:, 9:] = UNSAID
    wanted[5] = UNSAID
    said = torch.randint(0, 4, (6, 12))
    wrong = [sum(a != b for a, b in zip(x, y, strict=True)) for x, y in zip(wanted[:, :9], said[:, :9], strict=True)]
    wrong[5] = 0
    seen = torch.zeros(6, 12)
    for _ in range(400):
        shown = shown_places(said, wanted, 0.4, torch.rand(6, 12))
        assert shown.sum(1).tolist() == [int(0.4 * count) for count in wrong]
        seen += shown
    assert not bool(seen[:, 9:].any()) and not bool(seen[5].any())
    expected = torch.tensor([int(0.4 * count) / 9 for count in wrong[:5]])  # each place alike, those said right too
    assert bool(((seen[:5, :9] / 400 - expected[:, None]).abs() < 0.12).all())


def test_the_second_pass_sees_the_target_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    network = TrainedNar(Ctc(CONFIG))
    passes: list[tuple[Tensor, Tensor]] = []

    def spied(run: Pass) -> list[Tensor]:
        passes.append((run.inputs.detach().clone(), run.is_place))
        return Ctc.finish(network.net, run)  # type: ignore[arg-type]

    monkeypatch.setattr(network.net, "finish", spied)
    network.progress = 0.5
    network.loss(PAIRS, Glancing(first=1.0, last=0.6))  # type: ignore[arg-type]
    (before, is_place), (after, _) = passes
    table = network.net.embed_tokens.weight
    changed = (before != after).any(-1)
    assert bool(changed.any()) and not bool(changed[~is_place].any())
    assert all(bool((table == vector).all(1).any()) for vector in after[changed])


def test_what_was_shown_is_not_asked_for() -> None:
    """Equation 6, of kinds whose loss is a sum over places."""
    sizes = {
        "vocab_size": 9,
        "width": 16,
        "heads": 2,
        "ffn": 24,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "dropout": 0.0,
    }
    for config in (FertilityConfig(**sizes), CmlmConfig(**sizes)):
        torch.manual_seed(7)
        network = TrainedNar(kind_of(config)(config)).double()
        run = network.begin(PAIRS)  # type: ignore[arg-type]
        outputs = network.net.finish(run)
        wanted = network.net.aligned(outputs, run)
        whole = network.net.nll(outputs, run)
        run.extra["shown"] = shown = (wanted != UNSAID) & (torch.rand(wanted.shape) < 0.5)
        costs = -outputs[0].gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0].where(shown, outputs[0].new_zeros(()))
        assert bool(shown.any())
        is_reached = whole < 1e20
        torch.testing.assert_close(network.net.nll(outputs, run)[is_reached], (whole - costs.sum(1))[is_reached])


def test_both_passes_have_one_dropout() -> None:
    network = TrainedNar(Ctc(CONFIG))
    network.train()
    losses = []
    for objective in (Glancing(first=0.0, last=0.0), Likelihood()):
        torch.manual_seed(5)
        run = network.begin(PAIRS)  # type: ignore[arg-type]
        torch.manual_seed(6)
        if isinstance(objective, Likelihood):
            torch.rand(run.is_place.shape)  # glancing draws which places first
        network.begin = lambda batch, run=run: run  # type: ignore[method-assign, assignment, misc]
        losses.append(network.loss(PAIRS, objective).item())  # type: ignore[arg-type]
        del network.begin
    assert losses[0] == losses[1]

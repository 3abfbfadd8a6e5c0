"""Copy-aware CTC: its loss is a sum over alignments, copies reproduce the source, and rows do not meet."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.models.editing.copy_ctc import CopyCtc, CopyCtcModel, collapse, copy_ctc_loss
from outpace.models.editing.encoder import Sizes

VOCAB, FACTOR = 3, 2
COPY, BLANK = VOCAB, VOCAB + 1


def written(path: tuple[int, ...], source: list[int]) -> tuple[int, ...]:
    """What a path says, by the definition: merge, drop, copy."""
    named = [("copy", frame // FACTOR) if s == COPY else ("say", s) for frame, s in enumerate(path)]
    merged = [symbol for symbol, _ in itertools.groupby(named)]
    return tuple(source[at] if kind == "copy" else at for kind, at in merged if (kind, at) != ("say", BLANK))


@pytest.mark.parametrize("source", [[0, 1], [2, 2], [1]])
def test_the_loss_is_the_sum_over_alignments(source: list[int]) -> None:
    torch.manual_seed(len(source))
    frames = FACTOR * len(source)
    log_probs = torch.randn(1, frames, VOCAB + 2, dtype=torch.float64).log_softmax(-1)
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(VOCAB + 2), repeat=frames):
        sums[written(path, source)] += float(log_probs[0, range(frames), list(path)].sum().exp())
    assert abs(sum(sums.values()) - 1) < 1e-12
    # All at once, padded on both sides: to a longer source, and to the longest target.
    targets = list(sums)
    rows = len(targets)
    padded = torch.tensor([[*target, *[0] * (frames - len(target))] for target in targets])
    wide = torch.cat([log_probs, torch.randn(1, FACTOR, VOCAB + 2, dtype=torch.float64)], 1).expand(rows, -1, -1)
    sources = torch.tensor([[*source, 1]]).expand(rows, -1)
    lengths = torch.tensor([len(target) for target in targets])
    loss = copy_ctc_loss(wide, sources, torch.full((rows,), len(source)), padded, lengths)
    wanted = -torch.tensor(list(sums.values()), dtype=torch.float64).log()
    assert (loss - wanted).abs().max() < 1e-10


def test_a_target_that_no_path_reaches_is_unlikely_without_nan() -> None:
    log_probs = torch.randn(1, 2, VOCAB + 2).requires_grad_()
    one = torch.tensor([1])
    loss = copy_ctc_loss(log_probs.log_softmax(-1), torch.tensor([[0]]), one, torch.tensor([[1, 1]]), one + 1)
    loss.sum().backward()
    assert float(loss.detach()) > 1e20
    assert log_probs.grad is not None and not log_probs.grad.isnan().any()


def test_paths_collapse_by_the_definition() -> None:
    source = [2, 2]
    for path in itertools.product(range(VOCAB + 2), repeat=4):
        frames = collapse(path, source, FACTOR, VOCAB)
        ours = tuple(source[frame // FACTOR] if path[frame] == COPY else path[frame] for frame in frames)
        assert ours == written(path, source)


def tiny(seed: int = 0, copies: float = 0.0) -> CopyCtcModel:
    """A network of random weights in float64 that copies more or less."""
    torch.manual_seed(seed)
    network = CopyCtc(Sizes(vocab=11, width=8, layers=2, heads=2, ffn=16, context=32, factor=FACTOR)).double()
    with torch.no_grad():
        network.encoder.embed_tokens.weight.mul_(3)
        network.actions.bias.copy_(torch.tensor([copies, 0.0]))
    return CopyCtcModel(network, end=0, start_token=1)


SOURCES = [[5, 6, 6, 7, 2, 9, 9, 9], [4], [3, 8, 8], [10, 2, 5, 5, 7]]


def test_copies_reproduce_the_source() -> None:
    model = tiny(copies=60.0)
    texts = [laws.argmax(-1).tolist() for laws in model.write(SOURCES)]
    assert texts == [[*source, 0] for source in SOURCES]


def test_ragged_rows_equal_single_rows() -> None:
    model = tiny(copies=1.0)
    together = model.write(SOURCES)
    assert len({len(laws) for laws in together}) > 1
    for source, laws in zip(SOURCES, together, strict=True):
        alone = model.write([source])[0]
        assert alone.shape == laws.shape and (alone - laws).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_one_step_writes_what_token_by_token_decoding_does(temperature: float) -> None:
    model = LanguageModel(tiny(copies=1.0), None, end_tokens=(0,))
    arguments = {"max_tokens": 30, "temperature": temperature, "seed": 3}
    plain = model.generate(SOURCES, method="autoregressive", **arguments)
    whole = model.generate(SOURCES, method="one-pass", **arguments)
    assert [result.tokens for result in whole] == [result.tokens for result in plain]
    assert {result.usage.target_nfe for result in whole} == {1}
    assert max(result.usage.target_nfe for result in plain) > 1

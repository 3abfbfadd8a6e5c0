"""What diffusion models are trained and measured by: masks, shift, blocks, against slow computations of the same."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from outpace import zoo
from outpace.train import RECIPES, trainer
from outpace.train.bounds import block_bits, masked_bits
from outpace.train.conversion import arms, compare
from outpace.train.data import EOS_ID, MASK_ID
from outpace.train.network import Llama, LlamaShape, Sight, cut_pieces
from outpace.train.objectives import annealed, behind_prefix, causal_loss, masked_loss, response_places, whole_canvas
from outpace.train.objectives_block import LOWEST_RATE, block_canvas, block_pieces, block_visible
from outpace.train.sources import Source

SHAPE = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=40, context=64, causal=False)
CPU = torch.device("cpu")


def _network(shape: LlamaShape = SHAPE) -> Llama:
    network = Llama(shape, seed=1).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(4)  # far from uniform
    return network


def _tokens(rows: int, length: int) -> Tensor:
    return torch.randint(2, 40, (rows, length), generator=torch.Generator().manual_seed(7))


def test_block_visibility_is_the_rule_position_by_position() -> None:
    length, block = 24, 4
    visible = block_visible(length, block, CPU)
    for row, column in itertools.product(range(2 * length), repeat=2):
        mine, theirs = row % length // block, column % length // block
        if row < length and column < length:  # noisy sees noisy: its own block
            expected = mine == theirs
        elif row < length:  # noisy sees clean: earlier blocks
            expected = theirs < mine
        else:  # clean never sees noisy, and clean up to its own block
            expected = column >= length and theirs <= mine
        assert bool(visible[row, column]) == expected


@pytest.mark.parametrize("size", [8, 48, 100])
def test_pieces_attend_as_the_whole_mask_does(size: int) -> None:
    visible = block_visible(24, 4, CPU)
    network, tokens = _network(), _tokens(2, 48)
    network.requires_grad_(False)
    whole = network.hidden(tokens, pieces=(Sight(0, 48, ((0, 48),), visible),))
    torch.testing.assert_close(network.hidden(tokens, pieces=cut_pieces(visible, size)), whole)
    changed = network.hidden(tokens, pieces=cut_pieces(visible.roll(1, 0) | torch.eye(48, dtype=torch.bool), size))
    assert not torch.allclose(changed, whole)


def _slow_block_loss(network: Llama, noisy: Tensor, clean: Tensor, weights: Tensor, block: int) -> float:
    """Block by block: the clean blocks before it and the noisy block in one plain forward."""
    total = 0.0
    for row, place in itertools.product(range(len(clean)), range(1, clean.shape[1])):
        start = place // block * block
        inputs = torch.cat([clean[row, :start], noisy[row, start : start + block]])
        if place == start:  # said by the last clean token
            inputs = clean[row, :start]
        numbers = torch.arange(len(inputs)) // block
        visible = numbers[:, None] >= numbers[None, :]
        logits = network.project(network.hidden(inputs[None], pieces=cut_pieces(visible))[0, place - 1])
        logits[MASK_ID] = -torch.inf
        total += float(F.cross_entropy(logits, clean[row, place]) * weights[row, place])
    return total


@pytest.mark.parametrize("complementary", [False, True])
def test_block_loss_is_that_of_plain_forwards(complementary: bool) -> None:
    network, tokens, block = _network(), _tokens(4, 16), 4
    canvas = block_canvas(tokens, block, step=3, seed=0, complementary=complementary)
    noisy, clean = canvas.inputs.chunk(2, dim=1)
    is_masked = noisy == MASK_ID
    # The weights are looked up again from where the canvas asks.
    weights = torch.zeros(clean.shape, dtype=torch.float64)
    for output, target, weight in zip(canvas.outputs.tolist(), canvas.targets, canvas.weights, strict=True):
        row, column = divmod(output, 32)
        place = column % 16 + 1
        if float(weight):
            assert clean[row, place] == target and (column >= 16) == (place % block == 0)
            weights[row, place] += weight
    asked = weights * clean.numel()
    assert torch.equal(asked[:, block::block], torch.ones(4, 3, dtype=torch.float64).expand_as(asked[:, block::block]))
    inside = [place for place in range(1, 16) if place % block]
    assert torch.equal(asked[:, inside] > 0, is_masked[:, inside])
    assert asked[:, 0].abs().sum() == 0 and not is_masked[:, 0].any()
    with torch.no_grad():
        loss = float(masked_loss(network, *canvas))
        assert loss == pytest.approx(_slow_block_loss(network, noisy, clean, weights, block), rel=1e-5)


@pytest.mark.parametrize("step", [0, 1, 700])
def test_the_views_of_the_block_recipe_mask_every_token_once(step: int) -> None:
    recipe = RECIPES["stories-block"]
    tokens = _tokens(recipe.rows, recipe.length)
    canvas = block_canvas(tokens, recipe.shape.block, step, seed=0, complementary=recipe.complementary)
    noisy, clean = canvas.inputs.chunk(2, dim=1)
    half = recipe.rows // 2
    assert torch.equal(clean[:half], tokens[:half]) and torch.equal(clean[half:], tokens[:half])
    first, second = (noisy == MASK_ID).chunk(2)
    assert torch.all((first ^ second)[:, 1:])
    assert not torch.all(first[:, 1:]) and not torch.all(second[:, 1:])


def test_the_weights_that_ship_were_made_by_a_recipe_without_them() -> None:
    shown = zoo.path("stories-block") / "card.md"
    made_by = re.search(r"outpace train ([\w-]+)", shown.read_text(encoding="utf-8"))
    assert made_by is not None and not RECIPES[made_by[1]].complementary


def test_block_rates_spread_and_weights_are_their_inverse() -> None:
    tokens = _tokens(64, 64)
    canvas = block_canvas(tokens, 16, step=0, seed=0)
    noisy, _ = canvas.inputs.chunk(2, dim=1)
    shares = (noisy == MASK_ID).view(-1, 16).double().mean(1)
    assert shares.mean() == pytest.approx((1 + LOWEST_RATE) / 2, abs=0.03)
    assert shares.min() < 0.2 and shares.max() == 1
    # Weighted by 1/t every token counts once, but for the first of each row.
    assert float(canvas.weights.sum()) == pytest.approx(63 / 64, abs=0.03)
    assert torch.equal(canvas.inputs, block_canvas(tokens, 16, step=0, seed=0).inputs)
    assert not torch.equal(canvas.inputs, block_canvas(tokens, 16, step=1, seed=0).inputs)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_whole_canvas_asks_each_masked_place_once(shifted: bool) -> None:
    network, tokens = _network(replace(SHAPE, shifted=shifted)), _tokens(4, 16)
    canvas = whole_canvas(tokens, step=2, seed=0, shifted=shifted)
    rates = {}
    slow = 0.0
    with torch.no_grad():
        logits = network(canvas.inputs)
    logits[..., MASK_ID] = -torch.inf
    weights = dict(zip(canvas.outputs.tolist(), canvas.weights.tolist(), strict=True))
    for row, place in (canvas.inputs == MASK_ID).nonzero().tolist():
        weight = weights[row * 16 + place - shifted]
        rates.setdefault(row, weight)
        assert weight == rates[row]  # one rate for each row
        slow += weight * float(F.cross_entropy(logits[row, place - shifted], tokens[row, place]))
    assert len(rates) == 4
    assert not shifted or not (canvas.inputs[:, 0] == MASK_ID).any()
    with torch.no_grad():
        assert float(masked_loss(network, *canvas)) == pytest.approx(slow, rel=1e-5)


def test_annealing_leads_from_causal_to_full_attention() -> None:
    network, tokens = _network(), _tokens(2, 32)
    causal = _network(replace(SHAPE, causal=True))
    closed = annealed(32, 0.0, step=0, seed=0, device=CPU)
    torch.testing.assert_close(network.hidden(tokens, pieces=closed), causal.hidden(tokens))
    assert annealed(32, 1.0, step=0, seed=0, device=CPU) is None
    above = torch.ones(32, 32, dtype=torch.bool).triu(1)
    for share in (0.2, 0.7):
        pieces = annealed(32, share, step=9, seed=0, device=CPU)
        assert pieces is not None
        visible = pieces[0].visible
        assert torch.all(visible | above) and visible[above].double().mean() == pytest.approx(share, abs=0.1)
    one, other = (annealed(32, 0.5, step=step, seed=0, device=CPU) for step in (1, 2))
    assert one and other and not torch.equal(one[0].visible, other[0].visible)


class _Law:
    """A toy distribution over sequences of `length` symbols (ids 2, 3) in the guise of a perfect network.

    It answers every place with the true conditional given what is shown, blurred by `blur` towards uniform.
    """

    def __init__(self, length: int, block: int, blur: float = 0.0) -> None:
        self.shape = SimpleNamespace(context=64, shifted=True, block=block, causal=False)
        self.length, self.blur = length, blur
        self.sequences = torch.tensor(list(itertools.product((2, 3), repeat=length)))
        draws = torch.rand(len(self.sequences), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.law = draws.pow(3) / draws.pow(3).sum()

    def nats(self, sequence: Tensor) -> float:
        """-log p of everything after the first symbol."""
        first = self.law[self.sequences[:, 0] == sequence[0]].sum()
        return -float((self.law[(self.sequences == sequence).all(1)] / first).log())

    def conditional(self, shown: Tensor, place: int) -> Tensor:
        """Log-probabilities [4] of the symbol at `place`, given the shown ones ([length], the mask where hidden)."""
        fits = ((self.sequences == shown) | (shown == MASK_ID)).all(1)
        probs = torch.stack([self.law[fits & (self.sequences[:, place] == symbol)].sum() for symbol in (2, 3)])
        probs = (1 - self.blur) * probs / probs.sum() + self.blur / 2
        return torch.cat([torch.full((2,), -50.0, dtype=torch.float64), probs.log()])

    def hidden(self, tokens: Tensor, pieces: Any = None, positions: Any = None) -> Tensor:
        inputs, length, block = tokens[0], self.length, self.shape.block
        rows = []
        for column in range(len(inputs)):
            place = column % length + 1
            if place == length:
                rows.append(torch.zeros(4, dtype=torch.float64))
                continue
            shown = inputs[:length].clone()
            shown[place] = MASK_ID
            if block:  # clean blocks before; nothing after; its own block as noisy unless a clean output speaks
                start = place // block * block
                shown[:start] = inputs[length : length + start]
                shown[start if column >= length else start + block :] = MASK_ID
            rows.append(self.conditional(shown, place))
        return torch.stack(rows)[None]

    def project(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize(("bits", "block"), [(masked_bits, 0), (block_bits, 4), (block_bits, 2)])
def test_bounds_are_tight_for_a_perfect_denoiser_and_above_for_others(bits: Any, block: int) -> None:
    length, samples = 4, 40
    perfect, blurred = _Law(length, block), _Law(length, block, blur=0.4)
    window = length - 1 if block == 0 else length
    estimates, exact, worse = 0.0, 0.0, 0.0
    for sequence, prob in zip(perfect.sequences, perfect.law.tolist(), strict=True):
        stream = sequence.numpy().astype(np.int64)
        exact += prob * perfect.nats(sequence) / np.log(2)
        estimates += prob * bits(perfect, stream, samples=samples, window=window)
        worse += prob * bits(blurred, stream, samples=samples, window=window)
    assert estimates == pytest.approx(exact, rel=0.02)
    assert worse > 1.03 * exact


def test_bits_of_untrained_diffusion_models_are_those_of_a_uniform_law() -> None:
    stream = np.random.default_rng(0).integers(2, 40, 90)
    for shape, bits in (
        (replace(SHAPE, shifted=True), masked_bits),
        (replace(SHAPE, shifted=True, block=4), block_bits),
    ):
        network = Llama(shape)
        network.load_state_dict({name: torch.zeros_like(weight) for name, weight in network.state_dict().items()})
        found = bits(network, stream, samples=64, window=16)
        assert found == pytest.approx(89 * np.log2(39), rel=1e-3 if bits is masked_bits else 0.03)


def test_block_pieces_are_made_once() -> None:
    assert block_pieces(32, 4, CPU) is block_pieces(32, 4, CPU)


def test_responses_alone_are_masked_and_counted() -> None:
    marker, other = [5, 6], [5, 7]
    tokens = torch.tensor(
        [[9, 5, 6, 20, 21, EOS_ID, 8, 8, 5, 7, 30, EOS_ID, 5, 6], [4, 4, EOS_ID, 6, 5, 6, 9, 9, 5, 7, 1, 1, 1, 1]]
    )
    expected = torch.zeros_like(tokens, dtype=torch.bool)
    expected[0, 3:6] = expected[0, 10:12] = expected[1, 6:] = True
    is_open = response_places(tokens, [marker, other])
    assert torch.equal(is_open, expected)
    total = torch.zeros_like(tokens, dtype=torch.float32)
    for step in range(200):
        canvas = whole_canvas(tokens, step, seed=0, shifted=True, is_open=is_open)
        assert torch.equal(canvas.inputs[~is_open], tokens[~is_open])
        total.flatten().index_add_(0, canvas.outputs + 1, canvas.weights)
    # Each response token counts once on average, the whole sums to one.
    assert total[is_open] / 200 * int(is_open.sum()) == pytest.approx(np.ones(int(is_open.sum())), abs=0.3)
    assert total.sum() / 200 == pytest.approx(1, abs=0.1)


def test_a_masked_model_reads_pairs_backwards_and_a_causal_one_does_not() -> None:
    """The toy reversal task of LLaDA: trained on `a b` alone, which `a` goes with `b`?"""
    num = 16
    pairs = torch.stack(
        [torch.zeros(num), 2 + torch.arange(num), 18 + torch.randperm(num, generator=torch.Generator().manual_seed(0))],
        dim=1,
    ).long()
    right = {}
    for causal in (True, False):
        network = Llama(replace(SHAPE, causal=causal, shifted=not causal), seed=0)
        optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0)
        for step in range(250):
            canvas = whole_canvas(pairs, step, seed=0, shifted=True)
            loss = causal_loss(network, pairs) if causal else masked_loss(network, *canvas)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            backwards = (
                pairs[:, [0, 2]] if causal else torch.stack([pairs[:, 0], torch.full((num,), MASK_ID), pairs[:, 2]], 1)
            )
            said = network(backwards)[:, 1 if causal else 0, 2:].argmax(-1) + 2
            forwards = pairs.index_fill(1, torch.tensor([2]), MASK_ID)
            after = network(forwards)[:, 1, 2:].argmax(-1) + 2
        right[causal] = (int((said == pairs[:, 1]).sum()), int((after == pairs[:, 2]).sum()))
    assert right[False][0] >= 15 and right[False][1] >= 15
    assert right[True][0] <= 4 and right[True][1] >= 15


def test_arms_of_a_conversion_differ_in_their_start_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows under equal masks; what is kept of the parent hangs on its shift, not on so few steps."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "some.txt").write_text("one two three four five")

    def read(data: Path) -> Iterator[str]:
        return iter([f"{number} {(data / 'some.txt').read_text()}\n" for number in range(60)])

    source = Source(name="words", files=("some.txt",), origin="here", licence="none", note="toy", weight=0.5, read=read)
    recipes = {name: replace(recipe, length=32) for name, recipe in arms(2, 2, [source]).items()}
    assert recipes["converted"].sources[0].weight == 1
    kept = recipes["converted"]
    recipes["unshifted"] = replace(kept, shape=replace(kept.shape, shifted=False))
    seen: list[Tensor] = []
    score = trainer.masked_loss

    def watched(network: Llama, tokens: Tensor, *canvas: Any) -> Tensor:
        seen.append(tokens.clone())
        return score(network, tokens, *canvas)

    monkeypatch.setattr(trainer, "masked_loss", watched)
    found = compare(recipes, folder, ["One day a girl named Lily went to the park. She was happy.\n"])
    assert len(seen) == 6 and all(torch.equal(a, b) for a, b in zip(seen[:2], seen[2:4], strict=True))
    assert found["converted"] < 0.8 * found["unshifted"]
    assert found["converted"] < 0.8 * found["from scratch"]


def test_a_prefix_is_given_and_never_asked() -> None:
    tokens = torch.arange(2, 42).repeat(6, 1)
    ends = set[int]()
    for step in range(30):
        is_open = behind_prefix(tokens, step, 0)
        assert torch.equal(is_open, behind_prefix(tokens, step, 0))
        for row in is_open.tolist():
            assert row == sorted(row) and not row[0] and row[-1]  # given, then open, some of each
            ends.add(row.index(True))
        canvas = whole_canvas(tokens, step, 0, True, is_open)
        asked = canvas.outputs[canvas.weights > 0] + 1  # an output speaks of the next place
        assert bool(is_open.flatten()[asked].all())
        assert torch.equal(canvas.inputs[~is_open], tokens[~is_open])
    assert len(ends) > 30 and min(ends) == 1 and max(ends) == 39

"""Resampling earlier tokens: windows in training against permuted texts, and the writer against whole forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import outpace
from outpace.api.corrected import Corrector, corrected, main
from outpace.bench.corrected import counting, errors, opened
from outpace.errors import CapabilityError, ConfigError
from outpace.sampling import Sampler, Sampling, row_key
from outpace.train.data import MASK_ID
from outpace.train.network import Llama, LlamaShape, cut_pieces
from outpace.train.objectives_window import window_canvas

SHAPE = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=20, context=64)


@pytest.fixture(scope="module")
def network() -> Llama:
    made = Llama(SHAPE, seed=1).requires_grad_(False)
    for weight in made.parameters():
        weight.data *= 8 if weight.ndim == 2 else 1
    return made.eval()


def permuted_law(network: Llama, text: list[int], place: int, following: list[int]) -> Tensor:
    """[V] what a network says of a place: the text before it, what follows, and a mask, as one causal sequence."""
    tokens = [*text[:place], *following, MASK_ID]
    positions = torch.tensor([*range(place), *range(place + 1, place + 1 + len(following)), place])
    pieces = cut_pieces(torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril(), len(tokens))
    hidden = network.hidden(torch.tensor([tokens]), pieces=pieces, positions=positions)
    return network.project(hidden)[0, -1]


def test_windows_beside_a_text_are_permuted_texts(network: Llama) -> None:
    tokens = torch.randint(2, 20, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = window_canvas(tokens, 3, 5, 7, 0)
    hidden = network.hidden(batch.inputs, pieces=batch.pieces, positions=batch.positions).flatten(0, 1)
    said = network.project(hidden[batch.outputs]).view(2, 16 + 5, 20)
    target = batch.targets.view(2, -1)
    assert torch.equal(target[:, :16], tokens[:, 1:])
    assert (said[:, :16] - network(tokens[:, :-1])).abs().max() < 1e-4  # the text is what it is without windows
    assert float(batch.weights.sum()) == pytest.approx(1.0)
    places, sizes = batch.positions[16:].view(5, 3)[:, -1].tolist(), set()
    for row in range(2):
        text = tokens[row].tolist()
        for at, place in enumerate(places):
            assert int(target[row, 16 + at]) == text[place]
            fits = [
                size
                for size in (1, 2)
                if (said[row, 16 + at] - permuted_law(network, text, place, text[place + 1 : place + 1 + size]))
                .abs().max() < 1e-3
            ]  # fmt: skip
            assert len(fits) == 1
            sizes |= set(fits)
    assert sizes == {1, 2}  # windows of both lengths


def test_the_writer_asks_what_training_asked(network: Llama, tmp_path: Path) -> None:
    target, text = opened(network, tmp_path), [3, 7, 7, 12, 5, 9, 4, 18]
    writer = Corrector(target, MASK_ID, [text[:2], [2, 2]], Sampler(Sampling(), [1, 2]), 3, 16)
    writer.texts = [list(text), [2, 2, *[9] * 6]]
    for place in (5, 6, 7, 4, 7):  # back and forth, over a cache that is kept where it holds
        law = writer.law(place)[0]
        following = text[place + 1 :]
        want = (
            permuted_law(network, text, place, following) if following else network(torch.tensor([text[:place]]))[0, -1]
        )
        want = want.clone()
        if following:
            want[MASK_ID] = float("-inf")
        is_finite = want.isfinite()
        assert (law[is_finite] - want[is_finite]).abs().max() < 1e-3
        assert torch.equal(law.isfinite(), is_finite)
        if place == 5:
            writer.texts[0][5] = text[5] = 11  # what was drawn is what later laws read


@pytest.mark.parametrize(
    "law", [{}, {"temperature": 0.9, "top_p": 0.9}, {"temperature": 0.8, "repetition_penalty": 1.3}]
)
def test_without_iterations_it_is_plain_decoding(law: dict[str, float]) -> None:
    lm = outpace.load("stories-draft", dtype="float64", is_compiled=False)
    found = corrected(lm, "Once upon a time", iterations=0, max_tokens=20, seed=4, **law)
    assert found == lm.generate("Once upon a time", max_tokens=20, seed=4, **law).tokens
    again = [corrected(lm, "Once upon a time", iterations=2, max_tokens=8, seed=4, **law) for _ in range(2)]
    assert again[0] == again[1] and len(again[0]) <= 8
    assert MASK_ID not in again[0]


def test_an_end_that_is_drawn_ends_the_text(network: Llama, tmp_path: Path) -> None:
    writer = Corrector(
        opened(network, tmp_path), MASK_ID, [[3, 7]], Sampler(Sampling(temperature=1.0), [row_key(0)]), 3, 16
    )
    writer.texts[0] += [5, 9, 4]
    [first] = writer._draw(2, 1)
    writer.correct(1, {first})
    assert writer.texts == [[3, 7, first]]


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors(counting(1, 30, 0)[0].tolist()) == 0 and errors([2, 3, 5, 6]) == 1
    lm = outpace.load("stories-draft")
    for wrong in ({"window": 1}, {"iterations": -1}, {"max_tokens": 0}):
        with pytest.raises(ConfigError, match="A window has 2 tokens or more"):
            corrected(lm, "a", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="which asks for a token"):
        corrected(lm, "a", mask_id=10**6)
    with pytest.raises(CapabilityError, match="in the middle"):
        corrected(outpace.load("stories-mask"), "a")
    assert main(["a", "--model", "stories-draft", "--window", "1"]) == 2
    assert "A window has 2 tokens or more" in capsys.readouterr().err

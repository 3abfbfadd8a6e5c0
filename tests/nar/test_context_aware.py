"""Context-aware cross-attention: its local branch sees its window and nothing else, and a gate joins both."""

from __future__ import annotations

import pytest
import torch

from outpace import LanguageModel
from outpace.errors import ConfigError
from outpace.models.nar.context_aware import ContextAwareLayer, window_mask
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.model import NarModel

SIZES = {"width": 8, "heads": 2, "ffn": 8, "encoder_layers": 1, "decoder_layers": 2}
REAL = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
PLACES = torch.tensor([[True] * 13, [True] * 5 + [False] * 8])


def centre(place: int, places: int, tokens: int) -> int:
    return round(place * (tokens - 1) / max(places - 1, 1))


@pytest.mark.parametrize("window", [1, 2, 9])
def test_weights_outside_the_window_are_exactly_zero(window: int) -> None:
    torch.manual_seed(0)
    layer = ContextAwareLayer(CtcConfig(**SIZES), window).double()
    query, key = torch.randn(2, 13, 8).double() * 3, torch.randn(2, 7, 8).double()
    eye = torch.eye(7).double().expand(2, 7, 7)
    seen, real = PLACES[:, None, None], REAL[:, None, None]
    # Values that are one-hot by token make both heads return their weights, padded to the width.
    value = torch.nn.functional.pad(eye, (0, 1))
    for head in range(2):
        shown = torch.zeros(2, 7, 8).double()
        shown[:, :, 4 * head : 4 * head + 4] = value[:, :, :4]
        rest = torch.zeros(2, 7, 8).double()
        rest[:, :, 4 * head : 4 * head + 4] = value[:, :, 4:]
        parts = [layer.branches(query, key, part, seen, real) for part in (shown, rest)]
        span = slice(4 * head, 4 * head + 4)
        everywhere, nearby = (torch.cat([parts[0][n][..., span], parts[1][n][..., span]], -1)[..., :7] for n in (0, 1))
        for row, (places, tokens) in enumerate(((13, 7), (5, 4))):
            for place in range(places):
                at = centre(place, places, tokens)
                inside = [abs(token - at) <= window and token < tokens for token in range(7)]
                assert [weight != 0 for weight in nearby[row, place].tolist()] == inside
                assert all(everywhere[row, place, :tokens] > 0)
        assert torch.allclose(nearby.sum(-1), torch.ones(2, 13).double())


def test_a_window_over_the_whole_source_is_plain_cross_attention() -> None:
    torch.manual_seed(0)
    layer = ContextAwareLayer(CtcConfig(**SIZES), 9).double()
    states = torch.randn(2, 13, 8).double(), torch.randn(2, 7, 8).double()
    found = layer.branches(states[0], states[1], states[1], PLACES[:, None, None], REAL[:, None, None])
    assert torch.equal(*found)


def test_every_place_sees_something() -> None:
    assert window_mask(PLACES, REAL, 0).any(-1).all()


def test_rows_alone_equal_rows_in_a_batch_and_the_window_matters() -> None:
    sources, texts = [[5, 9, 3, 9, 4, 6, 7, 0], [4, 0], [7, 7, 11, 0]], []
    for window in (0, 1):
        torch.manual_seed(3)
        net = Ctc(CtcConfig(vocab_size=13, cross_window=window, **SIZES)).double()
        with torch.no_grad():
            for weight in net.decoder.parameters():
                weight.mul_(3)
        lm = LanguageModel(NarModel(net), end_tokens=(0,))
        texts.append([result.tokens for result in lm.generate(sources, max_tokens=40)])
        assert texts[-1] == [lm.generate(source, max_tokens=40).tokens for source in sources]
    assert texts[0] != texts[1]


def test_a_window_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1"):
        Ctc(CtcConfig(vocab_size=13, cross_window=-1, **SIZES))

"""An encoder-decoder does less work than a decoder of as many parameters, for the first token and for later ones."""

from __future__ import annotations

import pytest

from outpace.bench.stacks import compare, new_pair, work_of
from outpace.errors import ConfigError


@pytest.mark.parametrize("layers", (6, 12))
def test_equal_parameters_less_work(layers: int) -> None:
    plain, split = (work_of(net, 96) for net in new_pair(layers, 16, 64, 96, 8))
    assert abs(split.parameters - plain.parameters) < 0.01 * plain.parameters
    assert split.first < plain.first and split.later < 0.8 * plain.later
    longer = [work_of(net, 192) for net in new_pair(layers, 16, 64, 192, 8)]
    assert longer[0].first - longer[1].first > plain.first - split.first  # the longer the source, the more is saved


def test_the_table_has_both() -> None:
    lines = list(compare([8, 16], 2, layers=6, width=8, vocab=32, repeats=1))
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["DecoderOnly", "EncoderDecoder"] * 2
    for layers, sources, message in ((3, [8], "no two networks of equal size"), (6, [0], "1 or more")):
        with pytest.raises(ConfigError, match=message):
            list(compare(sources, 2, layers=layers, width=8, vocab=32))

"""The curve of quality against speed: what is counted, and what each side is asked for."""

from pathlib import Path

import pytest

import outpace
from outpace.bench import translation_curve
from outpace.bench.plots import draw_quality
from outpace.bench.translation import Answer, Work
from outpace.errors import ConfigError

PAIRS = [("Guten Morgen.", "Tom and his brother went to the market this morning.")] * (translation_curve.WARM + 2)


def test_points_hold_what_was_counted(tmp_path: Path) -> None:
    lm = outpace.load("translate", dtype="float32")
    asked: list[Work] = []

    def right(work: Work) -> Answer:
        asked.append(work)
        return Answer([lm.encode(PAIRS[0][1])], 0.5)

    def empty(work: Work) -> Answer:
        asked.append(work)
        return Answer([[]], 0.25)

    points = translation_curve.measure(lm, "translate", {"right": right, "empty, beam 4": empty}, PAIRS, rest_s=0.0)
    assert [work.beams for work in asked] == [1] * len(PAIRS) + [4] * len(PAIRS)
    assert [point.sentences_per_s for point in points] == [2, 4]  # the first sentences are not counted
    assert points[0].bleu > 99 and points[1].bleu == 0 and points[1].tokens == 0
    assert points[0].chrf > 99 and points[0].repeated == 0 and points[1].chrf == 0
    methods = ("autoregressive", "prompt-lookup:max_ngram=2:draft_len=4")  # settings of one method, as in any bench
    sides = {method: translation_curve.own_side(lm, method) for method in methods}
    own = translation_curve.measure(lm, "translate", sides, PAIRS[:4], rest_s=0.0)
    assert own[0].tokens == own[1].tokens > 0
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw_quality([], "", tmp_path / "empty.png")

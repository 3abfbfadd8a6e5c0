"""Passages of stories: three sentences, the middle one of which is to be written."""

from __future__ import annotations

from outpace.train.nar.stories import gaps, passages

STORY = (
    'Tom had a dog. The dog ran to the big park. "Stop!" said Tom. It was late. They went. '
    "Tom was glad that he had found his dog again."
)


def test_each_passage_has_three_sentences_of_some_words() -> None:
    (first,) = passages([STORY])  # "It was late." is too short to be asked for
    assert first == ("Tom had a dog.", "The dog ran to the big park.", '"Stop!"')


def test_a_gap_stands_for_the_middle_sentence() -> None:
    ((source, target),) = gaps([STORY])
    assert source == 'Tom had a dog.<|mask|> "Stop!"'
    assert target == "The dog ran to the big park."

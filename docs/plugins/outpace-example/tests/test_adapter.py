"""The example adapter fulfils the contract of every adapter, and methods run on it."""

import pytest
from outpace_example.adapter import Bigram

from outpace import LanguageModel
from outpace.testing import check_adapter

TEXTS = [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 4], [5, 0, 1, 2, 3]]


def test_contract() -> None:
    check_adapter(Bigram.counted(TEXTS, 6))


@pytest.mark.parametrize("method", ["jacobi", "prompt-lookup"])
def test_methods_write_what_plain_decoding_does(method: str) -> None:
    lm = LanguageModel(Bigram.counted(TEXTS, 6))
    written = [lm.generate([0, 1, 2, 3, 0], max_tokens=12, method=each).tokens for each in ("autoregressive", method)]
    assert written[0] == written[1] and written[0][:4] == [1, 2, 3, 0]

"""The reversal task: facts that only both symbols tell, what is asked of whom, and what counts as known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outpace.bench.reversal import IS, facts, main, share_known
from outpace.errors import ConfigError
from outpace.train.data import MASK_ID
from outpace.train.network import LlamaShape

KNOWN = facts(12, seed=4)


class Oracle:
    """Says what stands at each place of the one fact that fits what is shown; a causal one reads in order alone."""

    def __init__(self, *, causal: bool) -> None:
        self.shape = LlamaShape(hidden=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn=8, causal=causal, shifted=True)

    def __call__(self, text: Tensor) -> Tensor:
        logits = torch.zeros(*text.shape, 80)
        for row, shown in enumerate(text.tolist()):
            for fact in KNOWN:
                whole = [0, *fact, 0]
                if all(token in (MASK_ID, true) for token, true in zip(shown, whole, strict=False)):
                    for place in range(len(shown)):
                        logits[row, place, whole[min(place + 1, 6)]] = 9.0
        return logits


def test_facts_share_no_side() -> None:
    assert len({tuple(fact[:2]) for fact in KNOWN}) == len({tuple(fact[3:]) for fact in KNOWN}) == 12
    assert all(fact[2] == IS and len(fact) == 5 for fact in KNOWN) and facts(12, seed=4) == KNOWN != facts(12, seed=5)
    assert len({tuple(fact) for fact in facts(256, seed=0)}) == 256
    with pytest.raises(ConfigError, match="257 facts"):
        facts(257, seed=0)


def test_who_reads_in_both_directions_knows_both() -> None:
    for causal, back in ((True, 0.0), (False, 1.0)):
        network = Oracle(causal=causal)
        assert share_known(network, KNOWN, is_reversed=False) == 1.0  # type: ignore[arg-type]
        assert share_known(network, KNOWN, is_reversed=True) == back  # type: ignore[arg-type]
    wrong = [[*fact[:3], fact[3], other[4]] for fact, other in zip(KNOWN, KNOWN[1:] + KNOWN[:1], strict=True)]
    same = sum(one[4] == two[4] for one, two in zip(wrong, KNOWN, strict=True)) / 12
    assert share_known(Oracle(causal=True), wrong, is_reversed=False) == pytest.approx(same)  # type: ignore[arg-type]


def test_the_command_trains_both_and_refuses_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--facts", "2", "--steps", "60"]) == 0
    shown = capsys.readouterr().out
    assert "| causal | 100% | 0% |" in shown and "| masked |" in shown
    assert main(["--steps", "0"]) != 0 and "0 steps" in capsys.readouterr().err

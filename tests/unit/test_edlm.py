"""Energy-corrected sampling: against enumeration, and at one candidate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from outpace.canvas.importance import chances, log_weight
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.edlm import Edlm
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.misfit import check_partner
from outpace.sampling import Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, make_rows, target_for, write

WARM = Sampling(temperature=0.8)
OWN = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])  # laws of two places, apart
FIRST = np.array([0.2, 0.2, 0.6])  # the guide's chain rule
SECOND = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
PAIRS = list(itertools.product(range(3), repeat=2))


def joint() -> dict[tuple[int, int], float]:
    return {(a, b): FIRST[a] * SECOND[a, b] for a, b in PAIRS}


def told(pair: tuple[int, int]) -> float:
    guide = torch.from_numpy(np.log(np.stack([FIRST, SECOND[pair[0]]])))
    return log_weight(torch.from_numpy(np.log(OWN)), guide, np.array(pair), np.array([0, 1]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_law_of_what_is_taken_by_enumeration(count: int) -> None:
    proposal = {(a, b): OWN[0, a] * OWN[1, b] for a, b in PAIRS}
    found, wanted = dict.fromkeys(PAIRS, 0.0), dict.fromkeys(PAIRS, 0.0)
    for drawn in itertools.product(PAIRS, repeat=count):
        chance = math.prod(proposal[pair] for pair in drawn)
        ratios = [joint()[pair] / proposal[pair] for pair in drawn]
        for pair, ratio, share in zip(drawn, ratios, chances([told(pair) for pair in drawn]), strict=True):
            found[pair] += chance * share
            wanted[pair] += chance * ratio / sum(ratios)
    assert found == pytest.approx(wanted, abs=1e-12)
    if count == 1:
        assert found == pytest.approx(proposal)


def test_more_candidates_come_nearer_to_the_guides_law() -> None:
    proposal, far = {(a, b): OWN[0, a] * OWN[1, b] for a, b in PAIRS}, []
    for count in (1, 2, 4):
        law = dict.fromkeys(PAIRS, 0.0)
        for drawn in itertools.product(PAIRS, repeat=count):
            chance = math.prod(proposal[pair] for pair in drawn)
            for pair, share in zip(drawn, chances([told(pair) for pair in drawn]), strict=True):
                law[pair] += chance * share
        far.append(sum(p * math.log(p / law[pair]) for pair, p in joint().items()))
    assert far[0] > far[1] > far[2] > 0


def test_what_lies_between_counts_and_what_lies_behind_an_end_does_not() -> None:
    own = torch.zeros(2, 4, dtype=torch.float64)
    guide = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3, dtype=torch.float64))
    # Places 0 and 2 were drawn, place 1 was decided before: the guide judges all three.
    tokens, asked = np.array([1, 3, 2]), np.array([0, 2])
    assert log_weight(own, guide, tokens, asked) == pytest.approx(math.log(0.2 * 0.4 * 0.3) + 2 * math.log(4))
    assert log_weight(own, guide, tokens, asked, (3,)) == pytest.approx(math.log(0.2 * 0.4) + math.log(4))
    assert chances([-math.inf, -math.inf]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("options", [{}, {"per_step": 3, "order": "random"}, {"steps": 4, "block": 8}])
def test_one_candidate_is_masked_diffusion(settings: Sampling, options: dict[str, object]) -> None:
    target, models = ToyModel(attention="full"), {"guide": target_for("causal")}
    one = write(Edlm(candidates=1, **options), settings, make_rows(), target=target, models=models)  # type: ignore[arg-type]
    plain = write(MaskedDiffusion(**options), settings, make_rows(), target=target)  # type: ignore[arg-type]
    assert [row.written for row in one] == [row.written for row in plain]
    if settings is WARM:
        four = write(Edlm(candidates=4, **options), settings, make_rows(), target=target, models=models)  # type: ignore[arg-type]
        assert [row.written for row in four] != [row.written for row in plain]
        assert [row.usage.num_steps for row in four] == [row.usage.num_steps for row in plain]


def test_a_guide_that_knows_the_text_is_followed() -> None:
    """What is written is likelier under the guide with more candidates."""
    target, guide = ToyModel(attention="full"), target_for("causal")
    bits = []
    for count in (1, 16):
        rows = write(Edlm(candidates=count, per_step=4), WARM, make_rows(), target=target, models={"guide": guide})
        total = 0.0
        for row in rows:
            ids = torch.tensor([row.tokens])
            cache = guide.new_cache(1, ids.shape[1] + 1)
            laws = guide.score(ids, torch.arange(ids.shape[1])[None], None, cache).logits[0].double().log_softmax(-1)
            total -= float(laws[row.num_prompt - 1 : -1].gather(-1, ids[0, row.num_prompt :, None]).sum())
        bits.append(total)
    assert bits[1] < bits[0]


def test_a_row_of_a_ragged_batch_is_the_row_alone() -> None:
    target, models = ToyModel(attention="full"), {"guide": target_for("causal")}
    method = Edlm(candidates=3, per_step=2)
    together = write(method, WARM, make_rows(), target=target, models=models)
    for index in range(len(PROMPTS)):
        alone = write(method, WARM, [make_rows()[index]], target=target, models=models)
        assert alone[0].written == together[index].written


def test_bad_settings() -> None:
    for settings in ({"candidates": 0}, {"per_step": 2, "steps": 3}, {"order_temp": -1.0}):
        with pytest.raises(ConfigError):
            Edlm(**settings)  # type: ignore[arg-type]
    mine, small = target_for("causal").capabilities, ToyModel(vocab_size=9).capabilities
    with pytest.raises(CapabilityError, match="has 9 tokens"):
        check_partner("guide", small, mine, attention="causal")
    with pytest.raises(CapabilityError, match="needs causal attention"):
        check_partner("guide", ToyModel(attention="full").capabilities, mine, attention="causal")

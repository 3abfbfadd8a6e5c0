"""Hidden-state optimisation: a step is the gradient's, next tokens get likelier, and drafts obey the law."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import outpace
from outpace.bench.past import judged, main
from outpace.errors import CapabilityError, ConfigError
from outpace.laws.hso import HiddenStates, Optimised
from outpace.testing.toy import ToyModel

PROMPT = 'One day, Tom and Lily went to the park. They saw a big dog. The dog was sad. Tom said, "Hello, dog!" The'


@pytest.fixture(scope="module")
def lm() -> outpace.LanguageModel:
    return outpace.load("stories-draft", dtype="float64", is_compiled=False)


def test_no_step_is_plain_decoding_and_drafts_obey(lm: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 16, "temperature": 0.8, "seed": 1}
    prompts = [PROMPT, "Once", PROMPT + " dog was very big and very happy to see them, and"]
    plain, none, ours = (lm.generate(prompts, law=law, **asked) for law in (None, "hso:steps=0", "hso:rate=2,window=8"))
    assert [one.tokens for one in none] == [one.tokens for one in plain]
    assert ours[1].tokens == plain[1].tokens  # nothing comes before its only window
    assert [one.tokens for one in ours] != [one.tokens for one in plain]
    for method in ("prompt-lookup", "token-recycling"):
        drafted = lm.generate(prompts, law="hso:rate=2,window=8", method=method, **asked)
        assert [one.tokens for one in drafted] == [one.tokens for one in ours]
    alone = [lm.generate(prompt, law="hso:rate=2,window=8", **asked).tokens for prompt in prompts]
    assert alone == [one.tokens for one in ours]


def test_a_step_is_the_slope_of_the_loss(lm: outpace.LanguageModel) -> None:
    """Entries move by minus the rate times the finite difference of the window's loss."""
    ids, law = torch.tensor(lm.encode(PROMPT)[:12]), HiddenStates(rate=1.0, window=6)
    target = lm.target
    moved, _ = Optimised(target, law).read(ids, 12)

    def loss(change: tuple[int, int, int, int], by: float) -> float:
        cache = target.new_cache(1, 13)
        place = torch.arange(12)
        target.score(ids[None, :6], place[None, :6], None, cache)
        cache.keep([range(6)])
        layer, head, slot, part = change
        cache.buffers[layer][0, head, slot, part] += by
        logits = target.score(ids[None, 6:], place[None, 6:], None, cache).logits[0]
        return float(F.cross_entropy(logits[:-1], ids[7:], reduction="sum"))

    plain = target.new_cache(1, 13)
    target.score(ids[None], torch.arange(12)[None], None, plain)
    for change in ((0, 0, 1, 3), (1, 0, 4, 2), (len(plain.buffers) - 1, 0, 2, 5)):
        slope = (loss(change, 1e-5) - loss(change, -1e-5)) / 2e-5
        layer, head, slot, part = change
        step = float(moved.buffers[layer][0, head, slot, part] - plain.buffers[layer][0, head, slot, part])
        assert step == pytest.approx(-slope, rel=1e-4, abs=1e-9) and abs(slope) > 1e-6


def test_next_tokens_get_likelier_and_no_weight_changes(lm: outpace.LanguageModel) -> None:
    story = lm.encode(PROMPT + " dog was happy. Tom and Lily played with the dog all day. Then they went home.")
    before = lm.target.embed(torch.arange(50)[None]).clone()
    plain = judged(lm.target, HiddenStates(rate=0.0, window=8), story, 32)
    ours = judged(lm.target, HiddenStates(rate=0.3, window=8), story, 32)
    assert ours[0] < plain[0] - 0.1
    assert torch.equal(lm.target.embed(torch.arange(50)[None]), before)


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CapabilityError, match="has no gradient"):
        outpace.LanguageModel(ToyModel()).generate([1, 2], law="hso", max_tokens=2)
    with pytest.raises(CapabilityError, match="compiled path"):
        outpace.load("stories-draft").generate("Once", law="hso", max_tokens=2)
    with pytest.raises(ConfigError, match="window"):
        HiddenStates(window=1)
    assert main(["--prompt", "8"]) == 2
    assert "nothing to optimise" in capsys.readouterr().err

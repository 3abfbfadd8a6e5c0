"""EdiT5: plans give the target back, every program has a text, and the loop's methods agree on programs."""

from __future__ import annotations

from random import Random

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.errors import ConfigError
from outpace.models.editing.edit5 import Edit5, Edit5Model, plan_edits, realise
from outpace.models.editing.encoder import Sizes

VOCAB = 11
SOURCES = [[5, 6, 6, 7, 2, 9, 9, 9], [4], [3, 8, 8], [10, 2, 5, 5, 7]]


@pytest.mark.parametrize("seed", range(4))
def test_plans_give_the_target_back(seed: int) -> None:
    random = Random(seed)
    moved = 0
    for _ in range(300):
        source = random.choices(range(VOCAB), k=random.randrange(1, 9))
        target = random.sample(source, len(source)) if random.random() < 0.3 else list(source)
        for _ in range(random.randrange(3)):
            at = random.randrange(len(target) + 1)
            target[at : at + random.randrange(2)] = random.choices(range(VOCAB), k=random.randrange(3))
        plan = plan_edits(source, target, VOCAB)
        assert realise(source, plan.order, plan.program, VOCAB) == target
        assert len(set(plan.order)) == len(plan.order)
        moved += plan.order != sorted(plan.order)
    assert moved > 20


def test_what_moved_is_pointed_to_and_not_written() -> None:
    assert plan_edits([7, 8, 9], [9, 7, 8], VOCAB).program == []
    assert plan_edits([7, 8], [7, 3, 8, 4], VOCAB).program == [VOCAB + 1, 3, VOCAB + 2, 4]


def test_every_program_has_a_text() -> None:
    # Tokens before any slot, a slot twice, one behind the end, and one with nothing in it.
    program = [3, VOCAB + 1, 4, VOCAB, 5, VOCAB + 9, 6, VOCAB + 1, VOCAB + 1, 7]
    assert realise([8, 9], [1, 0], program, VOCAB) == [3, 5, 9, 4, 7, 8, 6]


def tiny(seed: int = 0) -> Edit5Model:
    torch.manual_seed(seed)
    network = Edit5(Sizes(vocab=VOCAB, width=8, layers=2, heads=2, ffn=16, context=32)).double()
    with torch.no_grad():
        network.tag.weight.mul_(6)
        network.encoder.embed_tokens.weight.mul_(2)
    return network.adapter(0, 0)


def test_ragged_rows_equal_single_rows() -> None:
    model = LanguageModel(tiny(1), None, end_tokens=(0,))
    together = model.generate(SOURCES, max_tokens=12, ignore_eos=True)
    alone = [model.generate([source], max_tokens=12, ignore_eos=True)[0] for source in SOURCES]
    assert [a.tokens for a in together] == [b.tokens for b in alone]
    assert len({tuple(result.tokens) for result in together}) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_method_writes_the_same_programs(temperature: float) -> None:
    model = LanguageModel(tiny(1), None, end_tokens=(0,))
    arguments = {"max_tokens": 14, "temperature": temperature, "seed": 2, "ignore_eos": True}
    plain = model.generate(SOURCES, **arguments)
    for method in ("prompt-lookup", "jacobi", "token-recycling"):
        assert [r.tokens for r in model.generate(SOURCES, method=method, **arguments)] == [r.tokens for r in plain]


def test_a_cached_forward_equals_the_decoder_run_on_the_whole_program() -> None:
    model, network = tiny(), tiny().network
    programs = [[0, 3, VOCAB + 1, 5], [0, VOCAB, 2, 2]]
    cache = model.new_cache(2, 16)
    model.encode(SOURCES[:2], cache)
    memory, lengths, slots, num, _ = cache.extra
    tokens = torch.tensor(programs)
    sees = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, -1, -1)
    is_real = torch.arange(memory.shape[1]) < lengths
    with torch.no_grad():
        whole = network.decode(tokens, torch.arange(4).expand(2, -1), sees, memory, is_real, slots, num[:, 0])
    model.score(tokens[:, :2], torch.tensor([[0, 1], [0, -1]]), None, cache)
    cache.keep([range(2), range(1)])
    rest = torch.tensor([[*programs[0][2:], 0], programs[1][1:]])
    found = model.score(rest, torch.tensor([[2, 3, -1], [1, 2, 3]]), None, cache).logits[..., : whole.shape[-1]]
    assert torch.equal(found[0, :2].isinf(), whole[0, 2:].isinf())
    for ours, theirs in ((found[0, :2], whole[0, 2:]), (found[1], whole[1, 1:])):
        assert (ours - theirs).masked_fill(theirs.isinf(), 0).abs().max() < 1e-12


def test_sources_that_do_not_fit_are_refused() -> None:
    model = tiny()
    for source, message in (([], "source is empty"), ([1] * 33, "33 tokens")):
        with pytest.raises(ConfigError, match=message):
            model.encode([source], model.new_cache(1, 4))

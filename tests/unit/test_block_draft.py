"""A masked model drafts for a causal one: the text is plain decoding's, whatever the drafter."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.canvas.block_drafter import BlockDrafter
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.block_draft import BlockDraft
from outpace.run.prefill import catch_up
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing import checks, run_contract
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, make_rows, target_for, write
from outpace.types import Context, Counter, View

WARM = Sampling(temperature=0.8)
PENALTY = SETTINGS["repetition penalty"]


@functools.lru_cache(maxsize=16)
def drafter(attention: str, shift: bool, size: int = 4, noise: float = 0.1, context: int = 4096) -> ToyModel:
    like = target_for("causal")
    shape = {"attention": attention, "logits_shift": shift, "block_size": size, "max_positions": context}
    return ToyModel(like=like, noise=noise, seed=5, **shape)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4)
def plain(settings: str) -> list[list[int]]:
    law = {"greedy": Sampling(), "warm": WARM, "penalty": PENALTY}[settings]
    return [row.written for row in write(Autoregressive(), law, make_rows(max_tokens=24))]


@pytest.mark.parametrize(("attention", "shift"), [("block", True), ("block", False), ("full", True)])
@pytest.mark.parametrize(
    "method",
    [BlockDraft(), BlockDraft(steps=3, fewest=0), BlockDraft(draft_len=6, fewest=6, is_adaptive=False)],
    ids=["default", "steps", "two blocks"],
)
def test_the_text_is_plain_decodings(method: BlockDraft, attention: str, shift: bool) -> None:
    models = {"draft": drafter(attention, shift)}
    for name, law in (("greedy", Sampling()), ("warm", WARM), ("penalty", PENALTY)):
        rows = write(method, law, make_rows(max_tokens=24), models=models)
        assert [row.written for row in rows] == plain(name)
        assert all(row.usage.num_proposed > 0 for row in rows)


@pytest.mark.parametrize("law", [Sampling(), WARM, PENALTY], ids=["greedy", "warm", "penalty"])
def test_blocks_of_one_with_a_shift_draft_what_the_target_writes(law: Sampling) -> None:
    """Such a model is causal, and equal to the target: a wrong place, position, shift or noise would cost a draft."""
    law = replace(law, logit_bias={12: -1e9})  # the drafter's mask token, which the target may write
    method = BlockDraft(draft_len=5, fewest=5, is_adaptive=False)
    rows = write(method, law, make_rows(max_tokens=24), models={"draft": drafter("block", True, 1, 0.0)})
    wanted = write(Autoregressive(), law, make_rows(max_tokens=24))
    for row, plainly in zip(rows, wanted, strict=True):
        assert row.written == plainly.written
        assert row.usage.num_accepted == row.usage.num_proposed > 0
        assert row.usage.num_steps == 4  # five drafts and a bonus each


def view_of(texts: list[list[int]], law: Sampling) -> View:
    keys = [row_key(3, index) for index in range(len(texts))]
    return View(texts, [1] * len(texts), [64] * len(texts), 0, target_for("causal").new_cache(1, 1), Sampler(law, keys))


def begin(model: ToyModel, texts: list[list[int]], window: int = 6) -> BlockDrafter:
    sampler = Sampler(Sampling(), list(range(len(texts))))
    counters = {"draft": Counter()}
    return BlockDrafter.begin(
        Context(target_for("causal"), texts, 128, sampler, {"draft": model}, counters), "draft", window
    )


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_cache_of_finished_blocks_changes_nothing(shift: bool, steps: int) -> None:
    model, law = drafter("block", shift), WARM
    texts = [[*PROMPTS[0]], [*PROMPTS[1]], [*PROMPTS[3]]]
    kept = begin(model, texts)
    source = torch.Generator().manual_seed(0)
    for _ in range(6):
        view = view_of(texts, law)
        got = kept.draft(view, [6, 0, 3], steps, 4, 0.0)
        assert got == begin(model, texts).draft(view, [6, 0, 3], steps, 4, 0.0)
        assert [len(drafts) for drafts in got] == [min(6, len(got[0])), 0, 3]
        assert 4 <= len(got[0])
        for text, held, is_on in zip(texts, kept.cache.lengths, (True, False, True), strict=True):
            assert held == ((len(text) - 1) // 4 * 4 if is_on else 0)
            text += torch.randint(0, 12, (3,), generator=source).tolist()


def slow_drafts(model: ToyModel, text: list[int], reach: int, sampler: Sampler, shift: bool) -> list[int]:
    """One forward over text and masks up to the border of the block, drawn place by place."""
    border = (len(text) // 4 + 1) * 4
    tokens = [*text, *[12] * (border - len(text))]
    every = torch.arange(border).unsqueeze(0)
    cache = model.new_cache(1, border)
    logits = model.score(torch.tensor([tokens]), every, None, cache, every).logits[0].clone()
    logits[:, 12] = float("-inf")
    drafts = []
    for place in range(len(text), min(border, len(text) + reach)):
        drafts.append(int(sampler.pick(logits[place].unsqueeze(0), torch.tensor([place])).item()))
    return drafts


@pytest.mark.parametrize("shift", [True, False])
def test_drafts_by_the_slow_way(shift: bool) -> None:
    model = drafter("block", shift)
    for size in range(1, 9):
        text = [*PROMPTS[3]][:size]
        view = view_of([text], WARM)
        got = begin(model, [text]).draft(view, [6], 1, 0, 0.0)[0]
        assert got == slow_drafts(model, text, 6, view.sampler, shift)


def slow_own_drafts(model: ToyModel, text: list[int], reach: int, sampler: Sampler) -> list[int]:
    """One forward of text and masks without a cache: causal but for the last token and the masks behind it."""
    tokens = [*text, *[12] * reach]
    place = torch.arange(len(tokens))
    visible = (place <= place[:, None]) | (place >= len(text) - 1)[:, None]
    cache = model.new_cache(1, len(tokens))
    logits = model.score(torch.tensor([tokens]), place[None], visible[None], cache).logits[0].clone()
    logits[:, 12] = float("-inf")
    return [int(sampler.pick(logits[at : at + 1], place[at : at + 1]).item()) for at in range(len(text), len(tokens))]


def test_a_target_drafts_for_itself_behind_its_own_entries() -> None:
    model = target_for("causal")
    assert isinstance(model, ToyModel)
    texts = [[*PROMPTS[0]], [*PROMPTS[1]], [*PROMPTS[3]]]
    cache = model.new_cache(3, 96)
    for _ in catch_up(model, cache, texts):
        pass
    view = replace(view_of(texts, WARM), cache=cache)
    held = [list(cache.lengths), [buffer.clone() for buffer in cache.buffers]]
    context = Context(model, texts, 96, view.sampler, {}, {"draft": Counter()})
    drafter = BlockDrafter.begin(context, "draft", 5)
    got = drafter.draft(view, [5, 0, 3], 1, 4, 0.0)
    for row, (text, reach) in enumerate(zip(texts, (5, 0, 3), strict=True)):
        own = Sampler(WARM, [row_key(3, row)])
        assert got[row] == slow_own_drafts(model, text, 5, own)[:reach]
    assert cache.lengths == held[0]
    for now, before in zip(cache.buffers, held[1], strict=True):
        for row, count in enumerate(cache.lengths):
            assert torch.equal(now[row, :count], before[row, :count])


def test_the_contract_holds_where_the_target_drafts_for_itself() -> None:
    method = BlockDraft(draft="own", draft_len=5, steps=2)
    chosen = [checks.check_rejoin, checks.check_late_rows, checks.check_drafts_alone, checks.check_bookkeeping]
    assert run_contract(method, [*chosen, checks.check_broken_neighbour]) == {}
    for name, law in (("greedy", Sampling()), ("warm", WARM), ("penalty", PENALTY)):
        rows = write(method, law, make_rows(max_tokens=24), models={})
        assert [row.written for row in rows] == plain(name)
        assert sum(row.usage.num_accepted for row in rows) > 0


def test_few_places_go_on_into_the_next_block() -> None:
    model = drafter("block", True)
    text = [*PROMPTS[0]][:7]  # one place left in its block
    lengths = {n: len(begin(model, [text]).draft(view_of([text], WARM), [6], 1, n, 0.0)[0]) for n in (0, 1, 2, 5, 6)}
    assert lengths == {0: 1, 1: 1, 2: 5, 5: 5, 6: 6}


def test_unsure_drafts_are_left_out() -> None:
    texts = [[*PROMPTS[2]]]
    model = drafter("block", True)
    sure = begin(model, texts).draft(view_of(texts, WARM), [6], 1, 6, 0.0)[0]
    counts = [len(begin(model, texts).draft(view_of(texts, WARM), [6], 1, 6, c)[0]) for c in (0.0, 0.4, 1.0)]
    assert counts[0] == len(sure) >= counts[1] >= counts[2] == 0


def test_past_the_drafters_context_rows_go_on_plainly() -> None:
    short = drafter("block", True, context=18)
    rows = write(BlockDraft(), WARM, make_rows(max_tokens=24), models={"draft": short})
    assert [row.written for row in rows] == plain("warm")


def test_a_causal_drafter_is_refused() -> None:
    lm = LanguageModel(target_for("causal"))
    with pytest.raises(CapabilityError, match="full or block"):
        lm.generate([1, 2], method=BlockDraft(), models={"draft": ToyModel()}, max_tokens=4)
    with pytest.raises(CapabilityError, match="causal-block attention"):
        lm.generate([1, 2], method=BlockDraft(), models={"draft": ToyModel(attention="causal-block")}, max_tokens=4)
    result = lm.generate([1, 2], method=BlockDraft(), models={"draft": drafter("block", True)}, max_tokens=9)
    assert result.tokens == lm.generate([1, 2], max_tokens=9).tokens
    assert result.usage.draft_nfe > 0


def test_the_contract_holds_with_several_steps() -> None:
    chosen = [checks.check_options, checks.check_rejoin, checks.check_late_rows, checks.check_drafts_alone]
    chosen += [checks.check_bookkeeping, checks.check_broken_neighbour]
    method = BlockDraft(draft_len=5, steps=2, is_adaptive=False, min_confidence=0.2)
    assert run_contract(method, chosen) == {}


def test_bad_settings() -> None:
    for bad in ({"draft_len": 0}, {"steps": 0}, {"fewest": -1}, {"min_confidence": 1.5}):
        with pytest.raises(ConfigError):
            BlockDraft(**bad)  # type: ignore[arg-type]

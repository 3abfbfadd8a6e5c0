"""VocabTrim: rows of the head as they are in the whole one, drafts from the list alone, texts and laws unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import outpace
from outpace import kernels
from outpace.draft.vocabulary import TokenCounts, TrimmedHead, count_tokens, memory_bound_speedup
from outpace.errors import ConfigError
from outpace.methods.speculative.vocab_trim import VocabTrim
from outpace.models.opening import open_model
from outpace.models.transformer import Transformer
from outpace.testing import check_method
from outpace.testing.answers import check_texts
from outpace.testing.toy import ToyModel
from outpace.testing.world import make_rows, make_run
from outpace.types import Outcome


@pytest.mark.parametrize(("dtype", "is_compiled"), [("bfloat16", True), ("float32", True), ("float32", False)])
def test_the_rows_of_a_trimmed_head_say_what_they_said(dtype: str, is_compiled: bool) -> None:
    whole = open_model("stories-draft", dtype, "cpu", kernels if is_compiled else None)
    assert isinstance(whole, Transformer)
    ids = list(range(3, 8192, 11))
    trimmed = TrimmedHead(whole, ids)
    assert trimmed.is_sliced and trimmed.capabilities == whole.capabilities
    tokens, place = torch.tensor([[1, 2000, 8191, 7], [5, 6, 7, 8]]), torch.arange(4).expand(2, 4)
    visible = torch.ones(2, 4, 4, dtype=torch.bool).tril()
    ask = torch.tensor([[3, 0], [2, 1]])
    wanted = whole.score(tokens, place, visible, whole.new_cache(2, 8), ask).logits
    cache = trimmed.new_cache(2, 8)
    found = trimmed.score(tokens, place, visible, cache, ask).logits
    assert torch.allclose(found[..., ids], wanted[..., ids], atol=1e-4) and found.shape == wanted.shape
    others = torch.ones(8192, dtype=torch.bool).index_fill(0, torch.tensor(ids), False)
    assert bool((found[..., others] == float("-inf")).all())
    assert cache.counter.nfe == 1
    if whole.path == "compiled":
        assert torch.equal(found[..., ids], wanted[..., ids])
        again = whole.trim_head(torch.tensor(ids)).trim_head(torch.tensor([5, 1, 40]))
        last = again.score(tokens, place, visible, again.new_cache(2, 8), ask).logits
        assert torch.equal(last, wanted[..., [ids[5], ids[1], ids[40]]])


def test_an_adapter_that_cannot_slice_is_masked() -> None:
    model = ToyModel()
    trimmed = TrimmedHead(model, [2, 5])
    assert not trimmed.is_sliced
    tokens, place = torch.tensor([[1, 2]]), torch.arange(2).unsqueeze(0)
    logits = trimmed.score(tokens, place, None, trimmed.new_cache(1, 4)).logits
    wanted = model.score(tokens, place, None, model.new_cache(1, 4)).logits
    assert torch.equal(logits[..., [2, 5]], wanted[..., [2, 5]])
    assert torch.isfinite(logits).sum(-1).tolist() == [[2, 2]]


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_only_listed_tokens_are_drafted(rule: str) -> None:
    counts, seen = TokenCounts({4: 9, 7: 3, 11: 2, 1: 2, 6: 1}), set()

    def watch(_: Any, outcome: Outcome) -> None:
        assert outcome.proposal is not None
        rows = zip(outcome.proposal.tokens.tolist(), outcome.proposal.length, strict=True)
        seen.update(token for tokens, length in rows for token in tokens[:length])

    run = make_run(VocabTrim(k=4, accept_rule=rule))
    run.memory, run.watch = counts, watch
    rows = make_rows(max_tokens=24)
    run.join(rows)
    while run.rows:
        run.step()
    assert seen <= {1, 4, 7, 11} and len(seen) > 1
    assert sum(counts.counts.values()) == 17 + 4 * 24  # it goes on counting


@pytest.mark.parametrize("method", [VocabTrim(k=5), VocabTrim(k=6, accept_rule="rejection")], ids=str)
def test_contract(method: VocabTrim) -> None:
    check_method(method, every=3)


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_sampled_texts_follow_the_law(rule: str) -> None:
    check_texts(VocabTrim(k=3, draft_len=2, accept_rule=rule), rows=4_000)


def test_on_the_zoo_the_text_is_plain_and_counted_heads_accept_more() -> None:
    lm = outpace.load("stories", dtype="float32")
    prompts = ["Once upon a time, there was a", "The cat sat on", "Tom and Mia went to the"]
    counts = count_tokens(lm, prompts, max_tokens=96, temperature=1.0, seed=5, ignore_eos=True)
    assert sum(counts.counts.values()) == 3 * 96
    accepted = {}
    for name, k, memory in (("all", 8192, None), ("counted", 512, counts), ("lowest ids", 512, None)):
        accepted[name] = 0
        for prompt in prompts[:2]:
            asked: dict[str, Any] = {"max_tokens": 64, "ignore_eos": True}
            plain = lm.generate(prompt, **asked)
            ours = lm.generate(prompt, method=VocabTrim(k=k), memory=memory, **asked)
            assert ours.tokens == plain.tokens
            accepted[name] += ours.usage.num_accepted
    assert accepted["all"] >= accepted["counted"] > accepted["lowest ids"] > 0


def test_counts_by_hand(tmp_path: Path) -> None:
    counts = TokenCounts({5: 2, 3: 2, 9: 7})
    counts.add([3, 4])
    assert counts.most_frequent(2, 12) == [3, 9]
    assert counts.most_frequent(6, 12) == [0, 1, 3, 4, 5, 9]  # what was never seen: the lowest ids
    counts.save(tmp_path / "counts.json")
    assert TokenCounts.read(tmp_path / "counts.json").counts == {3: 3, 4: 1, 5: 2, 9: 7}
    (tmp_path / "list.json").write_text("[0, 4, 1]")
    assert TokenCounts.read(tmp_path / "list.json").counts == {1: 4, 2: 1}
    for text in ("[1, ", '{"a": 1}', "[[1]]", '{"1": -1}', "7"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match="token count"):
            TokenCounts.read(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenCounts.read(tmp_path / "missing.json")


def test_counts_from_a_file_and_their_faults(tmp_path: Path) -> None:
    lm = outpace.load("stories", dtype="float32")
    TokenCounts({9000: 1}).save(tmp_path / "foreign.json")
    with pytest.raises(ConfigError, match="9000"):
        lm.generate("Once", method="vocab-trim", options={"counts": str(tmp_path / "foreign.json")}, max_tokens=2)
    TokenCounts({token: 1 for token in range(4000, 4010)}).save(tmp_path / "counts.json")
    options = {"counts": str(tmp_path / "counts.json"), "k": 10}
    result = lm.generate("Once upon a time", method="vocab-trim", options=options, max_tokens=12)
    assert result.usage.num_proposed > result.usage.num_accepted
    for settings in ({"k": 0}, {"draft_len": 0}, {"accept_rule": "typical"}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            VocabTrim(**settings)  # type: ignore[arg-type]


def test_memory_bound_speedup_by_hand() -> None:
    # 3 tokens per target forward, 4 draft forwards of a tenth of its bytes: 3 / (0.1 x 4 + 1).
    assert memory_bound_speedup(3.0, 4, 10, 100) == pytest.approx(3 / 1.4)
    assert memory_bound_speedup(1.0, 0, 10, 100) == 1.0

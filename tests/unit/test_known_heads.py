"""Which trained drafters go with a target: told by sizes and vocabulary, and drawn by `auto` without being named."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import outpace
from outpace.api.engine import LanguageModel
from outpace.bench import heads as bench
from outpace.engine.face import Ask
from outpace.errors import ModelError
from outpace.heads.files import open_head, save_head
from outpace.heads.known import known_heads
from outpace.heads.model import new_head
from outpace.heads.net import load_kind
from outpace.methods.auto import Auto
from outpace.methods.speculative.medusa import Medusa
from outpace.methods.speculative.trained_drafter import TrainedDrafter
from outpace.text.fingerprint import fingerprint

ARMS = "trained-drafter,suffix,token-recycling"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories")


def save(lm: LanguageModel, directory: Path, **facts: object) -> None:
    """Write an untrained drafter of 512 tokens, whose heads repeat what the target says."""
    made = load_kind("medusa")
    config = made.made_for(256, lm.target.capabilities.vocab_size, lm.target.capabilities.num_layers, depth=3)
    named = {"draft_vocab": 512, "vocabulary": fingerprint(lm.tokenizer), **facts}
    config = replace(config, **named)  # type: ignore[arg-type]
    torch.manual_seed(0)
    save_head(made(config), directory, torch.arange(512))


def test_the_best_that_fits_is_known(lm: LanguageModel, tmp_path: Path) -> None:
    save(lm, tmp_path / "a" / "good", accepted=1.5)
    save(lm, tmp_path / "a" / "better", accepted=2.5)
    save(lm, tmp_path / "a" / "other-tokens", vocabulary="0" * 32, accepted=9.0)
    save(lm, tmp_path / "a" / "untold", vocabulary="", accepted=9.0)
    save(lm, tmp_path / "a" / "other-depth", num_layers=5, accepted=9.0)
    save(lm, tmp_path / "b" / "shipped", accepted=3.5)
    (tmp_path / "a" / "model").mkdir()
    (tmp_path / "a" / "model" / "config.json").write_text('{"model_type": "llama"}')
    found = known_heads(lm.target, lm.tokenizer, [tmp_path / "a", tmp_path / "b", tmp_path / "none"])
    assert [path.name for path in found] == ["better", "good", "shipped"]
    assert known_heads(lm.target, None, [tmp_path / "a"]) == []
    (tmp_path / "a" / "better" / "config.json").write_text('{"model_type": "outpace_drafter"}')
    with pytest.raises(ModelError, match="cannot be read"):
        known_heads(lm.target, lm.tokenizer, [tmp_path / "a"])


def test_auto_takes_it_without_being_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.heads.known.drafters_folder", lambda: tmp_path)
    other = outpace.load("stories")
    save(other, tmp_path / "any-name")
    for method in (Auto(arms=ARMS), TrainedDrafter(), Medusa()):
        (model,) = other.partners.models(method, {}).values()
        assert getattr(model, "kind", "") == "medusa"
    kwargs = {"max_tokens": 24, "ignore_eos": True}
    plain = other.generate("Once upon a time", method="autoregressive", **kwargs)
    for method in (Auto(arms=ARMS, explore=0.5), TrainedDrafter()):
        assert other.generate("Once upon a time", method=method, **kwargs).tokens == plain.tokens


def test_a_drafter_without_a_setting_of_its_kind_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    head = new_head("eagle", lm.target)
    save_head(head.net.float(), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["settings"]["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="max_position_embeddings"):
        open_head(tmp_path, lm.target)


def test_a_drafter_is_no_model() -> None:
    with pytest.raises(ModelError, match="trained drafter"):
        outpace.load("smollm2-dspark")


def test_drafters_are_compared(lm: LanguageModel, tmp_path: Path) -> None:
    save(lm, tmp_path / "repeats")
    (row,) = bench.compare(lm, [str(tmp_path / "repeats")], [lm.encode("Once upon a time")], 24, ignore_eos=True)
    assert row.is_exact and row.kind == "medusa" and 1 <= len(row.depths) <= 3
    assert row.chain >= 1 and row.tree >= 1 and 0 < row.draft_share < 1
    assert "repeats" in bench.table([row])


def test_chains_are_counted_by_depth() -> None:
    counts = bench.DepthCounts(3)
    for drafted, accepted in ((3, 3), (3, 1), (2, 0), (0, 0)):
        counts.add(drafted, accepted)
    assert (counts.reached, counts.kept) == ([3, 2, 1], [2, 1, 1])
    assert counts.rates() == [2 / 3, 1 / 2, 1.0]


def test_a_server_drafts_with_it_and_finds_prefixes_again(lm: LanguageModel, tmp_path: Path) -> None:
    """Prompts that share a beginning are read once: states of what was found are unknown, the text is the same."""
    save(lm, tmp_path / "served")
    prompt = "Once upon a time there was a little dog who lived in a big house with a cat and a bird. " * 3
    plain = lm.generate(prompt, method="autoregressive", max_tokens=24, ignore_eos=True)
    engine = outpace.Engine(lm)
    asks = [
        Ask(prompt=prompt, arguments={"max_tokens": 24, "ignore_eos": True, "method": name, "options": options})
        for name, options in (
            ("trained-drafter", {"draft": str(tmp_path / "served")}),
            ("auto", {"draft": str(tmp_path / "served"), "explore": 0.5, "arms": ARMS}),
            ("medusa", {"draft": str(tmp_path / "served"), "budget": 6}),
        )
    ]
    try:
        first = engine.generate(asks[0])
        with ThreadPoolExecutor() as pool:
            others = list(pool.map(engine.generate, asks))
    finally:
        asyncio.run(engine.close())
    for (found,) in (first, *others):
        assert found.tokens == plain.tokens
    assert others[0][0].cached_tokens > 0

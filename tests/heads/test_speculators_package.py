"""Drafters that the package `speculators` writes and reads (0.9.0 was tried); skipped where it is not installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from obliging import HIDDEN, PROMPT, VOCAB, Obliging, scattered, teach
from safetensors.torch import load_file
from torch import nn

from outpace.api import drafter_check
from outpace.api.drafter_check import check_drafter, export_drafter
from outpace.api.engine import LanguageModel
from outpace.heads.decoder import Masked
from outpace.heads.files import save_head
from outpace.heads.foreign.opening import open_foreign
from outpace.heads.foreign.source import read_source
from outpace.heads.model import new_head

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    speculators = pytest.importorskip("speculators")
    from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig
    from speculators.models.dspark import DSparkDraftModel, DSparkSpeculatorConfig
    from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
    from speculators.models.mtp import MTPDraftModel, MTPSpeculatorConfig
    from speculators.models.peagle import PEagleDraftModel, PEagleSpeculatorConfig
    from speculators.proposals.greedy import GreedyTokenProposalConfig
    from transformers import LlamaConfig, Qwen3Config

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1000.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drafter_check, "_prompts", lambda lm: [PROMPT])
    monkeypatch.setattr(drafter_check, "_TOKENS", 12)
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))


def theirs(kind: str) -> nn.Module:
    """A small drafter of the package's own making, with weights at random."""
    proposal = {
        "speculators_config": speculators.SpeculatorsConfig(
            algorithm=kind,
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
            default_proposal_method="greedy",
            verifier=speculators.VerifierConfig(name_or_path=None, architectures=[]),
        )
    }
    whole = {"draft_vocab_size": VOCAB}
    body = {"aux_hidden_state_layer_ids": [2, 4, 5], "block_size": 4, "mask_token_id": 11, **whole}
    made: dict[str, Any] = {
        "eagle3": lambda: Eagle3DraftModel(
            Eagle3SpeculatorConfig(
                transformer_layer_config=LlamaConfig(**SHAPE), norm_before_residual=True, fc_norm=True,
                norm_output=True, eagle_aux_hidden_state_layer_ids=[2, 4, 5], **whole, **proposal,
            )
        ),
        "peagle": lambda: PEagleDraftModel(
            PEagleSpeculatorConfig(
                transformer_layer_config=LlamaConfig(**SHAPE), mask_token_id=11,
                eagle_aux_hidden_state_layer_ids=[2, 4, 5], **whole, **proposal,
            )
        ),
        "dflash": lambda: DFlashDraftModel(
            DFlashSpeculatorConfig(transformer_layer_config=Qwen3Config(**SHAPE), **body, **proposal)
        ),
        "dspark": lambda: DSparkDraftModel(
            DSparkSpeculatorConfig(transformer_layer_config=Qwen3Config(**SHAPE), markov_rank=8, **body, **proposal)
        ),
        "mtp": lambda: MTPDraftModel(
            MTPSpeculatorConfig(transformer_layer_config=Qwen3Config(**SHAPE), **proposal)
        ),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = made[kind]()
        for name, weight in model.named_parameters():
            nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, HIDDEN**-0.5)
    return model


@pytest.mark.parametrize("kind", ["eagle3", "peagle", "dflash", "dspark", "mtp"])
def test_what_the_package_writes_is_read_whole(kind: str, tmp_path: Path) -> None:
    theirs(kind).save_pretrained(tmp_path / "d")  # type: ignore[operator]
    target = Obliging()
    opened = open_foreign(read_source(tmp_path / "d"), target)
    teach(target, opened.model)
    verdict = check_drafter(LanguageModel(target), tmp_path / "d")
    assert "(speculators)" in verdict.layout and not verdict.cause and verdict.tokens_per_round > 3
    unsaid = [choice.name for choice in opened.foreign.choices if choice.is_open]
    assert unsaid == []


def test_eagle3_drafts_what_the_package_drafts(tmp_path: Path) -> None:
    """Their forward over a text, and ours through the drafter's cache, name the same next tokens."""
    model = theirs("eagle3")
    model.config.transformer_layer_config._attn_implementation = "eager"  # type: ignore[union-attr]
    model.save_pretrained(tmp_path / "d")  # type: ignore[operator]
    net = open_foreign(read_source(tmp_path / "d"), Obliging()).model.net.float()
    tokens, states = torch.tensor([PROMPT]), torch.randn(1, len(PROMPT), 3 * HIDDEN)
    sees = torch.ones(len(PROMPT), len(PROMPT), dtype=torch.bool).tril()
    place = torch.arange(1, len(PROMPT) + 1).unsqueeze(0)
    with torch.no_grad():
        drafted = _their_first_step(model, tokens, states)
        embeds = model.embed_tokens(tokens)  # type: ignore[operator]
        ours = net.logits(None, net.run(embeds, net.fuse(states), Masked(place, sees)))  # type: ignore[operator]
    assert torch.equal(ours.argmax(-1), drafted)


def _their_first_step(model: Any, tokens: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return the tokens that their layers and head give at each place, with plain causal attention."""
    count = tokens.shape[1]
    x = model.fc(torch.cat([norm(part) for norm, part in zip(model.fc_norm, states.chunk(3, -1), strict=True)], -1))
    x = torch.cat([model.embed_tokens(tokens), x], -1)
    place = torch.arange(1, count + 1).unsqueeze(0)
    turns = model.rotary_emb(x, place)
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
    model.layers[0].self_attn.config._attn_implementation = "eager"
    out = model.layers[0](x, attention_mask=mask, position_ids=place, position_embeddings=turns)
    found: torch.Tensor = model.lm_head(model.norm(out)).argmax(-1)
    return found


@pytest.mark.parametrize("form", ["eagle3-speculators", "dflash-speculators"])
def test_the_package_loads_what_is_exported(form: str, tmp_path: Path) -> None:
    target = Obliging()
    kind = "eagle3" if form == "eagle3-speculators" else "dflash"
    settings: dict[str, Any] = {"heads": 2, "head_dim": 8}
    if kind == "eagle3":
        settings |= {"own_output": True, "own_embedding": True}
    else:
        settings |= {"adds_state": False, "has_last": False, "taps": (2, 4, 5), "mask_id": 11, "anchor_drafts": False}
    model = scattered(new_head(kind, target, depth=3, **settings))
    teach(target, model)
    save_head(model.net, tmp_path / "ours", dtype=torch.float32)
    before, after = export_drafter(LanguageModel(target), tmp_path / "ours", tmp_path / "theirs", form)
    assert before == after > 3.5
    config = speculators.SpeculatorModelConfig.from_pretrained(tmp_path / "theirs")
    made = {"eagle3": Eagle3DraftModel, "dflash": DFlashDraftModel}[kind](config)
    told = made.load_state_dict(load_file(tmp_path / "theirs" / "model.safetensors"), strict=False)
    assert told.unexpected_keys == []
    left = {name for name in told.missing_keys if not name.startswith("verifier_")}
    assert left <= {"embed_tokens.weight", "lm_head.weight"} and (kind == "dflash" or not left)

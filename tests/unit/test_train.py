"""Training: order of the data, resuming, checkpoints, export, and the measures of quality. All on toy sizes."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from outpace.errors import ConfigError, ModelError, StorageError
from outpace.text.ngram import NGram
from outpace.train import RECIPES, Recipe, checkpoint, train
from outpace.train.bounds import masked_bits
from outpace.train.completions import complete, cut_block, drop_open_statement, prompts
from outpace.train.data import EOS_ID, MASK, MASK_ID, DataMixture, encode_stream, train_tokenizer
from outpace.train.export import load_network
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import mask_tokens
from outpace.train.quality import (
    Agreement,
    BitsPerByte,
    HeldOut,
    Parsing,
    Quality,
    causal_bits,
    measure_agreement,
    measure_bits,
    write_card,
)
from outpace.train.sources import END, MIXED_SOURCES, SOURCES, Source, gsm8k_document, is_held_out, library_files
from outpace.train.trainer import EXIT_INTERRUPTED, Trainer

SHAPE = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=300, context=64)


def _source(name: str, weight: float, text: str) -> Source:
    return Source(
        name=name,
        files=("some.txt",),
        origin="nowhere",
        licence="none",
        note="toy",
        weight=weight,
        read=lambda data: iter([f"{text} {number} {(data / 'some.txt').read_text()}" for number in range(40)]),
    )


TINY = Recipe(
    name="tiny",
    summary="A toy.",
    shape=SHAPE,
    objective="causal",
    steps=6,
    gpu_steps=6,
    rows=4,
    length=16,
    warmup=2,
    checkpoint_every=2,
    sources=(_source("words", 0.75, "def f(x):\n    return x\n"), _source("numbers", 0.25, "one two three")),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "some.txt").write_text("the quick brown fox jumps over the lazy dog")
    return folder


def _train(out: Path, data: Path, recipe: Recipe = TINY, **options: object) -> int:
    return train(recipe, out, data=data, threads=1, compiled=False, **options)  # type: ignore[arg-type]


def test_a_killed_run_resumes_to_the_same_loss(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _train(tmp_path / "whole", data) == 0
    advance = Trainer.advance

    def die_at_five(self: Trainer) -> float:
        if self.step == 5:
            raise MemoryError("killed")
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", die_at_five)
    with pytest.raises(MemoryError):
        _train(tmp_path / "killed", data)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 4
    assert _train(tmp_path / "killed", data, resume=True) == 0
    whole, killed = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert whole["losses"] == killed["losses"]
    assert all(torch.equal(whole["network"][name], killed["network"][name]) for name in whole["network"])


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_compiled_loss_with_other_gradients_is_not_used(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, is_wrong: bool
) -> None:
    """A compiler that keeps the loss and doubles its gradients is found out by the first step."""
    calls = [0]

    def compiled(loss: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def run(*arguments: object) -> Tensor:
            calls[0] += 1
            found = loss(*arguments)
            return 2 * found - found.detach() if is_wrong else found

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    assert train(TINY, tmp_path / "a", data=data, threads=1, compiled=True) == 0
    assert calls[0] == (1 if is_wrong else 1 + TINY.steps)
    assert ("has other gradients" in (tmp_path / "a" / "train.log").read_text()) == is_wrong
    assert _train(tmp_path / "b", data) == 0
    one, other = (checkpoint.load(tmp_path / name / "checkpoint.pt")["losses"] for name in ("a", "b"))
    assert one == other


def test_an_interrupt_saves_a_checkpoint_and_exits_130(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance

    def interrupt_at_three(self: Trainer) -> float:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", interrupt_at_three)
    assert _train(tmp_path / "run", data) == EXIT_INTERRUPTED
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_leaves_the_last_checkpoint_valid(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"step": 1, "weights": torch.ones(1000)}, path)
    # A real full device: every write to it fails with ENOSPC, also inside PyTorch's own writer.
    path.with_suffix(".part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"the disk is full.*the previous checkpoint is still valid") as caught:
        checkpoint.save({"step": 2, "weights": torch.ones(1000)}, path)
    assert "--resume" in caught.value.hint
    assert checkpoint.load(path)["step"] == 1
    checkpoint.save({"step": 3}, path)
    assert checkpoint.load(path)["step"] == 3


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint"):
        _train(tmp_path / "run", data, resume=True)
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.load(tmp_path / "broken.pt")
    _train(tmp_path / "run", data, steps=1)
    with pytest.raises(ConfigError, match="seed 0"):
        _train(tmp_path / "run", data, resume=True, seed=1)


def test_an_unknown_recipe_or_missing_text_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train("storys", tmp_path / "run")
    assert "stories" in caught.value.hint
    (data / "some.txt").unlink()
    with pytest.raises(ConfigError, match=r"some\.txt is missing") as caught:
        _train(tmp_path / "run", data)
    assert "nowhere" in caught.value.hint


def test_the_data_order_is_a_function_of_the_step() -> None:
    streams = tuple(np.arange(low, low + 5000, dtype=np.uint16) for low in (0, 10000, 20000))
    mixture = DataMixture(streams, (0.5, 0.3, 0.2), seed=3)
    late = mixture.batch(700, 8, 64)
    for step in range(20):
        mixture.batch(step, 8, 64)
    assert torch.equal(late, DataMixture(streams, (0.5, 0.3, 0.2), seed=3).batch(700, 8, 64))
    assert not torch.equal(late, DataMixture(streams, (0.5, 0.3, 0.2), seed=4).batch(700, 8, 64))
    rows = np.stack([mixture.row(number, 64) for number in range(2000)])
    assert np.bincount(rows[:, 0] // 10000, minlength=3) / 2000 == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    seen = np.unique(rows[rows < 10000])
    assert len(seen) > 4900
    assert len(mixture.row(0, 6000)) == 6000


def test_an_exported_model_is_the_same_in_transformers(tmp_path: Path, data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _train(tmp_path / "tiny", data)
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32).eval()
    assert type(model).__name__ == "LlamaForCausalLM"
    network = load_network(tmp_path / "tiny")
    with torch.inference_mode():
        torch.testing.assert_close(network(tokens), model(tokens).logits, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (EOS_ID, MASK_ID)
    text = "def f(x):\n        return  x + 12  # ü\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert "nowhere" in (tmp_path / "tiny" / "card.md").read_text()


def test_a_parent_that_is_nowhere_is_named_with_the_command_that_makes_it(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ModelError, match="begins with elder, which does not ship") as caught:
        _train(tmp_path / "tiny", data, replace(TINY, parent="elder"))
    assert f"outpace train elder --out {tmp_path / 'elder'}" in str(caught.value.hint)


@pytest.mark.parametrize("objective", ["masked", "block", "distilled"])
def test_children_share_the_tokenizer_of_their_parent(tmp_path: Path, data: Path, objective: str) -> None:
    _train(tmp_path / "tiny", data)
    is_block = objective == "block"
    shape = replace(SHAPE, causal=objective == "distilled", block=4 if is_block else 0, shifted=is_block)
    child = replace(TINY, name="child", shape=shape, objective=objective, parent="tiny")  # type: ignore[arg-type]
    _train(tmp_path / "child", data, child)
    for name in ("tiny", "child"):
        assert Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).token_to_id(MASK) == MASK_ID
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    expected = {"model_type": "outpace_masked_llama", "mask_token_id": 1, "attention": "full", "logits_shift": False}
    if is_block:
        expected |= {"attention": "block", "logits_shift": True, "block_length": 4}
    assert (expected.items() <= config.items()) == (objective != "distilled")
    assert load_network(tmp_path / "child").shape == shape


def test_masks_follow_their_rates() -> None:
    tokens = torch.full((8, 4000), 7)
    masked, weights = mask_tokens(tokens, step=5, seed=0)
    shares = (masked == MASK_ID).float().mean(1)
    assert torch.all(shares.diff() > 0)
    # Weighted by 1/t, every row counts as many tokens as it has.
    assert weights.sum(1) * 8 == pytest.approx(np.ones(8), abs=0.15)
    assert torch.equal(masked, mask_tokens(tokens, step=5, seed=0)[0])
    assert not torch.equal(masked, mask_tokens(tokens, step=6, seed=0)[0])


def test_the_tokenizer_keeps_indentation_compact_and_digits_apart() -> None:
    code = "\n".join(f"class A{n}:\n    def f(self):\n            return self.value[{n}]" for n in range(50))
    tokenizer = train_tokenizer([code], 400)
    assert (tokenizer.token_to_id(END), tokenizer.token_to_id(MASK)) == (EOS_ID, MASK_ID)
    assert tokenizer.encode("2025").tokens == ["2", "0", "2", "5"]
    assert "Ġ" * 11 in tokenizer.encode(code).tokens
    stream = encode_stream(tokenizer, ["a", "b"])
    assert [stream[0], stream[2], stream[4]] == [EOS_ID] * 3


def test_cached_completion_is_what_the_whole_sequence_says() -> None:
    network = Llama(SHAPE, seed=1)
    with torch.no_grad():
        network.model.embed_tokens.weight.mul_(20)
    ids = [5, 9, 200, 17]
    written = complete(network, ids, 12, 1e-4, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = network(torch.tensor([ids + written]))[0].argmax(-1).tolist()
    assert whole[len(ids) - 1 : -1] == written


def test_ngram_probabilities_sum_to_one_and_come_close_to_the_truth() -> None:
    generator = np.random.default_rng(0)
    table = generator.dirichlet(np.ones(4) * 0.4, size=4)
    symbols = [0]
    for _ in range(6000):
        symbols.append(int(generator.choice(4, p=table[symbols[-1]])))
    held = np.array(symbols[5000:])
    model = NGram(np.array(symbols[:5000]), 3, 4)
    truth = -np.mean([np.log2(table[a, b]) for a, b in itertools.pairwise(held)])
    assert model.bits(held).mean() == pytest.approx(truth, abs=0.03)
    for context in ([0, 1], [3, 3], [2, 0, 2]):
        assert sum(2 ** -model.bits(np.array([*context, last]))[-1] for last in range(4)) == pytest.approx(1)


def test_bits_of_an_untrained_model_are_those_of_a_uniform_one() -> None:
    stream = np.random.default_rng(0).integers(2, 300, 200)
    zero = {name: torch.zeros_like(weight) for name, weight in Llama(SHAPE).state_dict().items()}
    causal, masked = Llama(SHAPE), Llama(replace(SHAPE, causal=False))
    for network in (causal, masked):
        network.load_state_dict(zero)
    assert causal_bits(causal, stream) == pytest.approx(199 * np.log2(300))
    # The mask is never an answer, so one token fewer is possible.
    assert masked_bits(masked, stream) == pytest.approx(200 * np.log2(299))


def test_cutting_a_completion_keeps_its_errors() -> None:
    assert cut_block("    a = 1\n\nb = 2\n    c", 0, is_whole=False) == "    a = 1\n\n"
    assert cut_block("    a = 1\n    b = (", 0, is_whole=False) == "    a = 1\n"
    assert cut_block("    a = = 1\n    b", 0, is_whole=False) == "    a = = 1\n"
    head = "def f():\n    x = 1\n"
    assert drop_open_statement(head, "    y = 2\n    z = g(1,\n        2,") == "    y = 2\n"
    assert drop_open_statement(head, "    y = 2\n    if y:") == "    y = 2\n"
    assert "= =" in drop_open_statement(head, "    y = = 2\n    z = 3")


def test_prompts_parse_and_end_inside_functions() -> None:
    tokenizer = train_tokenizer(["def f(x): return x"], 300)
    file = "import a\n\n\ndef f(x):\n    y = x\n    return y\n\n\nclass C:\n"
    file += "    def g(self):\n        'd'\n        return 1\n"
    assert prompts([("m.py", file)], tokenizer, 10, 500) == [
        ("import a\n\n\ndef f(x):\n    y = x\n", 0),
        (file.removesuffix("        return 1\n"), 4),
    ]


def test_the_recipes_keep_their_promises() -> None:
    sizes = {
        name: sum(weight.numel() for weight in Llama(recipe.shape).parameters()) for name, recipe in RECIPES.items()
    }
    assert 6_000_000 <= sizes["stories"] == sizes["stories-mask"] == sizes["stories-block"] <= 12_000_000
    assert sizes["stories-draft"] <= 1_000_000
    assert sum(source.weight for source in SOURCES) == pytest.approx(1)
    assert sum(source.weight for source in MIXED_SOURCES) == pytest.approx(1)
    assert all(source.origin and source.licence and "NC" not in source.licence for source in MIXED_SOURCES)
    held = [relative for relative, _ in library_files() if is_held_out(relative)]
    assert 0.01 < len(held) / len(library_files()) < 0.08


def test_gsm8k_documents_lose_their_calculator_notes() -> None:
    row = {"question": "How many?", "answer": "He sold 48/2 = <<48/2=24>>24 clips.\n#### 24"}
    assert gsm8k_document(row) == "Question: How many?\nAnswer: He sold 48/2 = 24 clips.\n#### 24\n"


def test_a_model_agrees_with_itself_and_is_set_beside_the_baselines() -> None:
    stream = np.random.default_rng(0).integers(2, 300, 150)
    bits = float(150 * np.log2(300))
    held = HeldOut(
        text="stories",
        num_bytes=300,
        stream=stream,
        unigram=bits,
        token_ngram=bits,
        byte_ngram=2 * bits,
        domain_ngram=bits,
    )
    network = Llama(SHAPE, seed=3)
    assert measure_agreement(network, network, held).same_top == 1
    assert measure_agreement(network, network, held).overlap == pytest.approx(1)
    assert measure_agreement(network, Llama(SHAPE, seed=4), held).overlap < 0.99
    row = measure_bits(network, held)
    assert row.model == pytest.approx(causal_bits(network, stream) / 300)
    assert row.below_byte == pytest.approx(0.5 + row.below_token / 2)


def test_figures_replace_earlier_ones_in_the_card(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# tiny\n\nA toy.\n")
    row = BitsPerByte(
        text="stories",
        num_bytes=9,
        model=1.0,
        perplexity=8.0,
        causal=0.75,
        unigram=5.0,
        token_ngram=2.0,
        byte_ngram=4.0,
        domain_ngram=2.0,
        below_token=0.5,
        below_byte=0.75,
    )
    parsing = Parsing(num=3, temperature=0.5, strict=1 / 3, statement=2 / 3)
    agreement = [Agreement(text="stories", same_top=0.5, overlap=0.25)]
    for _ in range(2):
        write_card(tmp_path, Quality(model="tiny", bits_per_byte=[row], parsing=parsing, agreement=agreement))
    text = (tmp_path / "card.md").read_text()
    assert text.startswith("# tiny\n\nA toy.\n") and text.count("## Quality") == 1
    assert "| 1.000 | 8.000 | 5.000 |" in text and "started from: 0.750 on stories." in text
    assert "33.3% parse" in text and "| 50.0% | 75.0% |" in text and "| 50.0% | 25.0% |" in text

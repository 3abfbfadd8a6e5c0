"""A checkpoint's generation_config.json: transformers' own tokens, drafted or not, and notes on what is not obeyed."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace.api.engine import LanguageModel, load
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.models.generation import GenerationConfig, read_generation
from outpace.models.opening import open_model
from outpace.sampling import Sampler, Sampling

hf = pytest.importorskip("transformers")
VOCAB, COUNT = 61, 9
IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
GATED = IDS | WIDE | {"intermediate_size": 32, "num_key_value_heads": 1, "tie_word_embeddings": False}
SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
}
BOTH = IDS | {"decoder_start_token_id": 3, "forced_eos_token_id": None, "tie_word_embeddings": False}
BART = BOTH | SIDES | {"d_model": 32, "max_position_embeddings": 64}
KINDS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**GATED),
    "qwen2": lambda: hf.Qwen2Config(**GATED),
    "gpt2": lambda: hf.GPT2Config(**IDS, n_embd=32, n_layer=1, n_head=2, n_positions=64),
    "opt": lambda: hf.OPTConfig(**IDS, **WIDE, ffn_dim=32, word_embed_proj_dim=32),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**IDS, **WIDE, intermediate_size=32),
    "gemma2": lambda: hf.Gemma2Config(**GATED, head_dim=16, sliding_window=32),
    "phi3": lambda: hf.Phi3Config(**GATED),
    "bart": lambda: hf.BartConfig(**BART),
    "mbart": lambda: hf.MBartConfig(**BART),
    "t5": lambda: hf.T5Config(**BOTH, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2),
    "m2m100": lambda: hf.M2M100Config(**BART),
    "marian": lambda: hf.MarianConfig(**BART),
}
ENCODED = ("bart", "mbart", "t5", "m2m100", "marian")
PROMPT = [17, 5, 40, 8, 17, 5, 23]
DRAFTED = ("all at once", "encoder_no_repeat_ngram_size", "forced_eos_token_id")  # the contract tries all, on toys
DECAYS = {"eos_token_id": 44, "exponential_decay_length_penalty": [2, 3.0]}
COPIES = {"sequence_bias": [[[17], 30.0], [[17, 5], 60.0], [[5, 17], 60.0]]}  # so that there is something to forbid


@functools.cache
def made(kind: str, root: Path) -> tuple[Path, Any]:
    """Save a random model, scaled so that its text does not loop at once; return its directory, and it itself."""
    torch.manual_seed(5)
    config = KINDS[kind]()
    maker = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    model = maker.from_config(config).double().eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            is_table = any(part in name for part in ("embed", "shared", "wte", "wpe"))
            weight.data = torch.randn_like(weight) * (1.0 if is_table else 4.0 / weight.shape[-1] ** 0.5)
    hf.utils.logging.disable_progress_bar()
    directory = root / f"asked-{kind}"  # other modules keep models of these kinds in the same root
    model.save_pretrained(directory)
    return directory, maker.from_pretrained(directory, dtype=torch.float64).eval()


def theirs(model: Any, asked: dict[str, Any], prompt: list[int], prefix: tuple[int, ...] = ()) -> list[int]:
    """What transformers writes when the file holds these keys."""
    names = {"decoder_start_token_id": 3} if model.config.is_encoder_decoder else {}
    model.generation_config = hf.GenerationConfig(
        **{"pad_token_id": 0, "bos_token_id": 1, "max_new_tokens": COUNT, **names, **asked}
    )
    start = len(prompt)
    arguments = {}
    if model.config.is_encoder_decoder:
        start = 1 + len(prefix)
        arguments = {"decoder_input_ids": torch.tensor([[3, *prefix]])}
    tokens = model.generate(torch.tensor([prompt]), **arguments, do_sample=False, num_beams=1)[0, start:]
    return [int(token) for token in tokens]


def ours(lm: LanguageModel, asked: dict[str, Any], prompt: list[int], **arguments: Any) -> list[int]:
    ends = asked.get("eos_token_id", [])
    lm.end_tokens = tuple(ends) if isinstance(ends, list) else (ends,)
    lm.generation = GenerationConfig.read({"max_new_tokens": COUNT, **asked})
    return list(lm.generate(prompt, **arguments).tokens)


def wishes(plain: list[int], start: int) -> dict[str, dict[str, Any]]:
    """Each key with a value that this model feels: its plain text is known."""
    first, second, third = plain[:3]
    end = {"eos_token_id": [third, 60]}
    alone = {
        "repetition_penalty": {"repetition_penalty": 3.0},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "no_repeat_ngram_size of two": {"no_repeat_ngram_size": 2, **COPIES},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2, **COPIES},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1000.0},
        "bad_words_ids": {"bad_words_ids": [[first], [second, third], [44], [9, 9]], **DECAYS},
        "suppress_tokens": {"suppress_tokens": [first, -1, 900]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [first, 30]},
        "forced_bos_token_id": {"forced_bos_token_id": 7, "begin_suppress_tokens": [second]},
        "forced_eos_token_id": {"forced_eos_token_id": [31 if plain[-1] != 31 else 32]},
        "eos_token_id": end,
        "min_length": {**end, "min_length": start + 6},
        "min_new_tokens": {**end, "min_new_tokens": 5, "min_length": 1},
        "max_new_tokens": {"max_new_tokens": 4, "max_length": 30},
        "max_length": {"max_new_tokens": None, "max_length": start + 3},
        "sequence_bias": {"sequence_bias": [[[first], -9.0], [[33], 5.0], [[33, 34], 60.0], [[17, 5, 23, 35], 9.0]]},
        "exponential_decay_length_penalty": DECAYS,
    }
    chosen = ("repetition_penalty", "no_repeat_ngram_size of two", "encoder_no_repeat_ngram_size", "bad_words_ids")
    chosen += ("forced_eos_token_id", "begin_suppress_tokens", "exponential_decay_length_penalty")
    alone["all at once"] = {key: value for name in chosen for key, value in alone[name].items()}
    alone["all at once"] |= {"repetition_penalty": 1.1, "encoder_repetition_penalty": 1.1, "suppress_tokens": [52]}
    return alone


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_tokens_under_every_key(kind: str, model_root: Path) -> None:
    directory, model = made(kind, model_root)
    lm = LanguageModel(open_model(str(directory), "float64"))
    plain = theirs(model, {}, PROMPT)
    assert ours(lm, {}, PROMPT) == plain
    for name, asked in wishes(plain, 1 if kind in ENCODED else len(PROMPT)).items():
        want = theirs(model, asked, PROMPT)
        assert ours(lm, asked, PROMPT) == want, name
        if name in DRAFTED:
            assert ours(lm, asked, PROMPT, method="prompt-lookup") == want, f"{name}, drafted"
        rest = {key: value for key, value in asked.items() if key != name.split()[0]}
        is_felt = want != (theirs(model, rest, PROMPT) if rest and name[:3] not in ("max", "all") else plain)
        assert is_felt or (name == "forced_bos_token_id" and kind not in ENCODED), f"{name} changes nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_token_is_forced_where_one_token_stands(kind: str, model_root: Path) -> None:
    """In an encoder-decoder behind the start token, elsewhere behind a prompt of one token."""
    directory, model = made(kind, model_root)
    lm = LanguageModel(open_model(str(directory), "float64"))
    plain = theirs(model, {}, [12])
    for name in ("forced_bos_token_id", "all at once"):
        asked = wishes(plain, 1)[name] | {"forced_bos_token_id": 7}
        want = theirs(model, asked, [12])
        assert ours(lm, asked, [12]) == ours(lm, asked, [12], method="prompt-lookup") == want
        assert want[0] == 7


@pytest.mark.parametrize("kind", ENCODED)
def test_a_decoder_starts_with_its_prefix(kind: str, model_root: Path) -> None:
    directory, model = made(kind, model_root)
    lm = LanguageModel(open_model(str(directory), "float64"))
    asked = {"forced_bos_token_id": 7, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    for prefix in ((9, 44), (30,)):
        want = theirs(model, asked, PROMPT, prefix)
        assert ours(lm, asked, PROMPT, prefix=prefix) == want
        assert ours(lm, asked, PROMPT, prefix=[3, *prefix], method="prompt-lookup") == want
    assert want != theirs(model, asked, PROMPT)
    with pytest.raises(ConfigError):
        lm.generate(PROMPT, prefix=[VOCAB])


EVERY_KEY = {
    "bad_words_ids": [[9, 9]],
    "begin_suppress_tokens": [4, 5],
    "do_sample": True,
    "early_stopping": "never",
    "encoder_no_repeat_ngram_size": 3,
    "encoder_repetition_penalty": 1.2,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "exponential_decay_length_penalty": [5, 1.1],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 2,
    "guidance_scale": 1.5,
    "length_penalty": 0.6,
    "max_length": 24,
    "max_time": 60.0,
    "min_length": 9,
    "min_p": 0.05,
    "no_repeat_ngram_size": 3,
    "num_beams": 5,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
    "remove_invalid_values": True,
    "repetition_penalty": 1.1,
    "sequence_bias": [[[8, 9], -2.0]],
    "stop_strings": ["fox"],
    "suppress_tokens": [6],
    "temperature": 0.6,
    "token_healing": True,
    "top_h": 0.4,
    "top_k": 20,
    "top_p": 0.9,
    "typical_p": 0.95,
    "use_cache": False,
    "watermarking_config": {"bias": 2.5},
    "made_up_key": 1,
}
FACTS = {"transformers_version": "5.0", "_from_model_config": True, "bos_token_id": 1, "pad_token_id": None}


def told(lm: LanguageModel, **arguments: Any) -> list[str]:
    found: Any = lm.generate([5, 6, 7], **arguments)
    return [note for note in (found[0] if isinstance(found, list) else found).notes if "config.json" in note]


def named(note: str) -> set[str]:
    return {key for key in EVERY_KEY if f" {key}" in note}


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Any:
    """Return a maker of a model with a tokenizer and these keys in its file."""

    def make(keys: Any, file: str = "generation_config.json") -> Path:
        shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
        (tmp_path / "generation_config.json").unlink()
        config = json.loads((tmp_path / "config.json").read_text())
        whole = keys if file != "config.json" or not isinstance(keys, dict) else config | keys
        (tmp_path / file).write_text(json.dumps(whole))
        return tmp_path

    return make


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_notes_name_every_key(checkpoint: Any, file: str) -> None:
    """Obeyed, not obeyed, without effect or asked for by sampling: each key once; an older checkpoint's config too."""
    unknown = {"made_up_key"} if file == "config.json" else set()  # such a config has keys of its own
    keys = {key: value for key, value in (EVERY_KEY | FACTS).items() if key not in unknown}
    lm = load(checkpoint(keys, file), is_checked=False)
    notes = told(lm)
    assert len(notes) == 2 and all(file in note for note in notes)
    assert named(notes[0]) | named(notes[1].replace("(", " ")) == EVERY_KEY.keys() - {"do_sample"} - unknown
    groups = {part.partition(":")[0].rpartition(", ")[2].strip(): named(part) for part in notes[0].split(";")}
    assert groups["without effect on the text"] == {"use_cache"}
    assert {"penalty_alpha", "watermarking_config", "top_h"} <= groups["not obeyed"]
    assert {"repetition_penalty", "stop_strings", "max_length", "forced_bos_token_id", "num_beams"} <= groups["obeyed"]
    assert named(notes[1].replace("(", " ")) == {"temperature", "top_k", "top_p", "min_p", "typical_p"}


def test_the_user_wins_over_the_file(checkpoint: Any) -> None:
    directory = checkpoint({"min_new_tokens": 3, "max_new_tokens": 5, "suppress_tokens": [28], "temperature": 0.5})
    lm, free = load(directory, is_checked=False), load(directory, is_checked=False, generation_config="none")
    ids = [5, 6, 7]
    assert len(lm.generate(ids).tokens) == 5 and not told(free)
    assert lm.generate(ids, max_tokens=7).tokens != free.generate(ids, max_tokens=7).tokens
    own = {"min_tokens": 0, "suppress_tokens": (), "max_tokens": 7}
    assert lm.generate(ids, **own).tokens == free.generate(ids, max_tokens=7).tokens
    assert told(lm, **own) == ["generation_config.json, without effect on the text: temperature=0.5."]
    assert lm.generate(ids, max_tokens=None).tokens == lm.generate(ids).tokens  # None = not given


def test_sampling_is_the_models_own_on_request(checkpoint: Any) -> None:
    lm = load(checkpoint({"do_sample": True, "temperature": 0.6, "top_p": 0.9}), is_checked=False)
    plain, ids = lm.generate([5, 6, 7], max_tokens=9), [5, 6, 7]
    assert "asks for sampling (temperature=0.6, top_k=50, top_p=0.9)" in plain.notes[-1]
    # transformers keeps the 50 likeliest tokens where its files say nothing else
    drawn = lm.generate(ids, max_tokens=9, temperature=0.6, top_k=50, top_p=0.9)
    assert lm.generate(ids, max_tokens=9, sampling="model").tokens == drawn.tokens != plain.tokens
    warm = lm.generate(ids, max_tokens=9, sampling="model", temperature=5.0).tokens
    assert warm == lm.generate(ids, max_tokens=9, temperature=5.0, top_k=50, top_p=0.9).tokens
    with pytest.raises(ConfigError):
        lm.generate(ids, sampling="theirs")


@pytest.mark.parametrize(
    "keys",
    [
        {"repetition_penalty": "1.2"},
        {"repetition_penalty": 0},
        {"no_repeat_ngram_size": 2.5},
        {"no_repeat_ngram_size": -1},
        {"bad_words_ids": [7]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[7, -2]]},
        {"bad_words_ids": [[100_000]]},
        {"forced_bos_token_id": "fr"},
        {"forced_eos_token_id": 100_000},
        {"suppress_tokens": ["a"]},
        {"sequence_bias": {"7": 1.0}},
        {"exponential_decay_length_penalty": 3},
        {"max_length": "long"},
        {"max_new_tokens": 0},
        {"min_length": True},
        {"stop_strings": [""]},
        {"do_sample": "yes"},
        {"temperature": None, "top_k": [5]},
        [],
    ],
    ids=str,
)
def test_a_malformed_value_is_one_sentence(checkpoint: Any, keys: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load(checkpoint(keys), is_checked=False)
    said = str(caught.value)
    assert "generation_config.json" in said and said.count("\n") == 0
    assert not isinstance(keys, dict) or (list(keys)[-1] in said and "--generation-config none" in caught.value.hint)


def test_what_a_canvas_cannot_obey_is_named() -> None:
    """On a masked model tokens are suppressed, single bad words too; laws over what stands before are named."""
    lm = load("stories-mask", is_compiled=False)
    plain = lm.generate("Once upon a time", method="masked-diffusion", max_tokens=16)
    barred = [[token] for token in set(plain.tokens)]
    lm.generation = GenerationConfig.read({"bad_words_ids": [*barred, [3, 4]], "repetition_penalty": 1.2})
    found = lm.generate("Once upon a time", method="masked-diffusion", max_tokens=16)
    assert not set(found.tokens) & set(plain.tokens) - set(lm.end_tokens)
    note = next(note for note in found.notes if note.startswith("generation_config.json"))
    assert "obeyed: suppress_tokens" in note and "not obeyed: repetition_penalty=1.2, bad_words_ids" in note


def test_causal_models_take_no_prefix(tiny: Path) -> None:
    with pytest.raises(CapabilityError, match="prefix"):
        load(tiny, is_checked=False).generate([5], prefix=[6])


def test_a_constraint_begins_behind_the_forced_token() -> None:
    """A language's token is no part of the text that must match."""
    pytest.importorskip("llguidance")
    lm = load("translate", is_checked=False)
    assert lm.tokenizer is not None
    token = lm.tokenizer.encode("Hund", is_special=False)[0]
    lm.generation = GenerationConfig.read({"forced_bos_token_id": token})
    assert lm.generate("A dog runs.", max_tokens=2).tokens[0] == token
    assert lm.generate("A dog runs.", regex="[a-z ]+", max_tokens=8).finish_reason != "error"


def test_plain_settings_stay_on_the_fast_path() -> None:
    """What only suppresses tokens keeps no history; neither does a checkpoint that asks for nothing."""
    assert not Sampling(suppress_tokens=(3,)).is_stateful and Sampler(Sampling(suppress_tokens=(3,)), [1]).is_parallel
    assert not Sampling(**GenerationConfig.read(FACTS).law).is_stateful
    assert read_generation(Path(), "none") == GenerationConfig()


def test_no_arm_of_the_bench_obeys_the_file(checkpoint: Any) -> None:
    from outpace.bench.arms import make_arms
    from outpace.bench.options import BenchOptions
    from outpace.bench.peers import load_hf

    directory = checkpoint({"repetition_penalty": 3.0, "suppress_tokens": [28]})
    assert load_hf(directory, torch.float64).generation_config.suppress_tokens is None
    options = BenchOptions(model=str(directory), prompts=("stories",), paths=("eager",), dtype="float64")
    arms, _, lm = make_arms(options, directory, is_lenient=True)
    assert not lm.generation.law and not arms[0].lm.generation.law

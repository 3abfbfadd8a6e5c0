"""Capability cards: what the table and the files say, what the user may replace, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from masked_layouts import DREAM, FAST, LLADA, OWN, SDAR

from outpace.errors import ConfigError, ModelError, OutpaceError
from outpace.models.card import CARD_TABLE, Card, card_from_text, kind_of, read_card
from outpace.models.loading import read_capabilities, read_end_tokens
from outpace.models.opening import offered_by, open_model

# The keys that matter of published config.json files, with the values of the checkpoints.
LLADA_8B = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "embedding_size": 126464,
    "vocab_size": 126464,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
}
DREAM_7B = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "vocab_size": 152064,
    "mask_token_id": 151666,
    "eos_token_id": 151643,
}
REASONER = DREAM_7B | {"architectures": ["DreamForCausalLM"], "mask_token_id": 151669}
FAST_7B = {
    "model_type": "Fast_dLLM_Qwen",
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "vocab_size": 152064,
    "bd_size": 32,
    "eos_token_id": 151645,
}
SDAR_4B = {
    "model_type": "sdar",
    "architectures": ["SDARForCausalLM"],
    "vocab_size": 151936,
    "eos_token_id": [151645, 151643],
}
STORY = {"model_type": "outpace_masked_llama", "vocab_size": 8192, "mask_token_id": 1, "eos_token_id": 0}
LLAMA = {"model_type": "llama", "vocab_size": 100, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "family", "attention", "block", "is_shifted", "mask_id", "ends"),
    [
        (LLADA_8B, "llada", "full", 0, False, 126336, (126081, 126348)),
        (DREAM_7B, "Dream", "full", 0, True, 151666, (151643, 151645)),
        (REASONER, "Dream-Reasoner", "full", 0, False, 151669, (151643, 151645)),
        (REASONER | {"block_size": 32}, "Dream-Reasoner", "block", 32, False, 151669, (151643, 151645)),
        (FAST_7B, "Fast_dLLM_Qwen", "block", 32, True, 151665, (151645, 151643)),
        (FAST_7B | {"bd_size": 8, "mask_token_id": 9}, "Fast_dLLM_Qwen", "block", 8, True, 9, (151645, 151643)),
        (SDAR_4B, "sdar", "block", 4, False, 151669, (151645, 151643)),
        (SDAR_4B | {"block_size": 16}, "sdar", "block", 16, False, 151669, (151645, 151643)),
        (STORY, "outpace_masked_llama", "full", 0, False, 1, (0,)),
        (STORY | {"logits_shift": True}, "outpace_masked_llama", "full", 0, True, 1, (0,)),
        (STORY | {"attention": "block", "block_length": 16}, "outpace_masked_llama", "block", 16, False, 1, (0,)),
    ],
)
def test_published_configs(
    config: dict[str, Any],
    family: str,
    attention: str,
    block: int,
    is_shifted: bool,
    mask_id: int,
    ends: tuple[int, ...],
) -> None:
    expected = Card(
        family=family,
        attention=attention,
        block_length=block,
        logits_shift=is_shifted,
        noise="mask",
        mask_id=mask_id,
        end_tokens=ends,
    )
    assert read_card(config) == expected
    assert kind_of(config) == family


def test_causal_models_have_a_plain_card() -> None:
    assert read_card(LLAMA) == Card(family="llama", end_tokens=(2,))
    assert read_card({}) == Card(family="")


def test_every_row_of_the_table_is_a_family_with_a_loader() -> None:
    from outpace.models.lookup import FAMILIES

    assert {entry.name for entry in CARD_TABLE} <= set(FAMILIES)
    assert len({entry.name for entry in CARD_TABLE}) == len(CARD_TABLE)


def test_ends_of_the_table_outside_a_small_vocabulary_are_left_out() -> None:
    assert read_card(LLADA | {"embedding_size": 131}).end_tokens == (1,)


@pytest.mark.parametrize(
    ("config", "given", "changed"),
    [
        (DREAM_7B, {"logits_shift": False}, {"logits_shift": False}),
        (DREAM_7B, {"mask_id": 5}, {"mask_id": 5}),
        (SDAR_4B, {"block_length": 8}, {"block_length": 8}),
        (SDAR_4B, {"attention": "full"}, {"attention": "full", "block_length": 0}),
        (LLADA_8B, {"attention": "block", "block_length": 32}, {"attention": "block", "block_length": 32}),
        (LLADA_8B, {"end_tokens": [7]}, {"end_tokens": (7,)}),
        (LLADA_8B, {}, {}),
    ],
)
def test_the_users_word_counts(config: dict[str, Any], given: dict[str, Any], changed: dict[str, Any]) -> None:
    expected = read_card(config).to_dict() | changed
    assert read_card(config, given).to_dict() == expected | {"end_tokens": list(expected["end_tokens"])}


def test_a_block_model_may_be_read_as_its_causal_twin() -> None:
    """And a causal one as masked; what the change makes meaningless goes with it."""
    twin = read_card(FAST_7B, {"attention": "causal", "mask_id": None})
    assert (twin.attention, twin.mask_id, twin.noise, twin.logits_shift, twin.block_length) == (
        "causal",
        None,
        "none",
        False,
        0,
    )
    masked = read_card(LLAMA, {"attention": "full", "mask_id": 5, "logits_shift": True})
    assert (masked.attention, masked.mask_id, masked.noise, masked.logits_shift) == ("full", 5, "mask", True)


REFUSED = [
    ({"shift": True}, "no field 'shift'", "logits_shift"),
    ({"family": "Dream"}, "no field 'family'", "Known fields"),
    ({"logits_shift": 1}, "logits_shift is 1", "true or false"),
    ({"logits_shift": "no"}, "logits_shift is 'no'", "true or false"),
    ({"logits_shift": None}, "logits_shift is None", "true or false"),
    ({"mask_id": 152064}, "mask_id is 152064, but the vocabulary has 152064", "0 to 152063"),
    ({"mask_id": -1}, "mask_id is -1", "0 to 152063"),
    ({"mask_id": True}, "mask_id is True", "0 to 152063"),
    ({"mask_id": None}, "names no mask token", "mask_id"),
    ({"attention": "sparse"}, "attention is 'sparse'", "causal, full, block"),
    ({"attention": "causal"}, "causal attention and a mask token (151666)", "mask_id none"),
    ({"attention": "causal", "mask_id": None, "logits_shift": True}, "causal attention and a shift", "Leave one out"),
    ({"attention": "block"}, "block attention, but block_length is 0", "1 or more"),
    ({"attention": "block", "block_length": 0}, "block attention, but block_length is 0", "1 or more"),
    ({"attention": "block", "block_length": -4}, "block_length is -4", "1 or more"),
    ({"attention": "block", "block_length": 2.5}, "block_length is 2.5", "1 or more"),
    ({"block_length": 8}, "full attention and blocks of 8", "attention block"),
    ({"noise": "uniform"}, "noise is uniform", "masked checkpoint"),
    ({"noise": "gaussian"}, "noise is 'gaussian'", "mask"),
    ({"noise": "none"}, "noise none and mask_id 151666", "mask"),
    ({"end_tokens": 5}, "end_tokens are 5", "list"),
    ({"end_tokens": [152064]}, "end_tokens are [152064]", "0 to 152063"),
]


@pytest.mark.parametrize(("given", "message", "hint"), REFUSED)
def test_contradictions_are_refused_in_one_sentence(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_card(DREAM_7B, given)
    sound(caught.value, message, hint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DREAM_7B | {"vocab_size": 1000}, "mask_id is 151666, but the vocabulary has 1000"),
        (STORY | {"mask_token_id": 8192}, "mask_id is 8192"),
        (STORY | {"mask_token_id": None}, "names no mask token"),
        (STORY | {"attention": "causal"}, "causal attention and a mask token"),
        (STORY | {"attention": "block"}, "block_length is 0"),
        (STORY | {"attention": "full", "block_length": 16}, "full attention and blocks of 16"),
        (STORY | {"logits_shift": "yes"}, "logits_shift is 'yes'"),
        (STORY | {"noise": "uniform"}, "noise is uniform"),
        (SDAR_4B | {"block_size": 0}, "block_length is 0"),
    ],
)
def test_files_that_contradict_themselves_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_card(config)
    sound(caught.value, message, "")


def sound(error: OutpaceError, message: str, hint: str) -> None:
    assert message in str(error) and hint in error.hint
    for text in (str(error), error.hint):
        assert text.endswith((".", "?")) and "\n" not in text, text


def test_words_of_a_command_line() -> None:
    words = {"attention": "Block", "logits_shift": "False", "mask_id": "5", "block_length": "8", "end_tokens": "1, 2"}
    assert card_from_text(words) == {
        "attention": "block",
        "logits_shift": False,
        "mask_id": 5,
        "block_length": 8,
        "end_tokens": (1, 2),
    }
    assert card_from_text({"mask_id": "none", "logits_shift": "TRUE"}) == {"mask_id": None, "logits_shift": True}
    with pytest.raises(ConfigError, match="logits_shift is 'maybe'"):
        read_card(DREAM_7B, card_from_text({"logits_shift": "maybe"}))
    for name, word in (("mask_id", "x"), ("block_length", "none"), ("end_tokens", "1,b")):
        with pytest.raises(ConfigError, match=f"{name} is '{word}', which is no number"):
            card_from_text({name: word})


def yes(value: bool | None) -> str:
    return "yes" if value else "no"


def test_the_documented_table_is_the_one_in_use() -> None:
    page = (Path(__file__).parents[2] / "docs/models-diffusion.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}
    for entry in CARD_TABLE:
        facts, (_, kind, _, attention, block, shift, mask, _) = entry.facts, rows[entry.name]
        assert f"`{entry.model_type}`" in kind
        assert attention.startswith(facts.get("attention", ""))
        assert block == str(facts.get("block_length", "of the config" if "block_length" in entry.keys else ""))
        assert shift == ("of the config, else no" if "logits_shift" in entry.keys else yes(facts.get("logits_shift")))
        assert mask == str(facts.get("mask_id", "of the config"))
    fields = {name for name in Card.__dataclass_fields__ if name != "family"}
    assert fields <= rows.keys()


# Through the doors


def directory(tmp_path: Path, config: dict[str, Any], **generation: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def test_end_tokens_of_files_table_and_user(tmp_path: Path) -> None:
    """generation_config.json replaces config.json as before; the family's own join them; the user's replace all."""
    folder = directory(tmp_path, LLADA_8B)
    assert read_end_tokens(folder) == (126081, 126348)
    directory(tmp_path, LLADA_8B, eos_token_id=[3, 126348])
    assert read_end_tokens(folder) == (3, 126348, 126081)
    assert read_end_tokens(folder, {"end_tokens": [9]}) == (9,)
    assert read_end_tokens(folder, {"logits_shift": True}) == (3, 126348, 126081)
    directory(tmp_path, LLAMA, eos_token_id=3)
    assert read_end_tokens(folder) == (3,)


@pytest.mark.parametrize("config", [DREAM, FAST, SDAR, OWN])
def test_capabilities_without_weights(config: dict[str, Any], tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    folder = directory(tmp_path, config | shape | {"vocab_size": 131, "max_position_embeddings": 32})
    offered = read_capabilities(folder, card={"attention": "block", "block_length": 3, "logits_shift": True})
    assert (offered.attention, offered.block_size, offered.logits_shift) == ("block", 3, True)
    assert offered_by(str(folder), {"logits_shift": False}).logits_shift is False  # type: ignore[union-attr]


def test_a_card_is_no_use_to_transformers(tmp_path: Path) -> None:
    folder = directory(tmp_path, {"model_type": "bloom", "vocab_size": 5})
    for door in (offered_by, lambda name, card: open_model(name, card=card)):
        with pytest.raises(ConfigError, match="transformers runs that model"):
            door(str(folder), {"logits_shift": True})

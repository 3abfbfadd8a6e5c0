"""Text to ids and back from tokenizer.json, special tokens, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers as hf
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors

from outpace.api.request import Request
from outpace.errors import ConfigError, ModelError
from outpace.text.tokenizer import Tokenizer

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Engine(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<s>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    engine.enable_padding(length=50)
    engine.enable_truncation(4)
    engine.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHAT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_round_trip(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    text = "Zoë's naïve 🙂 test, longer than any padding or truncation left in the file."
    ids = tokenizer.encode(text)
    assert ids[0] == 256
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=False) == "<s>" + text
    assert tokenizer.encode(text, is_special=False) == ids[1:]


def test_special_ids_and_spellings(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (256, 257, None, 258)
    assert tokenizer.token(257) == "</s>" and tokenizer.token(9999) == "" and tokenizer.token_id("<s>") == 256


def test_chat(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(messages) == "<s><user>hi<assistant>"
    assert tokenizer.render_chat(messages, is_open=False) == "<s><user>hi"
    assert tokenizer.encode_chat(messages).count(256) == 1
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] | tojson }}")
    assert Tokenizer.from_directory(directory).render_chat([{"content": "é<"}]) == '"é<"'


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% if %}"],
)
def test_templates_are_confined(directory: Path, template: str) -> None:
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError):
        Tokenizer.from_directory(directory).render_chat([{"role": "user", "content": "x"}])


def test_no_template(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_directory(directory)
    assert not tokenizer.has_chat
    with pytest.raises(ConfigError, match="no chat template"):
        tokenizer.render_chat([])


def test_missing_or_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)


def facts(content: str, **others: bool) -> dict[str, str | bool]:
    return {"content": content, "special": True, "lstrip": False, "rstrip": False, "normalized": False} | others


BESIDE: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "a table in the config": ({"added_tokens_decoder": {"258": facts("<new>")}, "eos_token": "<new>"}, {}),
    "a table that makes a token special": ({"added_tokens_decoder": {"65": facts(chr(97))}}, {}),
    "a table that keeps a token in the text": ({"added_tokens_decoder": {"258": facts("<new>", special=False)}}, {}),
    "a table with a gap": (
        {"added_tokens_decoder": {"300": facts("<b>"), "270": facts("<a>")}, "pad_token": "<b>"},
        {},
    ),
    "the old table": ({}, {"added_tokens.json": {"<new>": 259, "<more>": 258}}),
    "the old table and a role": ({"pad_token": "<new>"}, {"added_tokens.json": {"<new>": 258}}),
    "the old table says less than tokenizer.json": ({}, {"added_tokens.json": {"<s>": 256}}),
    "roles in the old file": ({}, {"special_tokens_map.json": {"bos_token": "</s>", "eos_token": facts("<s>")}}),
    "the old file goes first": ({"eos_token": "</s>"}, {"special_tokens_map.json": {"eos_token": "<s>"}}),
    "the old file beside a table": (
        {"added_tokens_decoder": {}, "eos_token": "</s>"},
        {"special_tokens_map.json": {"eos_token": "<s>"}, "added_tokens.json": {"<new>": 258}},
    ),
    "a role without a token": ({"pad_token": "<new>", "image_token": "<image>"}, {}),
    "further special tokens": ({"additional_special_tokens": ["<new>", "<s>"]}, {}),
    "further special tokens in the old file": ({}, {"special_tokens_map.json": {"extra_special_tokens": ["<new>"]}}),
}


@pytest.mark.parametrize("what", BESIDE)
def test_tokens_beside_tokenizer_json_are_those_of_transformers(directory: Path, what: str) -> None:
    settings, others = BESIDE[what]
    for name, content in {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"} | settings,
        **others,
    }.items():
        (directory / name).write_text(json.dumps(content))
    engine = Engine.from_file(str(directory / "tokenizer.json"))
    engine.no_padding()  # with it transformers adds a token for padding
    engine.no_truncation()
    engine.save(str(directory / "tokenizer.json"))
    theirs, ours = hf.AutoTokenizer.from_pretrained(directory), Tokenizer.from_directory(directory)
    text = "a<new> <a><b><more></s>b<image><s>"
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.special_ids == {token.content: i for i, token in theirs.added_tokens_decoder.items() if token.special}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": facts("<new>")}}, "does not describe tokens"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "does not describe tokens"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"258": {"special": True}}}, "does not describe tokens"),
        ("added_tokens.json", {"<new>": "many"}, "names no id"),
        ("special_tokens_map.json", [1], "not readable JSON"),
    ],
)
def test_files_of_added_tokens_that_say_nothing(directory: Path, name: str, content: object, match: str) -> None:
    (directory / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=match):
        Tokenizer.from_directory(directory)


def test_a_sentencepiece_model_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(ModelError, match=r"no tokenizer\.json; tokenizer\.model alone is not read"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("text", ["a\ud800", "\udfff", "caf\udce9"])
def test_half_a_surrogate_pair_is_no_text(directory: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="half of a surrogate pair"):
        Tokenizer.from_directory(directory).encode(text)
    with pytest.raises(ConfigError, match="A stop string holds"):
        Request(stop=[text])

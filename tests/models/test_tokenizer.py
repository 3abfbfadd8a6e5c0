"""Text to ids and back from tokenizer.json, special tokens, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors

from outpace.errors import ConfigError, ModelError
from outpace.models.tokenizer import Tokenizer

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

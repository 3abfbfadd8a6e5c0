"""`outpace generate`: the same text as from Python, whole characters, JSON as promised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests_cli import Command

import outpace
from outpace import LanguageModel, zoo
from outpace.cli import generate as command

METHODS = ["autoregressive", "prompt-lookup", "draft-model", "jacobi", "layer-skip"]
TEMPERATURES = [0.0, 0.7, 1.3]
PLAIN: dict[float, Any] = {}  # the plain story of each temperature
PROMPT = "the quick brown fox and the lazy dog and the quick"
FIELDS = {
    "model": str,
    "method": str,
    "prompt_tokens": list,
    "tokens": list,
    "text": str,
    "finish_reason": str,
    "usage": dict,
    "timing": dict,
    "seed": int,
    "notes": list,
    "margins": list,
    "log_probs": list,
    "sources": list,
}
USAGE = {
    "num_prompt",
    "num_emitted",
    "num_proposed",
    "num_accepted",
    "target_nfe",
    "draft_nfe",
    "positions_scored",
}


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


def written(cli: Command, *arguments: object) -> Any:
    ended = cli("generate", *arguments, "--json")
    assert (ended.status, ended.err) == (0, "")
    return json.loads(ended.out)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_the_same_tokens_here_and_in_python(
    cli: Command, lm: LanguageModel, tiny: Path, tiny_draft: Path, method: str, temperature: float
) -> None:
    options = {"draft": str(tiny_draft)} if method == "draft-model" else {}
    extra = [f"-o{key}={value}" for key, value in options.items()]
    sampling = ["--temperature", temperature, "--seed", 11, "--max-tokens", 24, "--ignore-eos"]
    shown = written(cli, PROMPT, "--model", tiny, "--method", method, *extra, *sampling)
    settings = {"temperature": temperature, "seed": 11, "max_tokens": 24, "ignore_eos": True}
    assert shown["tokens"] == lm.generate(PROMPT, method=method, options=options, **settings).tokens
    assert shown["tokens"] == lm.generate(PROMPT, **settings).tokens
    assert len(shown["tokens"]) == 24


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return outpace.load("stories", dtype="float64")


@pytest.mark.slow
@pytest.mark.skipif("stories-draft" not in zoo.names(), reason="the zoo is not there")
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_the_same_story(cli: Command, stories: LanguageModel, method: str, temperature: float) -> None:
    settings = {"temperature": temperature, "seed": 2, "max_tokens": 16}
    flags = ["--temperature", temperature, "--seed", 2, "--max-tokens", 16, "--dtype", "float64"]
    shown = written(cli, "Once upon a time there was a dog. The dog", "--method", method, *flags)
    if temperature not in PLAIN:
        PLAIN[temperature] = stories.generate("Once upon a time there was a dog. The dog", **settings)
    plain = PLAIN[temperature]
    assert shown["tokens"] == plain.tokens
    assert shown["text"] == plain.text
    drafted = stories.generate("Once upon a time there was a dog. The dog", method=method, **settings)
    assert drafted.tokens == plain.tokens


@pytest.mark.parametrize("method", METHODS)
def test_streaming_writes_the_text_in_whole_characters(
    cli: Command, cycle: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    draft = ["-o", f"draft={cycle}"] if method == "draft-model" else []
    arguments = [" ", "--model", cycle, "--method", method, *draft, "--max-tokens", 44]
    pieces: list[str] = []
    write = command.write_text
    monkeypatch.setattr(command, "write_text", lambda text: (pieces.append(text), write(text)))
    streamed = cli("generate", *arguments)
    text = written(cli, *arguments)["text"]
    assert streamed.out == text + "\n" == "".join(pieces)
    assert text.startswith("日語é🙂ж 日語")
    assert len(pieces) > 2 and not any("\ufffd" in piece for piece in pieces)


def test_json_has_the_promised_fields(cli: Command, tiny: Path, tiny_draft: Path) -> None:
    arguments = [PROMPT, "--model", tiny, "--method", "draft-model", "-o", f"draft={tiny_draft}", "--max-tokens", 20]
    shown = written(cli, *arguments, "--ignore-eos", "--logprobs", "--temperature", 0.7)
    assert {key: type(shown[key]) for key in FIELDS} == FIELDS
    assert shown["usage"].keys() >= USAGE
    assert shown["timing"].keys() >= {"load_s", "prefill_s", "decode_s"}
    assert shown["model"] == str(tiny) and shown["method"] == "draft-model" and shown["finish_reason"] == "length"
    assert {len(shown[key]) for key in ("tokens", "margins", "log_probs", "sources")} == {20}
    usage = shown["usage"]
    assert usage["num_emitted"] == 20 and usage["num_prompt"] == len(shown["prompt_tokens"])
    assert usage["num_accepted"] == shown["sources"].count("draft") > 0
    assert usage["num_proposed"] >= usage["num_accepted"]


def test_without_logprobs_none_are_shown_but_margins_are(cli: Command, tiny: Path) -> None:
    shown = written(cli, PROMPT, "--model", tiny, "--max-tokens", 5, "--ignore-eos", "--temperature", 1, "--top-k", 1)
    assert shown["log_probs"] == []
    assert len(shown["margins"]) == 5  # with one token alive there may be no rival: null, as JSON has no infinity


def test_several_samples_are_a_list(cli: Command, tiny: Path) -> None:
    arguments = [PROMPT, "--model", tiny, "--temperature", 1, "--max-tokens", 6, "--num-samples", 3]
    shown = written(cli, *arguments)
    assert [sample["sample"] for sample in shown] == [0, 1, 2]
    assert shown[0]["tokens"] == written(cli, *arguments[:-2])["tokens"] != shown[1]["tokens"]
    assert cli("generate", *arguments).out == "\n---\n".join(sample["text"] for sample in shown) + "\n"


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("translate", "autoregressive"),
        ("translate-fast", "one-pass"),
        ("stories-mask", "masked-diffusion"),
        ("stories-block", "masked-diffusion"),
    ],
)
def test_where_nobody_names_a_method_one_that_fits_the_model_writes(cli: Command, model: str, method: str) -> None:
    here = written(cli, "Lily went", "--model", model, "--max-tokens", 12)
    there = outpace.load(model).generate("Lily went", max_tokens=12)
    assert (here["method"], here["tokens"]) == (there.method, there.tokens) == (method, there.tokens)


def test_a_model_s_files_may_ask_for_beams_or_its_card_for_a_method(cli: Command, tmp_path: Path) -> None:
    asked, carded = tmp_path / "beams", tmp_path / "carded"
    shutil.copytree(zoo.path("translate"), asked)
    shutil.copytree(zoo.path("translate-fast"), carded)
    wishes = json.loads((asked / "generation_config.json").read_text(encoding="utf-8"))
    (asked / "generation_config.json").write_text(json.dumps({**wishes, "num_beams": 2}), encoding="utf-8")
    cases = (asked, "", "beam-search"), (carded, "ctc-beam-search", "ctc-beam-search"), (carded, "jacobi2", "one-pass")
    passed_over = [(carded, named, "one-pass") for named in ("masked-diffusion", "draft-model", "M\xe8")]
    for model, named, method in (*cases, *passed_over):
        (model / "card.md").write_bytes(f"# carded\n\n- method: {named}\n".encode("latin-1"))
        here = written(cli, "Ich habe keine Zeit.", "--model", model)
        there = outpace.load(model).generate("Ich habe keine Zeit.")
        assert (here["method"], here["tokens"]) == (there.method, there.tokens) == (method, there.tokens)
    # What nobody named gives way to what was asked for, and is what a trace tells.
    (carded / "card.md").write_text("- method: ctc-beam-search\n", encoding="utf-8")
    drawn = written(cli, "Ich habe keine Zeit.", "--model", carded, "--temperature", 0.8)
    assert (
        drawn["method"] == outpace.load(carded).generate("Ich habe keine Zeit.", temperature=0.8).method == "one-pass"
    )
    written(cli, "Ich habe keine Zeit.", "--model", asked, "--trace", tmp_path / "trace.jsonl")
    assert json.loads((tmp_path / "trace.jsonl").read_text().split("\n")[0])["method"] == "beam-search"
    assert written(cli, "Ich.", "--model", carded, "-o", "beam=2")["method"] == "ctc-beam-search"


def test_the_prompt_may_come_from_standard_input(cli: Command, tiny: Path) -> None:
    given = cli("generate", "the fox é", "--model", tiny, "--max-tokens", 5)
    for arguments in (["-"], []):
        assert cli("generate", *arguments, "--model", tiny, "--max-tokens", 5, stdin="the fox é\n".encode()) == given


def test_a_chat_is_framed_by_the_template(cli: Command, tiny: Path) -> None:
    chat = written(cli, "hello", "--chat", "--model", tiny, "--max-tokens", 3)
    plain = written(cli, "user: hello\nbot:", "--model", tiny, "--max-tokens", 3)
    assert chat["prompt_tokens"] == plain["prompt_tokens"]


def test_what_a_conversation_brings_reaches_the_template(cli: Command, cycle: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(cycle, tmp_path / "chat")
    (directory / "chat_template.jinja").write_text("{{ [messages, tools, documents, mode, deep] | tojson }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "short.jinja").write_text("short")
    tools, documents = [{"name": "f"}], [{"title": "A", "text": "é"}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    more = ["--chat-variable", "mode=slow", "--chat-variable", "deep=false", "--documents", json.dumps(documents)]
    given = ["hello", "--model", directory, "--max-tokens", 1]
    shown = written(cli, *given, "--system", "Be brief.", "--tools", tmp_path / "tools.json", *more)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    rendered = json.dumps([messages, tools, documents, "slow", False], ensure_ascii=False)
    assert shown["prompt_tokens"] == written(cli, rendered, *given[1:])["prompt_tokens"]
    assert shown["notes"] == []  # the template looked at all of it
    named = written(cli, *given, "--template", "short")
    assert named["prompt_tokens"] == written(cli, "short", *given[1:])["prompt_tokens"]


def test_stop_tokens_and_special_tokens_in_the_text(cli: Command, cycle: Path) -> None:
    ids = written(cli, " ", "--model", cycle, "--max-tokens", 9)["tokens"]
    ended = written(cli, " ", "--model", cycle, "--stop-token", 5, "--stop-token", ids[6], "--keep-special")
    assert (ended["tokens"], ended["text"], ended["finish_reason"]) == (ids[:7], "日語", "stop")
    assert cli("generate", " ", "--model", cycle, "--max-tokens", 3, "--logit-bias", "0=99", "--ignore-eos").out == "\n"
    kept = cli(
        "generate", " ", "--model", cycle, "--max-tokens", 3, "--logit-bias", "0=99", "--ignore-eos", "--keep-special"
    )
    assert kept.out == "<|end|>" * 3 + "\n"


def test_every_sampler_flag_reaches_the_sampler(cli: Command, lm: LanguageModel, tiny: Path) -> None:
    settings = {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.95,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "min_tokens": 4,
    }
    flags = [item for name, value in settings.items() for item in (f"--{name.replace('_', '-')}", value)]
    more = ["--logit-bias", "7=2.5", "--logit-bias", "9=-3", "--bad-word", "the", "--bad-word", "q"]
    shown = written(
        cli, PROMPT, "--model", tiny, "--max-tokens", 30, *flags, *more, "--batch-invariant", "--no-compile"
    )
    assert lm.tokenizer is not None
    words = [lm.tokenizer.encode(text, is_special=False) for text in ("the", " the", "q", " q")]
    law = {**settings, "logit_bias": {7: 2.5, 9: -3.0}, "bad_words": words}
    assert shown["tokens"] == lm.generate(PROMPT, max_tokens=30, **law).tokens
    assert shown["tokens"] != lm.generate(PROMPT, max_tokens=30, temperature=0.9).tokens


def test_stop_strings_may_be_several(cli: Command, cycle: Path) -> None:
    ended = cli("generate", " ", "--model", cycle, "--stop", "nothing", "--stop", "🙂ж")
    assert (ended.status, ended.out) == (0, "日語é\n")


def test_a_search_returns_the_text_that_a_file_likes_best(cli: Command, tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def short(texts):\n    return [-len(text) for text in texts]\ndef bad(texts):\n    return [1]\n")
    asked = ("generate", "Once upon a time", "--temperature", "1", "--max-tokens", "8")
    searched = ("--search", "best-of", "-o", "n=3", "--method", "prompt-lookup", "-o", "draft_len=3", "-o")
    drawn = json.loads(cli(*asked, "--num-samples", 3, "--json").out)
    found = json.loads(cli(*asked, *searched, f"reward={reward}:short", "--json").out)
    assert found["text"] == min((one["text"] for one in drawn), key=len)
    assert found["search"]["reward"] == f"{reward}:short" and found["settings"]["draft_len"] == 3
    failed = cli(*asked, *searched, f"reward={reward}:bad")
    assert failed.status == 1 and "gave 1 values for 3 texts" in failed.err
    assert cli(*asked, *searched, "n=0").status == 2
    assert cli(*asked, *searched, "n=2", "--trace", str(tmp_path / "t")).status == 2


def test_laws_are_listed(cli: Command) -> None:
    listed = {one["name"]: one for one in json.loads(cli("laws", "--json").out)}
    assert listed["hmm"]["looks_at"] == "the text" and listed["cfg"]["looks_at"] == "what models say"
    assert {one["name"]: one["doc"] for one in listed["hmm"]["settings"]}["keywords"] == "parted by +"
    assert "hmm" in cli("laws").out and "2304.07438" in cli("laws", "hmm").out
    assert "Known laws" in cli("laws", "no-such").err


def test_searches_are_listed_and_certified(cli: Command) -> None:
    listed = {one["name"]: one for one in json.loads(cli("searches", "--json").out)}
    assert {"best-of", "step-beam", "tree-search"} <= set(listed)
    assert all(setting["doc"] for one in listed.values() for setting in one["settings"])
    assert "best-of" in cli("searches").out and "2410.09671" in cli("searches", "best-of").out
    assert cli("searches", "worst-of").status == 2
    proven = cli("certify", "--search", "best-of", "--method", "suffix", "--time-limit", 0.1)
    assert proven.status == 3 and "greedy" in proven.out  # nothing differs, and time was too short to tell

"""Whatever goes wrong: one sentence and a hint on standard error, the right exit status, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests_cli import Command, Ended, start

from outpace.cli import generate as command
from outpace.cli import main

Weights = dict[str, torch.Tensor]
Alter = Callable[[Callable[[Weights], object]], Path]


def check(ended: Ended, status: int, message: str, hint: str = "") -> None:
    """One error, one hint; whole sentences; no traceback."""
    assert ended.status == status, ended
    lines = ended.err.splitlines()
    assert len(lines) == 2, ended.err
    assert re.fullmatch(r"error: \S.*[.?!]", lines[0]) and message in lines[0], lines[0]
    assert re.fullmatch(r"hint: \S.*[.?!]", lines[1]) and hint in lines[1], lines[1]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["x", "--method", "jacobbi"], "no method 'jacobbi'", "'jacobi'"),
        (["x", "--model", "storries"], "no model 'storries'", "'stories'"),
        (["x", "--method", "jacobi", "-o", "windo=3"], "no option 'windo'", "'window'"),
        (["x", "--method", "jacobi", "-o", "window=three"], "cannot be 'three'", "int"),
        (["x", "--method", "jacobi", "-o", "window=0"], "window is 0", "1 or more"),
        (["x", "--method", "jacobi", "-o", "window"], "not key=value", "-o"),
        (["x", "--temprature", "1"], "No such option: --temprature", "--temperature"),
        (["x", "--temperature", "warm"], "'--temperature'", "--help"),
        (["x", "--dtype", "int4"], "'--dtype'", "--help"),
        (["x", "y"], "unexpected extra argument", "--help"),
        ([""], "prompt is empty", "character"),
        (["\udcff"], "not valid UTF-8", "iconv"),
        (["x", "--max-tokens", "0"], "max_tokens is 0", "1 or more"),
        (["x", "--max-tokens", "-3"], "max_tokens is -3", "1 or more"),
        (["x", "--num-samples", "0"], "num_samples is 0", "1 or more"),
        (["x", "--temperature", "-0.5"], "temperature is -0.5", "or more"),
        (["x", "--temperature", "nan"], "temperature is nan", "or more"),
        (["x", "--temperature", "inf"], "temperature is inf", "or more"),
        (["x", "--top-p", "0"], "top_p is 0", "above 0"),
        (["x", "--top-k", "-1"], "top_k is -1", "or more"),
        (["x", "--min-p", "2"], "min_p is 2", "from 0 to 1"),
        (["x", "--typical-p", "0"], "typical_p is 0", "above 0"),
        (["x", "--repetition-penalty", "0"], "repetition_penalty is 0", "above 0"),
        (["x", "--stop", ""], "stop string is empty", "character"),
        (["x", "--bad-word", ""], "bad word is empty", "character"),
        (["x", "--logit-bias", "five"], "not ID=VALUE", "--logit-bias"),
        (["x", "--logit-bias", "5=nan"], "not a finite number", "bad_words"),
        (["x", "--logprobs"], "--logprobs", "--json"),
        (["x", "--sets"], "prompt has no set", "[[a|b|c]]"),
        (["x [[a|b]]", "--sets", "--chat"], "--sets goes with none", "Leave one out"),
    ],
)
def test_mistakes_are_told_before_weights_load(
    cli: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, hint: str
) -> None:
    monkeypatch.setattr("outpace.api.engine.load", lambda *_, **__: pytest.fail("weights were loaded"))
    check(cli("generate", *arguments), 2, message, hint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "No such command 'genrate'"),
        (["methods", "jacobbi"], "no method 'jacobbi'"),
        (["cite", "jacobbi"], "no method 'jacobbi'"),
        (["cite", "autoregressive"], "comes from no paper"),
        (["new-method", "Not A Name"], "cannot be called"),
        (["train", "storys"], "no recipe 'storys'"),
        (["train"], "Missing command"),
        (["certify", "--all", "-o", "draft=stories-draft", "-o", "seed=1"], "Several methods are certified"),
        (["certify", "--method", "jacobbi"], "no method 'jacobbi'"),
        (["bench", "--methods", "autoregressive,jacobbi"], "no method 'jacobbi'"),
        (["bench", "--inflate", "many"], "not a number of parameters"),
        (["bench", "--temperatures", "warm"], "not a temperature"),
        (["bench", "--peers", "hff"], "no peer 'hff'"),
        (["bench", "--stacks", "128,long"], "no whole numbers"),
        (["score", "a dog", "--pairs", "pairs.tsv"], "Pairs were given, and a text"),
        (["bench", "--prompts", "storis"], "no prompt set or file 'storis'"),
        (["certify", "--prompts", "/nowhere/prompts"], "no prompt set or file"),
    ],
)
def test_mistakes_in_other_commands(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    check(cli(*arguments), 2, message)


def test_invalid_utf8_on_standard_input(cli: Command, tiny: Path) -> None:
    check(cli("generate", "-", "--model", tiny, stdin=b"caf\xe9"), 2, "not valid UTF-8 (byte 3)", "iconv")


@pytest.mark.parametrize(("data", "message"), [(b"caf\xe9", "not valid UTF-8"), (b"\n\n", "holds no prompt")])
@pytest.mark.parametrize("arguments", [["certify"], ["bench", "--num-prompts", "1"]])
def test_prompt_files_that_cannot_be_used(
    cli: Command, tmp_path: Path, arguments: list[str], data: bytes, message: str
) -> None:
    (tmp_path / "prompts.txt").write_bytes(data)
    check(cli(*arguments, "--prompts", tmp_path / "prompts.txt"), 2, message)


def test_empty_standard_input(cli: Command, tiny: Path) -> None:
    check(cli("generate", "--model", tiny, stdin=b"\n"), 2, "prompt is empty")


def test_a_method_that_does_not_fit_is_told_without_weights(cli: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    ended = cli("generate", "x", "--model", tmp_path, "--method", "masked-diffusion")
    check(ended, 2, "full or block attention", "prompt-lookup")


def test_a_logit_bias_outside_the_vocabulary(cli: Command, tiny: Path) -> None:
    check(cli("generate", "x", "--model", tiny, "--logit-bias", "300=1"), 2, "outside the vocabulary", "from 0 to 297")


def test_a_model_without_drafter(cli: Command, tiny: Path) -> None:
    check(cli("generate", "x", "--model", tiny, "--method", "draft-model"), 2, "No drafter", "-o draft=")


@pytest.mark.parametrize(("draft", "message"), [("stories-mask", "298"), ("nowhere", "no model 'nowhere'")])
def test_a_drafter_that_does_not_fit(cli: Command, tiny: Path, draft: str, message: str) -> None:
    arguments = ["--model", tiny, "--method", "draft-model", "-o", f"draft={draft}"]
    check(cli("generate", "x", *arguments), 2, message)


def test_a_masked_drafter_of_a_causal_model(cli: Command) -> None:
    arguments = ["--model", "stories", "--method", "draft-model", "-o", "draft=stories-mask"]
    check(cli("generate", "x", *arguments), 2, "full attention", "prompt-lookup")


def test_a_prompt_longer_than_the_context(cli: Command, tiny: Path) -> None:
    check(cli("generate", "x" * 600, "--model", tiny), 2, "context is 512", "Shorten")


def test_a_chat_without_template(cli: Command, altered: Alter) -> None:
    directory = altered(lambda weights: None)
    (directory / "tokenizer_config.json").unlink()
    check(cli("generate", "x", "--model", directory, "--chat"), 2, "no chat template")


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--tools", "nowhere.json", "no file nowhere.json"),
        ("--tools", "[{", "--tools gives is not JSON"),
        ("--documents", "[1]", "--documents holds something that is no object"),
        ("--chat-variable", "thinking", "not key=value"),
        ("--template", "none", "no chat template 'none'"),
        ("--stop-token", "99999", "stop token is outside"),
    ],
)
def test_what_a_conversation_cannot_bring(cli: Command, tiny: Path, option: str, value: str, what: str) -> None:
    check(cli("generate", "x", "--model", tiny, option, value), 2, what)


# Damaged models


def test_a_gguf_file_that_is_cut_off(cli: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes([5]) + bytes(23))
    check(cli("generate", "x", "--model", str(path)), 2, "is truncated", "Fetch")


def test_a_directory_without_anything(cli: Command, tmp_path: Path) -> None:
    check(cli("generate", "x", "--model", tmp_path), 2, "config.json")


def test_a_directory_without_weights(cli: Command, altered: Alter) -> None:
    directory = altered(lambda weights: None)
    (directory / "model.safetensors").unlink()
    check(cli("generate", "x", "--model", directory), 2, "no weights", "safetensors")


def test_a_pickle_is_refused(cli: Command, altered: Alter) -> None:
    directory = altered(lambda weights: None)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    check(cli("generate", "x", "--model", directory), 2, "pickle", "safetensors")


def test_a_directory_without_tokenizer(cli: Command, altered: Alter) -> None:
    directory = altered(lambda weights: None)
    (directory / "tokenizer.json").unlink()
    check(cli("generate", "x", "--model", directory), 2, "tokenizer.json")


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), NORM),
        (lambda weights: weights.update(extra=torch.zeros(3)), "extra"),
        (lambda weights: weights.update({NORM: torch.ones(7, dtype=torch.float64)}), NORM),
    ],
    ids=["missing", "extra", "mis-shaped"],
)
def test_tensors_that_do_not_fit(
    cli: Command, altered: Alter, change: Callable[[Weights], object], message: str
) -> None:
    check(cli("generate", "x", "--model", altered(change)), 2, message)


def damage(size: int | None, head: bytes) -> Callable[[bytes], bytes]:
    return lambda data: (head + data[len(head) :])[:size]


@pytest.mark.parametrize(
    "change",
    [damage(-100, b""), damage(4, b""), damage(0, b""), damage(None, b"\xff" * 8), damage(None, b"\x10" + b"\0" * 7)],
    ids=["truncated", "header-cut", "empty", "huge-header", "corrupt-header"],
)
def test_a_damaged_safetensors_file(cli: Command, altered: Alter, change: Callable[[bytes], bytes]) -> None:
    directory = altered(lambda weights: None)
    file = directory / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    check(cli("generate", "x", "--model", directory), 2, "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_a_damaged_json_file(cli: Command, altered: Alter, name: str) -> None:
    directory = altered(lambda weights: None)
    (directory / name).write_text('{"half":')
    check(cli("generate", "x", "--model", directory), 2, name)


# While it runs


@pytest.fixture
def poisoned(cycle: Path, tmp_path: Path) -> Path:
    """The cyclic model, whose logits turn NaN after the first byte of 🙂."""
    directory = tmp_path / "poisoned"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_bytes((cycle / name).read_bytes())
    weights = load_file(cycle / "model.safetensors")
    vocabulary = json.loads((cycle / "tokenizer.json").read_text())["model"]["vocab"]
    weights["model.embed_tokens.weight"][vocabulary["ð"]] = float("nan")  # how byte F0 is spelled
    save_file(weights, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("method", ["autoregressive", "jacobi", "prompt-lookup"])
def test_nan_logits_end_with_an_error_and_keep_the_text(cli: Command, poisoned: Path, method: str) -> None:
    ended = cli("generate", " ", "--model", poisoned, "--method", method)
    check(ended, 1, "NaN or infinite logits after 9 tokens", "kept")
    assert ended.out.startswith("日語é")


def test_nan_logits_in_json(cli: Command, poisoned: Path) -> None:
    ended = cli("generate", " ", "--model", poisoned, "--json")
    check(ended, 1, "NaN or infinite logits")
    result = json.loads(ended.out)
    assert (result["finish_reason"], len(result["tokens"])) == ("error", 9)


def interrupt(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Press Ctrl-C after the third character."""
    write, seen = command.write_text, []

    def press(text: str) -> None:
        write(text)
        seen.append(text)
        if len(seen) == 3:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "write_text", press)


def test_ctrl_c_keeps_the_text(cli: Command, cycle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 1)
    ended = cli("generate", " ", "--model", cycle, "--max-tokens", 50_000)
    assert (ended.status, ended.out, ended.err) == (130, "日語é\n", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(cli: Command, cycle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 2)
    ended = cli("generate", " ", "--model", cycle, "--max-tokens", 50_000)
    assert (ended.status, ended.out, ended.err) == (130, "日語é", "error: Interrupted.\n")


def test_ctrl_c_while_loading(cli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.api.engine.load", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    ended = cli("generate", "x", "--model", tiny)
    assert (ended.status, ended.out, ended.err) == (130, "", "error: Interrupted.\n")


def test_a_bug_is_one_sentence_unless_a_traceback_is_wanted(
    cli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something broke\nwith details")

    monkeypatch.setattr("outpace.api.engine.load", fail)
    check(cli("generate", "x", "--model", tiny), 1, "RuntimeError: something broke", "OUTPACE_DEBUG=1")
    monkeypatch.setenv("OUTPACE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="something broke"):
        main(["generate", "x", "--model", str(tiny)])


# As processes of their own


def read_some(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 120)[0], "nothing was written"
    return os.read(process.stdout.fileno(), 1 << 16)


def test_a_real_ctrl_c(cycle: Path) -> None:
    process = start("generate", " ", "--model", cycle, "--max-tokens", 50_000)
    first = read_some(process)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, b"")
    text = (first + rest).decode()
    assert text.startswith("日") and text.endswith("\n")
    assert "\ufffd" not in text.rstrip("\n\ufffd")  # the last character may have been cut


def test_a_reader_that_goes_away(cycle: Path) -> None:
    process = start("generate", " ", "--model", cycle, "--max-tokens", 50_000)
    read_some(process)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk(tiny: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("methods", stdout=full)
        _, errors = process.communicate(timeout=120)
    check(Ended(process.returncode, "", errors.decode()), 1, "No space left on device")

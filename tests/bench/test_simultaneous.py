"""Simultaneous translation: what stands for good, how far it lags, what is taken back; sides against slow ones."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from outpace import LanguageModel, load
from outpace.bench.simultaneous import average_lagging, delays, erasure, main, measure, retranslate, wait_k
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.files import config_of
from outpace.train.bleu import tokenise

PAIRS = [
    ("Das ist ein Haus.", "This is a house."),
    ("Wo ist Tom?", "Where is Tom?"),
    ("Ich weiß es nicht.", "I do not know."),
    ("Er hat ein Buch gekauft.", "He bought a book."),
]


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return load("translate")


def test_a_word_counts_once_it_and_all_before_it_stand_for_good() -> None:
    said = [["a"], ["a", "b"], ["x", "b", "c"], ["a", "b", "d"], ["a", "b", "d", "e"]]
    assert delays(said) == [4, 4, 4, 5]
    assert delays([[], ["a"], ["a", "b"]]) == [2, 3]
    assert delays([["a", "b"]]) == [1, 1]
    for texts in itertools.product([[], ["a"], ["b"], ["a", "b"], ["b", "a"]], repeat=3):
        wanted = []
        for word in range(len(texts[-1])):
            prefix = texts[-1][: word + 1]
            stands = [at for at in range(3) if all(text[: word + 1] == prefix for text in texts[at:])]
            wanted.append(min(stands) + 1)
        assert delays(texts) == wanted


def test_average_lagging_is_the_lag_of_wait_k_and_its_greatest_of_a_text_at_the_end() -> None:
    for lag, size in itertools.product((1, 3), (6, 9)):
        delay = [min(at + lag, size) for at in range(size)]
        assert average_lagging(delay, size) == pytest.approx(lag)
    assert average_lagging([8] * 4, 8) == 8
    assert average_lagging([], 5) == 5
    # Equation 9 by hand: two words for four, after 2 and 4 words: ((2 - 0) + (4 - 2)) / 2.
    assert average_lagging([2, 4], 4) == pytest.approx(2.0)


def test_erasure_counts_words_behind_the_first_change() -> None:
    assert erasure([["a", "b", "c"], ["a", "x"], ["a", "x", "y", "z"]]) == 2 / 4
    assert erasure([["a"], ["a", "b"]]) == 0
    assert erasure([["a"], []]) == 1


def test_wait_k_reads_before_it_writes_and_takes_nothing_back(teacher: LanguageModel) -> None:
    for lag in (1, 3):
        for source, _ in PAIRS:
            words = source.split()
            said = wait_k(teacher, lag)(words).said
            assert len(said) == len(words)
            texts = ["".join(one) for one in said]
            assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
            assert all(len(text) <= max(0, read - lag + 1) for read, text in enumerate(said[:-1], 1))


def test_waiting_for_all_is_plain_decoding(teacher: LanguageModel) -> None:
    for source, _ in PAIRS:
        trace = wait_k(teacher, 99)(source.split())
        assert trace.text == teacher.generate(source, method="autoregressive").text
        assert not any(trace.said[:-1])


def test_wait_k_equals_a_walk_that_reads_everything_again(teacher: LanguageModel) -> None:
    tokenizer = teacher.tokenizer
    assert tokenizer is not None

    def slowly(words: list[str], lag: int) -> str:
        target, tokens = teacher.target, list[int]()
        for read in range(lag, len(words) + 1):
            is_over = read == len(words)
            while True:
                cache = target.new_cache(1, 99)
                target.encode([teacher.encode(" ".join(words[:read]))], cache)
                ids = torch.tensor([[target.start_token, *tokens]])
                token = int(target.score(ids, torch.arange(ids.shape[1])[None], None, cache).logits[0, -1].argmax())
                grown = tokenise(tokenizer.decode([*tokens, token]))
                if token in teacher.end_tokens or (not is_over and len(grown) > read - lag + 1):
                    break
                tokens.append(token)
        return tokenizer.decode(tokens)

    for source, _ in PAIRS[:3]:
        assert wait_k(teacher, 2)(source.split()).text == slowly(source.split(), 2)


def test_retranslation_is_a_translation_of_each_prefix(teacher: LanguageModel) -> None:
    words = PAIRS[0][0].split()
    said = retranslate(teacher)(words).said
    assert said == retranslate(teacher, "autoregressive")(words).said
    assert said == [tokenise(teacher.generate(" ".join(words[:n])).text) for n in range(1, len(words) + 1)]
    (row,) = measure({"anew": retranslate(teacher, "autoregressive")}, PAIRS, warm=1)
    assert row["sentences"] == 3 and row["seconds"] > 0 and row["average_lagging"] > 0


def test_the_command_compares_sides_and_refuses_models_of_the_wrong_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["translate", "--teacher", "translate"]) == 2
    assert "one pass" in capsys.readouterr().err
    assert main(["translate", "--sentences", "0"]) == 2
    folder, data = tmp_path / "fast", tmp_path / "data"
    (data / "tatoeba_pairs").mkdir(parents=True)
    folder.mkdir()
    teacher = load("translate")
    assert teacher.directory is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((teacher.directory / name).read_bytes())
    sizes = {"width": 16, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1}
    net = Ctc(CtcConfig(vocab_size=teacher.target.capabilities.vocab_size, **sizes))
    (folder / "config.json").write_text(json.dumps(config_of(net)), encoding="utf-8")
    save_file(net.state_dict(), folder / "model.safetensors")
    lines = "\n".join(f"{english}\t{german}" for german, english in PAIRS)
    (data / "tatoeba_pairs" / "en-de.test.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    out = tmp_path / "told.json"
    options = ["--set", "tatoeba-pairs:test:de-en", "--sentences", "2", "--wait", "2", "--data", str(data)]
    assert main([str(folder), "--teacher", "translate", *options, "--json", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert [row["side"] for row in told["rows"]] == ["one pass, anew", "teacher, anew", "teacher, wait-2"]
    assert "average lagging" in capsys.readouterr().out

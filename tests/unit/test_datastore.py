"""Suffix arrays, the datastore's file and its answers, all against the slow obvious way; and what it refuses."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from outpace.api.engine import load
from outpace.draft.corpus import Corpus, pieces
from outpace.draft.datastore import Datastore, Match, open_datastore, vocabulary_mark, write_datastore
from outpace.draft.suffixes import suffix_array
from outpace.errors import ConfigError, StorageError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.retrieval import Retrieval
from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, make_rows, make_run, reference, write
from outpace.zoo import path as zoo_path

TEXTS = [[1, 2, 3, 1, 2, 4], [1, 2], [], [3, 1, 2, 3, 1, 2, 3]]


def store(folder: Path, texts: list[list[int]], vocab_size: int = 13, mark: bytes = bytes(32)) -> Datastore:
    write_datastore(folder / "some.outpace", texts, vocab_size, mark)
    return open_datastore(folder / "some.outpace")


@pytest.mark.parametrize("seed", range(6))
def test_suffixes_are_sorted_as_the_obvious_way_sorts_them(seed: int) -> None:
    draw = random.Random(seed)
    alphabet, size = draw.choice([1, 2, 3, 70_000]), draw.choice([1, 2, 17, 400])
    tokens = [draw.randrange(alphabet) for _ in range(size)]
    found = suffix_array(np.array(tokens, np.uint32)).tolist()
    assert found == sorted(range(size), key=lambda start: tokens[start:])


def test_a_suffix_array_of_ids_that_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="ids from 0"):
        suffix_array(np.array([2**21 - 1]))


def longest(texts: list[list[int]], query: list[int], smallest: int, largest: int) -> tuple[int, list[list[int]]]:
    """Return the length of the longest ending that occurs, and what follows each occurrence, by looking everywhere."""
    for length in range(min(largest, len(query)), smallest - 1, -1):
        ending = query[-length:]
        follows = [
            text[at + length :]
            for text in texts
            for at in range(len(text) - length + 1)
            if text[at : at + length] == ending
        ]
        if follows:
            return length, follows
    return 0, []


def best(follows: list[list[int]], depth: int, budget: int) -> dict[tuple[int, ...], int]:
    """Return the most frequent beginnings of the continuations, with their counts."""
    counts = Counter(tuple(one[:size]) for one in follows for size in range(1, min(depth, len(one)) + 1))
    order = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    return {path: counts[path] for path in order[:budget]}


@pytest.mark.parametrize("seed", range(8))
def test_lookup_and_counts_are_what_brute_force_finds(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    vocab = draw.choice([2, 4, 13, 70_000])
    letters = [draw.randrange(vocab) for _ in range(3)]
    texts = [[draw.choice(letters) for _ in range(draw.randrange(60))] for _ in range(5)]
    found = store(tmp_path, texts, vocab)
    for _ in range(40):
        query = [draw.choice(letters) for _ in range(draw.randrange(1, 14))]
        smallest, depth, budget = draw.randrange(1, 4), draw.randrange(1, 6), draw.randrange(1, 30)
        match = found.find(query, smallest, 8)
        length, follows = longest(texts, query, smallest, 8)
        assert (match.length, match.high - match.low) == (length, len(follows))
        tree = found.follow(match, depth, budget, sample=10_000)
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(tree.tokens.tolist(), tree.parent.tolist(), strict=True):
            assert parent < len(paths)  # parents precede children
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        assert dict(zip(paths, tree.count.tolist(), strict=True)) == best(follows, depth, budget)


def test_a_worked_example(tmp_path: Path) -> None:
    found = store(tmp_path, TEXTS)
    assert (found.num_texts, found.num_tokens, found.vocab_size) == (3, 18, 13)
    match = found.find([9, 1, 2], 1, 8)
    assert (match.length, match.high - match.low) == (2, 5)  # "1 2" occurs five times, once at the end of a text
    tree = found.follow(match, 2, 3)
    # 3 follows three times, and "3 1" twice; 4 follows once.
    assert (tree.tokens.tolist(), tree.parent.tolist(), tree.count.tolist()) == ([3, 4, 1], [-1, -1, 0], [3, 1, 2])
    assert found.find([12], 1, 8) == found.find([1, 2, 3], 4, 8) == Match(0, 0, 0)
    assert found.find([1, 2, 99], 1, 8).length == 0  # 99 is no token of the corpus
    assert found.find([99, 1, 2], 1, 8).length == 2


def test_a_sample_is_spread_over_all_occurrences(tmp_path: Path) -> None:
    found = store(tmp_path, [[1, 5]] * 30 + [[1, 6]] * 10)
    tree = found.follow(found.find([1], 1, 4), 1, 9, sample=8)
    assert dict(zip(tree.tokens.tolist(), tree.count.tolist(), strict=True)) == {5: 6, 6: 2}


def test_the_file_has_the_documented_shape(tmp_path: Path) -> None:
    size = write_datastore(tmp_path / "a", TEXTS, 13, bytes(range(32)))
    data = (tmp_path / "a").read_bytes()
    assert len(data) == size == 96 + 2 * 18 + 4 * 18
    assert data[:8] == b"OUTPACE\x1a" and data[40:72] == bytes(range(32))
    assert data[96:102] == bytes([0, 1, 0, 2, 0, 3])  # big-endian tokens
    assert write_datastore(tmp_path / "b", TEXTS, 70_000) == 96 + 4 * 18 + 4 * 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # nothing half-written stays


def test_a_damaged_datastore_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.outpace"
    store(tmp_path, TEXTS)
    whole = path.read_bytes()
    cases = {
        "no datastore": b"hello",
        "is no datastore": b"x" * len(whole),
        "header of the datastore .* is damaged": whole[:20] + b"\xff" + whole[21:],
        "cut short": whole[:-3],
        "cut short, or longer": whole + b"x",
        "checksum is wrong": whole[:-1] + bytes([whole[-1] ^ 1]),
    }
    for reason, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=reason) as caught:
            Retrieval(index=str(path))
        assert "outpace index" in caught.value.hint
    path.unlink()
    with pytest.raises(ConfigError, match="There is no datastore"):
        Retrieval(index=str(path))


def test_an_empty_corpus_and_a_bad_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no text"):
        write_datastore(tmp_path / "a", [[]], 13)
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError, match="could not be written"):
        write_datastore(tmp_path / "b", TEXTS, 13)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_corpus_is_files_folders_and_lines(tmp_path: Path) -> None:
    (tmp_path / "in/.git").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("ab", encoding="utf-8")
    (tmp_path / "in/b.bin").write_bytes(b"\0\xff")
    (tmp_path / "in/.git/c.txt").write_text("hidden", encoding="utf-8")
    lines = [json.dumps({"text": "é"}), "", json.dumps({"text": ""})]
    (tmp_path / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus, told = Corpus(), []
    corpus.read([tmp_path / "in", tmp_path / "d.jsonl"], lambda text: [ord(letter) for letter in text], told.append)
    assert [text.tolist() for text in corpus.texts] == [[97, 98], [233]]
    assert (corpus.num_bytes, corpus.num_tokens, told) == (4, 3, [2, 2])
    assert corpus.skipped == [tmp_path / "in/b.bin"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b'{"text": "a"}\nnope', "line 2, is no JSON"),
        ("a.jsonl", b'{"txt": "a"}', 'line 1, has no "text"'),
        ("a.txt", b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_a_bad_file_is_named(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        Corpus().read([tmp_path / name], lambda text: [1])
    with pytest.raises(ConfigError, match="no file or folder"):
        Corpus().read([tmp_path / "missing"], lambda text: [1])


def test_long_texts_are_cut_after_line_ends() -> None:
    text = ("word " * 700 + "\n\n  next") * 12
    cut = list(pieces(text))
    assert "".join(cut) == text and len(cut) > 1
    assert all(piece.startswith("next") for piece in cut[1:])


def test_retrieval_fulfils_the_contract_with_a_datastore(tmp_path: Path) -> None:
    texts = [list(tokens) for name in ("greedy", "temperature 0.7") for tokens in reference(name)]
    write_datastore(tmp_path / "toy", texts, 13)
    check_method(Retrieval(index=str(tmp_path / "toy"), budget=12, draft_len=5))
    check_method(Retrieval(index=str(tmp_path / "toy"), has_history=False, min_match=2, budget=3, draft_len=8), every=3)


def test_what_the_corpus_says_is_drafted(tmp_path: Path) -> None:
    write_datastore(tmp_path / "periodic", [[0, 1, 2, 3, 4, 5] * 12], 13)
    method = Retrieval(index=str(tmp_path / "periodic"), has_history=False, draft_len=5)
    rows = make_rows([(0, 1, 2)], 24)
    write(method, rows=rows, target=PeriodicModel(6))
    usage = rows[0].usage
    # Five drafts and the target's own token per step, and the last step has room for five and the own one too.
    assert (usage.num_steps, usage.num_accepted, usage.num_emitted) == (4, 20, 24)


def test_the_longer_match_wins_and_the_own_text_at_a_tie(tmp_path: Path) -> None:
    write_datastore(tmp_path / "toy", [[7, 1, 2, 9]], 13)

    def first_draft(prompt: tuple[int, ...]) -> int:
        rows, seen = make_rows([prompt], 1 + 4), []
        method = Retrieval(index=str(tmp_path / "toy"), draft_len=1)
        run = make_run(method, target=PeriodicModel(6))
        run.watch = lambda _, outcome: seen.append(outcome.proposal.tokens[0, 0].item())
        run.join(rows)
        run.step()
        return int(seen[0])

    assert first_draft((7, 1, 2, 5, 7, 1, 2)) == 5  # three tokens match in both
    assert first_draft((1, 2, 5, 7, 1, 2)) == 9  # three in the corpus, two in the text
    assert first_draft((4, 7, 1, 2, 5, 4, 7, 1, 2)) == 5


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    lm = load(zoo_path("stories-draft"))
    assert lm.tokenizer is not None
    mark = vocabulary_mark(lm.tokenizer)
    write_datastore(tmp_path / "same", [lm.encode("Once upon a time, there was a cat.")], 8192, mark)
    ours = lm.generate("Once upon", method=Retrieval(index=str(tmp_path / "same")), max_tokens=8)
    assert ours.tokens == lm.generate("Once upon", method=Autoregressive(), max_tokens=8).tokens
    assert ours.usage.num_accepted > 0
    for vocab_size, other in ((8192, mark[::-1]), (8193, bytes(32))):
        write_datastore(tmp_path / "other", TEXTS, vocab_size, other)
        with pytest.raises(ConfigError, match="another tokenizer than this model's") as caught:
            lm.generate("Once", method=Retrieval(index=str(tmp_path / "other")), max_tokens=8)
        assert "outpace index" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"sample": 0}, "sample is 0"),
        ({"min_match": 3, "max_match": 2}, "min_match is 3"),
        ({"has_history": False}, "nothing to retrieve from"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Retrieval(**settings)  # type: ignore[arg-type]

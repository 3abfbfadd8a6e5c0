"""Two vocabularies over one text: spellings, texts kept up to date in other ids, drafts aligned with the text's end."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from outpace.draft.strings import Lexicon, Respelling, _along_longest_run
from outpace.text.speller import Speller
from outpace.text.tokenizer import Tokenizer

TEXT = "Once upon a time, there was a little girl. She saw 日本 and a 🙂, and naïve little Tom.\n\nThe little end."
WORDS = ["once upon a time there was a little girl and a little end the little Tom saw"] * 4


def byte_level(size: int, specials: tuple[str, ...] = ("<eos>",)) -> Tokenizer:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    engine.train_from_iterator(WORDS, trainer)
    return Tokenizer(engine, {"eos_token": specials[-1]})


def sentencepiece() -> Tokenizer:
    """Pieces as Llama has them: bytes for what has no piece, a mark for spaces and before the text, a start token."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{byte:02X}>" for byte in range(256)],
        *"▁abcdefghilmnoprstuwTOS.,",
        "▁a",
        "li",
        "lit",
    ]
    merges = [("▁", "a"), ("l", "i"), ("li", "t")]
    engine = Engine(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    engine.model.byte_fallback = True
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(engine, {"bos_token": "<s>", "eos_token": "</s>"})


def lexicon(target: Tokenizer, draft: Tokenizer) -> Lexicon:
    return Lexicon(Speller(target, target.vocab_size), Speller(draft, draft.vocab_size))


def test_spellings_are_what_decoding_joins() -> None:
    for tokenizer in (byte_level(300), sentencepiece()):
        ids = tokenizer.encode(TEXT, is_special=False)
        spelled = b"".join(tokenizer.spellings[index] or b"?" for index in ids).decode()
        assert spelled.removeprefix(" ") == TEXT
        assert all(tokenizer.spellings[index] is None for index in tokenizer.special_ids.values())
    assert byte_level(300).spellings[byte_level(300).token_id("Ġ")] == b" "
    assert sentencepiece().spellings[3 + 0xE6] == b"\xe6"


def test_a_decoder_that_does_more_spells_nothing() -> None:
    engine = Engine(models.WordLevel({"a": 0, "##b": 1}, unk_token="a"))
    assert Tokenizer(engine).spellings == [None, None]  # no decoder: joined with spaces
    engine.decoder = decoders.WordPiece()
    assert Tokenizer(engine).spellings == [None, None]


@pytest.mark.parametrize(("target", "draft"), [(300, 256 + 8), (264, 320), (257, 257), (310, 0), (0, 310)])
def test_a_text_that_grows_is_the_text_encoded_at_once(target: int, draft: int) -> None:
    theirs = byte_level(draft) if draft else sentencepiece()
    ours = byte_level(target) if target else sentencepiece()
    words = lexicon(ours, theirs)
    ids, row = ours.encode(TEXT), Respelling(words)
    assert bool(row.ids) == (not draft)  # the start token is there before any text
    for size in range(1, len(ids) + 1):
        row.extend(ids[:size])
    assert row.ids == theirs.encode(TEXT) and row.is_whole and row.seen == len(ids)
    assert abs(row.ratio - len(row.ids) / len(ids)) < 1e-12


def test_an_unfinished_character_waits() -> None:
    ours = byte_level(257)  # bytes only
    row = Respelling(lexicon(ours, byte_level(300)))
    ids = ours.encode("a 🙂")
    row.extend(ids[:4])
    assert not row.is_whole and row.ids == byte_level(300).encode("a ")
    row.extend(ids)
    assert row.is_whole and byte_level(300).decode(row.ids) == "a 🙂"


def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    ours = byte_level(257)
    broken = [*ours.encode("a"), ours.token_id("ÿ") or 0, *ours.encode(" little")]
    row = Respelling(lexicon(ours, byte_level(300)))
    row.extend(broken)
    assert byte_level(300).decode(row.ids) == "a\N{REPLACEMENT CHARACTER} little"


def test_special_tokens_go_over_by_name_and_by_role() -> None:
    ours, theirs = byte_level(300, ("<s>", "<user>", "<eos>")), sentencepiece()
    ours = Tokenizer(ours._engine, {"bos_token": "<s>", "eos_token": "<eos>"})
    words = lexicon(ours, theirs)
    start, user, end = (ours.special_ids[name] for name in ("<s>", "<user>", "<eos>"))
    assert words.specials == {start: 1, end: 2} and words.special_of_draft(2) == end
    row = Respelling(words)
    row.extend([start, user, *ours.encode("a"), end])
    assert row.ids == [1, *theirs.encode("a", is_special=False), 2]  # one start token, none for <user>


def test_longest_run_by_hand() -> None:
    # Places: old " lit"@3 "tle"@7 " gi"@10 "r"@13, and the same end tokenised again, from the middle of a word.
    old, old_at = [1, 2, 3, 4], [3, 7, 10, 13]
    new, new_at = [8, 9, 3, 5, 6], [7, 8, 10, 13, 17]
    assert _along_longest_run(old, old_at, new, new_at) == [1, 2, 3, 5, 6]
    assert _along_longest_run(old, old_at, [8, 9], [7, 9]) == [8, 9]  # nothing in common


def test_what_the_cache_may_keep() -> None:
    row = Respelling(lexicon(byte_level(300), byte_level(257)))
    row.ids, row.held = [5, 6, 7, 8], [5, 6, 9, 8]
    assert row.forget() == 2 and row.held == [5, 6]
    row.held = [5, 6, 7, 8, 9]
    assert row.forget() == 3  # the last id is always read again
    copy = row.copy()
    copy.ids.append(1)
    assert row.ids == [5, 6, 7, 8]


def test_drafts_begin_where_the_text_ends() -> None:
    ours, theirs = byte_level(330), byte_level(257)
    words = lexicon(ours, theirs)
    text = ours.encode("once upon")
    assert words.to_target(text, theirs.encode(" a little")) == ours.encode("once upon a little")[len(text) :]
    # Half a word: the whole word would be one token, but the text's end is written.
    assert "Ġlittle" in ours._engine.get_vocab()
    half = [*ours.encode("a"), *words.target.spell(b" lit")]
    drafts = words.to_target(half, theirs.encode("tle girl"))
    assert ours.decode([*half, *drafts]) == "a little girl" and ours.token(drafts[-1]) == "Ġgirl"
    # An end token is drafted too, and nothing behind it.
    end = theirs.special_ids["<eos>"]
    assert words.to_target(text, [*theirs.encode(" a"), end, *theirs.encode("b")])[-1] == ours.special_ids["<eos>"]
    assert words.to_target(text, []) == []
    assert words.to_target(text, theirs.encode("🙂")[:2]) == []  # half a character


def test_spaces_meet_whatever_their_sign() -> None:
    ours, theirs = byte_level(330), sentencepiece()
    words = lexicon(ours, theirs)
    space = theirs.token_id("▁a") or 0
    assert words.shared[ours.token_id("Ġa") or 0] == space
    assert words.shared[ours.token_id("a") or 0] == theirs.token_id("a")  # the letter, not the byte <0x61>
    assert words.to_target(ours.encode("once"), [space]) == [ours.token_id("Ġa")]
    back = lexicon(theirs, ours)
    text = theirs.encode("a lit")
    assert theirs.decode([*text, *back.to_target(text, ours.encode(" girl"))]) == "a lit girl"

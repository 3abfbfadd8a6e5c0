"""The trainer for sentence pairs: looks, averages, depth, written targets, checkpoints along a run, and its counts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import outpace
from outpace.errors import ConfigError
from outpace.train import TRANSLATIONS, TranslationRecipe, checkpoint, train
from outpace.train.bleu import bleu
from outpace.train.export import load_tokenizer
from outpace.train.loop import Loop
from outpace.train.pairs import TATOEBA, make_batch
from outpace.train.translation import dynamics, selection, speed
from outpace.train.translation.dynamics import Order, fuzzy_reordering, stages
from outpace.train.translation.look import HeldOut, translate_all
from outpace.train.translation.marian import MarianShape
from outpace.train.translation.network import PairNetwork
from outpace.train.translation.settled import Settled, later, reached, settled
from outpace.train.translation.smoothing import TokenSmoothing
from outpace.train.translation.snapshots import averaged, deepened, load_snapshot, snapshots
from outpace.train.translation.swaps import Words, swapped
from outpace.train.translation.trainer import build_translator
from outpace.train.translation.written import written_pairs
from outpace.train.translation_quality import read_set

pytest.importorskip("transformers")
WORDS = {"der": "the", "Hund": "dog", "Mann": "man", "sieht": "sees", "hört": "hears", "das": "the", "Kind": "child"}
PAIRS = [
    (f"{a} {b} {verb} {c} {d}.", f"{WORDS[a]} {WORDS[b]} {WORDS[verb]} {WORDS[c]} {WORDS[d]}.")
    for a, b in (("der", "Hund"), ("der", "Mann"), ("das", "Kind"))
    for verb in ("sieht", "hört")
    for c, d in (("das", "Kind"), ("der", "Hund"))
]
SHAPE = MarianShape(width=32, encoder_layers=2, decoder_layers=2, heads=2, ffn=48, context=64, dropout=0.0)
TINY = TranslationRecipe(
    name="tiny",
    summary="A toy.",
    shape=SHAPE,
    vocab=300,
    direction="en-de",
    budget=64,
    joined=0.0,
    averaged=2,
    keeps_all=True,
    look_every=2,
    steps=6,
    gpu_steps=6,
    warmup=2,
    checkpoint_every=2,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "tatoeba_pairs").mkdir()
    text = "".join(f"{english}\t{german}\n" for german, english in PAIRS)
    for split in TATOEBA.splits:
        (folder / "tatoeba_pairs" / f"en-de.{split}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(TINY, out, data=data, threads=1) == 0
    return out


def network_of(run: Path) -> PairNetwork:
    network: PairNetwork = SHAPE.load(run)
    return network


def test_the_mean_of_the_last_checkpoints_is_exported(run: Path) -> None:
    kept = dict(snapshots(run))
    assert list(kept) == [2, 4, 6]
    mean = averaged([kept[4], kept[6]])
    first, second = (checkpoint.load(kept[step])["network"] for step in (4, 6))
    exported = network_of(run).state_dict()
    for name, weight in mean.items():
        assert torch.allclose(weight, (first[name] + second[name]) / 2, atol=1e-6), name
        is_stored = "embed_positions" not in name  # the tables of sines are computed
        assert torch.equal(exported[name], weight.to(torch.bfloat16).float() if is_stored else weight), name
    # the run itself goes on from its own weights
    own = checkpoint.load(run / "checkpoint.pt")["network"]
    assert all(torch.equal(own[name], second[name]) for name in own)
    assert "mean of the last 2 checkpoints" in (run / "card.md").read_text()


def test_looks_are_kept_and_resumed(run: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = json.loads((run / "looks.json").read_text())
    assert [look["step"] for look in looks] == [2, 4, 6]
    assert looks[-1]["held_out"] < looks[0]["held_out"] and (run / "curves.png").is_file()
    advance = Loop.advance

    def die_at_five(self: Loop) -> float:
        if self.step == 5:
            raise MemoryError("killed")
        return advance(self)

    monkeypatch.setattr(Loop, "advance", die_at_five)
    with pytest.raises(MemoryError):
        train(TINY, tmp_path / "killed", data=data, threads=1)
    monkeypatch.undo()
    assert train(TINY, tmp_path / "killed", data=data, threads=1, resume=True) == 0
    states = [checkpoint.load(folder / "checkpoint.pt") for folder in (run, tmp_path / "killed")]
    assert states[0]["losses"] == states[1]["losses"] and states[0]["looks"] == states[1]["looks"]
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "killed" / "model.safetensors").read_bytes()


def test_the_held_out_loss_is_that_of_each_pair_alone(run: Path) -> None:
    network, tokenizer = network_of(run), load_tokenizer(run)
    pairs = [(english, german) for german, english in PAIRS]
    held_out = HeldOut(pairs, tokenizer, budget=40)
    total = count = 0.0
    with torch.no_grad():
        for pair in pairs:
            source, target = (np.array(tokenizer.encode(text).ids) for text in pair)
            batch = make_batch([source], [target])
            total -= network.logits(batch).log_softmax(-1)[range(len(target)), target].sum().item()
            count += len(target)
    assert held_out.cross_entropy(network, CPU) == pytest.approx(total / count, rel=0.01)  # bfloat16 products
    texts = translate_all(network, tokenizer, [source for source, _ in pairs], CPU, most=8)
    # weights as they were before the mean was taken are looked at in a run; here the same text is counted twice
    assert held_out.look(network, CPU)["bleu"] >= 0 and bleu(texts, texts) > 0


def test_translating_with_a_cache_and_without_gives_the_same(run: Path) -> None:
    network, tokenizer = network_of(run), load_tokenizer(run)
    sources = [np.array(tokenizer.encode(english).ids) for _, english in PAIRS]
    batch = make_batch(sources, sources)
    cached = network.translate(batch.sources, batch.mask, 12)
    assert PairNetwork.translate(network, batch.sources, batch.mask, 12) == cached
    assert any(cached) and all(len(row) <= 12 for row in cached)
    assert network.writer()(batch.sources, batch.mask, 12) == cached  # the engine's texts


def test_a_deeper_network_starts_from_its_parents_layers(run: Path) -> None:
    parent = network_of(run)
    deep = replace(SHAPE, encoder_layers=4, decoder_layers=1).build(300)
    weights, held = deepened(parent, deep), parent.state_dict()
    assert weights.keys() == deep.state_dict().keys()
    name = "model.model.encoder.layers.{}.fc1.weight"
    for index in range(4):
        assert torch.equal(weights[name.format(index)], held[name.format(index // 2)])
    for name in ("model.model.decoder.layers.0.fc1.weight", "model.model.shared.weight"):
        assert torch.equal(weights[name], held[name])


def test_written_targets_are_the_parents_own_and_written_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer, path = network_of(run), load_tokenizer(run), tmp_path / "written" / "toy.jsonl"
    pairs = [(english, german) for german, english in PAIRS]
    found = written_pairs(network, tokenizer, pairs, path, CPU, rows=4, most=8)
    sources = [source for source, _ in pairs]
    assert found == list(zip(sources, translate_all(network, tokenizer, sources, CPU, most=8), strict=True))
    # 1) A file that is cut in the middle of a line goes on after its last whole line.
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(lines[:6]) + "\n" + lines[6][:5], encoding="utf-8")
    asked: list[int] = []

    def counted(*arguments: object) -> list[str]:
        asked.append(len(arguments[2]))  # type: ignore[arg-type]
        return translate_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("outpace.train.translation.written.translate_all", counted)
    assert written_pairs(network, tokenizer, pairs, path, CPU, rows=4, most=8) == found
    assert sum(asked) == len(pairs) - 5
    # 2) A whole file is read alone; 3) that of other weights is written anew.
    assert written_pairs(network, tokenizer, pairs, path, CPU, rows=4, most=8) == found and sum(asked) == len(pairs) - 5
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    written_pairs(network, tokenizer, pairs, path, CPU, rows=4, most=8)
    assert sum(asked) == 2 * len(pairs) - 5


def test_a_student_learns_what_its_parent_wrote(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[str, str]]] = []

    def telling(*arguments: object, **options: object) -> list[tuple[str, str]]:
        seen.append([(english, "der Hund.") for _, english in PAIRS])
        return seen[-1]

    monkeypatch.setattr("outpace.train.translation.trainer.written_pairs", telling)
    recipe = replace(TINY, name="child", parent="tiny", objective="written", is_deepened=True, averaged=0, look_every=0)
    recipe = replace(recipe, shape=replace(SHAPE, encoder_layers=4, decoder_layers=1), steps=40, checkpoint_every=40)
    assert train(recipe, run.parent / "child", data=data, threads=1) == 0
    model = outpace.load(run.parent / "child", dtype="float32")
    texts = [result.text.strip() for result in model.generate([english for _, english in PAIRS[:3]], max_tokens=12)]
    assert seen and texts == ["der Hund."] * 3


def test_a_denoiser_is_trained_and_gone_on_with(tmp_path: Path, data: Path) -> None:
    recipe = replace(TINY, name="denoiser", objective="denoising", averaged=0, keeps_all=False, look_every=0, steps=30)
    recipe = replace(recipe, checkpoint_every=30)
    assert train(recipe, tmp_path / "denoiser", data=data, threads=1) == 0
    losses = checkpoint.load(tmp_path / "denoiser" / "checkpoint.pt")["losses"]
    assert sum(losses[-5:]) < sum(losses[:5]) * 0.6
    child = replace(recipe, name="child", parent="denoiser", objective="translation")
    trainer = build_translator(child, tmp_path / "child", data, steps=1, seed=0)
    held = SHAPE.load(tmp_path / "denoiser").state_dict()
    assert all(torch.equal(weight, held[name]) for name, weight in trainer.network.state_dict().items())
    assert trainer.batches.spoil is None


def test_directions_are_read_both_ways(data: Path) -> None:
    assert read_set("tatoeba-pairs:test", data) == PAIRS
    assert read_set("tatoeba-pairs:test:en-de", data) == [(english, german) for german, english in PAIRS]
    with pytest.raises(ConfigError, match="tatoeba-pairs has no 'en-fr'"):
        read_set("tatoeba-pairs:test:en-fr", data)


def test_files_of_unequal_length_are_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "multi30k").mkdir()
    for language, lines in (("de", "a\nb\n"), ("en", "a\nb\nc\n")):
        (tmp_path / "multi30k" / f"train.{language}.gz").write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(ConfigError, match="line 3 has no partner"):
        train("captions-small", tmp_path / "run", data=tmp_path)


def test_the_reordering_score_by_hand() -> None:
    assert fuzzy_reordering([0, 1, 2, 3]) == 1 and fuzzy_reordering([0, 0, 1]) == 1 and fuzzy_reordering([5]) == 1
    assert fuzzy_reordering([3, 2, 1, 0]) == 0
    assert fuzzy_reordering([2, 3, 0, 1]) == pytest.approx(2 / 3)  # two runs of four words
    assert reached([0.0, 5.0, 9.6, 9.0, 9.9, 10.0]) == 4 and reached([1.0, 1.0]) == 0
    assert reached([0.0, 9.0, 8.9, 9.0, 10.0], 0.9) == 3


def test_swapped_pairs_are_counted_where_both_words_are_translated() -> None:
    reference = {0: 0, 1: 3, 2: 1, 3: 2}  # its second word goes behind the third and the fourth
    assert swapped(reference, reference).tolist() == [2, 2]
    assert swapped(reference, {0: 0, 1: 1, 2: 2, 3: 3}).tolist() == [0, 2]
    assert swapped(reference, {1: 2, 2: 1}).tolist() == [1, 1] and swapped(reference, {0: 1}).tolist() == [0, 0]
    # By words: the lexicon knows where each belongs, and what it never met is linked with nothing.
    pairs = [(english, german) for german, english in PAIRS]
    words = Words.learnt(pairs)
    held = words.links("the man sees the dog.", "der Hund sieht der Mann.")
    assert held[1] == 4 and held[4] == 1 and held[2] == 2
    assert words.links("the man", "qwertz") == {}


def test_when_a_figure_settles_and_how_sure_that_is() -> None:
    # Hits of each sentence at four steps, out of one each: by hand 0.5, 0.75, 1, 1 of them.
    def share(sums: np.ndarray) -> float:
        return float(sums[0] / sums[1])

    hits = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]], dtype=np.float64)
    counts = [np.stack([hits[:, step], np.ones(4)], 1) for step in range(4)]
    found = settled(counts, share, [10, 20, 30, 40], share=0.75, resamples=4000)
    assert (found.step, found.low, found.high) == (20, 10, 30)
    # Of 4^4 sets: settled at once where three or four of the draws are among the first two sentences, 5/16 of them.
    assert found.steps.count(10) / 4000 == pytest.approx(5 / 16, abs=0.03)
    assert found == settled(counts, share, [10, 20, 30, 40], share=0.75, resamples=4000)  # the same draws
    assert later(found, found) == 0.5
    one, other = Settled(2, 2, 2, (2, 2, 3, 1)), Settled(2, 2, 2, (1, 2, 1, 2))
    assert later(one, other) == 0.625 and later(other, one) == 0.375


def test_the_order_of_translations_is_told_by_a_lexicon(run: Path) -> None:
    pairs = [(english, german) for german, english in PAIRS]
    tokenizer = load_tokenizer(run)
    order = Order.learnt(tokenizer, pairs)

    def monotone(text: str) -> float:
        return order.monotone(["the man sees the dog."], [tokenizer.encode(text).ids[:-1]])

    assert monotone("der Mann sieht der Hund.") > monotone("der Hund sieht der Mann.") >= 0
    assert order.monotone(["the dog."], [[]]) == 0  # nothing that could be told


def test_every_kept_checkpoint_is_reported(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = read_set("tatoeba-pairs:valid:en-de", data)
    found, counted = stages(run, TINY, read_set("tatoeba-pairs:train:en-de", data), pairs)
    for stage, own in zip(found, counted, strict=True):  # the counts of the sentences make the figures
        bits, tokens = own.fluency.sum(0)
        assert bits / tokens == pytest.approx(stage.bits[5]) and tokens / len(pairs) == pytest.approx(stage.tokens)
        assert len(own.order) == len(own.quality) == len(pairs) and 0 <= stage.swaps <= 1
    assert [stage.step for stage in found] == [2, 4, 6] and capsys.readouterr().out.count("\n") == 3
    assert all(0 <= stage.monotone <= 1 and stage.tokens >= 1 for stage in found)
    tokenizer = load_tokenizer(run)
    model = dynamics.language_model(tokenizer, [german for german, _ in PAIRS], 3)
    own, strange = ("der Hund sieht das Kind.", "the child the the dog")
    bits = [model.bits(np.array([0, *tokenizer.encode(text).ids])).mean() for text in (own, strange)]
    assert bits[0] < bits[1] / 2  # what the language has seen is cheap
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        stages(data, TINY, [], [])


def test_a_student_of_each_checkpoint(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["selection", str(run), "--student", "captions-small", "--at", "2", "6", "--pairs", "8", "--steps", "1"]
    # a teacher of six steps writes long nonsense
    student = replace(TINY, shape=replace(SHAPE, context=512), longest=500, budget=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(selection.TRANSLATIONS, "tiny", TINY)
        patch.setitem(selection.TRANSLATIONS, "captions-small", student)
        patch.setattr("sys.argv", [*arguments, "--data", str(data), "--json", str(tmp_path / "found.json")])
        assert selection.main() == 0
        patch.setattr("sys.argv", [*arguments[:4], "--at", "3", "--data", str(data)])
        assert selection.main() == 2
    assert "no checkpoint 3" in capsys.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["step"] for one in found] == [2, 6] and all(0 <= one["monotone"] <= 1 for one in found)
    # each learnt from its own teacher's texts, of as many sources
    for step in (2, 6):
        network = SHAPE.build(300)
        load_snapshot(network, dict(snapshots(run))[step])
        lines = (run / "written" / f"{step:06d}.jsonl").read_text(encoding="utf-8").split("\n")[1:-1]
        written = dict(json.loads(line) for line in lines)
        sources = [english for _, english in PAIRS[:8]]
        assert list(written.values()) == translate_all(network, load_tokenizer(run), list(written), CPU)
        assert sorted(written) == sorted(set(sources))


def test_layers_are_counted_as_sentences_wait_for_them(run: Path) -> None:
    model = outpace.load(run, dtype="float32")
    pairs = [(english, german) for german, english in PAIRS]
    depths = speed.depths_of(run)
    assert depths == (2, 2)
    steps = [
        model.generate([source], max_tokens=6)[0].usage.num_steps for source in sorted((a for a, _ in pairs), key=len)
    ]
    alone, together = (speed.cost(model, depths, pairs, rows, 6) for rows in (1, 5))
    assert alone.forwards == pytest.approx(sum(steps) / len(steps))
    assert alone.layers == pytest.approx(alone.forwards * 2 + 2)
    batches = [max(steps[start : start + 5]) for start in range(0, len(steps), 5)]
    assert together.layers == pytest.approx((sum(batches) * 2 + len(batches) * 2) / len(steps))
    assert together.bleu == alone.bleu and together.seconds > together.forwards_s > 0


def test_research_recipes_say_that_they_do_not_ship() -> None:
    for recipe in TRANSLATIONS.values():
        first = recipe.start or recipe.parent
        if first is not None and first in TRANSLATIONS and not recipe.has_own_tokenizer:
            assert TRANSLATIONS[first].vocab == recipe.vocab  # the tokenizer is that one's
    deep, teacher = TRANSLATIONS["captions-deep-shallow"], TRANSLATIONS["captions-teacher"]
    assert deep.direction == teacher.direction == "en-de" and deep.parent == teacher.name
    with pytest.raises(ConfigError, match="names none"):
        replace(TINY, objective="written")


def test_a_parents_laws_go_with_cross_entropy_alone(run: Path, data: Path) -> None:
    recipe = replace(TINY, name="taught", parent="tiny", objective="distilled", criterion=TokenSmoothing())
    with pytest.raises(ConfigError, match=r"cannot be learnt beside TokenSmoothing"):
        train(recipe, run.parent / "taught", data=data, threads=1)

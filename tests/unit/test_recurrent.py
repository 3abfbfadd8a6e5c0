"""The recurrent language model: its engine against whole texts, its training's parts, and the continuous cache."""

from __future__ import annotations

import dataclasses
import gzip
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from outpace.api.engine import LanguageModel, load
from outpace.api.fusing import first_token
from outpace.bench.held_out import cache_log_probs, text_states
from outpace.errors import ModelError
from outpace.models.recurrent import RecurrentConfig, RecurrentModel, RecurrentNet, config_of, open_recurrent
from outpace.train.recipes.recurrent import RECURRENT
from outpace.train.recurrent import RecurrentTrainer, dropped_states, has_stalled
from outpace.train.sources import held_out_english

CONFIG = RecurrentConfig(vocab=23, width=12, hidden=16, layers=2, places=64)
TEXT = [3, 7, 7, 1, 20, 5, 9, 9, 2]
BARE = {"weight_drop": 0.0, "input_drop": 0.0, "layer_drop": 0.0, "output_drop": 0.0, "word_drop": 0.0}


@pytest.fixture(scope="module")
def net() -> RecurrentNet:
    torch.manual_seed(0)
    made = RecurrentNet(CONFIG).double()
    for weight in made.parameters():
        weight.data *= 4  # laws that are sharp
    return made


def by_hand(net: RecurrentNet, text: list[int]) -> torch.Tensor:
    """[T, V] logits behind each token, from the equations of an LSTM, one number of a state at a time by rows."""
    states = [(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)) for size in net.sizes]
    found = []
    for token in text:
        x = net.embed_tokens.weight[token]
        for index, cell in enumerate(net.cells):
            h, c = states[index]
            gates = cell.weight_ih_l0 @ x + cell.bias_ih_l0 + cell.weight_hh_l0 @ h + cell.bias_hh_l0
            enter, forget, new, leave = gates.chunk(4)
            c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
            x = leave.sigmoid() * c.tanh()
            states[index] = (x, c)
        found.append(net.embed_tokens.weight @ x + net.bias)
    return torch.stack(found).detach()


def test_pieces_trees_and_whole_texts_are_the_equations(net: RecurrentNet) -> None:
    model, want = RecurrentModel(net), by_hand(net, TEXT)
    assert (net.head(net(torch.tensor([TEXT])))[0] - want).abs().max() < 1e-12
    cache = model.new_cache(2, 64)
    ends = [4, 2]
    places = torch.arange(4).expand(2, -1)
    tokens = torch.tensor([TEXT[:4], TEXT[:4]])
    scores = model.score(tokens, torch.where(places < torch.tensor(ends)[:, None], places, -1), None, cache)
    assert (scores.logits[0] - want[:4]).abs().max() < 1e-12
    cache.keep([range(4), range(2)])
    # A token, its rival, and the token's child, which comes from the token alone.
    tree = torch.tensor([[TEXT[end], 11, TEXT[end + 1]] for end in ends])
    sight = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool).expand(2, -1, -1)
    scores = model.score(tree, torch.tensor([[end, end, end + 1] for end in ends]), sight, cache)
    for row, end in enumerate(ends):
        assert (scores.logits[row, [0, 2]] - want[end : end + 2]).abs().max() < 1e-12
        assert (scores.logits[row, 1] - by_hand(net, [*TEXT[:end], 11])[-1]).abs().max() < 1e-12


@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling", "beam-search"])
def test_it_writes_through_the_shared_interface(net: RecurrentNet, method: str) -> None:
    lm = LanguageModel(RecurrentModel(net))
    prompts, asked = [TEXT, TEXT[:2]], {"max_tokens": 12, "temperature": 0.0 if method == "beam-search" else 0.8}
    if method == "beam-search":
        plain = lm.generate(prompts, method=method, **asked)
        found = lm.generate(prompts, method=method, options={"drafter": "prompt-lookup"}, **asked)
    else:
        plain, found = lm.generate(prompts, **asked), lm.generate(prompts, method=method, **asked)
    assert [one.tokens for one in found] == [one.tokens for one in plain]


def test_dropped_weights_are_those_between_hidden_states(net: RecurrentNet) -> None:
    tokens = torch.tensor([TEXT, TEXT[::-1]])
    recipe = dataclasses.replace(RECURRENT["stories-lstm"], **BARE)
    assert (dropped_states(net, tokens, recipe, 1) - net(tokens)).abs().max() < 1e-12
    bare = RecurrentNet(CONFIG).double()
    bare.load_state_dict(net.state_dict())
    for cell in bare.cells:
        cell.weight_hh_l0.data.zero_()
    all_left_out = dataclasses.replace(recipe, weight_drop=1 - 1e-12)
    assert (dropped_states(net, tokens, all_left_out, 1) - bare(tokens)).abs().max() < 1e-12
    half = dataclasses.replace(recipe, weight_drop=0.5)
    assert torch.equal(dropped_states(net, tokens, half, 5), dropped_states(net, tokens, half, 5))
    assert not torch.equal(dropped_states(net, tokens, half, 5), dropped_states(net, tokens, half, 6))
    locked = dropped_states(net, tokens, dataclasses.replace(recipe, output_drop=0.5), 5)
    assert torch.equal((locked == 0).all(1), (locked == 0).any(1))  # a number is out for the whole length


def test_averaging_begins_when_looks_get_worse_and_is_a_mean() -> None:
    assert not has_stalled([3.0, 2.0, 1.9, 1.8], 2) and not has_stalled([3.0, 3.1], 2)
    assert has_stalled([3.0, 2.0, 2.5, 2.2], 2) and not has_stalled([3.0, 2.0, 2.5, 1.9], 2)

    class Rows:
        def batch(self, step: int, rows: int, length: int) -> torch.Tensor:
            return torch.randint(23, (rows, length), generator=torch.Generator().manual_seed(step))

    def trainer() -> RecurrentTrainer:
        torch.manual_seed(0)
        sizes = {"rows": 2, "length": 6, "look_every": 2, "patience": 1, "rate": 1.0}
        recipe = dataclasses.replace(RECURRENT["stories-lstm"], **sizes)
        held = torch.arange(40).numpy() % 23
        network = RecurrentNet(CONFIG)
        return RecurrentTrainer(recipe=recipe, network=network, device=torch.device("cpu"), seed=0, steps=20,
                                mixture=Rows(), held=held, tokenizer=None)  # type: ignore[arg-type]  # fmt: skip

    made, seen = trainer(), []
    while made.step < 20:
        made.advance()
        if made.averaged:
            seen.append({name: weight.clone() for name, weight in made.network.state_dict().items()})
    assert len(seen) == made.averaged >= 2  # at four fifths of the steps at the latest
    for name, mean in made.mean.items():
        assert torch.allclose(mean, torch.stack([one[name] for one in seen]).mean(0), atol=1e-6)
    again = trainer()
    while again.step < 19:
        again.advance()
    other = trainer()
    other.restore(again.state())
    other.advance()
    assert all(torch.equal(other.mean[name], mean) for name, mean in made.mean.items())


def test_the_cache_gives_states_like_the_present_one_their_tokens(net: RecurrentNet) -> None:
    plain, states = text_states(RecurrentModel(net), [*TEXT, 7, 1])
    want = by_hand(net, [*TEXT, 7, 1]).log_softmax(-1)
    ids = [*TEXT, 7, 1]
    assert plain.tolist() == pytest.approx([float(want[at, ids[at + 1]]) for at in range(len(ids) - 1)], abs=1e-9)
    tokens, size, strength = torch.tensor(ids[1:]), 4, 0.7
    found = cache_log_probs(states, tokens, size, [0.1, strength])[1]
    norm = math.sqrt(float((states**2).mean()))
    for at in range(len(tokens)):
        shares: dict[int, float] = {}
        for before in range(max(0, at - size), at):
            alike = sum(float(a * b) for a, b in zip(states[before] / norm, states[at] / norm, strict=True))
            shares[int(tokens[before])] = shares.get(int(tokens[before]), 0.0) + math.exp(strength * alike)
        share = shares.get(int(tokens[at]), 0.0) / sum(shares.values()) if shares else 0.0
        assert math.exp(float(found[at])) == pytest.approx(share, abs=1e-12)


def test_files_are_read_again_and_damage_is_told(net: RecurrentNet, tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(config_of(net)))
    with pytest.raises(ModelError, match="no whole recurrent model"):
        open_recurrent(tmp_path, torch.float64, torch.device("cpu"))
    save_file({name: weight.float() for name, weight in net.state_dict().items()}, tmp_path / "model.safetensors")
    model = open_recurrent(tmp_path, torch.float64, torch.device("cpu"))
    tokens = torch.tensor([TEXT])
    assert (model.net(tokens) - net(tokens)).abs().max() < 1e-5


def test_a_law_is_measured_beside_the_model_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from outpace.bench import held_out

    texts = ["The cat sat on the mat and looked at the dog. Then it slept."] * 3
    monkeypatch.setattr("outpace.train.sources.held_out_english", lambda data: texts)
    asked = {"most": 40, "size": 0, "texts": "english"}
    law = "plugin:model=stories-draft,weight=0.7"
    alone, beside = held_out.run_held_out(["stories"], tmp_path, **asked, law=law).rows
    own, other = (load(name, dtype="float32") for name in ("stories", "stories-draft"))
    begin, ids = first_token(own), own.encode(texts[0], is_special=False)
    whole = [begin, *ids, begin, *ids, begin, *ids][:41]
    first, second = (
        lm.target.score(
            torch.tensor([whole]), torch.arange(41)[None], None, lm.target.new_cache(1, 64)
        ).logits[0].double().log_softmax(-1)
        for lm in (own, other)
    )  # fmt: skip
    both = (first + 0.7 * second).log_softmax(-1)
    for row, logs in ((alone, first), (beside, both)):
        wanted = -float(logs[:-1].gather(1, torch.tensor(whole[1:])[:, None])[13:].mean())
        assert row["nats"] == pytest.approx(wanted, abs=1e-3)
    assert beside["model"] == "stories, plugin"


def test_pieces_are_read_each_without_what_stands_before_it() -> None:
    lm = load("stories-draft", dtype="float32")
    ids = [
        first_token(lm),
        *lm.encode("The cat sat on the mat and looked at the dog. Then it slept.", is_special=False),
    ]
    pieces = [text_states(lm.target, ids[begin : begin + 6], False)[0] for begin in range(0, len(ids) - 1, 5)]
    torch.testing.assert_close(text_states(lm.target, ids, False, length=6)[0], torch.cat(pieces))


def test_what_cannot_be_measured_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from outpace.bench import fusion, held_out

    assert held_out.main(["stories-draft", "--tokens", "3"]) == 2
    assert held_out.main(["stories-draft", "--data", str(tmp_path), "--length", "1"]) == 2
    assert "3 tokens and 1000 states were asked for." in capsys.readouterr().err
    assert held_out.main(["stories-draft", "--data", str(tmp_path / "none")]) == 2
    assert "no folder of training texts" in capsys.readouterr().err
    (tmp_path / "none" / "tatoeba_pairs").mkdir(parents=True)
    for part, lines in (("train", "Go!\tLos!\n"), ("valid", "Go!\tGeh!\nA dog sat on the mat.\tx\n" * 2)):
        with gzip.open(tmp_path / "none" / "tatoeba_pairs" / f"en-de.{part}.tsv.gz", "wt") as file:
            file.write(lines)
    assert held_out_english(tmp_path / "none") == ["A dog sat on the mat."]
    assert fusion.main(["--lm", "stories", "--sentences", "0"]) == 2
    assert "No sentence or no weight was named." in capsys.readouterr().err

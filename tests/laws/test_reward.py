"""A reward head: the formula, its reductions, drafts, and that it learns."""

from pathlib import Path

import pytest
import torch

import outpace
from outpace.errors import OutpaceError
from outpace.laws.markov import write_tables
from outpace.laws.reward import KIND
from outpace.testing.toy import ToyModel
from outpace.train import hmm, reward
from outpace.types import Outputs

ROWS = [[5, 3, 2, 8], [4], [1, 2, 1, 2, 1]]
VOCAB = 13


@pytest.fixture
def head(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    tables = {"down": torch.randn(8, 2, generator=generator), "up": torch.randn(2, VOCAB, generator=generator)}
    write_tables(tmp_path / "head", {"model_type": KIND}, tables)
    return tmp_path / "head"


def test_texts_are_those_of_the_formula(head: Path) -> None:
    from safetensors.torch import load_file

    toy, tables = ToyModel(sharpness=2.0), load_file(head / "model.safetensors")
    for prompt, result in zip(
        ROWS, outpace.LanguageModel(toy).generate(ROWS, law=f"reward:head={head},weight=2"), strict=True
    ):
        text = list(prompt)
        for token in result.tokens[:12]:
            places = torch.arange(len(text)).unsqueeze(0)
            given = (torch.tensor([text]), places, None, toy.new_cache(1, len(text)))
            scores = toy.score(*given, outputs=Outputs(has_last=True))
            assert scores.last is not None
            reward_of = (scores.last[0, -1] @ tables["down"].double()) @ tables["up"].double()
            assert token == int((scores.logits[0, -1] + 2 * reward_of).argmax())
            text.append(token)


@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling"])
def test_drafts_change_nothing_and_no_weight_is_plain(head: Path, method: str) -> None:
    lm = outpace.LanguageModel(ToyModel(sharpness=2.0))
    asked = {"max_tokens": 40, "temperature": 0.6, "seed": 2}
    ours, plain = lm.generate(ROWS, law=f"reward:head={head}", **asked), lm.generate(ROWS, **asked)
    drafted = lm.generate(ROWS, law=f"reward:head={head}", method=method, **asked)
    assert [r.tokens for r in drafted] == [r.tokens for r in ours] != [r.tokens for r in plain]
    assert sum(r.usage.num_accepted for r in drafted) > 0
    none = lm.generate(ROWS, law=f"reward:head={head},weight=0", **asked)
    assert [r.tokens for r in none] == [r.tokens for r in plain]


def test_candidates_that_are_read_are_rewarded_by_the_states_behind_them(tmp_path: Path) -> None:
    toy, value = ToyModel(sharpness=1.0), torch.randn(8, generator=torch.Generator().manual_seed(3))
    write_tables(tmp_path, {"model_type": KIND}, {"value": value})
    lm, asked = outpace.LanguageModel(toy), f"reward:head={tmp_path},read=4,weight=3"

    def behind(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([text])
        places = torch.arange(len(text)).unsqueeze(0)
        scores = toy.score(ids, places, None, toy.new_cache(1, len(text)), outputs=Outputs(has_last=True))
        assert scores.last is not None
        return scores.logits[0, -1], scores.last[0, -1]

    for prompt, result in zip(ROWS, lm.generate(ROWS, law=asked, max_tokens=10, ignore_eos=True), strict=True):
        text = list(prompt)
        for token in result.tokens:
            logits, _ = behind(text)
            by_hand = {
                one: float(logits[one] + 3 * behind([*text, one])[1] @ value.double())
                for one in logits.topk(4).indices.tolist()
            }
            assert token == max(by_hand, key=lambda one: by_hand[one])
            text.append(token)
    law = {"law": asked, "max_tokens": 40, "temperature": 0.6, "seed": 2}
    plain = [result.tokens for result in lm.generate(ROWS, **law)]
    for method in ("prompt-lookup", "token-recycling"):
        drafted = lm.generate(ROWS, method=method, **law)
        assert [result.tokens for result in drafted] == plain
        assert sum(result.usage.num_accepted for result in drafted) > 0


def test_a_rewarded_token_comes_more_often_the_larger_the_weight(tmp_path: Path) -> None:
    up = torch.zeros(1, VOCAB)
    up[0, 7] = 1.0
    lm, counts = outpace.LanguageModel(toy := ToyModel(sharpness=1.0)), list[int]()
    ids = torch.arange(VOCAB).unsqueeze(0)
    last = toy.score(ids, ids, None, toy.new_cache(1, VOCAB), outputs=Outputs(has_last=True)).last
    assert last is not None
    write_tables(tmp_path / "seven", {"model_type": KIND}, {"down": last[0].mean(0, keepdim=True).mT.float(), "up": up})
    for weight in (0, 2, 8):
        found = lm.generate(
            ROWS, law=f"reward:head={tmp_path / 'seven'},weight={weight}", max_tokens=60, temperature=1.0
        )
        counts.append(sum(result.tokens.count(7) for result in found))
    assert counts[0] < counts[1] < counts[2]


def test_the_head_learns_which_texts_have_the_attribute() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 6, (10,), generator=generator).tolist() for _ in range(80)]
    labels = [5 not in text for text in texts]
    table = torch.randn(6, 8, generator=generator)
    states = torch.cat([table[torch.tensor(text)] for text in texts])
    tables, losses = reward.fit(states, texts, labels, 6, rank=4, steps=60)
    assert losses[-1] < losses[0] - 0.1
    ahead = states @ tables["down"] @ tables["up"]
    assert (ahead[:, 5] < ahead[:, :5].mean(1)).float().mean() > 0.9  # the token that spoils a text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--states", "2", "--texts", "20", "--length", "16", "--rounds", "1"]
    hmm.main(["--model", "stories-draft", "--out", str(tmp_path), *small])
    asked = ["--model", "stories-draft", "--texts", str(tmp_path / "texts.npz"), "--steps", "5"]
    assert reward.main([*asked, "--without", "girl|was", "--out", str(tmp_path / "head")]) == 0
    lm = outpace.load("stories-draft")
    assert lm.generate("Once", law=f"reward:head={tmp_path / 'head'}", max_tokens=4, method="prompt-lookup").tokens
    with pytest.raises(OutpaceError, match="The reward is for states of"):
        outpace.load("stories").generate("Once", law=f"reward:head={tmp_path / 'head'}", max_tokens=4)
    for law, message in (("reward", "names no head"), (f"reward:head={tmp_path}", "holds no outpace_reward")):
        with pytest.raises(OutpaceError, match=message):
            lm.generate("Once", law=law, max_tokens=4)
    assert "texts have the attribute" in capsys.readouterr().out

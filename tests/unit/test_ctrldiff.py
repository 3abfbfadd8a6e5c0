"""CtrlDiff: constant policies are fixed blocks, guidance equals brute force, and the policy gradient finds a rule."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.api.engine import load
from outpace.canvas.block_policy import BlockPolicy, read_policy
from outpace.canvas.classifier import read_classifier
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.ctrldiff import CtrlDiff
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.sampling import Sampling
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.gtest import PROMPT, g_test, small_model, text_counts
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, drive, make_rows, make_run, write
from outpace.train import block_policy, classifier
from outpace.train.block_policy import PolicyTrainer, Trial, surplus

WARM = Sampling(temperature=0.8)
SIZES = (2, 4, 8)


def width_of(target: ToyModel) -> int:
    return int(target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1])


def policy_file(path: Path, target: ToyModel, always: int = 0, **changes: object) -> str:
    """A random policy, or one that is sure of one size."""
    source = np.random.default_rng(4)
    hidden = source.normal(size=(3, width_of(target) + len(SIZES) + 1))
    out = source.normal(size=(len(SIZES), 4)) * (0.0 if always else 3.0)
    if always:
        out[SIZES.index(always), -1] = 9.0
    held = {"sizes": SIZES, "vocab_size": target.capabilities.vocab_size}
    held |= {"hidden": hidden.tolist(), "out": out.tolist()}
    path.write_text(json.dumps(held | changes), encoding="utf-8")
    return str(path)


def classifier_file(path: Path, vocab_size: int, **changes: object) -> str:
    weights = np.random.default_rng(2).normal(size=vocab_size).tolist()
    path.write_text(json.dumps({"bias": -0.5, "weights": weights} | changes), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("attention", "is_shifted"), [("full", False), ("block", True)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_policy_that_always_says_one_size_is_fixed_blocks(
    attention: str, is_shifted: bool, steps: int, tmp_path: Path
) -> None:
    target = toy_canvas(attention, is_shifted)
    for size in (2, 4):
        path = policy_file(tmp_path / f"{size}.json", target, always=size)
        chosen, fixed = CtrlDiff(steps=steps, size_policy=path), CtrlDiff(steps=steps, block=size)
        ours, plain = (write(one, WARM, make_rows(max_tokens=8), target=target) for one in (chosen, fixed))
        assert [row.written for row in ours] == [row.written for row in plain]
        assert [row.usage.num_steps for row in ours] == [row.usage.num_steps for row in plain]


def test_as_many_steps_as_places_and_no_weight_is_masked_diffusion(tmp_path: Path) -> None:
    target = toy_canvas("block", True)
    plain = [row.written for row in write(MaskedDiffusion(block=4), WARM, make_rows(max_tokens=8), target=target)]
    path = classifier_file(tmp_path / "c.json", target.capabilities.vocab_size)
    for method in (CtrlDiff(steps=4, block=4), CtrlDiff(steps=4, block=4, classifier=path, weight=0.0)):
        assert [row.written for row in write(method, WARM, make_rows(max_tokens=8), target=target)] == plain
    guided = write(
        CtrlDiff(steps=4, block=4, classifier=path, weight=9.0), WARM, make_rows(max_tokens=8), target=target
    )
    assert [row.written for row in guided] != plain


def test_the_policy_reads_the_state_where_a_block_begins(tmp_path: Path) -> None:
    target = ToyModel(attention="full")
    path = policy_file(tmp_path / "p.json", target)
    policy, seen = read_policy(path), list[tuple[int, int]]()

    class Noted(CtrlDiff):
        def pick(self, policy: BlockPolicy, known: np.ndarray, row: object) -> int:  # type: ignore[type-arg,override]
            choice = super().pick(policy, known, row)  # type: ignore[arg-type]
            seen.append((row.base, SIZES[choice]))  # type: ignore[attr-defined]
            return choice

    row = make_rows(PROMPTS[:1], max_tokens=24)[0]
    write(Noted(steps=24, size_policy=path), Sampling(), [row], target=target)
    text, mask = list(row.tokens), target.capabilities.mask_id
    start, end, wanted = len(text) - 24, len(text) - 24, []
    while end < len(text):  # a plain loop: the whole canvas anew, masks from here on, and the policy written out
        canvas = torch.tensor([[*text[:end], *[mask] * (len(text) - end)]])
        needs = CtrlDiff(size_policy="x").needs.outputs
        place = torch.arange(len(text))[None]
        asked = torch.arange(end, len(text))[None]
        scores = target.score(canvas, place, None, target.new_cache(1, len(text)), asked, needs)
        assert scores.last is not None
        state = [float(one) for one in scores.last[0, 0]]
        laws = [[*law[:mask].exp(), *law[mask + 1 :].exp()] for law in scores.logits[0]]
        laws = [[float(one) / float(sum(law)) for one in law] for law in laws]
        wide = [-sum(one * math.log(one) for one in law) for law in laws]
        length = math.sqrt(sum(one * one for one in state) / len(state))
        ahead = [wide[:size] for size in SIZES]
        known = [*(one / length for one in state), *(sum(some) / len(some) for some in ahead)]
        inner = [math.tanh(sum(map(float.__mul__, unit[:-1].tolist(), known)) + unit[-1]) for unit in policy.hidden]
        found = [sum(w * i for w, i in zip(line, inner, strict=False)) + line[-1] for line in policy.out]
        size = SIZES[found.index(max(found))]
        wanted.append((end, size))
        end = min(start + ((end - start) // size + 1) * size, len(text))
    assert seen == wanted
    assert len({size for _, size in wanted}) > 1, "one size alone shows nothing"


def test_rows_of_a_batch_pick_their_own_sizes(tmp_path: Path) -> None:
    target = toy_canvas("full", False)
    files = (
        policy_file(tmp_path / "p.json", target),
        classifier_file(tmp_path / "c.json", target.capabilities.vocab_size),
    )
    method = CtrlDiff(steps=2, size_policy=files[0], classifier=files[1], weight=2.0)
    together = write(method, WARM, make_rows(max_tokens=12), target=target)
    for index in range(len(PROMPTS)):
        alone = write(method, WARM, [make_rows(max_tokens=12)[index]], target=target)[0]
        assert alone.written == together[index].written


def test_lengths_vary_with_what_is_written(tmp_path: Path) -> None:
    target = toy_canvas("block", False)
    path = policy_file(tmp_path / "p.json", target)
    rows = make_rows([PROMPTS[0]] * 6, max_tokens=24, keys=range(6), end_tokens=(3, 5))
    write(CtrlDiff(steps=2, size_policy=path), Sampling(temperature=1.0), rows, target=target)
    assert len({len(row.written) for row in rows}) > 2


def test_guided_text_equals_a_plain_loop(tmp_path: Path) -> None:
    target, length, weight = ToyModel(attention="full"), 6, 3.0
    vocab, mask = target.capabilities.vocab_size, target.capabilities.mask_id
    path = classifier_file(tmp_path / "c.json", vocab)
    known = read_classifier(path)
    row = make_rows(PROMPTS[:1], max_tokens=length)[0]
    prompt = list(row.tokens)
    write(CtrlDiff(steps=length, block=length, classifier=path, weight=weight), Sampling(), [row], target=target)
    text = [*prompt, *[mask] * length]
    while mask in text:
        position = torch.arange(len(text))[None]
        logits = target.score(torch.tensor([text]), position, None, target.new_cache(1, len(text))).logits[0].double()
        best = (-1.0, 0, 0)
        for place in (at for at in range(len(prompt), len(text)) if text[at] == mask):
            law = logits[place].softmax(-1).tolist()
            for token in range(vocab):  # the classifier reads the whole text, with this token put in its place
                put = [one for one in [*text[len(prompt) : place], token, *text[place + 1 :]] if one != mask]
                odds = known.bias + sum(float(known.weights[one]) for one in put)
                law[token] *= 0.0 if token == mask else (1 / (1 + math.exp(-odds))) ** weight
            total = sum(law)
            sure = max(range(vocab), key=lambda token: law[token])
            best = max(best, (law[sure] / total, -place, sure))
        text[-best[1]] = best[2]
    assert row.written == text[len(prompt) :]


def test_guided_draws_follow_the_law_of_bayes(tmp_path: Path) -> None:
    target = small_model("full")
    path = classifier_file(tmp_path / "c.json", 4)
    counts = text_counts(CtrlDiff(block=1, classifier=path, weight=2.0), target, 1, Sampling(temperature=1.0), 1500)
    mask, known = target.capabilities.mask_id, read_classifier(path)
    text = torch.tensor([[*(2 if token == mask else token for token in PROMPT), mask]])
    logits = target.score(text, torch.arange(4)[None], None, target.new_cache(1, 4)).logits[0, -1].double()
    logits[mask] = float("-inf")
    chance = torch.tensor([1 / (1 + math.exp(-(known.bias + known.weights[token]))) for token in range(4)])
    law = logits.softmax(-1) * chance**2
    assert g_test(counts, law / law.sum()) > 1e-3
    assert g_test(counts, logits.softmax(-1)) < 1e-6


def test_the_policy_gradient_finds_a_rule_that_is_there() -> None:
    source = np.random.default_rng(3)
    trainer = PolicyTrainer((2, 4), 5, 9, 8, 0.05, 0.0)
    for _ in range(30):
        states = source.normal(size=(64, 5))
        logits = trainer.policy.logits(states)
        choices = (source.uniform(size=64) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).astype(np.int64)
        trainer.learn(states, choices, np.where(choices == (states[:, 0] > 0), 1.0, -1.0))
    states = source.normal(size=(400, 5))
    assert (trainer.policy.logits(states).argmax(-1) == (states[:, 0] > 0)).mean() > 0.9


def test_one_step_of_the_gradient_by_hand() -> None:
    trainer = PolicyTrainer((2, 4), 3, 9, 2, 0.01, 0.0)
    states, choices, worth = np.array([[1.0, 2.0, -1.0]]), np.array([1]), np.array([0.7])
    before = trainer.policy.logits(states)[0]
    trainer.learn(states, choices, worth)
    # d log p(1) / d bias = (-p(0), 1 - p(1)); a first step of Adam moves by the rate, whatever the size.
    slope = -0.7 * np.array([-0.5, 0.5])
    assert trainer.out.grad is not None
    np.testing.assert_allclose(trainer.out.grad[:, -1].numpy(), slope, atol=1e-12)
    assert before.tolist() == [0.0, 0.0]
    after = trainer.policy.logits(states)[0]
    assert after[1] > after[0]


def test_what_blocks_are_worth_by_hand() -> None:
    states = np.zeros((2, 1))
    one = Trial(states, np.array([0, 1]), np.array([2, 4]), np.array([-4.0, -20.0]), 0.0, 0)
    other = Trial(states[:1], np.array([0]), np.array([2]), np.array([-8.0]), 0.0, 0)
    beyond = np.array([4.0, -4.0, 0.0])  # the mean is -4 per token
    np.testing.assert_allclose(surplus([one, other]), beyond / beyond.std())


def test_blocks_of_a_text_share_out_its_likelihood() -> None:
    lm, judge = load("stories-block"), load("stories")
    prompt = [*lm.end_tokens[:1], *lm.encode("One day, Tom")]
    width = int(lm.target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1])
    even = BlockPolicy((4, 8), np.zeros((0, width + 3)), np.zeros((2, 1)), lm.target.capabilities.vocab_size)
    method = block_policy._Drawing(steps=2, known=even, draw=np.random.default_rng(0))
    trial = block_policy.write_text(lm, judge, prompt, method, 0.5, max_tokens=20, temperature=0.7, seed=1)
    assert trial.tokens.sum() == 20
    assert trial.states.shape == (len(trial.choices), width + 2)
    assert trial.gains.sum() == pytest.approx(-trial.nats - 0.5 * np.minimum(trial.tokens, 2).sum())
    scored = judge.score([*prompt, *lm.generate(prompt, method=CtrlDiff(), max_tokens=1, seed=1).tokens])
    assert len(scored.log_probs) >= 1


def test_the_classifier_learns_which_token_tells() -> None:
    source = torch.Generator().manual_seed(1)
    passages = torch.randint(0, 8, (600, 6), generator=source)
    labels = (passages == 5).any(1).tolist()
    found = classifier.fit(passages, labels, 8, steps=150)
    assert found.weights.argmax() == 5
    assert found.log_odds(np.array([5, 1])) > found.log_odds(np.array([2, 1]))
    # With nothing seen, it says what share of passages match, seen or not.
    alone = 1 / (1 + math.exp(-found.log_odds(np.zeros(0, dtype=np.int64))))
    assert 0.1 < alone < np.mean(labels) + 0.1


def test_bad_settings_and_bad_files(tmp_path: Path) -> None:
    target = ToyModel(attention="full")
    vocab = target.capabilities.vocab_size
    with pytest.raises(ConfigError, match="the policy picks the sizes"):
        CtrlDiff(block=4, size_policy="x")
    for bad in ({"steps": 0}, {"weight": -1.0}, {"weight": math.inf}, {"order": "best"}):
        with pytest.raises(ConfigError):
            CtrlDiff(**bad)  # type: ignore[arg-type]
    with pytest.raises(CapabilityError, match="made with 99 tokens"):
        write(CtrlDiff(size_policy=policy_file(tmp_path / "a", target, vocab_size=99)), WARM, target=target)
    with pytest.raises(CapabilityError, match="made with 7 tokens"):
        write(CtrlDiff(classifier=classifier_file(tmp_path / "b", 7)), WARM, target=target)
    narrow = policy_file(tmp_path / "c", target, hidden=[[1.0] * 5], out=[[1.0, 2.0]] * 3)
    with pytest.raises(CapabilityError, match="reads states of 1 numbers"):
        drive(make_run(CtrlDiff(size_policy=narrow), target=target), make_rows())
    for reader in (read_policy, read_classifier):
        with pytest.raises(ConfigError, match="cannot be read"):
            reader(str(tmp_path / "none"))
        (tmp_path / "d").write_text("[]", encoding="utf-8")
        with pytest.raises(ConfigError, match="is no "):
            reader(str(tmp_path / "d"))
    with pytest.raises(ConfigError, match="no ascending sizes"):
        read_policy(policy_file(tmp_path / "e", target, sizes=[4, 2, 8]))
    with pytest.raises(ConfigError, match="do not fit"):
        read_policy(policy_file(tmp_path / "f", target, sizes=[4, 8]))
    with pytest.raises(ConfigError, match="numbers that are none"):
        read_policy(policy_file(tmp_path / "g", target, out=[[math.nan] * 4] * 3))
    with pytest.raises(ConfigError, match="numbers that are none"):
        read_classifier(classifier_file(tmp_path / "h", vocab, bias=math.inf))


def test_commands_refuse_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--out", str(tmp_path / "x.json")]
    assert block_policy.main(["stories-block", "--sizes", "0,4", *where]) != 0
    assert "A block of 0 places is none." in capsys.readouterr().err
    assert classifier.main(["stories-block", "--data", str(tmp_path), "--about", "(", *where]) != 0
    assert "is no pattern" in capsys.readouterr().err

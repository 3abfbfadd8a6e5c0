"""Judge decoding: the judge's fit, trials that turn out well or ill, and what passes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.heads.files import open_head, read_head, save_head
from outpace.heads.judge import JudgeNet
from outpace.heads.model import HeadModel, new_head
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.judge import Judge
from outpace.sampling import Sampling
from outpace.testing.grammar import ToyGrammar
from outpace.testing.toy import ToyModel
from outpace.testing.world import SETTINGS, make_rows, make_run
from outpace.train.judge import Trial, collect_trials, main, same_end, train_judge
from outpace.types import Adapter, Outputs

TARGET = ToyModel()
DRAFT = ToyModel(like=TARGET, noise=0.5, seed=1)


def judge(bias: float, line: list[float] | None = None, target: Adapter = TARGET) -> HeadModel:
    """Return a judge with given weights; a bias alone judges all tokens alike."""
    model = new_head("judge", target)
    with torch.no_grad():
        model.net.proj.bias.fill_(bias)
        if line is not None:
            model.net.proj.weight.copy_(torch.tensor([line]))
    return model


def written(method: object, settings: Sampling = SETTINGS["greedy"], **models: Adapter) -> tuple[list[list[int]], int]:
    """Return what rows write, and in how many steps."""
    run = make_run(method, settings, target=TARGET, models=models, capacity=80)
    rows, steps = make_rows(max_tokens=24), 0
    run.join(rows)
    while run.rows:
        run.step()
        steps += 1
    return [row.written for row in rows], steps


@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "repetition penalty"])
def test_what_rejects_everything_leaves_plain_decodings_text(name: str) -> None:
    plain, _ = written(Autoregressive(), SETTINGS[name])
    assert written(Judge(), SETTINGS[name], draft=DRAFT, judge=judge(-50.0))[0] == plain
    assert written(Judge(threshold=1.0), SETTINGS[name], draft=DRAFT, judge=judge(50.0))[0] == plain


def test_what_accepts_everything_writes_the_drafters_text() -> None:
    method = Judge(draft_len=4, is_adaptive=False)
    strict, lenient = (written(method, draft=DRAFT, judge=judge(bias)) for bias in (-50.0, 50.0))
    assert lenient[1] < strict[1]
    run = make_run(method, target=TARGET, models={"draft": DRAFT, "judge": judge(50.0)}, capacity=80)
    run.join(make_rows(max_tokens=20))
    while run.rows:
        run.step()
        assert run.last.accepted == run.last.proposal.length


def test_a_draft_is_judged_by_the_state_of_itself() -> None:
    """Every step is decided again from the whole text: a draft passes by its own state, up to the first that fails."""
    line = torch.linspace(-2, 2, 8).tolist()
    model = judge(0.1, line)
    run = make_run(Judge(is_adaptive=False), target=TARGET, models={"draft": DRAFT, "judge": model}, capacity=80)
    run.join(make_rows(max_tokens=20))
    passed = failed = 0
    while run.rows:
        texts = [list(row.tokens) for row in run.rows]
        run.step()
        proposal = run.last.proposal
        for row, text in enumerate(texts):
            drafts = proposal.tokens[row, : proposal.length[row]].tolist()
            logits, states = read(TARGET, text + drafts)
            kept = 0
            for i, token in enumerate(drafts):
                is_match = int(logits[len(text) + i - 1].argmax()) == token
                is_right = float(model.net.right(states[len(text) + i])) > 0.5
                if not (is_match or is_right):
                    failed += 1
                    break
                passed += not is_match
                kept += 1
            assert run.last.accepted[row] == kept
    assert passed > 3 and failed > 3


def read(model: Adapter, text: list[int]) -> tuple[Tensor, Tensor]:
    tokens, place = torch.tensor([text]), torch.arange(len(text)).unsqueeze(0)
    scores = model.score(tokens, place, None, model.new_cache(1, 90), None, Outputs(has_last=True))
    return scores.logits[0], scores.last[0]


def test_no_judge_passes_what_the_constraint_forbids() -> None:
    settings = Sampling(constraint=ToyGrammar(), bad_words=((4,),))
    plain, _ = written(Autoregressive(), settings)
    rows, _ = written(Judge(), settings, draft=DRAFT, judge=judge(50.0))
    assert not any(4 in row for row in rows)
    for row in (*plain, *rows):
        state = ToyGrammar().start()
        for token in row:
            assert bool(state.allowed()[token])
            state.push(token)


def test_a_fit_tells_classes_apart_whatever_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 8, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 30, 8) + 5
    is_right = states[:, 2] > states[:, 2].quantile(0.9)
    net = JudgeNet(JudgeNet.made_for(8, 13, 3)).double()
    net.fit(states, is_right)
    found = net.right(states) > 0.5
    assert (found == is_right).double().mean() > 0.95
    assert (found & is_right).sum() >= 0.9 * is_right.sum()


def test_trials_are_the_targets_own_continuations() -> None:
    prompt = [1, 2, 3, 4, 5]
    answer = rows_of(prompt, 16)[0].written
    trials = collect_trials(TARGET, [(prompt, answer)], same_end(3), every=2, slack=0, seed=4)
    assert [trial.is_right for trial in trials[::2]] == [True] * len(trials[::2])
    ends = []
    for i, trial in enumerate(trials[1::2]):
        place = len(prompt) + 2 * i
        shown = [*prompt, *answer][:place]
        tokens = [t for t in range(13) if torch.allclose(read(TARGET, [*shown, t])[1][-1], trial.state)]
        assert len(tokens) == 1 and tokens[0] != answer[2 * i]
        start = [*prompt, *answer[: 2 * i], tokens[0]]
        rest = rows_of(start, len(prompt) + len(answer) - len(start))[0].written
        ends.append([*start[len(prompt) :], *rest])
        assert trial.is_right == (ends[-1][-3:] == answer[-3:])


def rows_of(prompt: list[int], count: int) -> list:
    run = make_run(Autoregressive(), target=TARGET, capacity=80)
    rows = make_rows([prompt], max_tokens=count)
    run.join(rows)
    while run.rows:
        run.step()
    return rows


def test_a_judge_is_saved_and_opened(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    trials = [Trial(torch.randn(8, generator=generator, dtype=torch.float64), i % 3 > 0) for i in range(60)]
    net = train_judge(TARGET, trials)
    save_head(net, tmp_path, dtype=torch.float32)
    opened = open_head(tmp_path, TARGET)
    states = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(opened.net.right(states), net.right(states), atol=1e-5, rtol=1e-5)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ConfigError, match="all turned out alike"):
        train_judge(TARGET, [Trial(torch.zeros(8), True)])
    with pytest.raises(ConfigError, match="The judge is no judge"):
        written(Judge(), draft=DRAFT, judge=DRAFT)
    with pytest.raises(CapabilityError, match="does not draft"):
        written(Judge(), draft=judge(0.0), judge=judge(0.0))
    with pytest.raises(ConfigError, match="threshold"):
        Judge(threshold=1.5)


def test_the_command_writes_a_judge_of_a_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "Once upon a time, there was a"}\n', encoding="utf-8")
    told = ["stories", "--prompts", str(prompts), "--out", str(tmp_path / "judge"), "--max-tokens", "24"]
    assert main(told) == 0 and "of them wrong" in capsys.readouterr().out
    net, _ = read_head(tmp_path / "judge")
    assert isinstance(net, JudgeNet) and bool(net.proj.weight.any())


@pytest.mark.parametrize("text", ["", '{"user": "x"}\n', '{"text": 3}\n'])
def test_the_command_refuses_prompts_without_a_text(tmp_path: Path, text: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="a text on every line"):
        main(["stories", "--prompts", str(prompts), "--out", str(tmp_path / "judge")])

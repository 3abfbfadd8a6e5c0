"""What a method may ask of a forward and of the loop: outputs, places, soft inputs, forks, reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.diffusion.freedave import FreeDave
from outpace.methods.diffusion.lrd import LatentRefinement
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.misfit import check_fit
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.commit import together
from outpace.run.row import Row, follow
from outpace.sampling import fork_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import (
    PROMPTS,
    SETTINGS,
    drive,
    make_rows,
    make_run,
    target_for,
    toy_decode,
    with_stop,
    write,
)
from outpace.trace.bits import RoundLog
from outpace.types import Capabilities, Decision, Needs, Outcome, Outputs, Proposal, Scores, View

WARM = SETTINGS["temperature 0.7"]
WANTED = Outputs(layers=(0, 2, 3), has_last=True, heads=("confidence",))


def written(rows: Sequence[Row]) -> list[list[int]]:
    return [row.written for row in rows]


def whole(text: list[int], outputs: Outputs = WANTED) -> Scores:
    model = ToyModel()
    given = (torch.tensor([text]), torch.arange(len(text)).unsqueeze(0), None, model.new_cache(1, len(text)))
    return model.score(*given, outputs=outputs)


@dataclass(frozen=True)
class Watching(DraftModel):
    """Notes, per row, what came of each final token: its place among the outputs of a chunk, the root or a draft."""

    outputs: Any = WANTED

    @property
    def needs(self) -> Needs:
        return replace(super().needs, outputs=self.outputs)

    def start(self, context: Any) -> Any:
        return {"inner": super().start(context), "seen": [[] for _ in context.texts]}

    def propose(self, view: View, state: Any) -> Proposal:
        return super().propose(view, state["inner"])

    def observe(self, outcome: Outcome, view: View, state: Any) -> Any:
        scores = outcome.scores
        assert scores is not None and scores.last is not None
        every = [*(scores.taps[layer] for layer in self.outputs.layers), scores.last, *scores.heads.values()]
        table = torch.cat(every, -1)
        for row, seen in enumerate(state["seen"]):
            path = outcome.path[row] if outcome.path else []
            places = range(len(outcome.chunk[row])) if outcome.chunk else [0, *(node + 1 for node in path[:-1])]
            seen += [table[row, at] for at in places]
        return state | {"inner": super().observe(outcome, view, state["inner"])}


@pytest.mark.parametrize("tree_width", [1, 2])
def test_outputs_come_for_every_final_token(tree_width: int) -> None:
    """From prefill chunks, roots, and accepted nodes of chains and trees: those of one forward of the whole text."""
    run, rows = make_run(Watching(draft_len=3, tree_width=tree_width, is_adaptive=False), WARM), make_rows()
    drive(run, rows, steps=5)
    assert sum(row.usage.num_accepted for row in rows) > 5
    for row, seen in zip(run.rows, run.batch.state["seen"], strict=True):
        scores = whole(row.tokens)
        assert scores.last is not None
        wanted = torch.cat([*(scores.taps[n] for n in WANTED.layers), scores.last, scores.heads["confidence"]], -1)[0]
        torch.testing.assert_close(torch.stack(seen), wanted[:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("offered", "lack"),
    [({}, "hidden states"), ({"has_hidden": True, "num_layers": 2}, "up to 3"), ({"num_layers": 3}, "'confidence'")],
)
def test_outputs_that_a_model_lacks_are_told_before_it_loads(offered: dict[str, Any], lack: str) -> None:
    with pytest.raises(CapabilityError, match=lack):
        check_fit(Watching(), Capabilities(13, 64, **offered))
    check_fit(Watching(), ToyModel().capabilities)


@dataclass(frozen=True)
class AsksForTheRoot(PromptLookup):
    """Drafts, and throws the drafts away by asking for the root alone, behind a node or two."""

    def propose(self, view: View, state: Any) -> Proposal:
        proposal = super().propose(view, state)
        rows, width = proposal.tokens.shape
        return replace(proposal, ask=torch.tensor([[width - 1, -1]] * rows))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Any) -> Decision:
        assert scores.logits.shape[1] == 2
        tokens = view.sampler.pick(scores.logits[:, 1], torch.tensor(view.lengths)).unsqueeze(1)
        return Decision(tokens, torch.ones(len(tokens), dtype=torch.int64))


def test_a_method_may_ask_for_some_nodes() -> None:
    rows, plain = make_rows(), make_rows()
    write(AsksForTheRoot(), WARM, rows, record=("log_probs",))
    write(Autoregressive(), WARM, plain, record=("log_probs",))
    assert written(rows) == written(plain)
    for ours, theirs in zip(rows, plain, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-9)


def soft_rows(target: ToyModel, which: Sequence[int]) -> list[Row]:
    """Return the standard rows, some with a prompt that is embeddings alone."""
    rows = make_rows()
    for index in which:
        rows[index].inputs = target.embed(torch.tensor(PROMPTS[index]))
        rows[index].tokens[:] = [0] * len(PROMPTS[index])
    return rows


@pytest.mark.parametrize("which", [(0, 1, 2, 3), (1, 3)])
@pytest.mark.parametrize(
    "method",
    [Autoregressive(), DraftModel(draft_len=3), DraftModel(tree_width=2), MaskedDiffusion(), LatentRefinement()],
    ids=str,
)
def test_a_prompt_may_be_embeddings(method: Method, which: Sequence[int]) -> None:
    """Ids stand for nothing there: the text is that of the prompt which the embeddings are of."""
    for attention in ("causal",) if method.needs.attention == "causal" else ("full", "block"):
        target = target_for(attention)
        plain = write(method, WARM, make_rows(), target=target)
        assert written(write(method, WARM, soft_rows(target, which), target=target)) == written(plain)


def test_a_soft_prompt_survives_leaving_and_coming_back() -> None:
    rows, run = soft_rows(target_for("causal"), (0, 2)), make_run(Autoregressive(), WARM)
    run.join(rows)
    drive(run, steps=3)
    run.leave([rows[0]])
    drive(run, [rows[0]])
    assert written(rows) == written(write(Autoregressive(), WARM))


@dataclass(frozen=True)
class SoftDrafts(PromptLookup):
    """Drafts whose ids are forwarded as embeddings."""

    def propose(self, view: View, state: Any) -> Proposal:
        proposal = super().propose(view, state)
        return replace(proposal, inputs=target_for("causal").embed(proposal.tokens))


@pytest.mark.parametrize("width", [0, 12])
def test_drafts_may_be_embeddings(width: int) -> None:
    rows, plain = make_rows(), make_rows()
    write(SoftDrafts(), WARM, rows, width=width)
    write(PromptLookup(), WARM, plain)
    assert written(rows) == written(plain) and [r.sources for r in rows] == [r.sources for r in plain]


@dataclass(frozen=True)
class Swaps(Autoregressive):
    """Lets two rows of a group change places after every token."""

    is_told: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(has_forks=self.is_told)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Any) -> Decision:
        decision = super().accept(proposal, scores, view, state)
        order = list(range(len(view.texts)))
        for rows in view.groups:
            for left, right in zip(rows[::2], rows[1::2], strict=False):
                order[left], order[right] = right, left
        decision.source = torch.tensor(order)
        decision.tokens, decision.score = decision.tokens[decision.source], torch.tensor(order).double()
        return decision


def test_rows_that_swap_take_text_cache_noise_and_stream_along() -> None:
    rows, plain = make_rows([PROMPTS[0]] * 5, 9), make_rows([PROMPTS[0]] * 5, 9)
    for index, row in enumerate(rows):
        row.group = None if index == 4 else index // 2
        with_stop(row, "no such text")
    write(Swaps(), WARM, rows), write(Autoregressive(), WARM, plain)
    assert written(rows) == [plain[i].written for i in (1, 0, 3, 2, 4)]  # nine swaps
    assert [row.key for row in rows] == [plain[i].key for i in (1, 0, 3, 2, 4)]
    assert [row.text.text for row in rows if row.text is not None] == [toy_decode(row.written) for row in rows]
    assert [row.score for row in rows] == [1, 0, 3, 2, 4]


def test_forks_get_noise_of_their_own_and_whoever_goes_on_keeps_its_noise() -> None:
    rows = make_rows([PROMPTS[0]] * 3)
    keys = [row.key for row in rows]
    for index, row in enumerate(rows):
        row.group = 0
        row.tokens.append(index)
        row.usage.num_accepted = index
    follow(rows, [1, 1, 1])
    assert [row.key for row in rows] == [fork_key(keys[1], keys[0]), keys[1], fork_key(keys[1], keys[2])]
    assert all(row.written == [1] and row.usage.num_accepted == 1 for row in rows)
    rows[0].tokens.append(5)
    assert rows[1].written == [1] and rows[0].usage is not rows[1].usage


@pytest.mark.parametrize(
    ("groups", "method", "word"), [((0, 1), Swaps(), "another group"), ((0, 0), Swaps(False), "unasked")]
)
def test_forks_stay_in_their_group_and_are_announced(groups: tuple[int, int], method: Swaps, word: str) -> None:
    rows = make_rows(PROMPTS[:2])
    for row, group in zip(rows, groups, strict=True):
        row.group = group

    @dataclass(frozen=True)
    class Across(Swaps):
        def accept(self, proposal: Proposal, scores: Scores, view: View, state: Any) -> Decision:
            return super().accept(proposal, scores, replace(view, groups=[[0, 1]]), state)

    with pytest.raises(ConfigError, match=word):
        write(Across(method.is_told), WARM, rows)


def test_reports_say_what_was_written_where() -> None:
    told: dict[int, list[int]] = {}

    def watch(rows: Sequence[Row], outcome: Outcome) -> None:
        for row, report in zip(rows, outcome.reports, strict=True):
            told.setdefault(id(row), []).extend(report.tokens)
            assert [row.tokens[place] for place in report.places] == report.tokens

    run, rows = make_run(DraftModel(), WARM), make_rows()
    run.watch = watch
    drive(run, rows)
    assert [told[id(row)] for row in rows] == written(rows)


@pytest.mark.parametrize("attention", ["full", "block"])
def test_a_log_of_rounds_reads_methods_that_look_ahead(attention: str) -> None:
    """The rounds of a lossless method are its reference's, token for token as likely, however few its steps are."""
    logs = []
    for method in (FreeDave(copies=4, min_lead=0.0), FreeDave(copies=4).reference()):
        run, log = make_run(method, WARM, target=target_for(attention)), RoundLog()
        run.watch = log
        drive(run, make_rows())
        logs.append((log.rounds, run.num_steps))
    (ours, steps), (theirs, reference_steps) = logs
    assert steps < reference_steps and [len(row) for row in ours] == [len(row) for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert [v for values in row for v in values] == pytest.approx([v for values in other for v in values], abs=1e-9)


def test_a_log_of_rounds_wants_a_canvas() -> None:
    run = make_run(Autoregressive())
    run.watch = RoundLog()
    with pytest.raises(ConfigError, match="no canvas"):
        drive(run, make_rows())


def test_taps_are_what_enters_a_layer() -> None:
    embedded: Tensor = ToyModel().embed(torch.tensor([[1, 2, 3]]))
    assert torch.equal(whole([1, 2, 3]).taps[0], embedded)
    scores = whole([1, 2, 3])
    assert scores.last is not None and torch.equal(ToyModel().head(scores.last), scores.logits)


@pytest.mark.parametrize("size", [0, 3])
def test_one_transfer_brings_what_several_would(size: int) -> None:
    per_row, tables = [torch.tensor([2, 0]), torch.tensor([True, False])], [torch.arange(2 * size).view(2, size)] * 2
    assert together(per_row, tables) == ([one.tolist() for one in per_row], [one.tolist() for one in tables])

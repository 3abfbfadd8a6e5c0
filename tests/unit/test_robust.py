"""Drafters that go wrong and prompts that break off: the run goes on, the text is right, and the result says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from outpace import LanguageModel
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.commit import fit, sound
from outpace.sampling import Sampling
from outpace.testing import world
from outpace.testing.world import PROMPTS, SETTINGS, drive, make_rows, make_run, write
from outpace.text.stream import TextStream
from outpace.types import Needs, Proposal, Sampled, View

VOCAB = 13
Change = Callable[[Proposal], None]


def spoil(method: Method, change: Change, first: int = 0) -> Method:
    """The method, with its proposals changed from some step on."""

    class Spoilt(type(method)):  # type: ignore[misc]
        def propose(self, view: View, state: Any) -> Proposal:
            proposal = super().propose(view, state)
            if view.step >= first and proposal.tokens.shape[1]:
                change(proposal)
            return proposal

    return Spoilt(**method.to_dict())


def ids(*values: int) -> Change:
    """Overwrite the first drafts of each row."""

    def change(proposal: Proposal) -> None:
        taken = torch.tensor(values)[: proposal.tokens.shape[1]]
        proposal.tokens = proposal.tokens.clone()
        proposal.tokens[:, : len(taken)] = taken

    return change


def law(value: float, at: int | None = None) -> Change:
    """Overwrite the laws of each row's drafts, whole or at one token."""

    def change(proposal: Proposal) -> None:
        assert proposal.law is not None
        probs = proposal.law.probs.clone()
        probs[..., slice(None) if at is None else at] = value
        proposal.law = replace(proposal.law, probs=probs)

    return change


IDS = {
    "too high": ids(VOCAB),
    "far too high": ids(1 << 40),
    "negative": ids(-1),
    "least": ids(-(1 << 62)),
    "second": ids(2, 99),
}
LAWS = {
    "NaN": law(float("nan")),
    "one NaN": law(float("nan"), 3),
    "zero": law(0.0),
    "infinite": law(float("inf"), 2),
    "negative": law(-0.5, 4),
}
CHAIN, TREE = DraftModel(draft_len=3, is_adaptive=False), DraftModel(draft_len=2, tree_width=3, is_adaptive=False)
REJECTION = DraftModel(draft_len=3, is_adaptive=False, accept_rule="rejection")
LOOKUP = PromptLookup(draft_len=4)
CASES = [(method, change, name) for name, change in IDS.items() for method in (CHAIN, TREE, LOOKUP)]
# (where the first draft stays, the rejection rule writes another text than plain decoding)
CASES += [(REJECTION, change, name) for name, change in IDS.items() if name != "second"]
CASES += [(REJECTION, change, f"law {name}") for name, change in LAWS.items()]


@pytest.mark.parametrize("setting", ["greedy", "temperature 1.3"])
@pytest.mark.parametrize(("method", "change", "name"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_unsound_drafts_are_ignored_and_noted_once(method: Method, change: Change, name: str, setting: str) -> None:
    lm = LanguageModel(world.target_for("causal"))
    settings = {"temperature": SETTINGS[setting].temperature, "max_tokens": 16, "seed": 4}
    prompts = [list(prompt) for prompt in PROMPTS]
    models = {"draft": world.drafter_for("causal")}
    plain = lm.generate(prompts, **settings)
    results = lm.generate(prompts, method=spoil(method, change), models=models, **settings)
    assert [result.tokens for result in results] == [result.tokens for result in plain]
    assert all(result.finish_reason == "length" for result in results)
    noted = [sum("those drafts were ignored" in note for note in result.notes) for result in results]
    assert set(noted) <= {0, 1} and 1 in noted
    if method is not LOOKUP:  # which finds nothing to draft for some rows
        assert set(noted) == {1}
    if name != "second":
        assert all(result.usage.num_proposed == 0 for result in results)


def test_sound_drafts_leave_no_note_and_go_on_after_unsound_ones() -> None:
    rows = write(CHAIN)
    assert all(row.notes == [] for row in rows) and sum(row.usage.num_accepted for row in rows)
    late = spoil(CHAIN, ids(77), first=3)
    rows = write(late)
    assert [row.written for row in rows] == [row.written for row in write(Autoregressive())]
    assert sum(row.usage.num_proposed for row in rows) and all(len(row.notes) == 1 for row in rows)


def test_a_row_with_unsound_drafts_leaves_its_neighbours_theirs() -> None:
    def change(proposal: Proposal) -> None:
        proposal.tokens = proposal.tokens.clone()
        proposal.tokens[0] = -7

    rows, fine = write(spoil(CHAIN, change)), write(CHAIN)
    assert [row.written for row in rows] == [row.written for row in fine]
    assert [len(row.notes) for row in rows] == [1, 0, 0, 0]
    assert rows[2].usage.num_accepted > 0 and rows[0].usage.num_accepted == 0


def test_padding_may_hold_anything() -> None:
    rows = make_rows([[1], [2]])
    padded = Proposal(torch.tensor([[1, 2, -9], [3, 99, 4]]), [2, 1])
    kept = sound(padded, rows, VOCAB)
    assert kept.length == [2, 1] and rows[0].notes == rows[1].notes == []
    assert int(kept.tokens.min()) >= 0 and int(kept.tokens.max()) < VOCAB  # the target is never asked about them
    cut = sound(Proposal(torch.tensor([[1, 2, 3], [3, 99, 4]]), [3, 3]), rows, VOCAB)
    assert cut.length == [3, 1] and rows[0].notes == [] and len(rows[1].notes) == 1
    laws = torch.full((2, 3, VOCAB), 1 / VOCAB)
    laws[0, 1], laws[1, 2] = float("nan"), 0.0
    cut = sound(Proposal(torch.ones(2, 3, dtype=torch.int64), [3, 2], law=Sampled(laws)), rows, VOCAB)
    assert cut.length == [1, 2] and len(rows[0].notes) == 1


def test_a_tree_is_cut_to_a_tree() -> None:
    tree = Proposal(torch.tensor([[5, 6, 7, 8, 9]]), [5], torch.tensor([[-1, -1, 0, 1, 3]]))
    cut = fit(tree, 3, 0)
    assert cut.tokens.tolist() == [[5, 6, 7]] and cut.length == [3]
    assert cut.parent is not None and cut.parent.tolist() == [[-1, -1, 0]]
    assert fit(tree, 0, 0).tokens.shape == (1, 0) and fit(tree, -2, 0).length == [0]


@dataclass(frozen=True)
class Bush(Method):
    """Drafts every token, and every token behind the first four of them: 13 + 4 * 13 nodes."""

    name: ClassVar[str] = "bush"

    @property
    def needs(self) -> Needs:
        return Needs(has_tree=True, has_rollback=True, width=5 * VOCAB)

    def propose(self, view: View, state: Any) -> Proposal:
        rows = len(view.texts)
        parent = torch.tensor([-1] * VOCAB + [node for node in range(4) for _ in range(VOCAB)])
        tokens = torch.arange(VOCAB).repeat(5)
        return Proposal(tokens.repeat(rows, 1), [len(tokens)] * rows, parent.repeat(rows, 1), origin=self.name)


@pytest.mark.parametrize("spare", [1, 6, 13, 40, 65])
def test_a_tree_larger_than_the_cache_is_cut(spare: int) -> None:
    for settings in (Sampling(), SETTINGS["temperature 1.3"], SETTINGS["grammar"]):
        for index, prompt in enumerate(PROMPTS):
            row, plain = make_rows()[index], make_rows()[index]
            write(Autoregressive(), settings, [plain])
            capacity = len(prompt) + row.max_tokens + spare
            run, widths = make_run(Bush(), settings, capacity=capacity), []
            run.join([row])
            while run.rows:
                length = len(row.tokens)
                drive(run, steps=1)
                assert run.last is not None and run.last.proposal is not None
                widths.append(run.last.proposal.tokens.shape[1])
                assert widths[-1] == min(5 * VOCAB, capacity - length)
            assert row.written == plain.written and row.finish is plain.finish
            assert row.usage.num_accepted > 0


# Text that begins inside a character


def bytes_to_text(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("cut", range(len("aé日🙂".encode())))
def test_a_character_that_the_prompt_began_belongs_to_the_text(cut: int) -> None:
    whole = "aé日🙂z🙂é"
    data = whole.encode()
    stream, pieces = TextStream(bytes_to_text, (), list(data[:cut])), []
    for byte in data[cut:]:
        stream.push(byte)
        pieces.append(stream.release())
    pieces.append(stream.release(is_final=True))
    started = data[:cut].decode(errors="ignore")  # whole characters of the prompt
    assert "".join(pieces) == stream.text == whole[len(started) :]


@pytest.mark.parametrize("prompt", [b"a\xe2", b"a\xf0\x9f", b"\xe2\x82", b"ab\x82", b"\x82\x82\x82\x82\x82", b"\xf0"])
def test_what_the_prompt_left_broken_is_not_written_again(prompt: bytes) -> None:
    for written in ("b", "é!", "🙂", "cdefgh"):
        stream = TextStream(bytes_to_text, (), list(prompt))
        for byte in written.encode():
            stream.push(byte)
        stream.flush()
        assert stream.text == written
    stream = TextStream(bytes_to_text, (), list(prompt))
    stream.flush()
    assert stream.text == ""


def test_the_first_stop_string_may_begin_inside_the_prompts_character() -> None:
    data = "🙂!".encode()
    stream = TextStream(bytes_to_text, ("🙂",), list(data[:2]))
    assert not stream.push(data[2]) and stream.push(data[3]) and stream.text == ""

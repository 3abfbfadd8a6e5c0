"""Known answers: what must come out exactly, because equality with plain decoding hides a dead drafter.

A drafter that never helps still leaves the text unchanged. These checks say how much must be accepted where that is
known beforehand, and pin the sampler, the noise and the text stream, which plain and drafted decoding share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from outpace.draft.reading import Drafter
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method, nothing
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.parallel.jacobi import Jacobi
from outpace.methods.speculative.block_verification import BlockVerification
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.drafted import Paced
from outpace.methods.speculative.layer_skip import LayerSkip
from outpace.methods.speculative.multi_candidate import MultiCandidate
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.methods.speculative.rsd import Rsd
from outpace.methods.speculative.spectr import SpecTr
from outpace.sampling import Sampler, Sampling, node_key, row_key, uniform
from outpace.testing import world
from outpace.testing.gtest import PROMPT, canvas_law, g_test, small_model, text_counts, text_law
from outpace.testing.mixture import check_mixture
from outpace.testing.world import SETTINGS, PeriodicModel, drive, make_rows, make_run, write
from outpace.text.stream import TextStream
from outpace.types import Proposal, Stream, View

__all__ = ["answer_checks", "check_drafts", "check_texts", "law_checks"]


def answer_checks() -> list[Callable[[], None]]:
    """Return the deterministic checks, each milliseconds."""
    return [
        check_noise,
        check_visits,
        check_ties,
        check_text,
        check_own_drafter,
        check_rested_drafter,
        check_skip_none,
        check_copied_text,
        check_jacobi,
        check_end_inside,
        check_drafter_is_plain,
        check_draft_law,
        check_streams,
        check_sampled_drafts,
        check_mixture,
    ]


def law_checks() -> list[Callable[[], None]]:
    """Return the statistical checks with fixed seeds, each about a second."""
    return [check_sampled_cut, check_sampled_beam, check_sampled_block, check_sampled_canvas, check_sampled_rejection]


def check_noise() -> None:
    """Noise lies inside (0, 1), is a function of its key alone, and differs by row, stream, position, visit and id."""
    ids, keys = torch.arange(1000), [row_key(1, 0), row_key(1, 1)]
    place = torch.arange(50).expand(2, -1)
    base = uniform(node_key(keys, Stream.TARGET, place), ids)
    assert bool(((base > 0) & (base < 1)).all()), "A uniform lies outside (0, 1)."
    swapped = uniform(node_key(keys[::-1], Stream.TARGET, place), ids)
    assert torch.equal(swapped.flip(0), base), "The noise of a row depends on its slot."
    sampler = Sampler(Sampling(temperature=1.0), keys)
    others = [
        uniform(sampler.noise(stream, place, visit), ids)
        for stream, visit in ((Stream.DRAFT, 0), (Stream.ACCEPT, 0), (Stream.TARGET, 1))
    ]
    for other in (*others, swapped, base.roll(1, 1)):
        assert not bool((other == base).any()), "Two different draws share their noise."


def check_ties() -> None:
    """Equal logits: the lower id counts as likelier, in greedy picks and in every cut, on short and full lists."""
    logits = torch.zeros(1, 400, dtype=torch.float64)
    logits[:, 7::3] = 2.0
    likely, rest = list(range(7, 400, 3)), sorted(set(range(400)) - set(range(7, 400, 3)))
    assert Sampler(Sampling(), [1]).pick(logits, torch.tensor([5])).tolist() == [7], "Greedy ties go to the lowest id."
    for top_k in (5, len(likely) + 3):
        kept = Sampler(Sampling(temperature=1.0, top_k=top_k), [1]).law(logits).probs()[0].nonzero().flatten().tolist()
        wanted = sorted((likely + rest)[:top_k])
        assert kept == wanted, f"top_k={top_k} kept {kept[:8]}... where {wanted[:8]}... are the lowest ids."
    kept = Sampler(Sampling(temperature=1.0, top_p=0.01), [1]).law(logits).probs()[0].nonzero().flatten().tolist()
    assert kept == likely[: len(kept)] and len(kept) < 10, "Ties at the top-p cut do not go to the lowest ids."


def check_visits() -> None:
    """A canvas position that is drawn again gets fresh noise."""
    sampler, place = Sampler(Sampling(temperature=1.0), [row_key(1)]), torch.arange(60).unsqueeze(0)
    flat = torch.zeros(1, 60, 50, dtype=torch.float64)
    first, again = sampler.pick(flat, place, visit=0), sampler.pick(flat, place, visit=1)
    assert int((first == again).sum()) < 10, "The second visit draws what the first one drew."


def _bytes_to_text(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def check_text() -> None:
    """Characters leave whole, what may become a stop string waits, and nothing from a stop string on is released."""
    whole = "a\N{LATIN SMALL LETTER E WITH ACUTE}\N{CJK UNIFIED IDEOGRAPH-65E5}\N{SLIGHTLY SMILING FACE}z end"
    stream, pieces = TextStream(_bytes_to_text, ("never",)), []
    for byte in whole.encode():
        stream.push(byte)
        pieces.append(stream.release())
    pieces.append(stream.release(is_final=True))
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces), "A character was split."
    assert "".join(pieces) == whole, f"{whole!r} came out as {''.join(pieces)!r}."
    stream, released = TextStream(_bytes_to_text, (whole[2:4], "never")), ""
    for byte in whole.encode():
        is_stopped = stream.push(byte)
        released += stream.release()
        assert released == whole[:2][: len(released)], f"{released!r} was released although a stop string followed."
        if is_stopped:
            break
    assert stream.is_stopped and stream.text == released == whole[:2], "The text was not cut at the stop string."


def check_own_drafter() -> None:
    """The target as its own coupled drafter accepts everything, and adds a bonus token per step."""
    target = world.target_for("causal")
    for name in ("greedy", "temperature 0.7", "temperature 1.3", "top-k", "presence penalty"):
        rows = write(DraftModel(draft_len=4, is_adaptive=False), SETTINGS[name], models={"draft": target})
        for row in rows:
            usage = row.usage
            assert usage.num_accepted == usage.num_proposed == 12, f"{name}: {usage.num_accepted} of 12 were accepted."
            assert usage.num_bonus == 3 and usage.num_steps == 4, f"{name}: {usage.num_bonus} of 3 bonus tokens."


@dataclass(frozen=True)
class _Resting(DraftModel):
    """Drafts in every third step, and compares the drafts with those of a drafter that has just read the text."""

    def propose(self, view: View, state: Paced) -> Proposal:
        if view.step % 3:
            return nothing(view)
        known = state.drafter
        cache = known.adapter.new_cache(len(view.texts), known.cache.capacity)
        fresh = super().propose(view, replace(state, drafter=Drafter(known.adapter, cache)))
        drafts = super().propose(view, state)
        own, expected = (
            [tokens[:length] for tokens, length in zip(each.tokens.tolist(), each.length, strict=True)]
            for each in (drafts, fresh)
        )
        assert own == expected, "What a drafter had drafted is taken for text after a rest."
        return drafts


def check_rested_drafter() -> None:
    """Drafts that were refused are forgotten, also where the text goes on without the drafter for some steps."""
    for name in ("temperature 1.3", "greedy"):
        rows = write(_Resting(draft_len=4, is_adaptive=False), SETTINGS[name])
        assert any(row.usage.num_accepted < row.usage.num_proposed for row in rows), f"{name}: no draft was refused."


def check_skip_none() -> None:
    """Drafting with every layer accepts everything."""
    for name in ("greedy", "temperature 1.3"):
        for row in write(LayerSkip(fraction=0.0, is_adaptive=False), SETTINGS[name]):
            assert row.usage.num_accepted == row.usage.num_proposed > 0, f"{name}: a draft of the whole model failed."


def check_copied_text() -> None:
    """Copied text is accepted 90% or more by prompt lookup."""
    for name in ("greedy", "temperature 0.7"):
        rows = make_rows([[0, 1, 2, 3, 4, 5] * 2, [0, 1, 2, 3, 4, 5] * 3], 44)
        write(PromptLookup(), SETTINGS[name], rows, target=PeriodicModel(6))
        for row in rows:
            share = row.usage.num_accepted / max(1, row.usage.num_proposed)
            assert share >= 0.9 and row.usage.num_steps <= 8, (
                f"{name}: {share:.0%} accepted, {row.usage.num_steps} steps."
            )


def check_jacobi() -> None:
    """Jacobi takes far fewer steps than tokens where the text follows from the position."""
    for name in ("greedy", "temperature 0.7", "repetition penalty"):
        rows = make_rows([[0, 1, 2], [0, 1, 2, 3, 4]], 40)
        write(Jacobi(window=8), SETTINGS[name], rows, target=PeriodicModel(6))
        assert all(row.usage.num_steps <= 10 for row in rows), f"{name}: Jacobi took {rows[0].usage.num_steps} steps."


def check_end_inside() -> None:
    """End tokens, stops and lengths fall inside accepted runs, and what was drafted behind them is dropped."""
    rows = make_rows([[0, 1, 2, 3, 4, 5] * 2] * 2, 30)
    rows[0].end_tokens = (3,)
    world.with_stop(rows[1], world.toy_decode([2, 3])[1:3])
    write(PromptLookup(), SETTINGS["greedy"], rows, target=PeriodicModel(6))
    for row in rows:
        assert row.written == [0, 1, 2, 3], f"{row.written} was written instead of 0, 1, 2, 3."
        assert row.stopped_inside and row.usage.num_accepted == 4, "The end was not inside an accepted run."


def check_drafter_is_plain() -> None:
    """What a drafter proposes is what it writes plainly after the text so far; a stale cache would show here."""
    drafter = world.drafter_for("causal")
    rows, run = make_rows(), make_run(DraftModel(draft_len=4))
    run.join(rows)
    for _ in range(4):
        texts = [list(row.tokens) for row in rows]
        drive(run, steps=1)
        proposal = run.last.proposal if run.last is not None else None
        assert proposal is not None and max(proposal.length) > 0, "Nothing was drafted."
        for text, draft, num in zip(texts, proposal.tokens.tolist(), proposal.length, strict=True):
            plain = write(Autoregressive(), rows=make_rows([text], num), target=drafter)[0].written if num else []
            assert draft[:num] == plain, f"{draft[:num]} was drafted where the drafter writes {plain}."


def check_draft_law() -> None:
    """Drafts for the rejection rule carry the law they were drawn from, temperature and cuts included."""
    drafter, settings = small_model(seed=4), Sampling(temperature=0.6, top_k=3)
    rows = make_rows([[1, 3, 0], [2, 2]], 8)
    method = DraftModel(draft_len=3, is_adaptive=False, accept_rule="rejection")
    run = make_run(method, settings, target=small_model(), models={"draft": drafter})
    drive(run, rows, steps=1)
    proposal = run.last.proposal if run.last is not None else None
    assert proposal is not None and proposal.law is not None, "The drafts carry no law."
    for row, prompt in enumerate(([1, 3, 0], [2, 2])):
        for node in range(3):
            text = torch.tensor([[*prompt, *proposal.tokens[row, :node].tolist()]])
            logits = drafter.score(text, torch.arange(text.shape[1]).unsqueeze(0), None, drafter.new_cache(1, 8)).logits
            wanted = logits[0, -1] / 0.6
            wanted = wanted.masked_fill(wanted < wanted.topk(3).values[-1], float("-inf")).softmax(-1)
            off = float((proposal.law.probs[row, node] - wanted).abs().max())
            assert off < 1e-9, f"The law of draft {node} is off by {off:.3g}."
            place, ids = torch.tensor([text.shape[1]]), torch.arange(len(wanted))
            noise = uniform(node_key([rows[row].key], Stream.DRAFT, place), ids)[0]
            drawn = int((wanted.log() - noise.log().neg().log()).argmax())
            assert drawn == int(proposal.tokens[row, node]), f"Draft {node} was not drawn from its law."


class _Listener(Sampler):
    """A sampler that notes which noise is asked for."""

    def __init__(self, settings: Sampling, keys: list[int]) -> None:
        super().__init__(settings, keys)
        self.asked: list[tuple[Stream, set[int]]] = []

    def noise(self, stream: Stream, position: torch.Tensor, visit: int | Sequence[int] = 0) -> torch.Tensor:
        """Note the stream and where in it."""
        self.asked.append((stream, set(position.flatten().tolist())))
        return super().noise(stream, position, visit)


def check_streams() -> None:
    """Ratio tests, their drafts and recovered tokens draw from three streams; looking ahead, each step draws anew."""
    methods = (DraftModel(accept_rule="rejection"), BlockVerification(), SpecTr(), MultiCandidate(), Rsd())
    for method in methods:
        run, seen = make_run(method, SETTINGS["temperature 1.3"]), set[tuple[Stream, int]]()
        run.join(make_rows(max_tokens=30)[:1])
        for _ in range(3):
            run.batch.sampler = listener = _Listener(run.settings, run.batch.sampler.keys)
            run.step()
            streams = [stream for stream, _ in listener.asked]
            drafts = streams.count(Stream.DRAFT)
            assert drafts > 0 and streams[:drafts] == [Stream.DRAFT] * drafts, (
                f"{method.name} drafts from {streams[0]}."
            )
            tests = streams[drafts:-1]
            assert tests and {*tests} == {Stream.ACCEPT}, f"{method.name} tests drafts with noise of {tests}."
            assert streams[-1] is Stream.TARGET, f"{method.name} draws the last token from {streams[-1]}."
            places = {(stream, place) for stream, places in listener.asked for place in places}
            is_ahead = method.name != "draft-model"
            assert not is_ahead or not places & seen, f"{method.name} draws two steps from the same noise."
            seen |= places


def check_drafts(method: Method, rows: int = 1_000) -> None:
    """Drafts are drawn from the law that they carry, which is the drafter's; siblings as the proposal says."""
    drafter, settings = small_model(seed=4), Sampling(temperature=0.6, top_k=3)
    run = make_run(method, settings, target=small_model(), models={"draft": drafter})
    run.join(make_rows([PROMPT] * rows, 8))
    run.step()
    proposal = run.last.proposal if run.last is not None else None
    assert proposal is not None and proposal.law is not None, "The drafts carry no law."
    vocab = proposal.law.probs.shape[-1]
    parent = _parents(proposal)
    laws = [torch.ones(1, dtype=torch.float64), *(text_law(drafter, size, settings) for size in (1, 2, 3))]
    for node in range(min(proposal.length)):
        head = _path(proposal, parent, int(parent[0, node])) if parent[0, node] >= 0 else parent[:, :0]
        if not bool((parent[:, node] == parent[0, node]).all()) or head.shape[1] > 2:
            continue  # a beam grows other shapes in other rows
        code = (head * vocab ** torch.arange(head.shape[1] - 1, -1, -1)).sum(-1)
        wanted = laws[head.shape[1] + 1].view(-1, vocab)[code] / laws[head.shape[1]][code].unsqueeze(1)
        off = float((proposal.law.probs[:, node] - wanted)[laws[head.shape[1]][code] > 0].abs().max())
        assert off < 1e-9, f"The law of draft {node} is off by {off:.3g}."
    for other, what in _relatives(parent):
        cells = proposal.tokens[:, 0] * vocab + proposal.tokens[:, other]
        pair = laws[2].view(vocab, vocab)
        if what == "sibling":
            pair = laws[1].unsqueeze(1) * laws[1]
            if not proposal.law.has_replacement:
                pair = (pair - pair.diag().diag()) / (1 - laws[1]).unsqueeze(1)
        chance = g_test(cells.bincount(minlength=vocab**2), pair.flatten())
        assert chance > 1e-4, f"A G-test of {rows} first drafts and their first {what} gives p = {chance:.2g}."


def _parents(proposal: Proposal) -> torch.Tensor:
    if proposal.parent is not None:
        return proposal.parent
    return torch.arange(-1, proposal.tokens.shape[1] - 1).expand_as(proposal.tokens)


def _path(proposal: Proposal, parent: torch.Tensor, node: int) -> torch.Tensor:
    """Return the tokens on the way to a node, [B, depth]; the shape is that of the first row."""
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = int(parent[0, node])
    return proposal.tokens[:, nodes[::-1]]


def _relatives(parent: torch.Tensor) -> list[tuple[int, str]]:
    """Return the first sibling and the first child of the first node, where every row has them."""
    found = []
    for above, what in ((-1, "sibling"), (0, "child")):
        others = ((parent == above).all(0) & (torch.arange(parent.shape[1]) > 0)).nonzero().flatten().tolist()
        found += [(others[0], what)] if others else []
    return found


def check_texts(method: Method, rows: int = 6_000, length: int = 3) -> None:
    """Texts that a method writes follow the target's law, over several steps."""
    target, settings = small_model(), Sampling(temperature=0.7)
    counts = text_counts(method, target, length, settings, rows, {"draft": small_model(seed=4, like=target)})
    chance = g_test(counts, text_law(target, length, settings))
    assert chance > 1e-4, f"A G-test of {rows} texts gives p = {chance:.2g}."


def check_sampled_drafts() -> None:
    """Sampled trees carry the laws that they were drawn from: siblings with and without replacement, and beams."""
    for method in (SpecTr(num_drafts=2, draft_len=2), MultiCandidate(branches=(2, 2)), Rsd(beam=2, draft_len=2)):
        check_drafts(method)


def check_sampled_rejection() -> None:
    """Texts written under the rejection rule follow the target's law."""
    check_texts(DraftModel(draft_len=2, is_adaptive=False, accept_rule="rejection"), rows=12_000, length=2)


def check_sampled_cut() -> None:
    """They do so too where chains end before an unsure token: the cut does not look at the token."""
    method = DraftModel(draft_len=2, is_adaptive=False, accept_rule="rejection", min_confidence=0.3)
    check_texts(method, rows=2_000, length=2)


def check_sampled_block() -> None:
    """Texts written by a rule that looks ahead follow the target's law: no step sees the noise of the one before."""
    check_texts(BlockVerification(draft_len=2), rows=3_000)


def check_sampled_beam() -> None:
    """Texts drafted by stochastic beam search follow the target's law."""
    check_texts(Rsd(beam=2, draft_len=2), rows=3_000)


def check_sampled_canvas(rows: int = 3_000) -> None:
    """Masked diffusion, one token per step, follows its enumerated law: a position is drawn anew at every visit."""
    target, settings = small_model("full"), Sampling(temperature=1.0)
    counts = text_counts(MaskedDiffusion(block=2), target, 2, settings, rows)
    chance = g_test(counts, canvas_law(target, settings))
    assert chance > 1e-4, f"A G-test of {rows} texts gives p = {chance:.2g}."

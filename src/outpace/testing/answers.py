"""Known answers: what must come out exactly, because equality with plain decoding hides a dead drafter.

A drafter that never helps still leaves the text unchanged. These checks say how much must be accepted where that is
known beforehand, and pin the sampler, the noise and the text stream, which plain and drafted decoding share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.draft_model import DraftModel
from outpace.methods.jacobi import Jacobi
from outpace.methods.layer_skip import LayerSkip
from outpace.methods.masked_diffusion import MaskedDiffusion
from outpace.methods.prompt_lookup import PromptLookup
from outpace.sampling import Sampler, Sampling, node_key, row_key, uniform
from outpace.testing import world
from outpace.testing.gtest import canvas_law, g_test, small_model, text_counts, text_law
from outpace.testing.world import SETTINGS, PeriodicModel, drive, make_rows, make_run, write
from outpace.text import TextStream
from outpace.types import Stream

__all__ = ["answer_checks", "law_checks"]


def answer_checks() -> list[Callable[[], None]]:
    """Return the deterministic checks, each milliseconds."""
    return [
        check_noise,
        check_visits,
        check_ties,
        check_text,
        check_own_drafter,
        check_skip_none,
        check_copied_text,
        check_jacobi,
        check_end_inside,
        check_drafter_is_plain,
        check_draft_law,
    ]


def law_checks() -> list[Callable[[], None]]:
    """Return the statistical checks with fixed seeds, each about a second."""
    return [check_sampled_canvas, check_sampled_rejection]


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


def check_sampled_rejection(rows: int = 12_000) -> None:
    """Texts written under the rejection rule follow the target's law."""
    target = small_model()
    settings, method = Sampling(temperature=0.7), DraftModel(draft_len=2, is_adaptive=False, accept_rule="rejection")
    counts = text_counts(method, target, 2, settings, rows, {"draft": small_model(seed=4, like=target)})
    chance = g_test(counts, text_law(target, 2, settings))
    assert chance > 1e-4, f"A G-test of {rows} texts gives p = {chance:.2g}."


def check_sampled_canvas(rows: int = 3_000) -> None:
    """Masked diffusion, one token per step, follows its enumerated law: a position is drawn anew at every visit."""
    target, settings = small_model("full"), Sampling(temperature=1.0)
    counts = text_counts(MaskedDiffusion(block=2, threshold=2.0), target, 2, settings, rows)
    chance = g_test(counts, canvas_law(target, settings))
    assert chance > 1e-4, f"A G-test of {rows} texts gives p = {chance:.2g}."

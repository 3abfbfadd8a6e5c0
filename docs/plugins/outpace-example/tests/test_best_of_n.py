"""Rows fork: texts, caches, noise and scores follow, and a slow search that forwards whole texts writes the same."""

from collections.abc import Sequence

import torch
from outpace_example.best_of_n import BestOfN

from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling, fork_key, row_key
from outpace.testing import check_method
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SEED, drive, make_rows, make_run

WARM, EVERY, LENGTH = Sampling(temperature=1.3), 4, 14


def group(prompt: Sequence[int], number: int, size: int = 3) -> list[Row]:
    rows = make_rows([prompt] * size, LENGTH, keys=[row_key(SEED + number, i) for i in range(size)])
    for row in rows:
        row.group = number
    return rows


def slowly(prompt: Sequence[int], keys: list[int]) -> tuple[list[list[int]], list[float]]:
    """Write the same texts with one forward of a whole text per token and row."""
    model, texts, totals = ToyModel(), [list(prompt) for _ in keys], [0.0] * len(keys)
    for step in range(1, LENGTH + 1):
        for row, text in enumerate(texts):
            ids = torch.tensor([text])
            cache = model.new_cache(1, len(text))
            logits = model.score(ids, torch.arange(len(text)).unsqueeze(0), None, cache).logits[:, -1]
            token = int(Sampler(WARM, [keys[row]]).pick(logits, torch.tensor([len(text)])))
            totals[row] += float(logits[0].log_softmax(-1)[token])
            text.append(token)
        if step % EVERY == 0:
            best = max(range(len(keys)), key=totals.__getitem__)
            keys = [key if row == best else fork_key(keys[best], key) for row, key in enumerate(keys)]
            texts, totals = [list(texts[best]) for _ in keys], [totals[best]] * len(keys)
    return texts, totals


def test_contract() -> None:
    check_method(BestOfN())


def test_groups_write_what_a_slow_search_writes() -> None:
    """Side by side, whatever the other groups do, and whoever has left before."""
    first, second, alone = group(PROMPTS[0], 0), group(PROMPTS[2], 1), make_rows()[1:2]
    alone[0].max_tokens = 5
    run = make_run(BestOfN(every=EVERY), WARM, record=("log_probs", "margins"))
    drive(run, [*alone, *first, *second])
    for number, (prompt, rows) in enumerate(((PROMPTS[0], first), (PROMPTS[2], second))):
        texts, totals = slowly(prompt, [row_key(SEED + number, i) for i in range(3)])
        assert [row.tokens for row in rows] == texts
        assert len({tuple(text) for text in texts}) > 1  # forks go on with noise of their own
        for row, total in zip(rows, totals, strict=True):
            assert row.score is not None and abs(row.score - total) < 1e-9 and abs(sum(row.log_probs) - total) < 1e-9
            assert row.usage.num_emitted == len(row.sources) == len(row.margins) == LENGTH

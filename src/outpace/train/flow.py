"""Sampling what stands between two texts in proportion to a reward: fine-tuning by subtrajectory balance.

    outpace train stories-infill --out runs/stories-infill
    python -m outpace.bench.infills --models runs/stories-infill --data data

Source: Hu et al. (2023), Amortizing intractable inference in large language models, arXiv 2310.04363, equation 3: where
a text Z may end behind every token, the flow through a prefix is R(prefix, end) / q(end | prefix), and each stretch of
a text gives a condition. The reward is p(Z, Y | X) of a frozen language model to the power of 1 / temperature; a
sampler that meets every condition draws Z from the posterior p(Z | X, Y), tempered.

A gap is a sentence: its full stop ends it, for the sampler as for the model that rewards. Without it the best filling
of a gap is none. As in the paper the sampler starts from one that was tuned by examples, and sees sentences that stood
in gaps beside its own. Differences: all weights are tuned, where the paper tunes a low-rank part; half of what it draws
comes from a flatter law, and there is no buffer of earlier texts; the reward is not annealed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import ConfigError
from outpace.papers import Paper

from .data import EOS_ID, find_data, read_documents
from .export import Export, load_network
from .loop import Loop, beside, inherited, log
from .network import Llama, hf_config
from .recipes import FlowRecipe

__all__ = [
    "PAPERS",
    "STOP",
    "FlowTrainer",
    "Gap",
    "balance_loss",
    "build_flow",
    "drawn",
    "gaps",
    "log_rewards",
    "prompt_of",
]

PAPERS = (
    Paper(
        "Amortizing intractable inference in large language models",
        "Hu et al.",
        2023,
        "2310.04363",
        300,
        "Low-rank tuning, a buffer of earlier texts, and tasks other than infilling.",
        "outpace train stories-infill",
    ),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """Tokens before a gap, in it without its full stop, and behind it."""

    before: tuple[int, ...]
    inside: tuple[int, ...]
    behind: tuple[int, ...]


def prompt_of(gap: Gap) -> list[int]:
    """Return what a sampler reads: what stands behind the gap first, then what stands before it."""
    return [EOS_ID, *gap.behind, EOS_ID, *gap.before]


def balance_loss(log_reward: Tensor, log_token: Tensor, log_end: Tensor, length: Tensor) -> Tensor:
    """Return the mean over texts of the squared imbalance of each stretch, over all stretches of a text.

    Args:
        log_reward: [B, L + 1] of each prefix, ended there.
        log_token: [B, L] log q of each token.
        log_end: [B, L + 1] log q of the end behind each prefix.
        length: [B] tokens of each text; what lies beyond is not looked at.
    """
    walked = F.pad(log_token.cumsum(1), (1, 0))
    # Between prefixes i < j: (R_i / end_i) * q(i..j) = R_j / end_j; each side's logarithm, the common part taken out.
    level = log_reward - log_end - walked
    places = torch.arange(level.shape[1], device=level.device)
    is_there = places <= length[:, None]
    is_pair = is_there[:, :, None] & is_there[:, None, :] & (places[:, None] < places)
    gap = (level[:, :, None] - level[:, None, :]).masked_fill(~is_pair, 0.0)
    return (gap.square().sum((1, 2)) / is_pair.sum((1, 2)).clamp(min=1)).mean()


def _behind(network: Llama, rows: Sequence[Sequence[int]], last: int) -> Tensor:
    """Return [B, last, V] log-probabilities behind the last tokens of each row; rows are padded at the right."""
    size = max(map(len, rows))
    padded = torch.tensor([[*row, *[EOS_ID] * (size - len(row))] for row in rows])
    ends = torch.tensor([len(row) for row in rows])
    at = (ends[:, None] - last + torch.arange(last)).clamp(min=0)
    hidden = network.hidden(padded)
    picked = hidden.gather(1, at[:, :, None].expand(-1, -1, hidden.shape[-1]))
    return network.project(picked).float().log_softmax(-1)


@torch.no_grad()
def drawn(
    network: Llama,
    prompts: Sequence[list[int]],
    most: int,
    heat: Sequence[float],
    generator: torch.Generator,
    end: int = EOS_ID,
) -> list[list[int]]:
    """Return a text for each prompt, without its `end`, of up to `most` tokens; its law is flattened by its `heat`."""
    texts, is_open = [list[int]() for _ in prompts], [True] * len(prompts)
    for _ in range(most):
        going = [at for at, one in enumerate(is_open) if one]
        if not going:
            break
        law = _behind(network, [[*prompts[at], *texts[at]] for at in going], 1)[:, 0]
        law = (law / torch.tensor([heat[at] for at in going])[:, None]).softmax(-1)
        for at, token in zip(going, torch.multinomial(law, 1, generator=generator)[:, 0].tolist(), strict=True):
            if token in (end, EOS_ID):
                is_open[at] = False
            else:
                texts[at].append(token)
    return texts


@torch.no_grad()
def log_rewards(teller: Llama, gap: Gap, text: Sequence[int], most: int, end: int = EOS_ID) -> Tensor:
    """Return [most + 1] the log-probability of each prefix of a text and what follows the gap, given what precedes it.

    Behind a prefix stands `end`, where that is a token of the text and no mere mark of it. Prefixes beyond the text
    have the value of the whole.
    """
    before, behind = [EOS_ID, *gap.before], [*([end] if end != EOS_ID else []), *gap.behind]
    rows = [[*before, *text[:size], *behind] for size in range(len(text) + 1)]
    laws = _behind(teller, [row[:-1] for row in rows], len(text) + len(behind))
    found = []
    for at, row in enumerate(rows):
        wanted = torch.tensor(row[len(before) :])
        found.append(laws[at, -len(wanted) :].gather(1, wanted[:, None]).sum())
    return torch.stack([*found, *[found[-1]] * (most - len(text))])


def log_law(
    network: Llama, prompts: Sequence[list[int]], texts: Sequence[list[int]], most: int, end: int = EOS_ID
) -> tuple[Tensor, Tensor]:
    """Return [B, most] log q of each token and [B, most + 1] of the end behind each prefix; a full text has to end."""
    padded = [[*p, *t, *[EOS_ID] * (most - len(t))] for p, t in zip(prompts, texts, strict=True)]
    laws = _behind(network, padded, most + 1)
    tokens = torch.tensor([[*t, *[EOS_ID] * (most - len(t))] for t in texts])
    ends = laws[:, :, end].clone()
    ends[:, most] = 0.0
    return laws[:, :most].gather(2, tokens[:, :, None]).squeeze(2), ends


@dataclass(slots=True, kw_only=True)
class FlowTrainer(Loop):
    """A sampler of infills while it trains.

    Attributes:
        teller: The frozen model that rewards.
        gaps: What is to be filled.
        end: The token that ends a text.
    """

    recipe: FlowRecipe
    network: Llama
    teller: Llama
    gaps: list[Gap]
    end: int = EOS_ID

    def loss(self) -> Tensor:
        """Return the step's imbalance; or, of a supervised recipe, the loss of the texts that stood in the gaps."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        picked = torch.randint(len(self.gaps), (recipe.contexts,), generator=generator).tolist()
        with torch.autocast(self.device.type, enabled=False):  # differences of sums of logarithms
            if recipe.is_supervised:
                chosen = [self.gaps[at] for at in picked]
                return _supervised(self.network, chosen, recipe.most, self.end)
            chosen = [self.gaps[at] for at in picked for _ in range(recipe.draws)]
            heat = [1.0 if number % 2 else recipe.heat for number in range(len(chosen))]
            prompts = [prompt_of(gap) for gap in chosen]
            texts = drawn(self.network, prompts, recipe.most, heat, generator, self.end)
            if recipe.has_told:
                texts[:: recipe.draws] = [list(gap.inside) for gap in chosen[:: recipe.draws]]
            rewards = torch.stack(
                [
                    log_rewards(self.teller, gap, text, recipe.most, self.end)
                    for gap, text in zip(chosen, texts, strict=True)
                ]
            )
            tokens, ends = log_law(self.network, prompts, texts, recipe.most, self.end)
            length = torch.tensor([len(text) for text in texts])
            return balance_loss(rewards / recipe.temperature, tokens, ends, length)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in the gaps of a step, at the most."""
        return self.recipe.contexts * (1 if self.recipe.is_supervised else self.recipe.draws) * self.recipe.most

    def described(self) -> Export:
        """Return the sampler as it is now, as its files tell it."""
        return Export(
            weights=self.network.state_dict(),
            config=hf_config(self.network.shape, eos_id=EOS_ID, mask_id=1),
            generation={"bos_token_id": EOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
            context=self.network.shape.context,
            facts=("- reads what stands behind a gap, an end, and what stands before it; writes the gap",),
            seen=f"{self.step * self.recipe.contexts:,} gaps",
            data=[f"{len(self.gaps):,} gaps of one sentence in TinyStories' training texts."],
            licence=("For research: a small network that knows nothing; the texts keep their licence.",),
        )


def _supervised(network: Llama, chosen: Sequence[Gap], most: int, end: int) -> Tensor:
    texts = [list(gap.inside[:most]) for gap in chosen]
    tokens, ends = log_law(network, [prompt_of(gap) for gap in chosen], texts, most, end)
    length = torch.tensor([len(text) for text in texts])
    is_there = torch.arange(most) < length[:, None]
    total = (tokens * is_there).sum(1) + ends.gather(1, length[:, None])[:, 0]
    return -total.sum() / (length.sum() + len(texts))


STOP = "."  # ends a sentence that fills a gap
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def gaps(texts: Sequence[str], encode: Callable[[str], list[int]], most: int) -> list[Gap]:
    """Return three sentences in a row, the middle one a gap, as often as there are some.

    It ends by a full stop and has up to `most` tokens before that.
    """
    [stop] = encode(STOP)
    found = []
    for text in texts:
        sentences = [encode((" " if at else "") + one) for at, one in enumerate(_SENTENCE.split(text.strip()))]
        for before, inside, behind in zip(sentences, sentences[1:], sentences[2:], strict=False):
            if len(before) <= 16 and 2 <= len(inside) <= most + 1 and inside[-1] == stop and len(behind) <= 16:
                found.append(Gap(tuple(before), tuple(inside[:-1]), tuple(behind)))
    return found


def build_flow(recipe: FlowRecipe, out: Path, data: Path | None, *, steps: int, seed: int) -> FlowTrainer:
    """Read the texts and take the parent as the sampler's beginning.

    Raises:
        ConfigError: a text is missing, or none has a gap.
    """
    [documents] = read_documents(recipe.sources, find_data(data))
    tokenizer, parent = inherited(recipe, out, lambda: _no_tokenizer(recipe))
    assert parent is not None
    [stop] = tokenizer.encode(STOP).ids
    found = gaps(documents, lambda text: tokenizer.encode(text).ids, recipe.most)
    if not found:
        raise ConfigError("No text has three short sentences in a row.", "Give other texts.")
    log.info("%d gaps", len(found))
    return FlowTrainer(
        recipe=recipe,
        network=load_network(parent).train(),
        teller=load_network(beside(recipe.teller, out)).requires_grad_(False).eval(),
        gaps=found,
        end=stop,
        tokenizer=tokenizer,
        device=torch.device("cpu"),  # texts of a dozen tokens, drawn one by one
        seed=seed,
        steps=steps,
    )


def _no_tokenizer(recipe: FlowRecipe) -> NoReturn:
    raise ConfigError(f"The recipe {recipe.name} needs a parent.", "Name one.")

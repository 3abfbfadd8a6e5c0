"""Compressing sentences without pairs: one network shortens, another reads the short one and writes the sentence again.

Paper: Baziotis et al. (2019), "SEQ^3: Differentiable Sequence-to-Sequence-to-Sequence Autoencoder for Unsupervised
Abstractive Sentence Compression", arXiv:1904.03651. The short sentence is made of real words, drawn with the
straight-through Gumbel-softmax (section 2.2), so that gradients pass through it. Three losses (section 2.3): the
sentence's cross-entropy given the short one; the divergence of the shortening network's law from a language model's,
which keeps the words readable; the distance of the two sentences' mean embeddings, rare words first (topic).
Differences: the language model is `stories` of the zoo, and its vocabulary is used by all; the short sentence has
exactly as many words as the ratio says, with neither a length loss nor countdown inputs.

    outpace train compress --data DATA
    python -m outpace.train.seq3 runs/compress --data DATA
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.models.nets.files import config_of
from outpace.models.nets.gru import Gru, GruConfig
from outpace.papers import Paper

from . import checkpoint
from .data import EOS_ID, MASK_ID, find_data
from .export import Export, load_network, load_tokenizer
from .loop import Loop, inherited, log
from .recipes import AnyRecipe
from .sources import Source, held_out_stories, tiny_stories

__all__ = ["COMPRESSIONS", "CompressionRecipe", "Compressor", "build_compressor", "measure", "num_words"]

PAPERS = (
    Paper(
        "SEQ^3: Differentiable Sequence-to-Sequence-to-Sequence Autoencoder for Unsupervised Abstractive Sentence "
        "Compression",
        "Baziotis et al.",
        2019,
        "1904.03651",
        93,
        "Its countdown inputs and length loss (the ratio is exact here), and Gigaword.",
        "outpace train compress",
    ),
)
SPECIAL = (EOS_ID, MASK_ID)  # what no sentence holds
Prior = Callable[[Tensor], Tensor]  # words [B, M] to the log of the law of each, given those before it: [B, M, V]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionRecipe(AnyRecipe):
    """How a compressor is trained.

    Attributes:
        config: Sizes of both networks; the vocabulary is the parent's.
        source: Texts whose sentences are compressed.
        ratio: Tokens of the short sentence to those of the sentence.
        temperature: Of the Gumbel-softmax.
        prior: Weight of the language model's divergence.
        topic: Weight of the distance between the mean embeddings.
        rows: Sentences of a step.
        shortest, longest: Tokens of the sentences taken.
    """

    config: GruConfig
    source: Source
    ratio: float = 0.5
    temperature: float = 0.5
    prior: float = 0.1
    topic: float = 1.0
    rows: int = 24
    shortest: int = 6
    longest: int = 24


def num_words(length: int, ratio: float) -> int:
    """Return how many tokens the short sentence of so long a one has; one at least."""
    return max(1, int(length * ratio))


class Compressor(nn.Module):
    """Two GRU encoder-decoders over one table of words.

    Args:
        config: sizes of both.
        rarity: [V] float, the weight of each word in a mean embedding.
    """

    rarity: Tensor

    def __init__(self, config: GruConfig, rarity: Tensor) -> None:
        super().__init__()
        self.shorten, self.restore = Gru(config), Gru(config)
        self.restore.embedding = self.shorten.embedding
        self.register_buffer("rarity", rarity, persistent=False)

    def compressed(
        self, sources: Tensor, is_real: Tensor, counts: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the words of the short sentences and the laws that they come from.

        Args:
            sources, is_real: [B, S], sentences.
            counts: [B] int64, words to write for each.
            temperature: of the Gumbel-softmax; 0 = the likeliest word.

        Returns:
            words [B, M, V], one 1 each, with the gradient of the soft draw; log-laws [B, M, V].
        """
        net, words, laws = self.shorten, list[Tensor](), list[Tensor]()
        memory = net.encode(sources, is_real)
        state, inputs = net.first(memory), net.embed(torch.full_like(counts, net.config.start_token))
        closed = torch.tensor(SPECIAL, device=sources.device)
        for _ in range(int(counts.max())):
            hidden, state = net.advance(inputs, state, memory)
            logits = net.head(hidden).float().index_fill(-1, closed, -1e4)
            if temperature:
                word = F.gumbel_softmax(logits, temperature, hard=True)
            else:
                word = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
            words.append(word)
            laws.append(logits.log_softmax(-1))
            inputs = word.to(net.embedding.weight.dtype) @ net.embedding.weight
        return torch.stack(words, 1), torch.stack(laws, 1)

    def reconstruction(self, words: Tensor, counts: Tensor, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return the cross-entropy of the sentences given short ones, words [B, M, V], in nats per token."""
        table = self.shorten.embedding.weight
        is_word = torch.arange(words.shape[1], device=words.device) < counts.unsqueeze(1)
        memory = self.restore.encode_embedded(words.to(table.dtype) @ table, is_word)
        inputs = F.pad(sources, (1, 0), value=self.restore.config.start_token)[:, :-1]
        states = self.restore.states_on(memory, inputs)
        return F.cross_entropy(self.restore.head(states[is_real]).float(), sources[is_real])

    def topic_distance(self, words: Tensor, counts: Tensor, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return one minus the cosine of the mean embeddings, words weighted by their rarity."""
        table = self.shorten.embedding.weight
        is_word = torch.arange(words.shape[1], device=words.device) < counts.unsqueeze(1)
        weights = (words.detach() @ self.rarity) * is_word
        short = ((words.to(table.dtype) @ table) * weights.unsqueeze(-1)).sum(1)
        full = (table[sources] * (self.rarity[sources] * is_real).unsqueeze(-1)).sum(1)
        return 1 - F.cosine_similarity(short.float(), full.float(), dim=-1).mean()

    def divergence(self, words: Tensor, laws: Tensor, counts: Tensor, prior: Prior) -> Tensor:
        """Return KL(the shortening network's law, the language model's) per word, over the words that were drawn."""
        is_word = torch.arange(words.shape[1], device=words.device) < counts.unsqueeze(1)
        with torch.no_grad():
            theirs = prior(words.argmax(-1)).float()
        return ((laws.exp() * (laws - theirs)).sum(-1) * is_word).sum() / is_word.sum()

    def loss(self, sources: Tensor, is_real: Tensor, counts: Tensor, prior: Prior, recipe: CompressionRecipe) -> Tensor:
        """Return the sum of the three losses."""
        words, laws = self.compressed(sources, is_real, counts, recipe.temperature)
        given = (words, counts, sources, is_real)
        return (
            self.reconstruction(*given)
            + recipe.prior * self.divergence(words, laws, counts, prior)
            + recipe.topic * self.topic_distance(*given)
        )


@torch.no_grad()
def measure(network: Compressor, sources: Tensor, is_real: Tensor, ratio: float) -> dict[str, float]:
    """Return what a sentence costs, in nats per token, given its short one and given random words; and the ratio.

    Random words are as many, drawn from the sentences themselves, so that frequent ones are frequent.
    """
    was_training, device = network.training, network.rarity.device
    network.eval()
    sources, is_real = sources.to(device), is_real.to(device)
    counts = _counts(is_real, ratio)
    words, _ = network.compressed(sources, is_real, counts)
    generator = torch.Generator().manual_seed(0)
    pool = sources[is_real]
    drawn = pool[torch.randint(len(pool), words.shape[:2], generator=generator).to(device)]
    random = F.one_hot(drawn, words.shape[-1]).to(words.dtype)
    found = {
        "compressed": float(network.reconstruction(words, counts, sources, is_real)),
        "random": float(network.reconstruction(random, counts, sources, is_real)),
        "ratio": float(counts.sum() / is_real.sum()),
    }
    network.train(was_training)
    return found


@dataclass(slots=True, kw_only=True)
class CompressionTrainer(Loop):
    """A compressor in training.

    Attributes:
        prior: Of the language model.
        sentences: Token ids of the sentences.
        held_out: Sentences that are only measured.
    """

    recipe: CompressionRecipe
    network: Compressor
    prior: Prior
    sentences: list[list[int]]
    held_out: list[list[int]]

    def loss(self) -> Tensor:
        """Return the loss of the step's sentences; all draws depend on seed and step alone."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.sentences), (self.recipe.rows,)).tolist()
        sources, is_real = _padded([self.sentences[index] for index in chosen])
        sources, is_real = sources.to(self.device), is_real.to(self.device)
        return self.network.loss(sources, is_real, _counts(is_real, self.recipe.ratio), self.prior, self.recipe)

    def keep(self, out: Path) -> None:
        """Write a checkpoint and the shortening network, and log how well sentences are restored."""
        Loop.keep(self, out)
        told = measure(self.network, *_padded(self.held_out), self.recipe.ratio)
        log.info("held out: %s", ", ".join(f"{name} {value:.3f}" for name, value in told.items()))

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a mean step."""
        return self.recipe.rows * sum(map(len, self.sentences)) // len(self.sentences)

    def described(self) -> Export:
        """Return the shortening network as it is now, as its files tell it."""
        recipe, net = self.recipe, self.network.shorten
        source = recipe.source
        return Export(
            weights=net.state_dict(),
            config=config_of(net) | {"dtype": "bfloat16"},
            generation={
                "bos_token_id": EOS_ID,
                "decoder_start_token_id": EOS_ID,
                "eos_token_id": EOS_ID,
                "suppress_tokens": list(SPECIAL),
            },
            context=net.config.max_source,
            facts=(f"- ratio: {recipe.ratio}; ask for so many tokens (max_tokens); the end of text is suppressed",),
            seen=f"{self.step * recipe.rows:,} sentences",
            data=(f"Sentences of {source.name} ({source.origin}, {source.licence}), without any short ones.",),
            licence=(
                "The weights may be passed on under Apache-2.0; the texts keep the licence above.",
                "A teaching model: it gets much wrong, and it must not be relied on for anything.",
            ),
        )


def sentences_of(
    texts: Sequence[str], tokenizer: Tokenizer, shortest: int, longest: int, most: int = 40_000
) -> list[list[int]]:
    """Return the sentences of texts as token ids, those of a wanted length."""
    found = itertools.chain.from_iterable(re.findall(r"[^.!?\n]+[.!?]", text) for text in texts)
    ids = [encoding.ids for encoding in tokenizer.encode_batch([one.strip() for one in itertools.islice(found, most)])]
    return [tokens for tokens in ids if shortest <= len(tokens) <= longest]


def rarity_of(sentences: Sequence[Sequence[int]], vocab: int) -> Tensor:
    """Return the inverse document frequency of each word, [V]."""
    counts = torch.ones(vocab)
    for tokens in sentences:
        counts[list(set(tokens))] += 1
    return torch.log(len(sentences) / counts).clamp(min=0.1)


def _counts(is_real: Tensor, ratio: float) -> Tensor:
    """Return how many words each sentence is brought down to, [B]."""
    return torch.tensor([num_words(length, ratio) for length in is_real.sum(1).tolist()], device=is_real.device)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[EOS_ID] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)


def build_compressor(
    recipe: CompressionRecipe, out: Path, data: Path | None, *, steps: int, seed: int
) -> CompressionTrainer:
    """Read the sentences and make the networks of a run.

    Raises:
        ConfigError: When no sentence has a wanted length, or a text is missing.
    """
    folder, source = find_data(data), recipe.source
    source.paths(source.files, folder)
    tokenizer, directory = inherited(recipe, out, lambda: load_tokenizer(out))
    assert directory is not None  # every such recipe has a parent
    judge = load_network(directory).requires_grad_(False)
    sentences = sentences_of(list(source.read(folder)), tokenizer, recipe.shortest, recipe.longest)
    held_out = sentences_of(held_out_stories(folder), tokenizer, recipe.shortest, recipe.longest, 100)
    if not sentences or not held_out:
        raise ConfigError(f"No sentence of {source.name} has a length that {recipe.name} takes.", "Check the texts.")
    vocab = judge.shape.vocab
    config = replace(recipe.config, vocab_size=vocab, start_token=EOS_ID)
    torch.manual_seed(seed)
    network = Compressor(config, rarity_of(sentences, vocab))
    log.info("%s: %d sentences", source.name, len(sentences))

    def prior(words: Tensor) -> Tensor:
        before = F.pad(words, (1, 0), value=EOS_ID)[:, :-1]
        closed = torch.tensor(SPECIAL, device=words.device)
        logits: Tensor = judge(before).float()
        return logits.index_fill(-1, closed, -1e4).log_softmax(-1)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge.to(device)
    return CompressionTrainer(
        recipe=recipe,
        network=network,
        prior=prior,
        sentences=sentences,
        held_out=held_out,
        tokenizer=tokenizer,
        device=device,
        seed=seed,
        steps=steps,
    )


COMPRESSIONS = {
    "compress": CompressionRecipe(
        name="compress",
        summary="A network that shortens sentences of simple stories to half, trained without any short ones.",
        objective="reconstruction",
        parent="stories",
        config=GruConfig(width=96, hidden=128, dropout=0.1, max_positions=64, max_source=64),
        source=tiny_stories(),
        steps=2000,
        gpu_steps=10000,
    )
}


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.seq3", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="directory of a run of `outpace train compress`")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=5, help="sentences shown")
    given = parser.parse_args()
    return guarded(lambda _: _show(given), [])


def _show(given: argparse.Namespace) -> int:
    """Print what sentences cost given their short ones, and some short ones."""
    state = checkpoint.load(given.run / "checkpoint.pt")
    recipe = COMPRESSIONS[state["recipe"]]
    made = build_compressor(recipe, given.run, given.data, steps=1, seed=state["seed"])
    made.network.load_state_dict(state["network"])
    print(measure(made.network, *_padded(made.held_out), recipe.ratio))
    sources, is_real = _padded(made.held_out[: given.count])
    counts = _counts(is_real, recipe.ratio)
    words, _ = made.network.eval().compressed(sources, is_real, counts)
    for source, short, length, count in zip(sources, words.argmax(-1), is_real.sum(1), counts, strict=True):
        print(f"{made.tokenizer.decode(source[:length].tolist())} -> {made.tokenizer.decode(short[:count].tolist())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""EdiT5: tag what stays, point to its order, and write only what is missing, token by token.

Paper: Mallinson, Adamek, Malmi, Severyn (2022), arXiv 2205.12209. Keeping and ordering are decided for all source
tokens at once; the decoder writes a *program*: a slot (behind how many kept tokens), the tokens that are put in there,
the next slot, and so on. `realise` makes the text of it; every program has one.

Differences: slots are pointed at, rather than named by tokens of the vocabulary; the order is greedy over kept tokens
not yet used; no T5 checkpoint is the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError, ConfigError
from outpace.papers import Paper
from outpace.types import NO_OUTPUTS, Adapter, Capabilities, Outputs, Scores

from .encoder import Encoder, Layer, Sizes

__all__ = ["PAPERS", "Edit5", "Edit5Model", "Plan", "plan_edits", "realise"]

PAPERS = (
    Paper(
        "EdiT5: Semi-Autoregressive Text-Editing with T5 Warm-Start",
        "Mallinson, Adamek, Malmi, Severyn",
        2022,
        "2205.12209",
        2,
        "The start from a T5 checkpoint.",
        "outpace train correct-edit5",
    ),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a target comes of its source.

    Attributes:
        order: source places that stay, in the order of the target.
        program: slots (V + the number of kept tokens before) and inserted tokens.
    """

    order: list[int]
    program: list[int]


def plan_edits(source: Sequence[int], target: Sequence[int], vocab: int) -> Plan:
    """Return a plan of few insertions: common runs stay, and a token that moved is taken from where it stood."""
    blocks = SequenceMatcher(None, source, target, autojunk=False).get_matching_blocks()
    taken = {b + i: a + i for a, b, size in blocks for i in range(size)}
    free: dict[int, list[int]] = {}
    for at in sorted(set(range(len(source))) - set(taken.values()), reverse=True):
        free.setdefault(source[at], []).append(at)
    for at, token in enumerate(target):
        if at not in taken and free.get(token):
            taken[at] = free[token].pop()
    order, program = list[int](), list[int]()
    for at, token in enumerate(target):
        if at in taken:
            order.append(taken[at])
        else:
            is_new = at == 0 or at - 1 in taken
            program += [*([vocab + len(order)] if is_new else []), token]
    return Plan(order, program)


def realise(source: Sequence[int], order: Sequence[int], program: Sequence[int], vocab: int) -> list[int]:
    """Return the text of a program: what it puts into each slot, between the kept tokens.

    Tokens before the first slot stand at the beginning; a slot that is named twice holds both; one behind the last kept
    token is at the end.
    """
    slot, inserted = 0, [list[int]() for _ in range(len(order) + 1)]
    for token in program:
        if token >= vocab:
            slot = min(token - vocab, len(order))
        else:
            inserted[slot].append(token)
    return inserted[0] + [token for place, at in enumerate(order, 1) for token in (source[at], *inserted[place])]


class Edit5(nn.Module):
    """An encoder, a tag and a pointer per source token, and a small decoder of programs.

    Args:
        sizes: its sizes.
    """

    model_type: ClassVar[str] = "outpace_edit5"

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = Encoder(sizes)
        width = sizes.width
        self.tag = nn.Linear(width, 1)
        self.start = nn.Parameter(torch.randn(width) * width**-0.5)
        self.point_from, self.point_to = nn.Linear(width, width), nn.Linear(width, width)
        self.ranks = nn.Embedding(sizes.context + 1, width)  # 0 = deleted
        self.read_slot, self.slot_key = nn.Linear(width, width), nn.Linear(width, width)
        self.steps = nn.Embedding(sizes.context, width)
        for table in (self.ranks, self.steps):
            nn.init.normal_(table.weight, std=width**-0.5)
        self.decoder = nn.ModuleList(Layer(sizes, has_cross=True) for _ in range(sizes.decoder_layers))
        self.norm = nn.LayerNorm(width)

    def pointers(self, states: Tensor, is_real: Tensor) -> Tensor:
        """Return how well each token follows the start and each token, [B, 1 + S, S]; padding never does."""
        start = self.start.expand(len(states), 1, -1)
        scores = self.point_from(torch.cat([start, states], 1)) @ self.point_to(states).transpose(1, 2)
        masked: Tensor = (scores * states.shape[-1] ** -0.5).masked_fill(~is_real[:, None], float("-inf"))
        return masked

    def ordered(self, states: Tensor, orders: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return what the decoder reads: states with their ranks [B, S, E], and the slots' states [B, K + 1, E]."""
        most = max(map(len, orders))
        rank = torch.zeros(states.shape[:2], dtype=torch.int64)
        place = torch.zeros(len(orders), most, dtype=torch.int64)
        for row, order in enumerate(orders):
            at = torch.tensor(order, dtype=torch.int64)
            rank[row, at], place[row, : len(at)] = torch.arange(1, len(at) + 1), at
        place = place.to(states.device)
        memory = states + self.ranks(rank.to(states.device))
        kept = memory.gather(1, place[:, :, None].expand(-1, -1, memory.shape[-1]))
        return memory, torch.cat([self.start.expand(len(states), 1, -1), kept], 1)

    def decode(
        self,
        tokens: Tensor,
        position: Tensor,
        sees: Tensor,
        memory: Tensor,
        is_real: Tensor,
        slots: Tensor,
        num: Tensor,
    ) -> Tensor:
        """Return the logits [B, T, V + K + 1] of the program's next tokens.

        Args:
            tokens: [B, T] int64 of a program behind its start; V + j is slot j.
            position: [B, T] int64.
            sees: [B, T, T] bool.
            memory, slots: of `ordered`.
            is_real: [B, S] bool of the source.
            num: [B] int64, slots of each row; those beyond get -inf.
        """
        vocab = self.sizes.vocab
        slot = (tokens - vocab).clamp(min=0, max=slots.shape[1] - 1)
        read = self.read_slot(slots.gather(1, slot[:, :, None].expand(-1, -1, slots.shape[-1])))
        words = self.encoder.embed_tokens(tokens.clamp(max=vocab - 1))
        state = torch.where(tokens[:, :, None] >= vocab, read, words) + self.steps(position.clamp(min=0))
        for layer in self.decoder:
            state = layer(state, sees[:, None], memory, is_real[:, None, None])
        state = self.norm(state)
        pointed = state @ self.slot_key(slots).transpose(1, 2)
        is_slot = torch.arange(slots.shape[1], device=num.device) < num[:, None]
        pointed = pointed.masked_fill(~is_slot[:, None], float("-inf"))
        return torch.cat([state @ self.encoder.embed_tokens.weight.T, pointed], -1)

    def loss(self, sources: Tensor, is_real: Tensor, targets: Sequence[list[int]]) -> Tensor:
        """Return the mean loss of tags, pointers and programs, in nats per target token and end; see `CopyCtc.loss`."""
        lengths, device = is_real.sum(1).tolist(), sources.device
        rows = [row[:length] for row, length in zip(sources.tolist(), lengths, strict=True)]
        plans = [plan_edits(row, target, self.sizes.vocab) for row, target in zip(rows, targets, strict=True)]
        states = self.encoder(sources, is_real)
        # 1) What stays, and what follows what: the start, then each kept token; behind the last one nothing is asked.
        stays, follows = torch.zeros(sources.shape), torch.full((len(rows), 1 + sources.shape[1]), -100)
        for row, plan in enumerate(plans):
            stays[row, plan.order] = 1.0
            for before, after in zip([0, *(at + 1 for at in plan.order)], plan.order, strict=False):
                follows[row, before] = after
        tags = self.tag(states)[:, :, 0].float()
        loss = F.binary_cross_entropy_with_logits(tags[is_real], stays.to(device)[is_real], reduction="sum")
        pointed = self.pointers(states, is_real).float().flatten(0, 1)
        loss = loss + F.cross_entropy(pointed, follows.to(device).flatten(), ignore_index=-100, reduction="sum")
        # 2) The programs, each behind its start, with its end (token 0 of the vocabulary's own) as the last label.
        programs = [[*plan.program, _END] for plan in plans]
        size = max(map(len, programs))
        labels = torch.tensor([program + [-100] * (size - len(program)) for program in programs], device=device)
        inputs = torch.cat([torch.full_like(labels[:, :1], _END), labels[:, :-1].clamp(min=0)], 1)
        sees = torch.ones(size, size, dtype=torch.bool, device=device).tril().expand(len(rows), -1, -1)
        memory, slots = self.ordered(states, [plan.order for plan in plans])
        num = torch.tensor([len(plan.order) + 1 for plan in plans], device=device)
        position = torch.arange(size, device=device).expand_as(inputs)
        logits = self.decode(inputs, position, sees, memory, is_real, slots, num).float()
        loss = loss + F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        return loss / sum(len(target) + 1 for target in targets)

    def adapter(self, end: int, start_token: int) -> Edit5Model:
        """Return the network behind the contract."""
        del start_token  # a program begins with what ends it
        return Edit5Model(self, end)

    @torch.no_grad()
    def orders(self, states: Tensor, is_real: Tensor) -> list[list[int]]:
        """Return per row the places that stay, in their order: the best follower not yet used, again and again."""
        stays = (self.tag(states)[:, :, 0] > 0) & is_real
        scores = self.pointers(states, is_real).masked_fill(~stays[:, None], float("-inf"))
        found = []
        for row, count in zip(scores.clone(), stays.sum(1).tolist(), strict=True):
            order = list[int]()
            for _ in range(count):
                at = int(row[order[-1] + 1 if order else 0].argmax())
                order.append(at)
                row[:, at] = float("-inf")
            found.append(order)
        return found


_END = 0  # the end of text of every tokenizer that is trained here


class Edit5Model(Adapter):
    """An EdiT5 network behind the contract: what the loop writes are programs, and `texts` realises them.

    A cache holds the tokens of the program and reads them anew in each forward, since programs are short. Its `extra`
    are what the decoder reads, its lengths, the slots, their number, and the order of what stays.

    Args:
        network: the network.
        end: the token that ends a program, and begins it.
    """

    def __init__(self, network: Edit5, end: int = _END) -> None:
        sizes = network.sizes
        self.network, self.end, self.start_token = network.eval(), end, end
        weight = network.tag.weight
        self.device, self.dtype, self.path = weight.device, weight.dtype, "torch"
        self.capabilities = Capabilities(
            sizes.vocab + sizes.context + 1, sizes.context, num_layers=sizes.decoder_layers, is_encoder_decoder=True
        )

    @torch.no_grad()
    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Tag and order each row's source, in one pass, and keep what the decoder reads.

        Raises:
            ConfigError: a source is empty or too long.
        """
        longest = max(map(len, sources))
        if not all(sources):
            raise ConfigError("A source is empty.", "Give at least one token.")
        if longest > self.network.sizes.context:
            raise ConfigError(
                f"The source has {longest} tokens, but the model reads at most {self.network.sizes.context}.",
                "Shorten the source, or write it part by part.",
            )
        ids = [torch.tensor(source, device=self.device) for source in sources]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([[len(source)] for source in sources], device=self.device)
        is_real = torch.arange(longest, device=self.device) < lengths
        states = self.network.encoder(padded, is_real)
        orders = self.network.orders(states, is_real)
        memory, slots = self.network.ordered(states, orders)
        num = torch.tensor([[len(order) + 1] for order in orders], device=self.device)
        kept = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(order, dtype=torch.int64) for order in orders], batch_first=True
        )
        cache.extra = [memory, lengths, slots, num, kept.to(self.device)]

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty cache, [rows, capacity] tokens."""
        return Cache([torch.zeros(rows, capacity, dtype=torch.int64, device=self.device)], 1, counter, [0] * rows)

    def embed(self, tokens: Tensor) -> Tensor:
        """Refuse: a slot's embedding depends on the row."""
        raise CapabilityError("This model cannot read soft embeddings.", "Use another model.")

    def head(self, hidden: Tensor) -> Tensor:
        """Refuse: a slot's logit depends on the row."""
        raise CapabilityError("This model does not give its hidden states.", "Use another model.")

    @torch.no_grad()
    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward of the decoder; see `outpace.types.Adapter`."""
        self.check(outputs, skip)
        if inputs is not None:
            self.embed(tokens)
        size, total = tokens.shape[1], max(cache.lengths) + tokens.shape[1]
        cache.check_room(size)
        cache.stage(position)
        cache.counter.add(tokens.numel(), self.capabilities.num_layers)
        held = torch.tensor(cache.lengths, device=self.device)[:, None]
        slots_of = held + torch.arange(size, device=self.device)
        cache.buffers[0].scatter_(1, slots_of, tokens)
        places = torch.arange(total, device=self.device).expand(len(tokens), -1).contiguous()
        sees = (places[:, :, None] >= places[:, None]) & (places[:, None] < held[:, :, None])
        chain = torch.ones(size, size, dtype=torch.bool, device=self.device).tril().expand(len(tokens), -1, -1)
        among = (chain if visible is None else visible) & (position >= 0)[:, None]
        among = among | torch.eye(size, dtype=torch.bool, device=self.device)  # padding sees itself: no empty sum
        for row, first in enumerate(cache.lengths):
            sees[row, first : first + size, first : first + size] = among[row]
        sees |= torch.eye(total, dtype=torch.bool, device=self.device)
        places = places.scatter(1, slots_of, position)
        memory, lengths, slots, num, _ = cache.extra
        is_real = torch.arange(memory.shape[1], device=self.device) < lengths
        logits = self.network.decode(cache.buffers[0][:, :total], places, sees, memory, is_real, slots, num[:, 0])
        asked = slots_of if ask is None else slots_of.gather(1, ask)
        chosen = logits.gather(1, asked[:, :, None].expand(-1, -1, logits.shape[-1]))
        room = self.capabilities.vocab_size - chosen.shape[-1]
        return Scores(F.pad(chosen, (0, room), value=float("-inf")))

    def texts(self, sources: Sequence[list[int]], programs: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the texts [tokens without the end] of programs that the loop wrote for these sources."""
        cache = self.new_cache(len(sources), 1)
        self.encode(sources, cache)
        *_, num, kept = cache.extra
        rows = zip(sources, kept.tolist(), num[:, 0].tolist(), programs, strict=True)
        vocab = self.network.sizes.vocab
        found = [
            realise(source, order[: count - 1], [t for t in program if t != self.end], vocab)
            for source, order, count, program in rows
        ]
        return [[token for token in text if token != self.end] for text in found]

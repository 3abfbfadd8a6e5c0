"""The words of the contract: what methods, adapters, caches and the loop hand to each other.

Shapes are documented here once. B rows, P prefix, W window nodes, T tokens in a forward (pending + window),
A asked positions (root + nodes), V vocabulary, L layers, H heads, D head size, N tokens decided.
Lengths that the host already knows are Python lists; what a forward decides is a tensor, and the loop reads a
`Decision` back in one synchronisation per step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outpace.cache import Cache, Counter, Pages
from outpace.errors import CapabilityError
from outpace.sampling import Sampler, Stream

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = [
    "NO_OUTPUTS",
    "Adapter",
    "Capabilities",
    "Context",
    "Counter",
    "Decision",
    "Ending",
    "FinishReason",
    "Guarantee",
    "Needs",
    "Outcome",
    "Outputs",
    "Proposal",
    "Report",
    "Sampled",
    "Scores",
    "Stream",
    "View",
    "Wanted",
]


class Guarantee(str, Enum):
    """What a method promises about its output, weakest last."""

    EXACT = "exact"  # token for token what plain decoding writes under the same seed
    DISTRIBUTION = "distribution"  # the same law, not the same tokens
    APPROXIMATE = "approximate"  # may change the output; never called lossless


class FinishReason(str, Enum):
    """Why a row ended."""

    EOS = "eos"  # an end token was written, or a constraint lets nothing follow
    STOP = "stop"  # a stop string appeared
    LENGTH = "length"  # max_tokens, or the model's context, is full
    CANCELLED = "cancelled"  # the caller left
    ERROR = "error"  # no token could be written: NaN logits, or a constraint's dead end; its neighbours go on


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an adapter offers; checked against `Needs` before weights load.

    Attributes:
        attention: "causal" (a position never sees a later one), "full" (every position sees every other, so nothing
            can be cached exactly while the canvas changes), "any-order" (places in any order, each seeing those before
            it in the order; written by methods of its own), "block" (every position sees its own block of `block_size`
            positions and all before it, so finished blocks can be) or "causal-block" (text is causal; behind it stands
            a block of up to `block_size` positions that sees the text and all of itself, which `visible` says).
        block_size: positions per block of "block", where blocks start at multiples of it, and of "causal-block".
        logits_shift: a canvas model whose output at i speaks of token i + 1; the adapter aligns it, so the forward
            must hold position i - 1 just before an asked position i.
        has_tree: `visible` masks between window nodes are honoured.
        has_rollback: staged cache entries can be dropped (False for recurrent states).
        has_skip: layers can be skipped per call.
        num_layers: decoder layers (0 when the notion is meaningless).
        max_positions: context length in tokens.
        vocab_size: V.
        mask_id: the mask token of a masked model, else None.
        is_renoised: the mask token is a sign to the adapter alone, which shows the model random tokens there (uniform
            noise): no text with masks has a likelihood.
        is_encoder_decoder: the prompt goes through an encoder once.
        is_one_pass: the encoder's pass gives the whole text; a token's law depends on the source and its place alone.
        kind: of a one-pass network of ours, the name of its kind; rules over its places are for some kinds alone.
        source_vocab: tokens that the encoder knows, where its vocabulary is another; 0 = V.
        turns_at: texts longer than this turn their positions by other frequencies (rotary scalings); 0 = never.
        turns_anew: such a text is read anew from its beginning (long-rope); else its later positions alone differ.
        has_hidden: hidden states are given where `Outputs` asks for them.
        heads: names of the further outputs that may be asked for.
        code_bits: of a weight in the layers that forwards read, where weights are codes; 0 = they are plain numbers.
    """

    vocab_size: int
    max_positions: int
    attention: str = "causal"
    has_tree: bool = True
    has_rollback: bool = True
    has_skip: bool = False
    num_layers: int = 0
    mask_id: int | None = None
    is_renoised: bool = False
    is_encoder_decoder: bool = False
    is_one_pass: bool = False
    kind: str = ""
    source_vocab: int = 0
    block_size: int = 0
    logits_shift: bool = False
    turns_at: int = 0
    turns_anew: bool = False
    has_hidden: bool = False
    heads: tuple[str, ...] = ()
    code_bits: int = 0

    @property
    def is_canvas(self) -> bool:
        """Whether text is written on a canvas: not every position waits for all before it."""
        return self.attention != "causal"

    @property
    def plain_method(self) -> str:
        """The name of plain decoding on such a model: what writes where nobody says more."""
        if self.is_one_pass:
            return "one-pass"
        if self.attention == "any-order":
            return "sigma-gpt"
        return "masked-diffusion" if self.is_canvas else "autoregressive"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a caller wants of a forward beside the logits, at every asked position.

    Attributes:
        layers: hidden states *entering* these layers: the residual sum before any norm, 0 = the embeddings, as
            `hidden_states[k]` of transformers; the number of layers = what leaves the last one, before the final norm.
        has_last: the last hidden state, after the final norm: what the head reads.
        heads: other outputs of the model, by name (lengths, links, confidences).
        has_logits: False = the logits are not looked at; an adapter that saves something by it returns [B, A, 0].
    """

    layers: tuple[int, ...] = ()
    has_last: bool = False
    heads: tuple[str, ...] = ()
    has_logits: bool = True

    def __bool__(self) -> bool:
        return bool(self.layers or self.has_last or self.heads)

    def __or__(self, other: Outputs) -> Outputs:
        """Return what two callers want of one forward."""
        layers = tuple(sorted({*self.layers, *other.layers}))
        heads = tuple(dict.fromkeys((*self.heads, *other.heads)))
        return Outputs(layers, self.has_last or other.has_last, heads, self.has_logits or other.has_logits)


NO_OUTPUTS = Outputs()


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method needs from the target and from its caller.

    Attributes:
        attention, has_tree, has_rollback, has_skip: as in `Capabilities`. The attention "canvas" is met by "full" and
            by "block".
        width: the widest window proposed.
        copies: a canvas method forwards up to this many copies of what a row has not cached.
        has_mask: a mask token.
        is_one_pass: a model whose whole text is there at once, as in `Capabilities`.
        kinds: a one-pass network of one of these kinds, as in `Capabilities`; empty = of any.
        has_own_pass: the method runs a one-pass model itself when rows join, so that the loop does not.
        models: other models, by role, e.g. ("draft",).
        optional_models: roles that are filled where a model is named or known, and left empty elsewhere.
        has_text: the tokenizers of the target and of the other models, which may then have other vocabularies.
        has_prefill_logits: logits at every prompt position; `observe` gets them chunk by chunk.
        model_attention: the attention of other models, by role, where it is not the target's.
        outputs: what is wanted with the logits: at the root, at every node, and, chunk by chunk through `observe`, at
            every prompt position.
        has_forks: rows may continue others of their group (`Decision.source`), so that a text is final only when its
            row has ended: nothing of it is streamed before.
        head: the kind of trained drafter that the draft model has to be; "" = a model, or any such drafter.
        takes_heads: where no draft model is named, a trained drafter that is known for the target is taken before a
            model, whatever its kind.
    """

    attention: str = "causal"
    has_tree: bool = False
    has_rollback: bool = False
    has_skip: bool = False
    has_mask: bool = False
    width: int = 0
    models: tuple[str, ...] = ()
    optional_models: tuple[str, ...] = ()
    has_text: bool = False
    has_prefill_logits: bool = False
    copies: int = 1
    model_attention: Mapping[str, str] = field(default_factory=dict)
    outputs: Outputs = NO_OUTPUTS
    has_forks: bool = False
    is_one_pass: bool = False
    kinds: tuple[str, ...] = ()
    has_own_pass: bool = False
    head: str = ""
    takes_heads: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return what two causal methods need that write rows of one run side by side."""
        return Needs(
            self.attention,
            **{name: getattr(self, name) or getattr(other, name) for name in _FLAGS},
            width=max(self.width, other.width),
            models=tuple(dict.fromkeys((*self.models, *other.models))),
            optional_models=tuple(dict.fromkeys((*self.optional_models, *other.optional_models))),
            copies=max(self.copies, other.copies),
            model_attention={**self.model_attention, **other.model_attention},
            outputs=self.outputs | other.outputs,
        )


_FLAGS = (
    *("has_tree", "has_rollback", "has_skip", "has_mask", "has_text", "has_prefill_logits", "has_forks"),
    "is_one_pass",
)


@dataclass(frozen=True, slots=True)
class Scores:
    """One forward of the target, aligned: row 0 of A is the root (last pending token), then every node.

    On a canvas there is no root: A counts the nodes that the proposal asked.

    Attributes:
        logits: [B, A, V], the adapter's dtype. Entry i holds the logits of the token that follows the i-th asked
            position (causal) or of the token at it (a canvas).
        taps: hidden states by layer, as `Outputs.layers` counts, each [B, A, hidden]; empty unless asked.
        heads: other named outputs.
        last: [B, A, hidden], the last hidden state; None unless asked.
        is_summed: the logits are scores that a search sums as they are: no probabilities, so they are not normalised.
    """

    logits: Tensor
    taps: Mapping[int, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    last: Tensor | None = None
    is_summed: bool = False

    def part(self, index: Sequence[int], asked: int) -> Scores:
        """Return the scores of some rows at the first `asked` of their places; neighbours in order cost no copy."""
        first = index[0] if index else 0
        is_range = list(index) == list(range(first, first + len(index)))
        gather = torch.tensor([] if is_range else list(index), dtype=torch.int64, device=self.logits.device)

        def take(values: Tensor) -> Tensor:
            values = values[:, :asked]
            return values[first : first + len(index)] if is_range else values.index_select(0, gather)

        taps = {layer: take(values) for layer, values in self.taps.items()}
        heads = {name: take(values) for name, values in self.heads.items()}
        last = None if self.last is None else take(self.last)
        return Scores(take(self.logits), taps, heads, last, self.is_summed)


class Adapter(ABC):
    """A model behind the contract; knows no method. A new one derives from this class and gives what is abstract.

    `score` writes the keys and values of its T tokens into the cache's scratch slots, starting at each row's
    length; they are only staged until `Cache.keep`.

    Attributes:
        capabilities: what the model offers.
        device, dtype: where it computes, and in what: caches, soft inputs and outputs have both.
        notes: what a result should say about this model.
        path: what runs the forward, e.g. "compiled", "packed" or "torch"; models of one path and shape cost the same.
        is_invariant: a token's logits have the same bits whatever its window and its batch.
        is_quantised: its files hold quantised weights, which dtype "auto" keeps where it can.
        tokenizer: what turns text into its tokens, where it carries one.
        start_token: of an encoder-decoder, the first decoder token, which the model never writes.
        max_source: of an encoder-decoder, the longest source in tokens; 0 = any, or no encoder.
        shape: the sizes of the model as one text, by which measured costs are kept; "" = its capabilities tell.
        mask_token: what stands for a token to be guessed, in a causal model that drafts several in one forward.
        own_mask: what stands for a token to be guessed in a block behind a causal model's text, which sees the text and
            all of itself; None = the model was taught none.
        exits: layers after which it was trained to say the next token, as well as after all.
        reads: what it reads of the target beside which it stands, where it is a trained drafter.
        accepted: of a trained drafter, drafts that its target kept per step in held-out texts; 0 = not known.
        layer_weights, head_weights: numbers that a token is multiplied by in all layers and in the output matrix;
            0 = not known. Drafters are compared with targets by them.
        reads_at_once: prompt tokens that have to be read in one forward; 0 = it may be read piece by piece.
    """

    capabilities: Capabilities
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    notes: Sequence[str] = ()
    path: str = "torch"
    is_invariant: bool = False
    is_quantised: bool = False
    tokenizer: Tokenizer | None = None
    start_token: int | None = None
    max_source: int = 0
    shape: str = ""
    mask_token: int | None = None
    own_mask: int | None = None
    exits: tuple[int, ...] = ()
    reads: Outputs = NO_OUTPUTS
    accepted: float = 0.0
    layer_weights: int = 0
    head_weights: int = 0
    reads_at_once: int = 0

    @abstractmethod
    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return an empty preallocated cache for `rows` rows of up to `capacity` entries (scratch included)."""

    def new_pool(self, num_pages: int, page_size: int = 32) -> Pages | None:
        """Return memory for paged caches of this model; None = its caches cannot be paged.

        Args:
            num_pages: pages in all; they take memory once they are written to.
            page_size: slots of a page, a multiple of 16.
        """
        del num_pages, page_size
        return None

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., hidden] of tokens [...], as `score` takes them for `inputs`."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of last hidden states [..., hidden], as `Scores.last` holds them."""

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Take note of rows that join with a cache: how many tokens of each are its prompt. Most models do not care."""
        del cache, prompts

    def check_prompts(self, prompts: Sequence[int]) -> None:
        """Refuse prompts of so many tokens that it cannot go on with, before any of them is read.

        Raises:
            ConfigError: there is one.
        """
        del prompts

    def early(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of states [..., hidden] that enter a layer, as if they had left the last one.

        Raises:
            CapabilityError: this model cannot be read there.
        """
        del hidden
        raise CapabilityError("This model's layers cannot be read early.", "Use a model that outpace loads natively.")

    @abstractmethod
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
        """Run one forward.

        Args:
            tokens: [B, T] int64 ids; padding may hold any valid id.
            position: [B, T] int64 logical positions; -1 marks padding.
            visible: [B, T, T] bool, node (row) sees node (column), itself included; None = every earlier token of
                this forward and itself (causal), all tokens (full), or those of its own and of earlier blocks
                (block). All valid cache entries are always visible (subject to a sliding window).
            cache: from `new_cache`; entries `0..cache.lengths[b]-1` of row b are valid.
            ask: [B, A] int64 indices into T where logits are wanted; None = all T. A may be 0.
            outputs: what is wanted with the logits, at the same places.
            inputs: [B, T, hidden] soft embeddings in place of `tokens`; None = embed the tokens.
            skip: indices of layers to leave out (the residual stream passes unchanged).

        Raises:
            CapabilityError: the model does not give what is asked (see `Capabilities`).
            ConfigError: the tokens do not fit the cache or the model's context.
        """

    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Of an encoder-decoder: encode each row's source tokens once, and keep in `cache` what the decoder reads."""
        del sources, cache
        raise CapabilityError("This model has no encoder.", "Use an encoder-decoder model.")

    def new_drafter(self, context: Context) -> Any:
        """Return what drafts for the joining rows, where this is a trained drafter; None = any model drafts alike.

        Args:
            context: of the joining rows, which this model stands beside.

        Raises:
            CapabilityError: it was made for another target.
        """
        del context
        return None

    def beside(self, target: Adapter) -> Adapter:
        """Return the target as it is run where this model drafts for it; its text stays what it was.

        Raises:
            CapabilityError: this model needs another kind of target.
        """
        return target

    def trim_head(self, ids: Tensor) -> Adapter | None:
        """Return this model with logits [B, A, K] of some tokens [K] only; None where that would save nothing."""
        del ids
        return None

    def check(self, outputs: Outputs, skip: Sequence[int] = ()) -> None:
        """Refuse what the capabilities do not offer.

        Raises:
            CapabilityError: an output or a skipped layer that this model does not have.
        """
        offered = self.capabilities
        if skip and not offered.has_skip:
            raise CapabilityError("This model cannot skip layers.", "Use a model that outpace loads natively.")
        if (outputs.layers or outputs.has_last) and not offered.has_hidden:
            raise CapabilityError(
                "This model does not give its hidden states.", "Use a model that outpace loads natively."
            )
        unknown = [layer for layer in outputs.layers if not 0 <= layer <= offered.num_layers]
        if unknown:
            raise CapabilityError(f"There is no layer {unknown[0]} to tap.", f"Layers: 0 to {offered.num_layers}.")
        missing = [name for name in outputs.heads if name not in offered.heads]
        if missing:
            known = ", ".join(offered.heads) or "none"
            raise CapabilityError(f"The model has no output named {missing[0]!r}.", f"Its outputs: {known}.")


@dataclass(frozen=True, slots=True)
class Sampled:
    """The law that drafts were drawn from.

    Attributes:
        probs: [B, W, V]; `probs[b, i]` is the law of node i given its parent (siblings share it), before any removal.
        has_replacement: siblings were drawn independently; False = without replacement, in the order of their nodes.
    """

    probs: Tensor
    has_replacement: bool = True


@dataclass(slots=True)
class Proposal:
    """Candidate tokens for the positions being worked on.

    Attributes:
        tokens: [B, W] int64; nodes beyond `length[b]` are padding.
        length: nodes proposed per row; 0 = nothing.
        parent: [B, W] int64 index of the parent node, -1 = last final token; None = a chain. Parents precede children.
        position: [B, W] int64 logical positions; None = depth after the prefix.
        visible: [B, W, W] bool; None = ancestors and self (causal) or what the model's own attention shows (a canvas).
        ask: [B, A] int64 nodes whose logits are wanted, -1 = the root; None = the root, if any, and every node.
        inputs: [B, W, hidden] soft embeddings of the nodes; None = embed the tokens.
        is_soft: [B, W] bool, the nodes whose `inputs` count, the others' tokens are embedded; None = all.
        drafts: per row, how many of the first nodes are drafts; the others only make the forward tell more, and are
            never written. None = all.
        is_whole: the window is all that is forwarded, as on a canvas: no token is pending, and there is no root.
        law: None = deterministic drafts, or `Sampled`.
        origin: who drafted, for traces: one name, or one per row.
        carry: anything the method's own `accept` needs.
        note: why this was proposed, for traces.
    """

    tokens: Tensor
    length: list[int]
    parent: Tensor | None = None
    position: Tensor | None = None
    visible: Tensor | None = None
    law: Sampled | None = None
    origin: str | list[str] = ""
    carry: Any = None
    note: str = ""
    ask: Tensor | None = None
    inputs: Tensor | None = None
    is_soft: Tensor | None = None
    drafts: list[int] | None = None
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """A text that has ended and is laid aside, while its group goes on with others.

    Attributes:
        row: the row whose text, as it was before this step, it goes on from.
        tokens: its last tokens; the last one ends it. Empty = it is what lies beside that row already.
        path: window node of each of them, -1 = none.
        score: how good the method thinks it is.
    """

    row: int
    tokens: list[int]
    path: list[int]
    score: float


@dataclass(slots=True)
class Decision:
    """Which candidates are written, and how many leading positions are now final.

    Where rows continue others, entry b of everything else speaks of the row that b is from now on: its tokens follow
    the text of row `source[b]`, its path holds nodes of that row's window, and its slots lie in that row's cache.

    Attributes:
        tokens: [B, N] int64 final tokens to append, right-padded.
        num: [B] int64, how many of them count; may be 0.
        path: [B, N] int64 window node accepted as each token, -1 = recovered, bonus or collapsed.
            None = chain: nodes 0, 1, ..., and -1 for the last token.
        keep: None = pending entries and accepted nodes stay. A canvas method lists, per row, the cache slots that are
            valid from now on: 0 to L - 1 are the L entries that were valid before, L + i is node i of this forward.
            What it leaves out is forgotten.
        source: [B] int64, the row whose text, cache entries and state each row continues, out of its own group
            (`View.groups`); None = its own. Asks for `Needs.has_forks`.
        score: [B] float64, how good the method thinks each row is; noted on the rows for whoever picks one.
        is_recovered: [B] bool, the last token replaced a rejected draft (False: it is a bonus after full acceptance).
        log_probs: [B, N] float64, the log-probability of each token when it was drawn, where that was not in this step.
        endings: per row, the ended text that lies beside it from now on, out of its own group, or None; None = as
            before. A row's fork takes none along. Asks for `Needs.has_forks`.
        is_over: per row, it ends here with the text beside it, in place of its own; without one, with an error. None =
            no row does.
        carry: handed to the method's own `observe`.
    """

    tokens: Tensor
    num: Tensor
    path: Tensor | None = None
    keep: Sequence[Sequence[int]] | None = None
    source: Tensor | None = None
    score: Tensor | None = None
    is_recovered: Tensor | None = None
    log_probs: Tensor | None = None
    endings: Sequence[Ending | None] | None = None
    is_over: Sequence[bool] | None = None
    carry: Any = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a step did to one row, for those who watch.

    Attributes:
        places: where it wrote, or took back what was written: positions in the row's text, final or not.
        tokens: what stands there now; a canvas' mask token where something was taken back.
        rounds: which of the step's rounds each was written in, from 0. A step that looks ahead makes several.
        log_probs: natural log-probability of each when it was drawn; empty where it was not measured.
        answers: the target's own token after the root and after each node; empty where it was not drawn for all.
        num_rounds: steps of the reference that this step stands for.
        num_guesses: guessed states that were forwarded beside the row's own.
    """

    places: list[int]
    tokens: list[int]
    rounds: list[int]
    log_probs: list[float] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    num_rounds: int = 1
    num_guesses: int = 0


@dataclass(slots=True)
class Outcome:
    """A step as it was committed: the Decision after the loop's cut.

    Attributes:
        emitted: tokens appended per row, after the cut at end of text, stop string or length.
        accepted: how many of them were drafts.
        path: window node accepted as each emitted token, -1 = not a draft.
        proposal, decision: what the step was made of (None for a prefill chunk).
        scores: the step's; of a prefill chunk only where `Needs.has_prefill_logits` or `Needs.outputs`, one entry per
            token forwarded.
        chunk: of a prefill chunk, per row the positions that were forwarded.
        seconds: time per phase of this step: draft, score, accept.
        reports: one per row, where somebody watches; empty otherwise.
        beside: rows of other methods in the same forward, and the tokens proposed for them.
        read: tokens of prompts that were read in it.
    """

    emitted: list[list[int]]
    accepted: list[int]
    path: list[list[int]] = field(default_factory=list)
    proposal: Proposal | None = None
    decision: Decision | None = None
    scores: Scores | None = None
    chunk: list[range] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    beside: tuple[int, int] = (0, 0)
    read: int = 0


def never(row: int, tokens: Sequence[int]) -> bool:
    """Return False: no text is known to end."""
    del row, tokens
    return False


@dataclass(slots=True)
class View:
    """What a method may read during a step. Read-only.

    Attributes:
        texts: final tokens per row, prompt included (decoder side in an encoder-decoder).
        prompts: how many leading tokens of each row's text are its prompt.
        room: tokens each row may still emit.
        step: steps this run has taken.
        cache: the target's cache.
        sampler: `law`, `pick` and `noise`, bound to the rows' keys.
        last: the last Outcome.
        groups: the rows by group, in the order of their places; rows may continue others of their own group only. A row
            that came alone is a group.
        ends: tells whether a row's text would end with the last of some tokens behind it, its greatest length apart.
        beside: rows of other methods that share the forward.
    """

    texts: list[list[int]]
    prompts: list[int]
    room: list[int]
    step: int
    cache: Cache
    sampler: Sampler
    last: Outcome | None = None
    groups: list[list[int]] = field(default_factory=list)
    beside: int = 0
    ends: Callable[[int, Sequence[int]], bool] = never

    @property
    def device(self) -> torch.device:
        """Where the target's cache lies, and where proposals are made."""
        return self.cache.device

    @property
    def lengths(self) -> list[int]:
        """Final tokens per row."""
        return [len(text) for text in self.texts]

    def part(self, index: Sequence[int], cache: Cache, sampler: Sampler | None = None) -> View:
        """Return what is to be read of some rows, in that order; groups are told by their rows among these.

        Args:
            index: the rows.
            cache: of these rows.
            sampler: of these rows; None = taken from this one.
        """
        at = {row: place for place, row in enumerate(index)}
        groups = [[at[row] for row in group if row in at] for group in self.groups]
        texts, prompts = [self.texts[i] for i in index], [self.prompts[i] for i in index]
        room, kept = [self.room[i] for i in index], [group for group in groups if group]
        chosen, beside = sampler or self.sampler.rows(index), self.beside + len(self.texts) - len(index)

        def ends(row: int, tokens: Sequence[int]) -> bool:
            return self.ends(index[row], tokens)

        return View(texts, prompts, room, self.step, cache, chosen, self.last, kept, beside, ends)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a row wants to be written, where rows of one run differ.

    Attributes:
        method: an `outpace.methods.Method`.
        models: other models by role.
        tokenizers: by role, for methods that work on text.
        memory: what outlives the run, for methods that keep one.
    """

    method: Any
    models: Mapping[str, Adapter] = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    memory: Any = None


@dataclass(slots=True)
class Context:
    """What a method gets when rows join.

    Attributes:
        target: the adapter being decoded.
        texts: the joining rows' final tokens.
        capacity: cache entries per row that the run allows, scratch included.
        sampler: the joining rows' sampler.
        models: other models by role, as `Needs.models` asks.
        counters: work counters by role; pass them to caches so that drafting is counted.
        memory: what outlives a run, handed in by the caller, or None.
        cache: the target's cache for the joining rows.
        tokenizers: by role; "target" where it has one (to know a vocabulary by), the others where `Needs.has_text`.
        sources: the joining rows' source tokens, for encoder-decoder models.
        canvases: per joining row of a canvas model, what follows its text up to its greatest length: given tokens, and
            -1 where one is to be written.
        wanted: per joining row that brings a method of its own: the method, its models and their tokenizers by role;
            None = as the run. Empty = no row does. For a method that serves several.
        is_served: rows come and go, so that a run does not end with its last row.
        notes: per joining row what its result says of it; a method may add sentences.
    """

    target: Adapter
    texts: list[list[int]]
    capacity: int
    sampler: Sampler
    models: Mapping[str, Adapter]
    counters: dict[str, Counter]
    memory: Any = None
    cache: Cache | None = None
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    sources: list[list[int]] = field(default_factory=list)
    canvases: list[list[int]] = field(default_factory=list)
    wanted: list[Wanted | None] = field(default_factory=list)
    is_served: bool = False
    notes: list[list[str]] = field(default_factory=list)

    def cache_for(self, role: str) -> Cache:
        """Return an empty cache of another model for the joining rows, its encoder run where it has one."""
        model = self.models[role]
        cache = model.new_cache(len(self.texts), self.capacity, self.counters["draft"])
        if model.capabilities.is_encoder_decoder:
            model.encode(self.sources, cache)
        return cache

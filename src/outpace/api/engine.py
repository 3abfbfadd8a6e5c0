"""The Python face: load a model, write text with any method, all at once or as a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outpace import constrain, kernels
from outpace.api.infill import Piece, filled, lay_pieces
from outpace.api.prompt import plain_prompt
from outpace.api.result import Result
from outpace.api.scoring import check_causal, check_top, score_tokens
from outpace.arguments import flag, given, ids, path, settle, some_ids, whole
from outpace.constrain.canvas import CanvasCompiler, CanvasConstraint
from outpace.errors import CapabilityError, ConfigError, check_characters, nearest
from outpace.methods.base import Method
from outpace.methods.fit import check_fit, check_partner
from outpace.methods.registry import load_method
from outpace.models.generation import GenerationConfig, read_generation
from outpace.models.loading import read_end_tokens
from outpace.models.opening import locate, open_model
from outpace.models.unmasking import check_unmasking
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.run.threads import begin
from outpace.sampling import Sampling, row_key
from outpace.text.chat import Message, is_chat
from outpace.text.stream import TextStream
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter, Capabilities, FinishReason, Outcome
from outpace.zoo import drafter_of

__all__ = ["LanguageModel", "Request", "load"]

Prompt = str | Sequence[int] | Sequence[Message]
_MOST_SAMPLES = 100_000  # all of a call's rows stand in memory side by side
_CHUNK = 256  # prompt tokens per prefill forward
_RECORDS = ("log_probs", "margins")
_NO_CHAT = (
    "The text ended at once: this model was made for conversations. Frame the prompt with --chat, or give messages in "
    "place of text."
)
_CONSTRAINTS = ("regex", "json_schema", "grammar")
_AT_ONCE = 3  # tokens, the end among them, of a text that ended before it began
_INVARIANT_WIDTH = 16  # window nodes of every forward in batch-invariant mode on the eager path


def load(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    is_compiled: bool = True,
    card: Mapping[str, Any] | None = None,
    is_checked: bool = True,
    threads: int | None = None,
    generation_config: str = "model",
    context: int | None = None,
) -> LanguageModel:
    """Load a model by zoo name, directory or hub id.

    Args:
        model: e.g. "stories", "./my-llama", "org/name"; "hf:NAME" goes through transformers, as do architectures that
            have no native loader.
        dtype: "auto" (as stored), "float32", "bfloat16", "float16" or "float64".
        device: "auto", "cpu" or "cuda".
        is_compiled: use compiled kernels where a compiler is found and the model fits them.
        card: fields of the capability card that replace what the files say, e.g. {"logits_shift": False}; see
            `outpace.models.card.Card`.
        is_checked: let a masked model unmask a sentence, and refuse it if its card is wrong about the shift.
        threads: CPU threads of this process, for all its models and torch; None = torch's number, and compiled models
            use fewer while other processes keep cores busy. The text does not depend on it.
        generation_config: "model" = what its generation_config.json asks for holds wherever a call says nothing else
            (see `outpace.models.generation`); "none" = it is not read, but for end tokens.
        context: the longest text, prompt included, in tokens; None = what the model was made for. Rotary positions go
            on beyond that, learned ones do not.

    Raises:
        ModelError: it cannot be found, read or trusted.
        ConfigError: the card contradicts itself, or fewer threads than one are asked for.
    """
    began, model = time.perf_counter(), path("model", model)
    dtype, device = (_named(*one) for one in (("dtype", dtype), ("device", device)))
    is_compiled, is_checked = (flag(*one) for one in (("is_compiled", is_compiled), ("is_checked", is_checked)))
    _check_names("card", card)
    if context is not None and (context := whole("context", context)) < 1:
        raise ConfigError(f"context is {context}.", "context must be 1 or more.")
    begin(threads)
    directory, _ = locate(str(model))
    generation = read_generation(directory, generation_config)  # before weights are read: it may be refused
    target = open_model(str(model), dtype, device, kernels if is_compiled else None, card, context or 0)
    tokenizer = Tokenizer.from_directory(directory)
    ends = read_end_tokens(directory, card)
    lm = LanguageModel(target, tokenizer, end_tokens=ends, name=str(model), dtype=dtype, device=device)
    generation.check_vocabulary(target.capabilities.vocab_size)
    lm.generation = generation
    if is_checked and (note := check_unmasking(target, tokenizer)):
        lm.notes.append(note)
    lm.is_compiled = is_compiled
    lm.load_s = time.perf_counter() - began
    return lm


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to write, beyond the prompt and the sampling settings.

    Attributes:
        method: a name, or a method object.
        options: the method's settings, when it is given by name.
        max_tokens: most tokens to write per prompt.
        seed: with the sample number, fixes every random draw.
        num_samples: texts per prompt, numbered from 0.
        stop: strings that end the text; nothing is emitted past one. The text of a special token stops there too.
        stop_tokens: ids that end the text like a stop string; the one written is the last of the tokens.
        keep_special: special tokens show in the text, the end token apart.
        ignore_eos: write on past end tokens (under a constraint: until nothing may follow).
        regex: a regular expression that the whole text matches. This, json_schema and grammar need llguidance.
        json_schema: a JSON schema, as a mapping or as JSON, that the text fulfils.
        grammar: a context-free grammar of the text, in Lark's syntax.
        record: "log_probs", "margins": noted per token (margins cost a sort each).
        top_log_probs: how many of the likeliest tokens to note per token, with their log-probabilities under the model.
        models: other models by role, e.g. {"draft": adapter}; else the method's settings name them.
        memory: what outlives the call, for methods that keep one.
        is_batch_invariant: the text may not depend, by rounding, on window or drafts (slower on the eager path).
        watch: called after every step with the rows that took part and its `Outcome`; it may only read.
        canvas: what follows the prompt, for masked models: given tokens, -1 where one is to be filled in; it takes the
            place of max_tokens. `LanguageModel.infill` makes it from text.
        max_length: most tokens of prompt and text together (of the decoder's, with an encoder), where a prompt is
            shorter than that; 0 = only max_tokens counts, which wins where both are given.
        prefix: what an encoder-decoder's decoder starts with, behind its start token: text or ids, e.g. the token of a
            language. It is no part of the result.
        sampling: "model" = temperature and cuts as the model's files ask, where none is given; "plain" = as given.

    Raises:
        ConfigError: a number is too small, a stop string is empty, `record` names something else, or a constraint
            cannot be read.
    """

    method: str | Method = "autoregressive"
    options: Mapping[str, Any] | None = None
    max_tokens: int = 128
    seed: int = 0
    num_samples: int = 1
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    keep_special: bool = False
    ignore_eos: bool = False
    regex: str | None = None
    json_schema: str | Mapping[str, Any] | None = None
    grammar: str | None = None
    record: Sequence[str] = ()
    top_log_probs: int = 0
    models: Mapping[str, Adapter] | None = None
    memory: Any = None
    is_batch_invariant: bool = False
    watch: Callable[[Sequence[Row], Outcome], None] | None = None
    canvas: Sequence[int] = ()
    max_length: int = 0
    prefix: str | Sequence[int] = ()
    sampling: str = "plain"

    def __post_init__(self) -> None:
        settle(self)
        self._check_kinds()
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}.", "max_tokens must be 1 or more.")
        if self.top_log_probs < 0:
            raise ConfigError(f"top_log_probs is {self.top_log_probs}.", "top_log_probs must be 0 or more.")
        if self.num_samples < 1:
            raise ConfigError(f"num_samples is {self.num_samples}.", "num_samples must be 1 or more.")
        if self.max_length < 0:
            raise ConfigError(f"max_length is {self.max_length}.", "max_length must be 0 (off) or more.")
        if self.sampling not in ("plain", "model"):
            raise ConfigError(f"sampling is {self.sampling!r}.", "Use 'plain', or 'model' for what its files ask.")
        if self.num_samples > _MOST_SAMPLES:
            raise ConfigError("num_samples is too large.", f"num_samples must be at most {_MOST_SAMPLES}.")
        for name in ("stop", "record"):  # a lone string is one string, not its letters
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        for name in self.record:
            if name not in _RECORDS:
                raise ConfigError(f"record has no {name!r}.", nearest(name, _RECORDS, "record"))
        if any(not text for text in self.stop):
            raise ConfigError("A stop string is empty.", "Give each stop string at least one character.")
        for text in self.stop:
            check_characters(text, "A stop string")
        if self.constraints:
            constrain.check(**self.constraints)

    def _check_kinds(self) -> None:
        """Refuse what is of no use as text, list or mapping; a language model among `models` stands for its adapter."""
        if not isinstance(self.method, (str, Method)):
            raise _kind("method", self.method, "a name or a method object")
        if self.options is not None and not isinstance(self.options, Mapping):
            raise _kind("options", self.options, "a dict from option to value")
        for name in ("stop", "record"):
            texts = getattr(self, name)
            is_listed = isinstance(texts, (str, list, tuple, set, frozenset))
            if not is_listed or not all(isinstance(text, str) for text in texts):
                raise _kind(name, texts, "a text or a list of texts")
        for name in ("regex", "grammar"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise _kind(name, getattr(self, name), "text")
        if not isinstance(self.json_schema, (str, Mapping, type(None), bool)):
            raise _kind("json_schema", self.json_schema, "a dict or JSON")
        if self.watch is not None and not callable(self.watch):
            raise _kind("watch", self.watch, "a function")
        if self.models is not None:
            if not isinstance(self.models, Mapping):
                raise _kind("models", self.models, "a dict from role to model")
            object.__setattr__(self, "models", {role: _adapter(role, model) for role, model in self.models.items()})
        if not isinstance(self.sampling, str):
            raise _kind("sampling", self.sampling, "'plain' or 'model'")
        object.__setattr__(self, "canvas", ids("canvas", self.canvas))
        object.__setattr__(self, "stop_tokens", some_ids("stop_tokens", self.stop_tokens))
        if not isinstance(self.prefix, str):
            object.__setattr__(self, "prefix", ids("prefix", self.prefix))

    @property
    def constraints(self) -> dict[str, Any]:
        """The constraint that was asked for, by its name; empty = none."""
        return {name: getattr(self, name) for name in _CONSTRAINTS if getattr(self, name) is not None}


@dataclass(slots=True)
class _Job:
    """A run and what its results will say."""

    run: Run
    rows: list[Row]
    method: Method
    request: Request
    is_single: bool
    is_text: bool  # the prompts were plain text
    notes: list[str]


class LanguageModel:
    """A target, its tokenizer and its end tokens.

    Args:
        target: the adapter.
        tokenizer: text to ids and back; None = prompts are ids and results have no text.
        end_tokens: ids that end a text.
        name: shown in results.
        dtype, device: how drafters named by a method are loaded.
    """

    def __init__(
        self,
        target: Adapter,
        tokenizer: Tokenizer | None = None,
        *,
        end_tokens: Sequence[int] = (),
        name: str = "model",
        dtype: str = "auto",
        device: str = "auto",
    ) -> None:
        self.target, self.tokenizer, self.end_tokens = target, tokenizer, tuple(end_tokens)
        self.name, self.dtype, self.device = name, dtype, device
        self.is_compiled = True
        self.load_s = 0.0
        self.notes: list[str] = []  # of loading, for every result
        self.generation = GenerationConfig()  # what its files ask of a text; nothing unless `load` read them
        self._others: dict[str, Adapter] = {}
        self._tokenizers_of: dict[str, Tokenizer] = {}
        self._compiler: constrain.Compiler | None = None
        self._canvas_compilers: dict[tuple[int, ...], CanvasCompiler] = {}

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        on_text: Callable[[int, str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        **arguments: Any,
    ) -> Any:
        """Write text.

        Args:
            prompt: text, token ids, or messages ({"role": ..., "content": ...} each) that the chat template frames; a
                list of them is one ragged batch.
            on_text: called with (row index, new text) as text becomes final, whole characters only.
            is_cancelled: asked between steps; True ends with finish_reason "cancelled", keeping what is written.
            **arguments: fields of `Request` (method, options, max_tokens, seed, num_samples, stop, stop_tokens,
                keep_special, ignore_eos, regex, json_schema, grammar, record, top_log_probs, models, memory,
                is_batch_invariant, max_length, prefix, sampling) and of `outpace.Sampling` (temperature, top_k,
                top_p, ...). What is not given is as the model's own generation_config.json asks (but see `sampling`).

        Returns:
            A `Result`; a list of them for a list of prompts or num_samples above 1 (prompt by prompt).

        Raises:
            ConfigError, CapabilityError: see the message and its hint.
        """
        for name, function in (("on_text", on_text), ("is_cancelled", is_cancelled)):
            if function is not None and not callable(function):
                raise _kind(name, function, "a function")
        job = self._start(prompt, arguments)
        for index, piece in self._advance(job, is_cancelled):
            if on_text is not None:
                on_text(index, piece)
        results = self._finish(job)
        return results[0] if job.is_single else results

    def stream(
        self, prompt: Prompt, *, is_cancelled: Callable[[], bool] | None = None, **arguments: Any
    ) -> Generator[str, None, Result]:
        """Yield text as it becomes final; whole characters, never past a stop string. Returns the `Result`.

        Takes the arguments of `generate`, for one prompt and one sample. The run advances as the iterator is read.
        """
        job = self._start(prompt, arguments)
        if not job.is_single:
            raise ConfigError("A stream writes one text.", "Use generate with on_text for several.")
        for _, piece in self._advance(job, is_cancelled):
            yield piece
        return self._finish(job)[0]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tools: Any = None,
        documents: Any = None,
        template: str | None = None,
        is_continued: bool = False,
        variables: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """Answer a conversation, framed by the model's chat template.

        Args:
            messages: {"role": ..., "content": ...} each; a list of conversations is one batch.
            tools: JSON schemas of functions that the model may call.
            documents: what it may quote, {"title": ..., "text": ...} each.
            template: the name of one of several templates, or a template; None = the one that fits.
            is_continued: the last message is unfinished, and the model goes on with it.
            variables: of the template, e.g. {"enable_thinking": False}.
            **arguments: those of `generate`. A stream takes `encode_chat(...)` as its prompt.

        Returns:
            What `generate` returns. What the template does not look at is named in the notes.

        Raises:
            ConfigError: the model has no chat template, or it refuses the messages.
        """
        given = {"tools": tools, "documents": documents, **(variables or {})}
        extra = {**given, "template": template, "is_continued": is_continued}
        chats = [messages] if is_chat(messages) or not messages else messages
        prompts = [self.encode_chat(chat, **extra) for chat in chats]  # type: ignore[arg-type]
        found = self.generate(prompts[0] if chats[0] is messages else prompts, **arguments)
        assert self.tokenizer is not None  # or there had been no prompt
        asked = [name for name, value in given.items() if value is not None]
        unread = self.tokenizer.unread_by_chat(asked, template, tools, documents)
        for result in found if isinstance(found, list) else [found]:
            result.notes += [f"The chat template does not look at {name}." for name in unread]
        return found

    def infill(self, pieces: Sequence[Piece], **arguments: Any) -> Any:
        """Fill gaps between given pieces of text, on a masked model.

        Args:
            pieces: in order; text (or ids), and for each gap the number of tokens that it takes,
                e.g. ["Once upon a time", 12, "and they slept."].
            **arguments: those of `generate`, max_tokens apart.

        Returns:
            A `Result`: `text` is what follows the first piece, given pieces included, `filled` what was written in each
            gap. A list of them for num_samples above 1.

        Raises:
            ConfigError: no gap, or an empty one.
            CapabilityError: the model writes from left to right, or does not hold so long a text.
        """
        start = (*([self.tokenizer.bos_id] if self.tokenizer and self.tokenizer.bos_id is not None else ()),)
        prompt, canvas = lay_pieces(pieces, self._encode_piece, start or self.end_tokens[:1])
        return self.generate(prompt, canvas=canvas, **{**arguments, "max_tokens": len(canvas)})

    def _encode_piece(self, text: str, is_first: bool) -> list[int]:
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer.", "Give token ids.")
        return self.tokenizer.encode(text, is_special=is_first)

    def ending_with(self, end_tokens: Sequence[int]) -> LanguageModel:
        """Return the same model with other end tokens; weights and all that was loaded are shared."""
        other = object.__new__(LanguageModel)
        other.__dict__.update(self.__dict__, end_tokens=tuple(end_tokens))
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        del protocol
        raise ConfigError(
            "A language model cannot be copied or pickled: it holds compiled weights.",
            "Share it (threads may), or load the model again.",
        )

    def score(self, text: Prompt | Sequence[Prompt]) -> Any:
        """Return what the model makes of given texts: the log-probability of each token after those before it.

        Args:
            text: text or token ids; a list of them gives a list.

        Returns:
            A `Scored`: `log_probs` per token, their sum `log_prob`, and `bits_per_byte`.

        Raises:
            ConfigError: a text that is empty or longer than the context, or a token outside the vocabulary.
            CapabilityError: the model does not write from left to right.
        """
        texts, is_single = self._prompts(text)
        check_causal(self.target.capabilities)
        found = [score_tokens(self.target, ids, self.name, self.tokenizer) for ids in texts]
        return found[0] if is_single else found

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, as the tokenizer frames it."""
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer.", "Give token ids.")
        return self.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Message], **extra: Any) -> list[int]:
        """Return the ids of a conversation, for `generate` and `stream`; `Tokenizer.render_chat` tells of `extra`."""
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer, hence no chat template.", "Give token ids.")
        return self.tokenizer.encode_chat(messages, **extra)

    def _framed(self, prompt: Any) -> Any:
        """Return a prompt with its conversations as ids."""
        if is_chat(prompt):
            return self.encode_chat(prompt)
        if isinstance(prompt, list | tuple) and any(is_chat(item) for item in prompt):
            return [self.encode_chat(item) if is_chat(item) else item for item in prompt]
        return prompt

    def _start(self, prompt: Prompt | Sequence[Prompt], arguments: Mapping[str, Any]) -> _Job:
        """Check everything, then set up the run."""
        capabilities, arguments = self.target.capabilities, given(arguments)
        arguments, told = self.generation.join(
            arguments,
            () if flag("ignore_eos", arguments.get("ignore_eos", False)) else self.end_tokens,
            is_canvas=capabilities.is_canvas,
            has_text=self.tokenizer is not None,
        )
        request, settings = _split(arguments)
        prompts, is_single = self._prompts(self._framed(prompt))
        method = self._method(request.method, request.options)
        if request.stop and self.tokenizer is None:
            raise ConfigError("Stop strings need a tokenizer.", "Use end tokens instead.")
        vocab_size = capabilities.vocab_size
        if any(not 0 <= token < vocab_size for token in request.stop_tokens):
            raise ConfigError("A stop token is outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
        check_top(request.top_log_probs, capabilities)
        if any(not 0 <= token < vocab_size for token in settings.logit_bias):
            raise ConfigError("A logit bias is outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
        if any(not 0 <= token < vocab_size for word in settings.bad_words for token in word):
            raise ConfigError("A bad word is outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
        settings = settings.within(vocab_size)
        check_fit(method, capabilities)
        method, note = method.fitted(self._offered(request))
        told = [*told, note] if note else told
        self._check_canvas(prompts, request)
        settings = self._constrained(settings, request)
        start = self._decoder_start(request, settings)
        models = self._other_models(method, request.models or {})
        rows = [
            self._row(ids, row_key(request.seed, sample), request, start)
            for ids in prompts
            for sample in range(request.num_samples)
        ]
        run = self._run(method, settings, rows, models, request)
        is_text = isinstance(prompt, str) or (isinstance(prompt, list | tuple) and isinstance(prompt[0], str))
        return _Job(run, rows, method, request, is_single and request.num_samples == 1, is_text, told)

    def _decoder_start(self, request: Request, settings: Sampling) -> list[int]:
        """Return what an encoder-decoder's decoder starts with; empty for other models."""
        capabilities, prefix = self.target.capabilities, request.prefix
        if not capabilities.is_encoder_decoder:
            if len(prefix) > 0:
                raise CapabilityError(
                    "A prefix was given, but the model has no decoder of its own.",
                    "Put it at the end of the prompt, which the model continues.",
                )
            return []
        ids = self._encode_piece(prefix, is_first=False) if isinstance(prefix, str) else list(prefix)
        if any(not 0 <= token < capabilities.vocab_size for token in ids):
            raise ConfigError(
                "The prefix holds a token outside the vocabulary.", f"Ids go from 0 to {capabilities.vocab_size - 1}."
            )
        first = [] if self.target.start_token is None else [self.target.start_token]
        start: list[int] = ids if ids[:1] == first else [*first, *ids]
        is_bound = settings.constraint is not None and len(settings.forced_bos_token_id) == 1
        if len(start) == 1 and is_bound:  # the constraint is on the text behind the language's token
            start += settings.forced_bos_token_id
        if len(start) >= capabilities.max_positions:
            raise ConfigError(
                f"The prefix has {len(ids)} tokens, but the decoder's context is {capabilities.max_positions}.",
                "Shorten the prefix.",
            )
        return start

    def _offered(self, request: Request) -> Capabilities:
        """Return what the target offers to this request."""
        offered = self.target.capabilities
        return replace(offered, has_tree=offered.has_tree and not self._is_fixed(request))

    def _is_fixed(self, request: Request) -> bool:
        """Return whether every forward has to have one width, since the kernels give no equal rows by themselves."""
        return request.is_batch_invariant and not self.target.is_invariant

    def _check_canvas(self, prompts: Sequence[Sequence[int]], request: Request) -> None:
        capabilities, canvas = self.target.capabilities, request.canvas
        if not canvas:
            return
        if not capabilities.is_canvas:
            raise CapabilityError(
                "The model writes from left to right and cannot fill gaps.", "Use a masked model, such as stories-mask."
            )
        if any(not -1 <= token < capabilities.vocab_size for token in canvas):
            raise ConfigError("The canvas holds a token outside the vocabulary.", "-1 stands for one to be filled in.")
        longest = max(len(tokens) for tokens in prompts) + len(canvas)
        if longest > capabilities.max_positions:
            raise CapabilityError(
                f"The text with its gaps has {longest} tokens, but the model's context is "
                f"{capabilities.max_positions}.",
                "Shorten it.",
            )

    def _constrained(self, settings: Sampling, request: Request) -> Sampling:
        """Return the settings with the request's constraint, compiled over this model's vocabulary."""
        asked, vocab_size = request.constraints, self.target.capabilities.vocab_size
        if asked and settings.constraint is not None:
            raise ConfigError("Two constraints were given.", f"Leave out {next(iter(asked))} or constraint.")
        if asked and self.tokenizer is None:
            raise ConfigError("Constraints on text need a tokenizer.", "Give a constraint over tokens.")
        if asked and self.target.capabilities.is_canvas:
            return replace(settings, canvas_constraint=self._on_canvas(request))
        if asked:
            assert self.tokenizer is not None
            if self._compiler is None:
                self._compiler = constrain.Compiler(self.tokenizer, vocab_size)
            settings = replace(settings, constraint=self._compiler.compile(**asked))
        given = settings.constraint
        if given is not None and given.vocab_size != vocab_size:
            raise ConfigError(
                f"The constraint was made for {given.vocab_size} tokens, but the model has {vocab_size}.",
                f"Compile it with vocab_size={vocab_size}.",
            )
        return settings

    def _on_canvas(self, request: Request) -> CanvasConstraint:
        """Return the request's constraint for texts that are written in any order."""
        assert self.tokenizer is not None
        # Between given pieces no text may end; nor may one that is to go on past end tokens.
        ends = () if request.canvas or request.ignore_eos else tuple(self.end_tokens)
        if ends not in self._canvas_compilers:
            vocab_size = self.target.capabilities.vocab_size
            self._canvas_compilers[ends] = CanvasCompiler(self.tokenizer, vocab_size, ends)
        return self._canvas_compilers[ends].compile(**request.constraints)

    def _prompts(self, prompt: Prompt | Sequence[Prompt]) -> tuple[list[list[int]], bool]:
        prompt = plain_prompt(prompt)
        is_single = isinstance(prompt, str) or not hasattr(prompt[0], "__len__") or getattr(prompt[0], "ndim", 1) == 0
        many: Any = [prompt] if is_single else prompt
        found = [self.encode(item) if isinstance(item, str) else ids("the prompt", item) for item in many]
        capabilities = self.target.capabilities
        for tokens in found:
            if not tokens:
                raise ConfigError("The prompt is empty.", "Give at least one character.")
            if min(tokens) < 0 or max(tokens) >= capabilities.vocab_size:
                raise ConfigError(
                    "The prompt holds a token outside the vocabulary.",
                    f"Ids go from 0 to {capabilities.vocab_size - 1}.",
                )
            if not capabilities.is_encoder_decoder and len(tokens) >= capabilities.max_positions:
                raise ConfigError(
                    f"The prompt has {len(tokens)} tokens, but the model's context is {capabilities.max_positions}.",
                    "Shorten the prompt.",
                )
        return found, is_single

    def _method(self, method: str | Method, options: Mapping[str, Any] | None) -> Method:
        if isinstance(method, str):
            return load_method(method).from_settings(options or {})
        if options:
            raise ConfigError("Options came with a method object.", "Set them on the object.")
        return method

    def _other_models(self, method: Method, given: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """Load the models that the method's settings name, once per language model."""
        others = {}
        needs = method.needs
        for role in (*needs.models, *needs.optional_models):
            if role in given:
                other = given[role]
            else:
                try:
                    name = self._other_name(method, role)
                except ConfigError:
                    if role in needs.optional_models:
                        continue
                    raise
                if name not in self._others:
                    self._others[name] = open_model(
                        name, self.dtype, self.device, kernels if self.is_compiled else None
                    )
                other = self._others[name]
            is_same_vocab = not method.needs.has_text
            given_attention = needs.model_attention.get(role, "")
            check_partner(
                role,
                other.capabilities,
                self.target.capabilities,
                is_same_vocab=is_same_vocab,
                attention=given_attention,
            )
            others[role] = other
        return others

    def _other_name(self, method: Method, role: str) -> str:
        name = str(getattr(method, role))
        return drafter_of(self.name) if name == "auto" else name

    def _tokenizers(self, method: Method, given: Mapping[str, Adapter]) -> dict[str, Tokenizer]:
        """Return the target's tokenizer, and those of a method that works on text, by role."""
        if not method.needs.has_text:
            return {} if self.tokenizer is None else {"target": self.tokenizer}
        found: dict[str, Tokenizer | None] = {"target": self.tokenizer}
        for role in method.needs.models:
            if role in given:
                found[role] = given[role].tokenizer
            else:
                name = self._other_name(method, role)
                if name not in self._tokenizers_of:
                    self._tokenizers_of[name] = Tokenizer.from_directory(locate(name)[0])
                found[role] = self._tokenizers_of[name]
        for role, tokenizer in found.items():
            if tokenizer is None:
                raise ConfigError(
                    f"The method {method.name!r} works on text, but the {role} model has no tokenizer.",
                    "Use a model with a tokenizer.json.",
                )
        return {role: tokenizer for role, tokenizer in found.items() if tokenizer is not None}

    def _row(self, ids: list[int], key: int, request: Request, start: Sequence[int]) -> Row:
        """Return a fresh row; `start` is what an encoder-decoder's decoder begins with."""
        ends = () if request.ignore_eos else self.end_tokens
        tokens, source = (list(start), ids) if start else (list(ids), None)
        text = None if self.tokenizer is None else self._text(self.tokenizer, request, tokens)
        held, stops = len(tokens), tuple(request.stop_tokens)
        most = len(request.canvas) or min(_wanted(request, held), self.target.capabilities.max_positions - held)
        canvas = list(request.canvas)
        return Row(tokens, held, key, most, ends, text, source=source, canvas=canvas, stop_tokens=stops)

    @staticmethod
    def _text(tokenizer: Tokenizer, request: Request, context: Sequence[int]) -> TextStream:
        """Return a row's text stream; special tokens show, or only stop strings see them, or nobody does."""
        if request.keep_special:
            return TextStream(partial(tokenizer.decode, skip_special=False), request.stop, context, byte=tokenizer.byte)
        names = tokenizer.special_ids if request.stop else {}
        special = {token: name for name, token in names.items() if any(name in stop for stop in request.stop)}
        return TextStream(tokenizer.decode, request.stop, context, special)

    def _run(
        self, method: Method, settings: Sampling, rows: list[Row], models: dict[str, Adapter], request: Request
    ) -> Run:
        longest = max(row.num_prompt + row.max_tokens for row in rows)
        width = max(method.needs.width, _INVARIANT_WIDTH) + 1
        capabilities = self.target.capabilities
        if capabilities.is_canvas:  # whole copies of what is not cached, side by side
            width += method.needs.copies * min(longest, 4 * capabilities.block_size or longest)
        is_fixed = self._is_fixed(request)
        if is_fixed and capabilities.is_canvas:
            raise ConfigError("A canvas has a batch-invariant mode on compiled kernels only.", "Leave it out.")
        if is_fixed and method.needs.has_tree:
            raise ConfigError(
                "Batch-invariant mode drafts chains here: a tree's siblings change how sums are rounded.",
                "Set tree_width=1, or use compiled kernels.",
            )
        run = Run(
            self.target,
            method,
            settings,
            capacity=longest + width,
            models=models,
            memory=request.memory,
            record=request.record,
            num_top=request.top_log_probs,
            chunk=_CHUNK,
            width=_INVARIANT_WIDTH if is_fixed else 0,
            device=self.target.device,
            tokenizers=self._tokenizers(method, request.models or {}),
            watch=request.watch,
        )
        run.join(rows)
        return run

    def _advance(self, job: _Job, is_cancelled: Callable[[], bool] | None) -> Iterator[tuple[int, str]]:
        """Step until every row has ended, yielding (row index, text) as text becomes final."""
        number = {id(row): index for index, row in enumerate(job.rows)}
        while job.run.rows:
            if is_cancelled is not None and is_cancelled():
                stepped = list(job.run.rows)
                for row in stepped:
                    row.cancel()
                job.run.leave(stepped)
            else:
                stepped = [row for row, _ in job.run.step()]
            for row in stepped:
                piece = "" if row.text is None else row.text.release(is_final=row.finish is not None)
                if piece:
                    yield number[id(row)], piece

    def _finish(self, job: _Job) -> list[Result]:
        timing = _timing(self.load_s, job.run.seconds)
        samples = job.request.num_samples
        return [self._result(row, job, timing, i % samples) for i, row in enumerate(job.rows)]

    def _notes(self, row: Row, job: _Job) -> list[str]:
        known = (*self.target.notes, *self.notes, *job.notes, *row.notes)
        notes = [str(note) for note in known]
        if job.is_text and self._wants_chat(row, job.request):
            notes.append(_NO_CHAT)
        if row.max_tokens < _wanted(job.request, row.num_prompt):
            notes.append("max_tokens was cut to what the model's context holds.")
        is_cut = row.finish in (FinishReason.LENGTH, FinishReason.STOP)
        if is_cut and row.state is not None and not row.state.is_complete:
            notes.append("The text ends before what its constraint asks for is complete.")
        if row.finish is FinishReason.CANCELLED:
            notes.append("Cancelled: the text is what was written until then.")
        return notes

    def _result(self, row: Row, job: _Job, timing: dict[str, float], sample: int) -> Result:
        return Result(
            model=self.name,
            method=job.method.name,
            prompt_tokens=list(row.source) if row.source is not None else row.tokens[: row.num_prompt],
            tokens=row.written,
            text=row.text.text if row.text is not None else "",
            finish_reason=row.finish.value if row.finish is not None else "",
            usage=row.usage,
            timing=dict(timing),
            seed=job.request.seed,
            sample=sample,
            notes=self._notes(row, job),
            log_probs=row.log_probs,
            top_log_probs=row.top_log_probs,
            margins=row.margins,
            sources=row.sources,
            settings=job.method.to_dict(),
            filled=self._filled(row, job.request.keep_special),
        )

    def _wants_chat(self, row: Row, request: Request) -> bool:
        """Return whether an instruct model had nothing to say to a bare text, which it never saw in training."""
        is_free = not request.constraints and row.constraint is None and not request.canvas
        if self.tokenizer is None or not self.tokenizer.has_chat or not is_free:
            return False
        prompt, special = row.tokens[: row.num_prompt], set(self.tokenizer.special_ids.values())
        is_bare = special.isdisjoint(prompt[1:])  # a start token apart
        return is_bare and row.finish is FinishReason.EOS and len(row.written) <= _AT_ONCE

    def _filled(self, row: Row, keep_special: bool) -> list[str]:
        if self.tokenizer is None:
            return filled(row.canvas, row.written, lambda ids: " ".join(map(str, ids)))
        return filled(row.canvas, row.written, partial(self.tokenizer.decode, skip_special=not keep_special))


def _named(name: str, value: Any) -> Any:
    """Return a dtype or device by name or as torch has it; None = "auto"."""
    if not isinstance(value, (str, torch.dtype, torch.device, type(None))):
        raise _kind(name, value, f"the name of a {name}")
    return "auto" if value is None else value


def _check_names(name: str, value: Any) -> None:
    """Refuse what is no dict with text for keys."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise _kind(name, value, "a dict from field to value")


def _kind(name: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{name} is of type {type(value).__name__}, where {wanted} belongs.", f"Give {wanted}.")


def _adapter(role: Any, model: Any) -> Adapter:
    found = model.target if isinstance(model, LanguageModel) else model
    if not isinstance(found, Adapter):
        raise _kind(f"The model for {role}", model, "a language model or an adapter")
    return found


def _timing(load_s: float, seconds: Mapping[str, float]) -> dict[str, float]:
    decode = seconds["total"] - seconds["prefill"]
    known = seconds["draft"] + seconds["score"] + seconds["accept"]
    return {
        "load_s": load_s,
        "prefill_s": seconds["prefill"],
        "decode_s": decode,
        "draft_s": seconds["draft"],
        "score_s": seconds["score"],
        "accept_s": seconds["accept"],
        "other_s": max(0.0, decode - known),
    }


def _wanted(request: Request, num_prompt: int) -> int:
    """Return how many tokens a request wants behind a prompt."""
    return request.max_length - num_prompt if request.max_length > num_prompt else request.max_tokens


def _split(arguments: Mapping[str, Any]) -> tuple[Request, Sampling]:
    """Sort keyword arguments into the request and the sampling settings."""
    asked, sampled = {f.name for f in fields(Request)}, {f.name for f in fields(Sampling)}
    for name in arguments:
        if name not in asked | sampled:
            raise ConfigError(f"There is no argument {name!r}.", nearest(name, asked | sampled, "argument"))
    request = Request(**{name: value for name, value in arguments.items() if name in asked})
    return request, Sampling(**{name: value for name, value in arguments.items() if name in sampled})

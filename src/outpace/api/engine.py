"""The Python face: load a model, which writes, answers, fills gaps and scores, all at once or as a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from outpace import kernels
from outpace.api.bytewise import NextBytes, next_bytes
from outpace.api.constraining import Constraints
from outpace.api.estimating import SAMPLES, check_scored, estimate_tokens
from outpace.api.infill import Piece, lay_pieces
from outpace.api.partners import Partners
from outpace.api.prompt import Prompt, read_prompts
from outpace.api.recall import Recall
from outpace.api.request import CallOptions, Options
from outpace.api.result import Result
from outpace.api.running import advance, finish
from outpace.api.scoring import Scored, check_pairs, score_pairs, score_tokens
from outpace.api.sets import Part, generate_sets
from outpace.api.starting import start
from outpace.arguments import flag, path, refused, whole
from outpace.errors import CapabilityError, ConfigError
from outpace.kernels.rounded import RoundedKernels
from outpace.models.byte_model import ByteNames
from outpace.models.generation import GenerationConfig, read_generation
from outpace.models.graphs import make_graphs
from outpace.models.loading import count_parameters, pick_device, read_end_tokens
from outpace.models.opening import locate, open_model, refuse_beside
from outpace.models.parallel import Split
from outpace.models.transformer import Transformer
from outpace.models.unmasking import check_unmasking
from outpace.run.threads import begin
from outpace.text import gguf_file
from outpace.text.byte_index import END
from outpace.text.chat import Message, is_chat
from outpace.text.languages import Frame, languages_of
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter
from outpace.zoo import method_of

__all__ = ["LanguageModel", "load"]


def load(
    model: str | Path,
    *,
    dtype: str | torch.dtype | None = "auto",
    device: str | torch.device | None = "auto",
    is_compiled: bool = True,
    card: Mapping[str, Any] | None = None,
    is_checked: bool = True,
    threads: int | None = None,
    generation_config: str = "model",
    context: int | None = None,
    adapter: str | Path | None = None,
    graphs: str = "auto",
    split: Split | None = None,
    cache_dtype: str = "auto",
    source_language: str | None = None,
    target_language: str | None = None,
    cut_source: bool = False,
    quantize: str = "none",
) -> LanguageModel:
    """Load a model by zoo name, directory, GGUF file or hub id.

    Args:
        model: e.g. "stories", "./my-llama", "model.gguf", "org/name"; "hf:NAME" goes through transformers, as do
            architectures that have no native loader. "bytes:NAME" writes bytes by the exact law of a model's,
            "bytes:A@0.3+B@0.7" by several models' average, "bytes:A*B" by their product (docs/bytes.md).
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
        adapter: the directory of a LoRA, as PEFT saves them, to merge into the weights; None = none, unless `model` is
            the directory of one, whose model lies in a local directory.
        graphs: on a CUDA device, "auto" = forwards whose shapes come again are recorded as CUDA graphs and replayed;
            "on" = all small ones are, from their first time on; "off" = none. Drafters follow.
        split: this process's share of a model that several processes hold together; see `outpace.models.parallel`.
        cache_dtype: "auto" = keys and values are kept as they are computed; "int8" = as bytes, in half the memory of
            bfloat16, which changes the text a little (docs/serve.md states the error); compiled kernels only.
        source_language, target_language: of a translator whose tokenizer names languages, by its own names ("de" of
            M2M100, "deu_Latn" of NLLB); None = as the files say.
        cut_source: read only the beginning of sources that are longer than the encoder's positions, and say so.
        quantize: "int8" = plain weights are rounded to 8 bits as they are loaded, which changes the text a little and
            makes the model smaller and faster; compiled kernels only. "none" = they are used as they are stored.

    Raises:
        ModelError: it cannot be found, read or trusted, or the adapter is of another model.
        ConfigError: the card contradicts itself, fewer threads than one are asked for, graphs without a CUDA device, or
            a language that the tokenizer does not name.
        CapabilityError: the model cannot be split so, or its cache or weights cannot be int8 here.
    """
    began, name = time.perf_counter(), path("model", model)
    kind, place = _named("dtype", dtype), _named("device", device)
    is_compiled, is_checked = (flag(*one) for one in (("is_compiled", is_compiled), ("is_checked", is_checked)))
    names: Any = card  # a caller may bring anything
    if names is not None and not (isinstance(names, Mapping) and all(isinstance(key, str) for key in names)):
        raise refused("card", card, "a dict from field to value")
    if context is not None and (context := whole("context", context)) < 1:
        raise ConfigError(f"context is {context}.", "context must be 1 or more.")
    begin(threads)
    recorder = make_graphs(graphs, pick_device(place))  # it may be refused too
    if ByteNames.is_one(name):
        given = {"card": card, "context": context, "adapter": adapter, "split": split}
        given |= {"source_language": source_language, "target_language": target_language}
        refuse_beside(name, **given, quantize=quantize != "none", cache_dtype=cache_dtype != "auto")
        return _byte_writer(name, kind, place, is_compiled, began)
    directory, _ = locate(name)
    generation = read_generation(directory, generation_config)  # before weights are read: it may be refused
    tokenizer = Tokenizer.from_directory(directory)
    languages = (source_language or "", target_language or "")
    spoken = tokenizer.speak(*languages) if any(languages) else None
    merged = None if adapter is None else path("adapter", adapter)
    if quantize not in ("none", "int8"):
        raise ConfigError(f"quantize is {quantize!r}.", "Use none or int8.")
    compiler = kernels if quantize == "none" else RoundedKernels()
    target = open_model(name, kind, place, compiler if is_compiled else None, card, context or 0, merged, split)
    if quantize == "int8":
        if not isinstance(target, Transformer) or not target.is_invariant:
            raise CapabilityError(f"int8 weights need compiled kernels, which do not serve {name} here.")
        target.is_quantised = True
        target.notes.append("Weights are rounded to 8 bits.")
    if cache_dtype not in ("auto", "int8"):
        raise ConfigError(f"cache_dtype is {cache_dtype!r}.", "Use auto or int8.")
    if isinstance(target, Transformer):
        target.use_graphs(recorder)
        if cache_dtype == "int8":
            target.use_int8_cache()
            target.notes.append("Keys and values are kept in int8.")
    elif cache_dtype == "int8":
        raise CapabilityError(f"An int8 cache was asked for, but transformers runs {name}.", "Use cache_dtype=auto.")
    elif graphs == "on":
        raise ConfigError(f"CUDA graphs were asked for, but transformers runs {name}.", "Use graphs=auto.")
    lm = LanguageModel(
        target,
        tokenizer,
        end_tokens=read_end_tokens(directory, card),
        name=name,
        dtype=kind,
        device=place,
    )
    generation.check_vocabulary(target.capabilities.vocab_size)
    lm.generation, lm.directory, lm.cuts_source = generation, directory, flag("cut_source", cut_source)
    lm.method = method_of(name)
    if spoken is not None:
        _speak(lm, spoken)
    elif tokenizer.kind != "MarianTokenizer" and (known := languages_of(tokenizer)):
        if "forced_bos_token_id" not in generation.law:
            lm.notes.append(f"No language to write was named: target_language takes one of {len(known)}.")
    if is_checked and lm.tokenizer is not None and (note := check_unmasking(target, lm.tokenizer)):
        lm.notes.append(note)
    lm.is_compiled, lm.graphs = is_compiled, graphs
    gguf_file.forget()
    lm.load_s = time.perf_counter() - began
    return lm


class LanguageModel:
    """A target, its tokenizer and its end tokens; `outpace.load` makes one.

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
        self.is_compiled, self.graphs = True, "auto"  # as its partners are loaded
        self.load_s = 0.0
        self.first_token: int | None = None  # of every text, where it names the language to be written
        self.cuts_source = False  # of sources that are too long only the beginning is read
        self.directory: Path | None = None  # its files, where it was loaded from some
        self.method = ""  # that its card names, for calls that name none
        self.notes: list[str] = []  # of loading, for every result
        self.generation = GenerationConfig()  # what its files ask of a text; nothing unless `load` read them
        self.partners = Partners(self)
        self.constraints = Constraints(tokenizer, target.capabilities.vocab_size)

    def __repr__(self) -> str:
        offered, target = self.target.capabilities, self.target
        count = 0 if self.directory is None else count_parameters(self.directory)
        facts = {
            "parameters": f"{count / 1e6:,.2f}M" if count else "",
            "dtype": str(target.dtype).removeprefix("torch."),
            "device": str(target.device),
            "path": target.path,
            "attention": offered.attention,
            "context": f"{offered.max_positions:,} tokens",
            "vocabulary": f"{offered.vocab_size:,} tokens",
        }
        return "\n".join([f"LanguageModel {self.name!r}", *(f"  {key:<11}{it}" for key, it in facts.items() if it)])

    @overload
    def generate(self, prompt: Prompt, **arguments: Unpack[CallOptions]) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompt: Sequence[Prompt], **arguments: Unpack[CallOptions]) -> list[Result]: ...

    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, num_samples: int | None, **arguments: Unpack[CallOptions]
    ) -> Any: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        on_text: Callable[[int, str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        recall: Recall | None = None,
        **arguments: Any,
    ) -> Any:
        """Write text.

        Args:
            prompt: text, token ids, or messages ({"role": ..., "content": ...} each) that the chat template frames; a
                list of them is one ragged batch.
            on_text: called with (row index, new text) as text becomes final, whole characters only.
            is_cancelled: asked between steps; True ends with finish_reason "cancelled", keeping what is written.
            recall: what earlier texts left, so that a text that begins like one of them is not read whole.
            **arguments: the fields of `Request` (method, options, max_tokens, seed, num_samples, stop, ...) and of
                `outpace.Sampling` (temperature, top_k, top_p, ...). What is not given is as the model's own
                generation_config.json asks (but see `sampling`).

        Returns:
            A `Result`; a list of them for a list of prompts or num_samples above 1 (prompt by prompt).

        Raises:
            ConfigError, CapabilityError: see the message and its hint.
        """
        for name, function in (("on_text", on_text), ("is_cancelled", is_cancelled)):
            if function is not None and not callable(function):
                raise refused(name, function, "a function")
        job = start(self, prompt, arguments, recall)
        for index, piece in advance(job, is_cancelled):
            if on_text is not None:
                on_text(index, piece)
        results = finish(self, job.plan, job.run.seconds)
        return results[0] if job.plan.is_single else results

    def stream(
        self,
        prompt: Prompt,
        *,
        is_cancelled: Callable[[], bool] | None = None,
        recall: Recall | None = None,
        **arguments: Unpack[Options],
    ) -> Generator[str, None, Result]:
        """Yield text as it becomes final; whole characters, never past a stop string. Returns the `Result`.

        Takes the arguments of `generate`, for one prompt and one sample. The run advances as the iterator is read.
        """
        job = start(self, prompt, arguments, recall)
        if not job.plan.is_single:
            raise ConfigError("A stream writes one text.", "Use generate with on_text for several.")
        for _, piece in advance(job, is_cancelled):
            yield piece
        return finish(self, job.plan, job.run.seconds)[0]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tools: Any = None,
        documents: Any = None,
        template: str | None = None,
        is_continued: bool = False,
        variables: Mapping[str, Any] | None = None,
        num_samples: int | None = None,
        **arguments: Unpack[CallOptions],
    ) -> Any:
        """Answer a conversation, framed by the model's chat template.

        Args:
            messages: {"role": ..., "content": ...} each; a list of conversations is one batch.
            tools: JSON schemas of functions that the model may call.
            documents: what it may quote, {"title": ..., "text": ...} each.
            template: the name of one of several templates, or a template; None = the one that fits.
            is_continued: the last message is unfinished, and the model goes on with it.
            variables: of the template, e.g. {"enable_thinking": False}.
            num_samples: texts per conversation.
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
        prompt = prompts[0] if chats[0] is messages else prompts
        found = self.generate(prompt, num_samples=num_samples, **arguments)
        assert self.tokenizer is not None  # or there had been no prompt
        asked = [name for name, value in given.items() if value is not None]
        unread = self.tokenizer.unread_by_chat(asked, template, tools, documents)
        for result in found if isinstance(found, list) else [found]:
            result.notes += [f"The chat template does not look at {name}." for name in unread]
        return found

    def infill(
        self, pieces: Sequence[Piece], *, num_samples: int | None = None, **arguments: Unpack[CallOptions]
    ) -> Any:
        """Fill gaps between given pieces of text, on a masked model.

        Args:
            pieces: in order; text (or ids), and for each gap the number of tokens that it takes,
                e.g. ["Once upon a time", 12, "and they slept."].
            num_samples: texts to write.
            **arguments: those of `generate`, max_tokens and canvas apart.

        Returns:
            A `Result`: `text` is what follows the first piece, given pieces included, `filled` what was written in each
            gap. A list of them for num_samples above 1.

        Raises:
            ConfigError: no gap, or an empty one.
            CapabilityError: the model writes from left to right, or does not hold so long a text.
        """
        first = None if self.tokenizer is None else self.tokenizer.bos_id
        prompt, canvas = lay_pieces(pieces, self.encode, self.end_tokens[:1] if first is None else [first])
        arguments |= {"canvas": canvas, "max_tokens": len(canvas)}
        return self.generate(prompt, num_samples=num_samples, **arguments)

    def generate_sets(
        self, parts: Sequence[Part], *, num_samples: int | None = None, **arguments: Unpack[CallOptions]
    ) -> Any:
        """Write on from a prompt some parts of which have no order: swapped, they leave the text as it is.

        Args:
            parts: in order; text (or ids), and for each set the list of its members,
                e.g. ["Which is best:", [" a dog,", " a cat,"], " or neither? Answer:"].
            num_samples: texts to write.
            **arguments: those of `generate`, recall apart.

        Raises:
            ConfigError: no set, or one with fewer than two members.
            CapabilityError: the model honours no masks between the tokens of a prompt.
        """
        return generate_sets(self, parts, {"num_samples": num_samples, **arguments})

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

    @overload
    def score(self, text: Prompt, samples: int | None = None, seed: int = 0) -> Scored: ...  # type: ignore[overload-overlap]

    @overload
    def score(self, text: Sequence[Prompt], samples: int | None = None, seed: int = 0) -> list[Scored]: ...

    def score(self, text: Prompt | Sequence[Prompt], samples: int | None = None, seed: int = 0) -> Any:
        """Return what the model makes of given texts: the log-probability of each token after those before it.

        A masked model, which gives a bound alone, is asked about so many maskings of each text.

        Args:
            text: text or token ids; a list of them gives a list.
            samples: maskings per text, of a masked model; None = 128.
            seed: of the maskings.

        Returns:
            A `Scored`: `log_probs` per token, their sum `log_prob`, and `bits_per_byte`; of a masked model
            `samples` and the standard `error` of the sum.

        Raises:
            ConfigError: a text that is empty or longer than the context, a token outside the vocabulary, or samples
                where nothing is drawn.
            CapabilityError: the model writes neither from left to right nor on a canvas that it sees as a whole.
        """
        texts, is_single = read_prompts(text, self.encode, self.target.capabilities)
        check_scored(self.target.capabilities, samples)
        known = (self.name, self.tokenizer)
        if self.target.capabilities.is_canvas:
            num = SAMPLES if samples is None else samples
            found = [estimate_tokens(self.target, ids, *known, num, seed) for ids in texts]
        else:
            found = [score_tokens(self.target, ids, *known) for ids in texts]
        return found[0] if is_single else found

    def next_bytes(self, text: str | bytes, *, covers: str = "valid", width: int = 64) -> NextBytes:
        """Return the exact law of the byte behind a text, whatever tokens the model would cover both with.

        Args:
            text: text or UTF-8 bytes, which may end anywhere; "" = the law of a text's first byte.
            covers: "valid" = by the tokenizer's own tokens, but for a last one that writes on; "all" = by any tokens.
            width: token prefixes that are followed at once, the likeliest; 0 = all.

        Returns:
            A `NextBytes`: `probs` by byte, `end`, and the `log_prob` and `bits_per_byte` of the text.

        Raises:
            ConfigError: a setting out of range, or no tokenizer.
            CapabilityError: the model is not causal, its tokenizer does more than join bytes or rewrites the text, or
                the text is too long.
        """
        return next_bytes(self, text, covers, width)

    def score_pairs(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[Scored]:
        """Return what an encoder-decoder makes of given targets, each behind its source.

        Args:
            pairs: sources and targets, text or token ids; a target's end token is scored too (ids have to name it).

        Returns:
            A `Scored` per pair, whose first token is the decoder's start.

        Raises:
            ConfigError: a text that is empty or too long, or a token outside the vocabulary.
            CapabilityError: the model has no encoder.
        """
        check_pairs(self.target.capabilities)
        if not pairs:
            return []
        traits = self.target.capabilities
        sources, _ = read_prompts([source for source, _ in pairs], self.encode, traits)
        ends = list(self.end_tokens[:1])
        targets, _ = read_prompts(
            [target for _, target in pairs], lambda text: [*self.encode(text, is_special=False), *ends], traits
        )
        return score_pairs(self.target, list(zip(sources, targets, strict=True)), self.name, self.tokenizer)

    def encode(self, text: str, is_special: bool = True) -> list[int]:
        """Return the ids of a text; `is_special` adds what the tokenizer puts around it (a start token, say)."""
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer.", "Give token ids.")
        return self.tokenizer.encode(text, is_special)

    def encode_chat(self, messages: Sequence[Message], **extra: Any) -> list[int]:
        """Return the ids of a conversation, for `generate` and `stream`; `Tokenizer.render_chat` tells of `extra`."""
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer, hence no chat template.", "Give token ids.")
        return self.tokenizer.encode_chat(messages, **extra)


def _byte_writer(name: str, kind: str, place: str, is_compiled: bool, began: float) -> LanguageModel:
    """Load what a name of a byte model says; it has neither files nor a generation_config.json of its own."""
    target = open_model(name, kind, place, kernels if is_compiled else None)
    lm = LanguageModel(target, target.tokenizer, end_tokens=(END,), name=name, dtype=kind, device=place)
    lm.is_compiled, lm.load_s = is_compiled, time.perf_counter() - began
    return lm


def _speak(lm: LanguageModel, spoken: Frame) -> None:
    """Let a translator write the language that was asked for."""
    lm.first_token = spoken.forced
    if spoken.start is not None:
        lm.target.start_token = spoken.start


def _named(name: str, value: Any) -> Any:
    """Return a dtype or device by name or as torch has it; None = "auto"."""
    if not isinstance(value, (str, torch.dtype, torch.device, type(None))):
        raise refused(name, value, f"the name of a {name}")
    return "auto" if value is None else value

"""The Python face: load a model, write text with any method, all at once or as a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from outpace.errors import CapabilityError, ConfigError
from outpace.fit import check_fit
from outpace.loop import Run
from outpace.methods.base import Method
from outpace.models.loading import load_model, read_end_tokens, resolve
from outpace.models.tokenizer import Tokenizer
from outpace.registry import load_method
from outpace.result import Result
from outpace.row import Row
from outpace.sampling import Sampling, row_key
from outpace.text import TextStream
from outpace.types import Adapter, FinishReason
from outpace.zoo import drafter_of

__all__ = ["LanguageModel", "load"]

Prompt = str | Sequence[int]
_INVARIANT_WIDTH = 16  # window nodes of every forward in batch-invariant mode on the eager path


def load(model: str | Path, *, dtype: str = "auto", device: str = "auto", is_compiled: bool = True) -> LanguageModel:
    """Load a model by zoo name, directory or hub id.

    Args:
        model: e.g. "stories", "./my-llama", "org/name".
        dtype: "auto" (as stored), "float32", "bfloat16", "float16" or "float64".
        device: "auto", "cpu" or "cuda".
        is_compiled: use compiled kernels where a compiler is found and the model fits them.

    Raises:
        ModelError: it cannot be found, read or trusted.
    """
    began = time.perf_counter()
    directory = resolve(str(model))
    target = load_model(directory, dtype=dtype, device=device, is_compiled=is_compiled)
    tokenizer = Tokenizer.from_directory(directory)
    lm = LanguageModel(
        target, tokenizer, end_tokens=read_end_tokens(directory), name=str(model), dtype=dtype, device=device
    )
    lm.is_compiled = is_compiled
    lm.load_s = time.perf_counter() - began
    return lm


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
        self._others: dict[str, Adapter] = {}

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        method: str | Method = "autoregressive",
        options: Mapping[str, Any] | None = None,
        max_tokens: int = 128,
        seed: int = 0,
        num_samples: int = 1,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        record: Sequence[str] = (),
        models: Mapping[str, Adapter] | None = None,
        memory: Any = None,
        is_batch_invariant: bool = False,
        on_text: Callable[[int, str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Any:
        """Write text.

        Args:
            prompt: text or token ids; a list of them is one ragged batch.
            method: a name, or a method object.
            options: the method's settings, when it is given by name.
            max_tokens: most tokens to write per prompt.
            seed: with the sample number, fixes every random draw.
            num_samples: texts per prompt, numbered from 0.
            stop: strings that end the text; nothing is emitted past one.
            ignore_eos: write on past end tokens.
            record: "log_probs", "margins": noted per token (margins cost a sort each).
            models: other models by role, e.g. {"draft": adapter}; else the method's settings name them.
            memory: what outlives the call, for methods that keep one.
            is_batch_invariant: the text may not depend, by rounding, on batch, window or drafts (slower eagerly).
            on_text: called with (row index, new text) as text becomes final, whole characters only.
            is_cancelled: asked between steps; True ends with finish_reason "cancelled", keeping what is written.
            **sampling: fields of `outpace.Sampling`.

        Returns:
            A `Result`; a list of them for a list of prompts or num_samples above 1 (prompt by prompt).

        Raises:
            ConfigError, CapabilityError: see the message and its hint.
        """
        prompts, is_single = self._prompts(prompt)
        chosen = self._method(method, options)
        settings = _settings(sampling)
        for name, count in (("max_tokens", max_tokens), ("num_samples", num_samples)):
            if count < 1:
                raise ConfigError(f"{name} is {count}.", f"{name} must be 1 or more.")
        vocab_size = self.target.capabilities.vocab_size
        if any(not 0 <= token < vocab_size for token in settings.logit_bias):
            raise ConfigError("A logit bias is outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")
        if any(not text for text in stop):
            raise ConfigError("A stop string is empty.", "Give each stop string at least one character.")
        if stop and self.tokenizer is None:
            raise ConfigError("Stop strings need a tokenizer.", "Use end tokens instead.")
        check_fit(chosen, self.target.capabilities)
        others = {**self._other_models(chosen, models or {}), **(models or {})}
        wants_text = self.tokenizer is not None
        rows = [
            self._row(ids, row_key(seed, sample), max_tokens, stop, ignore_eos, wants_text)
            for ids in prompts
            for sample in range(num_samples)
        ]
        run = self._run(chosen, settings, rows, others, memory, record, is_batch_invariant)
        began = time.perf_counter()
        cancelled = self._drive(run, rows, on_text, is_cancelled)
        seconds = {**run.seconds, "wall": time.perf_counter() - began}
        notes = self._notes(rows, max_tokens, cancelled)
        results = [self._result(row, chosen, seconds, seed, i % num_samples, notes) for i, row in enumerate(rows)]
        return results[0] if is_single and num_samples == 1 else results

    def stream(self, prompt: Prompt, **arguments: Any) -> Iterator[str]:
        """Yield text as it becomes final; whole characters, never past a stop string. Returns the `Result`.

        Takes the arguments of `generate`, for one prompt and one sample. Closing the iterator cancels the run.
        """
        import queue
        import threading

        pieces: queue.Queue[tuple[str, Any]] = queue.Queue()
        gone = threading.Event()

        def work() -> None:
            try:
                result = self.generate(
                    prompt, on_text=lambda _, text: pieces.put(("text", text)), is_cancelled=gone.is_set, **arguments
                )
                pieces.put(("result", result))
            except BaseException as error:  # handed to the consumer, whatever it is
                pieces.put(("error", error))

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            while True:
                kind, value = pieces.get()
                if kind == "error":
                    raise value
                if kind == "result":
                    return value
                yield value
        finally:
            gone.set()
            worker.join()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, as the tokenizer frames it."""
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer.", "Give token ids.")
        return self.tokenizer.encode(text)

    def _prompts(self, prompt: Prompt | Sequence[Prompt]) -> tuple[list[list[int]], bool]:
        is_single = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
        if not isinstance(prompt, str) and len(prompt) == 0:
            raise ConfigError("The prompt is empty.", "Give at least one character.")
        many: Any = [prompt] if is_single else prompt
        ids = [self.encode(item) if isinstance(item, str) else [int(token) for token in item] for item in many]
        capabilities = self.target.capabilities
        for tokens in ids:
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
        return ids, is_single

    def _method(self, method: str | Method, options: Mapping[str, Any] | None) -> Method:
        if isinstance(method, str):
            return load_method(method).from_settings(options or {})
        if options:
            raise ConfigError("Options came with a method object.", "Set them on the object.")
        return method

    def _other_models(self, method: Method, given: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """Load the models that the method's settings name, once per language model."""
        others = {}
        for role in method.needs.models:
            if role in given:
                other = given[role]
            else:
                name = str(getattr(method, role))
                name = drafter_of(self.name) if name == "auto" else name
                if name not in self._others:
                    self._others[name] = load_model(
                        resolve(name), dtype=self.dtype, device=self.device, is_compiled=self.is_compiled
                    )
                other = self._others[name]
            if other.capabilities.vocab_size != self.target.capabilities.vocab_size:
                raise CapabilityError(
                    f"The {role} model has {other.capabilities.vocab_size} tokens, "
                    f"the target {self.target.capabilities.vocab_size}.",
                    "Name a model of the same vocabulary, or use prompt-lookup, jacobi or layer-skip.",
                )
            others[role] = other
        return others

    def _row(
        self, ids: list[int], key: int, max_tokens: int, stop: Sequence[str], ignore_eos: bool, wants_text: bool
    ) -> Row:
        capabilities = self.target.capabilities
        ends = () if ignore_eos else self.end_tokens
        text = None
        if wants_text and self.tokenizer is not None:
            text = TextStream(self.tokenizer.decode, stop, ids)
        if capabilities.is_encoder_decoder:
            start = [self.target.start_token]  # type: ignore[attr-defined]
            return Row(start, 1, key, min(max_tokens, capabilities.max_positions - 1), ends, text, source=ids)
        return Row(list(ids), len(ids), key, min(max_tokens, capabilities.max_positions - len(ids)), ends, text)

    def _run(
        self,
        method: Method,
        settings: Sampling,
        rows: list[Row],
        models: dict[str, Adapter],
        memory: Any,
        record: Sequence[str],
        is_batch_invariant: bool,
    ) -> Run:
        longest = max(row.num_prompt + row.max_tokens for row in rows)
        width = max(method.needs.width, _INVARIANT_WIDTH) + 1
        chunk = 256
        # In a batch every row stages as many entries as the widest one, prefill chunks included.
        slack = max(width, chunk) if len(rows) > 1 else width
        fixed = _INVARIANT_WIDTH if is_batch_invariant and not getattr(self.target, "is_invariant", False) else 0
        run = Run(
            self.target,
            method,
            settings,
            capacity=longest + slack,
            models=models,
            memory=memory,
            record=record,
            chunk=chunk,
            width=fixed,
            device=getattr(self.target, "device", "cpu"),
        )
        run.join(rows)
        return run

    def _drive(
        self,
        run: Run,
        rows: list[Row],
        on_text: Callable[[int, str], None] | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> bool:
        number = {id(row): index for index, row in enumerate(rows)}
        while run.rows:
            if is_cancelled is not None and is_cancelled():
                for row in run.rows:
                    row.finish = FinishReason.CANCELLED
                    if row.text is not None:
                        row.text.flush()
                cancelled = list(run.rows)
                run.leave(cancelled)
                _release(cancelled, number, on_text)
                return True
            _release([row for row, _ in run.step()], number, on_text)
        return False

    def _notes(self, rows: list[Row], max_tokens: int, cancelled: bool) -> list[str]:
        notes = [str(note) for note in getattr(self.target, "notes", [])]
        if any(row.max_tokens < max_tokens for row in rows):
            notes.append("max_tokens was cut to what the model's context holds.")
        if any(row.finish is FinishReason.ERROR for row in rows):
            notes.append("The model produced NaN or infinite logits; the text ends before them.")
        if cancelled:
            notes.append("Cancelled: the text is what was written until then.")
        return notes

    def _result(
        self, row: Row, method: Method, seconds: dict[str, float], seed: int, sample: int, notes: list[str]
    ) -> Result:
        decode = seconds["total"] - seconds["prefill"]
        known = seconds["draft"] + seconds["score"] + seconds["accept"]
        timing = {
            "load_s": self.load_s,
            "prefill_s": seconds["prefill"],
            "decode_s": decode,
            "draft_s": seconds["draft"],
            "score_s": seconds["score"],
            "accept_s": seconds["accept"],
            "other_s": max(0.0, decode - known),
        }
        return Result(
            self.name,
            method.name,
            list(row.source) if row.source is not None else row.tokens[: row.num_prompt],
            row.written,
            row.text.text if row.text is not None else "",
            row.finish.value if row.finish is not None else "",
            row.usage,
            timing,
            seed,
            sample,
            notes,
            row.log_probs,
            row.margins,
            row.sources,
            method.to_dict(),
        )


def _release(rows: list[Row], number: dict[int, int], on_text: Callable[[int, str], None] | None) -> None:
    """Hand out text that became final."""
    for row in rows:
        if on_text is not None and row.text is not None:
            piece = row.text.release(is_final=row.finish is not None)
            if piece:
                on_text(number[id(row)], piece)


def _settings(values: dict[str, Any]) -> Sampling:
    known = {f.name for f in fields(Sampling)}
    for name in values:
        if name not in known:
            from outpace.errors import nearest

            raise ConfigError(f"There is no sampling setting {name!r}.", nearest(name, known, "setting"))
    return Sampling(**values)

"""lm-evaluation-harness's model "outpace": its tasks, answered by our methods in its own process.

    python -m outpace.doors.lm_eval run --model outpace --model_args pretrained=stories,method=auto --tasks piqa

The command is lm-eval's own with one model more: lm-eval 0.4 looks for models in no entry point, so they have to be
registered by an import. From Python, `register()` returns the class, for `simple_evaluate(model=...)`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.api.scoring import check_causal
from outpace.arguments import whole
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.methods.registry import load_method
from outpace.run.prefill import catch_up

__all__ = ["harness", "register", "score_continuations"]

_CHUNK = 64  # positions per row and forward, all of which may ask for logits


def _harness(module: str) -> Any:
    """Return a module of lm-eval, which is no dependency of ours.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(f"lm_eval.{module}")
    except ImportError as error:
        raise ConfigError(f"lm-eval cannot be imported: {error}.", "pip install 'lm-eval>=0.4.13'") from None


@torch.no_grad()
def score_continuations(
    lm: LanguageModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """Return how likely each continuation is, and whether it is what greedy decoding would write.

    A context that several continuations share is read once.

    Args:
        lm: a causal model.
        pairs: (context, continuation) as ids, neither of them empty; together they fit the model's context plus one.

    Returns:
        Per pair the sum of the natural log-probabilities of the continuation's tokens, and whether each is the
        likeliest at its place.
    """
    contexts = [tuple(context) for context, _ in pairs]
    shared = list(dict.fromkeys(contexts))
    longest = max(len(context) + len(continuation) for context, continuation in pairs)
    cache = lm.target.new_cache(len(shared), longest + _CHUNK)
    for _ in catch_up(lm.target, cache, shared):
        pass  # all but the last token of each context, whose logits are the first that are wanted
    cache = cache.rows([shared.index(context) for context in contexts])
    texts = [[*context, *continuation] for context, continuation in pairs]
    sums, is_greedy = [0.0] * len(pairs), [True] * len(pairs)
    for places, scores in catch_up(lm.target, cache, texts, _CHUNK, has_logits=True):
        for row, place in enumerate(places):
            if not place:
                continue
            law = scores.logits[row, : len(place)].double().log_softmax(-1)
            after = torch.tensor(texts[row][place.start + 1 : place.stop + 1], device=law.device)
            sums[row] += float(law.gather(-1, after.unsqueeze(-1)).sum())
            is_greedy[row] &= bool((law.argmax(-1) == after).all())
    return list(zip(sums, is_greedy, strict=True))


class _Answers:
    """A language model of ours as lm-eval calls it; `register` joins it with the class that lm-eval expects.

    Args:
        pretrained: what `outpace.load` takes, or a `LanguageModel`.
        method: how `generate_until` decodes; the text is the same with every exact one.
        options: of the method, as a dict or as JSON.
        batch_size: requests side by side.
        max_length: the longest text in tokens; None = the model's context.
        max_gen_toks: tokens to write where a task does not say.
        device: as `load` takes it; lm-eval says cuda where nobody asks, so without one it is auto.
        **arguments: others of `load`, such as dtype.
    """

    cache_hook: Any  # of lm-eval's class

    def __init__(
        self,
        pretrained: str | LanguageModel,
        method: str = "auto",
        options: Mapping[str, Any] | str | None = None,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        del max_batch_size  # of batch_size=auto
        place = device if device and (torch.cuda.is_available() or not device.startswith("cuda")) else "auto"
        if not isinstance(pretrained, LanguageModel):
            pretrained = load(pretrained, device=place, **arguments)
        self.lm = pretrained
        check_causal(self.lm.target.capabilities)
        if self.lm.tokenizer is None:
            raise ConfigError("The model has no tokenizer, but tasks are text.", "Give a directory that has one.")
        self.method, self.options = method, _read_options(options)
        load_method(method).from_settings(self.options)  # a mistake is told before anything is scored
        automatic = str(batch_size).startswith("auto")
        self.batch_size = 8 if automatic else max(1, whole("batch_size", _number(batch_size)))
        self.max_length = max_length or self.lm.target.capabilities.max_positions
        self.max_gen_toks = max_gen_toks
        self.words = self.lm.tokenizer

    # What the texts are to the model

    @property
    def eot_token_id(self) -> int:
        found = self.lm.end_tokens[0] if self.lm.end_tokens else self.words.bos_id
        if found is None:
            raise ConfigError("The model has no end token, which stands before what has no context.")
        return found

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.words.bos_id is None else self.words.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.words.encode(string, add_special_tokens is not False)

    @property
    def tokenizer_name(self) -> str:
        return self.lm.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        name = chat_template if isinstance(chat_template, str) else "default"
        return self.words.templates.get(name, "") if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        is_open = add_generation_prompt
        return self.words.render_chat(chat_history, is_open, is_continued=not is_open)

    # What is asked

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        del disable_tqdm
        cut = [_fit(context, continuation, self.max_length) for _, context, continuation in requests]
        found: dict[int, tuple[float, bool]] = {}
        for batch in _batches(cut, self.batch_size):
            found |= zip(batch, score_continuations(self.lm, [cut[index] for index in batch]), strict=True)
            for index in batch:
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        del disable_tqdm
        utils = _harness("utils")
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            parts = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for part in map(utils.make_disjoint_window, parts):
                windows.append((None, *part))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        del disable_tqdm
        asked = [
            _harness("models.utils").normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests
        ]
        groups: dict[str, list[int]] = {}
        for index, wishes in enumerate(asked):
            groups.setdefault(json.dumps(wishes, sort_keys=True, default=str), []).append(index)
        texts = [""] * len(requests)
        for members in groups.values():
            room = self.max_length - asked[members[0]]["max_gen_toks"]
            if room < 1:
                raise ConfigError(
                    f"max_gen_toks leaves no room in a context of {self.max_length} tokens.", "Ask for fewer."
                )
            prompts = [self.tok_encode(requests[index].args[0])[-room:] for index in members]
            for batch in _batches([(prompt, ()) for prompt in prompts], self.batch_size):
                arguments = self._arguments(asked[members[0]])
                found = self.lm.generate([prompts[place] for place in batch], **arguments)
                best = [result for result in found if result.sample == 0]  # a file may ask for several of a search
                for place, result in zip(batch, best, strict=True):
                    texts[members[place]] = result.text
                    self.cache_hook.add_partial("generate_until", requests[members[place]].args, result.text)
        return texts

    def _arguments(self, wishes: Mapping[str, Any]) -> dict[str, Any]:
        """Return lm-eval's wishes for a text as `generate` takes them; what is neither's is refused there."""
        rest = dict(wishes)
        is_sampled, stop = rest.pop("do_sample"), [text for text in rest.pop("until") if text]
        arguments = {"method": self.method, "options": self.options, "stop": stop}
        arguments |= {"max_tokens": rest.pop("max_gen_toks"), "temperature": rest.pop("temperature", 1.0)}
        return arguments | rest if is_sampled else arguments | rest | {"temperature": 0.0}


def _read_options(options: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(options) if isinstance(options, str) else options or {}
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise ConfigError(f"options is {options!r}.", 'Write them as JSON, e.g. {"draft_len": 4}.')
    return found


def _number(value: int | str) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _fit(context: list[int], continuation: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Cut a pair at the left to what the model holds; the last token is only an answer, so it takes no place."""
    if len(continuation) > longest:
        raise ConfigError(
            f"A continuation has {len(continuation)} tokens, but the model's context is {longest}.", "Shorten it."
        )
    whole_text = [*context, *continuation][-(longest + 1) :]
    start = len(whole_text) - len(continuation)
    return whole_text[:start], whole_text[start:]


def _batches(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], size: int) -> Iterator[list[int]]:
    """Yield indices in batches, the longest texts first, those with one context side by side."""
    order = sorted(range(len(pairs)), key=lambda index: (-len(pairs[index][0]), pairs[index][0], len(pairs[index][1])))
    for at in range(0, len(order), size):
        yield order[at : at + size]


def register() -> Any:
    """Register the model "outpace" with lm-eval, once, and return its class.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    registry = _harness("api.registry").model_registry
    if "outpace" not in registry:
        expected = _harness("api.model").TemplateLM
        registry.register("outpace", target=type("Outpace", (_Answers, expected), {}))
    return registry.get("outpace")


def harness(arguments: Sequence[str] | None = None) -> int:
    """Run lm-eval's command line with the model "outpace" registered; return the exit status."""

    def run(given: list[str]) -> int:
        register()
        command = _harness("__main__")
        sys.argv[1:] = given
        try:
            command.cli_evaluate()
        except SystemExit as end:  # as argparse ends
            return end.code if isinstance(end.code, int) else 0
        return 0

    return guarded(run, sys.argv[1:] if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(harness())

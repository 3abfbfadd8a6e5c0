"""Texts that the target writes itself: what a drafter is trained on, a line of JSON each.

A drafter has to guess what its target writes, not what people write, so the target answers prompts, some greedily and
some drawn. Lines are appended as texts end; a run that was stopped goes on with the prompts that have no line yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from outpace.errors import ConfigError, OutpaceError, StorageError
from outpace.types import Adapter

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.api.prompt import Prompt

__all__ = ["Text", "Writing", "describe_target", "read_texts", "write_texts"]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and what the target answered.

    Attributes:
        id: names prompt and attempt, "PROMPT-ATTEMPT"; attempts at one prompt are never parted.
        prompt, answer: token ids; of an encoder-decoder those of its decoder, whose prompt is its start token.
        source: token ids that an encoder-decoder read.
    """

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    source: tuple[int, ...] = ()

    @property
    def group(self) -> str:
        """What the attempts at one prompt have in common."""
        return self.id.rpartition("-")[0] or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How texts are written.

    Attributes:
        count: texts in all.
        max_tokens: most tokens of an answer.
        greedy_share: share of the prompts that are answered greedily at the first attempt.
        temperature: of all other answers.
        rows: answers written side by side.
        seed: fixes order and draws.
    """

    count: int = 2000
    max_tokens: int = 320
    greedy_share: float = 0.5
    temperature: float = 0.8
    rows: int = 48
    seed: int = 0


def describe_target(target: Adapter, name: str) -> dict[str, Any]:
    """Return what tells one target from another: its sizes, and a hash of some of its embeddings."""
    offered = target.capabilities
    some = torch.linspace(0, offered.vocab_size - 1, 16).long().unsqueeze(0).to(target.device)
    numbers = target.embed(some).detach().float().cpu().contiguous().numpy().tobytes()
    return {
        "target": name,
        "vocab_size": offered.vocab_size,
        "num_layers": offered.num_layers,
        "fingerprint": hashlib.sha256(numbers).hexdigest()[:16],
    }


def check_target(path: Path, told: dict[str, Any], what: str) -> None:
    """Hold the target's description beside a cache to what it is now; write it where there is none.

    Raises:
        ConfigError: the cache is of another target.
        StorageError: it cannot be written.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path} cannot be written ({error.strerror}).", "Give another --out.") from error
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read.", "Delete it and what lies beside it.") from error
    odd = [key for key in told if key != "target" and kept.get(key) != told[key]]
    if odd:
        raise ConfigError(
            f"The {what} in {path.parent} are of another target ({kept.get('target')!r}): {odd[0]} differs.",
            "Give another --out, or delete them.",
        )


def read_texts(path: Path, vocab_size: int) -> list[Text]:
    """Return the texts of a file, in its order; a last line that was cut short is left out.

    Raises:
        ConfigError: the file is missing or holds no text, a line is none, or a token lies beyond the vocabulary.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"The texts {path} cannot be read ({error.strerror}).", "Name a file of texts.") from error
    found = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut short, or is empty
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            parts = [tuple(map(int, found)) for found in (told["prompt"], told["answer"], told.get("source", ()))]
            text = Text(str(told["id"]), *parts)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"Line {number} of {path} is no text.", 'It needs "id", "prompt" and "answer".'
            ) from error
        whole = text.prompt + text.answer
        if whole and not 0 <= min(whole) <= max(whole) < vocab_size:
            raise ConfigError(
                f"Line {number} of {path} holds token {max(whole)}, but the target has {vocab_size}.",
                "Give texts that this target wrote.",
            )
        if text.answer:
            found.append(text)
    if not found:
        raise ConfigError(f"{path} holds no texts.", "Give a file with a JSON object per line.")
    return found


def write_texts(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    path: Path,
    how: Writing,
    *,
    is_stopping: Callable[[], bool] = lambda: False,
    show: Callable[[int, int], None] = lambda texts, tokens: None,
) -> None:
    """Let the target answer prompts until a file holds as many texts as wanted.

    Args:
        lm: the target.
        prompts: text, messages or token ids; they come again, drawn with other seeds, where more texts are wanted.
        path: the file, which is appended to.
        how: the settings.
        is_stopping: asked between texts; True ends the writing with what there is.
        show: called with the number of texts and of tokens in the file.

    Raises:
        ConfigError: there is no prompt, or the file is of another target.
        StorageError: the disk is full; what was written stays.
    """
    if not prompts:
        raise ConfigError("There is no prompt to answer.", "Give --prompts FILE, or --texts-from FILE.")
    check_target(path.with_suffix(".target.json"), describe_target(lm.target, lm.name), "texts")
    done, tokens = _written(path)
    tasks = [task for task in _tasks(len(prompts), how) if task[0] not in done]
    show(len(done), tokens)
    try:
        with path.open("a", encoding="utf-8") as file:
            _end_line(path, file)
            asyncio.run(_write(lm, prompts, tasks, how, file, [len(done), tokens], is_stopping, show))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written on ({error.strerror}).",
            "Free some space, then run again: it goes on from there.",
        ) from error


def _tasks(prompts: int, how: Writing) -> Iterator[tuple[str, int, float, int]]:
    """Yield (id, prompt, temperature, seed), a lap of all prompts after the other, each in an order of its own."""
    for number in range(how.count):
        lap, place = divmod(number, prompts)
        draws = torch.Generator().manual_seed(how.seed * 1009 + lap)
        if place == 0:
            order = torch.randperm(prompts, generator=draws).tolist()
            is_greedy = (torch.rand(prompts, generator=draws) < how.greedy_share).tolist()
        prompt = order[place]
        yield f"{prompt}-{lap}", prompt, 0.0 if lap == 0 and is_greedy[place] else how.temperature, number


def _written(path: Path) -> tuple[set[str], int]:
    done, tokens = set(), 0
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                try:
                    told = json.loads(line)
                    done.add(str(told["id"]))
                    tokens += len(told["answer"])
                except (ValueError, KeyError, TypeError):  # the last line, where the process was killed
                    continue
    return done, tokens


def _end_line(path: Path, file: IO[str]) -> None:
    """End a line that was cut short, so that the next begins a new one; `read_texts` would stumble: cut it off."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


async def _write(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    tasks: Sequence[tuple[str, int, float, int]],
    how: Writing,
    file: IO[str],
    count: list[int],
    is_stopping: Callable[[], bool],
    show: Callable[[int, int], None],
) -> None:
    from outpace.engine.core import Engine
    from outpace.engine.face import Ask
    from outpace.engine.limits import Limits

    waiting = iter(tasks)
    room = lm.target.capabilities.max_positions
    async with Engine(lm, limits=Limits(max_rows=how.rows, max_queue=4 * how.rows)) as engine:

        async def work() -> None:
            for name, prompt, temperature, seed in waiting:
                if is_stopping():
                    return
                asked = {"method": "autoregressive", "temperature": temperature, "seed": seed}
                try:
                    ticket = await engine.submit(
                        Ask(prompt=prompts[prompt], arguments={**asked, "max_tokens": min(how.max_tokens, room - 2)})
                    )
                    result = (await ticket.results())[0]
                except OutpaceError:  # a prompt that does not fit the model is passed over
                    continue
                told = {"id": name, "t": temperature, **_given(lm.target, result.prompt_tokens)}
                told |= {"answer": list(result.tokens), "finish": result.finish_reason}
                file.write(json.dumps(told) + "\n")
                file.flush()
                count[0] += 1
                count[1] += len(result.tokens)
                show(*count)

        await asyncio.gather(*(work() for _ in range(how.rows + how.rows // 4)))


def _given(target: Adapter, prompt: Sequence[int]) -> dict[str, list[int]]:
    """Return what an answer was given for: its prompt, or the source and what the decoder starts with."""
    if not target.capabilities.is_encoder_decoder:
        return {"prompt": list(prompt)}
    return {"source": list(prompt), "prompt": [] if target.start_token is None else [target.start_token]}

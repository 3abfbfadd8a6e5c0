"""Laws that take the model's place, asked of an engine: the library's texts, and neighbours that keep theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import run, told, wanted

import outpace
from outpace import Ask, Engine, LanguageModel
from outpace.engine.core import read_traits
from outpace.errors import ConfigError
from outpace.laws.markov import write_tables
from outpace.laws.reward import KIND
from outpace.server.asking import arguments
from outpace.server.errors import Refused
from outpace.server.schemas import CompletionBody
from outpace.server.settings import ServerSettings
from outpace.testing.toy import ToyModel

PROMPT = "Once upon a time, a dog"


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return outpace.load("stories")


@pytest.fixture(scope="module")
def head(stories: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward head of random numbers."""
    folder = tmp_path_factory.mktemp("head")
    width = stories.target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    size = stories.target.capabilities.vocab_size
    chance = torch.Generator().manual_seed(0)
    tables = {"down": torch.randn(width, 2, generator=chance) / 4, "up": torch.randn(2, size, generator=chance)}
    write_tables(folder, {"model_type": KIND}, tables)
    return folder


def test_each_ask_has_its_own_law(stories: LanguageModel, head: Path) -> None:
    laws: list[dict[str, Any]] = [
        {"law": "cfg:weight=1.7"},
        {},
        {"law": "contrast:weight=0.5", "method": "prompt-lookup"},
        {"law": ["dola:weight=1", "self-terminating:epsilon=0.01"], "method": "token-recycling"},
        {"law": "moi:beta=1"},
        {"law": "plugin:model=stories-draft,weight=0.5", "num_samples": 2},
        {"law": f"reward:head={head},weight=3"},
        {"method": "suffix"},
        {"law": "cfg:weight=1.7", "search": "best-of", "options": {"n": 2}},
    ]
    asks = [{"max_tokens": 16, "temperature": 0.8, "seed": 3, **law} for law in laws]

    async def use(engine: Engine) -> Any:
        tickets = await asyncio.gather(*(engine.submit(Ask(prompt=PROMPT, arguments=ask)) for ask in asks))
        return [await ticket.results() for ticket in tickets]

    found = run(lambda: Engine(stories), use)
    texts = [[told(one) for one in results] for results in found]
    assert texts == [wanted(stories, PROMPT, ask) for ask in asks]
    assert sum(results[0] != texts[1][0] for results in texts) >= 5  # the laws do say something else


def test_what_a_law_cannot_do_is_refused_before_anything_runs(stories: LanguageModel) -> None:
    bad = {
        "cfg:negative=There was a very big dog who had a big friend": "negative prompt has",
        "reward": "names no head",
        "plugin:model=smollm2": "tokens",
        "dola:layers=99": "99",
    }

    async def use(engine: Engine) -> None:
        for law, word in bad.items():
            with pytest.raises(outpace.OutpaceError, match=word):
                await engine.submit(Ask(prompt="Once", arguments={"law": law, "max_tokens": 2}))
        ticket = await engine.submit(Ask(prompt=PROMPT, arguments={"max_tokens": 4}))
        (plain,) = await ticket.results()
        assert plain.tokens == stories.generate(PROMPT, max_tokens=4).tokens

    run(lambda: Engine(stories), use)


def asked(law: str) -> Any:
    body = CompletionBody.model_validate({"prompt": "a", "outpace": {"law": [law]}})
    settings = ServerSettings(laws={"kind": "reward:head=secret,weight=2"})

    class Face:
        traits, tokenizer = read_traits(LanguageModel(ToyModel(), None), 64), None

    return arguments(body, Face(), settings, {"type": "http"}, 1, 4)["law"]  # type: ignore[arg-type]


def test_a_server_names_laws_with_files_of_its_own() -> None:
    assert asked("kind") == ["reward:head=secret,weight=2"]
    assert asked("kind:weight=3") == ["reward:head=secret,weight=3"]
    assert asked("cfg:weight=2") == ["cfg:weight=2"]
    for wrong in ("reward:head=secret", "kind:head=other", "plugin:model=stories-draft", "contrast:amateur=x"):
        with pytest.raises(Refused, match="may not be named by a request"):
            asked(wrong)
    with pytest.raises(ConfigError, match="no law"):
        asked("kinds")
    with pytest.raises(ConfigError, match="weight"):
        asked("kind:weight=much")

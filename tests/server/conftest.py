"""Real servers on loopback over small models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from scripted import PATIENCE_S, Scripted, Stand, listening

import outpace
from outpace.server.settings import ServerSettings

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Once{% endif %}"


@pytest.fixture(scope="session")
def stories() -> outpace.LanguageModel:
    return outpace.load("stories")


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> outpace.LanguageModel:
    """The shipped model of stories, with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "chat"
    shutil.copytree(Path(outpace.__file__).parent / "zoo" / "stories", folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return outpace.load(folder)


@pytest.fixture(scope="session")
def url(stories: outpace.LanguageModel, chatty: outpace.LanguageModel) -> Iterator[str]:
    """A server of three models."""
    engines = {
        "stories": outpace.Engine(stories),
        "chat": outpace.Engine(chatty),
        "mask": outpace.Engine("stories-mask"),
    }
    with listening(engines) as found:
        yield found


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="session")
def web() -> Iterator[httpx.Client]:
    """A client for any server; each request has a connection of its own."""
    with httpx.Client(timeout=PATIENCE_S, verify=False, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        yield client


@pytest.fixture(scope="session")
def stand() -> Iterator[tuple[Stand, str]]:
    """A server for engines that take turns, and its URL."""
    made = Stand()
    with listening({"scripted": made}, ServerSettings(drain_s=0)) as url:
        yield made, url


@pytest.fixture
def serve(stand: tuple[Stand, str]) -> Iterator[Callable[..., str]]:
    """Serve a scripted engine for one test; returns the URL. With settings it gets a server of its own."""
    with ExitStack() as stack:

        def start(face: Scripted, **settings: object) -> str:
            if settings:
                return stack.enter_context(listening({"scripted": face}, ServerSettings(drain_s=0, **settings)))
            stand[0].face = face
            return stand[1]

        yield start

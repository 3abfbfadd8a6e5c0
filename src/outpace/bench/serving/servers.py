"""Servers as processes of their own: ours, llama.cpp's and transformers', each on a free port of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from outpace.bench.serving.client import Client, LostError
from outpace.errors import OutpaceError
from outpace.models.opening import locate
from outpace.quantize.gguf_file import write_plain

__all__ = ["PEERS", "Server", "peer_versions", "serve_ours", "serve_peer", "served_name", "tidy_end", "wait_for"]

PEERS = ("llama.cpp", "llama.cpp:lookup", "transformers", "transformers:batching")
_START_S = 300.0
_END_S = 60.0
_LAST = 400  # characters of what a process said last


class Server:
    """A process that answers at `url` while in the block.

    Args:
        name: shown.
        command: starts it; {port} stands for the port that it is to listen on.
        model: what requests call the model.
        ready: a page that answers 200 once it serves.
        environment: beside this process's own.

    Raises:
        OutpaceError: it ended, or did not answer in five minutes; with the last of what it said.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        model: str,
        *,
        ready: str = "/health",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name, self.model, port = name, model, _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self._process = subprocess.Popen(
                [part.replace("{port}", str(port)) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            self._log.close()
            raise OutpaceError(f"{name} cannot be started: {error.strerror}.") from None
        try:
            wait_for(self.url, ready, self._is_alive)
        except OutpaceError as error:
            self.close()
            raise OutpaceError(f"{name} does not serve: {error}", error.hint) from None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _is_alive(self) -> str:
        """Return "" while the process runs, else its last words."""
        if self._process.poll() is None:
            return ""
        self._log.seek(0)
        said = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return f"it ended with status {self._process.returncode}: {said[-1][:_LAST] if said else 'no output'}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def tidy_end() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that servers started in it end, too."""
    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_for(url: str, page: str, ended: object = None) -> None:
    """Wait until a server answers 200.

    Raises:
        OutpaceError: `ended()` gave its last words, or five minutes went by.
    """
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if callable(ended) and (words := ended()):
            raise OutpaceError(str(words))
        client = Client(url, timeout_s=5.0)
        try:
            if client.get(page)[0] == 200:
                return
        except LostError:
            pass
        finally:
            client.close()
        time.sleep(0.1)
    raise OutpaceError(f"{url}{page} does not answer.", "Check that the server runs.")


def serve_ours(model: str, *, threads: int = 0, arguments: Sequence[str] = ()) -> Server:
    """Start `outpace serve` with a model; `arguments` are further ones of its command line."""
    command = [sys.executable, "-m", "outpace", "serve", "--model", model, "--port", "{port}", *arguments]
    return Server("outpace", command, model, environment=_threads(threads))


def served_name(url: str, model: str) -> str:
    """Return what a server calls a model: what was loaded from a directory is served by the directory's name.

    Raises:
        OutpaceError: it serves several models, none of that name, or does not list them.
    """
    client = Client(url)
    try:
        status, text = client.get("/v1/models")
        names = [str(found["id"]) for found in json.loads(text)["data"]] if status == 200 else []
    except (LostError, ValueError, KeyError, TypeError) as error:
        raise OutpaceError(f"{url} lists no models: {error}.", "Check that the server runs.") from None
    finally:
        client.close()
    for name in (model, Path(model).name, Path(model).stem):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise OutpaceError(f"{url} serves no {model}.", f"It serves {', '.join(names) or 'nothing'}.")


def serve_peer(name: str, model: str, folder: Path, dtype: torch.dtype, context: int, threads: int = 0) -> Server:
    """Start a peer on the same weights.

    Args:
        name: of `PEERS`.
        model: what `outpace.load` takes.
        folder: where the model is converted to.
        dtype: what both compute in.
        context: the longest text.
        threads: to compute with; 0 = as they are.

    Raises:
        OutpaceError: it is not installed, or cannot read the model.
    """
    source, _ = locate(model)
    # Peers find their files here, and fetch none.
    environment = {**_threads(threads), "HF_HUB_OFFLINE": "1"}
    python = _peers_python()
    if name.startswith("transformers"):
        place = f"{source.parent}:{source.name}" if source.is_file() else str(source)
        kind = str(dtype).removeprefix("torch.")
        command = [python, "-m", "transformers.cli.transformers", "serve", place, "--dtype", kind]
        command += ["--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]
        extra = ["--continuous-batching"] if name.endswith(":batching") else []
        return Server(name, [*command, *extra], place, environment=environment)
    file = source if source.is_file() else folder / "model.gguf"
    if not file.exists():
        write_plain(source, file, dtype, has_text=True)
    command = [
        python,
        "-m",
        "llama_cpp.server",
        "--model",
        str(file),
        "--model_alias",
        "model",
        "--n_ctx",
        str(context),
    ]
    command += ["--host", "127.0.0.1", "--port", "{port}"]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads)] if threads else []
    command += ["--draft_model", "prompt-lookup-decoding"] if name.endswith(":lookup") else []
    return Server(name, command, "model", ready="/v1/models", environment=environment)


def peer_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that peers come with; those that are not installed are left out."""
    found = {}
    for name in dict.fromkeys(name.partition(":")[0] for name in names):
        package = {"llama.cpp": "llama-cpp-python"}.get(name, name)
        code = f"from importlib.metadata import version; print(version({package!r}))"
        try:
            done = subprocess.run([_peers_python(), "-c", code], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            found[package] = done.stdout.strip()
    return found


def _peers_python() -> str:
    return os.environ.get("OUTPACE_PEERS_PYTHON") or sys.executable


def _threads(number: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(number)} if number else {}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])

"""A process that serves one engine, spoken to in JSON lines.

It runs `children/outpace_peer` with the Python that OUTPACE_PEERS_PYTHON names, else this one: the engines' packages
may clash with ours.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from outpace.errors import OutpaceError

__all__ = ["Child", "ChildError"]

_HOME = Path(__file__).parent / "children"
_TIMEOUT_S = 900.0  # of one request; an export of a large model takes minutes


class ChildError(OutpaceError):
    """An engine refused a request or died; the text is its reason."""


class Child:
    """A process that serves one engine.

    Args:
        engine: of `ENGINES`.
        threads: for OpenMP in the child.
        python: the interpreter; None = OUTPACE_PEERS_PYTHON, else this one.
    """

    def __init__(self, engine: str, threads: int, python: str | None = None) -> None:
        python = python or os.environ.get("OUTPACE_PEERS_PYTHON") or sys.executable
        # CI=true: openvino reports nothing home. The engines find their files here, and fetch none.
        extra = {"PYTHONPATH": str(_HOME), "OMP_NUM_THREADS": str(threads), "CI": "true", "HF_HUB_OFFLINE": "1"}
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self._process = subprocess.Popen(
                [python, "-m", "outpace_peer", engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**os.environ, **extra},
            )
        except OSError as error:
            self._log.close()
            raise ChildError(f"{python} cannot be run ({error.strerror}).", "Check OUTPACE_PEERS_PYTHON.") from None
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, what: str, **fields: Any) -> Any:
        """Send a request and return the answer.

        Raises:
            ChildError: the engine says that it cannot, died, or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=_TIMEOUT_S)
        except queue.Empty:
            raise ChildError(f"No answer within {_TIMEOUT_S:.0f} s.") from None
        except OSError:
            line = ""
        if not line:
            raise ChildError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with suppress(OSError):  # what was not yet sent to a process that died
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return f"The engine's process died with status {status}: {lines[-1] if lines else 'no output'}"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

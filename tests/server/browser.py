"""Headless Chromium over its DevTools pipe: enough to drive a page as a person does, and to hear its complaints."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36, " ": 32}
LONGEST_S = 60.0  # before a test is given up; nothing waits this long unless it hangs


def find() -> str | None:
    """Return where a Chromium is, if anywhere; one needs bash too, which hands it the pipe."""
    return next(filter(None, map(shutil.which, NAMES)), None) if shutil.which("bash") else None


class Browser:
    """One Chromium with one page.

    Attributes:
        log: what the page complained of: errors in its console, breaches of its policy, failed scripts.
        addresses: every address that it asked for.
    """

    def __init__(self, process: subprocess.Popen[bytes], reads: int, writes: int) -> None:
        self._process, self._reads, self._writes = process, reads, writes
        self._open, self._numbers, self._session, self._num_loaded = b"", itertools.count(1), "", 0
        self.log: list[str] = []
        self.addresses: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; what the page reports meanwhile is noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)
        raise AssertionError("Chromium ended.")

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + LONGEST_S
        while True:
            message, found, rest = self._open.partition(b"\0")
            if found:
                self._open = rest
                yield json.loads(message)
                continue
            ready, _, _ = select.select([self._reads], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._reads, 1 << 20) if ready else b""
            if not more:
                return
            self._open += more

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._num_loaded += 1
            case "Network.requestWillBeSent":
                self.addresses.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.log.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.log.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.log.append(json.dumps(params["entry"]))
            case "Audits.issueAdded":
                self.log.append(json.dumps(params["issue"]))

    def go(self, address: str) -> None:
        """Open a page and wait until it is there."""
        before = self._num_loaded
        self.call("Page.navigate", url=address)
        messages = self._messages()
        while self._num_loaded == before:
            self._note(next(messages))

    def run(self, script: str) -> Any:
        """Return what an expression is in the page; promises are waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression holds in the page, which looks again and again by itself."""
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # a navigation ends what is being evaluated
                if self.run(
                    "new Promise(done => { let left = 200; const look = () => {"
                    f" if ({condition}) done(true); else if (left--) setTimeout(look, 10); else done(false)"
                    " }; look() })"
                ):
                    return
        raise AssertionError(f"It never came true that {condition}; the page: {self.run('document.body.innerText')}")

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """Click in the middle of an element, wherever it is."""
        at = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getClientRects()[0];"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **pressed)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key; modifiers: 1 = Alt, 2 = Ctrl, 8 = Shift."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def fill(self, selector: str, value: object) -> None:
        """Put a value into a field, as typing it over the old one does."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(str(value))}; "
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})) })()"
        )

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Give the page a width and a height in CSS pixels."""
        is_phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )

    def prefer(self, **media: str) -> None:
        """Prefer something: `prefers_color_scheme="dark"`."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self) -> bytes:
        """Return the whole page as a PNG."""
        whole = self.call("Page.getLayoutMetrics")["cssContentSize"] | {"scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=whole)
        return base64.b64decode(shot["data"])


@contextlib.contextmanager
def browse(program: str) -> Iterator[Browser]:
    """Run a Chromium and end it."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    # Its ends of the pipes have to be its files 3 and 4; those numbers may be taken here, so bash puts them there.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking"]
        handed = ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "bash", program, *options]
        process = subprocess.Popen(handed, pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        try:
            yield Browser(process, ours_in, ours_out)
        finally:
            process.terminate()
            process.wait(30)
            os.close(ours_in)
            os.close(ours_out)

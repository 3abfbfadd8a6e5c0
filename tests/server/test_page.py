"""The page in a real browser: written, stopped, raced, lost and found again; by keyboard, in the dark, on a phone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import browser as chromium
import httpx
import pytest
from browser import Browser
from page_engine import TEXT, Scripted, cutting, serve

import outpace
from outpace import Engine
from outpace.engine.face import Face
from outpace.server.app import create_app
from outpace.server.settings import ServerSettings

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: install one, and bash, to drive the page")

IDLE = "document.querySelector('#stop').disabled"
DONE = f"{IDLE} && document.querySelector('.facts')?.textContent"
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def scripted(tiny: Path) -> Scripted:
    return Scripted(outpace.load(tiny).tokenizer)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("stories")
    yield engine
    asyncio.run(engine.close())


def settings(name: str) -> ServerSettings:
    return ServerSettings(keys=(KEY,) if name == "locked" else (), ping_s=0.05)


@pytest.fixture(scope="module")
def addresses(scripted: Scripted, engine: Engine) -> Iterator[dict[str, str]]:
    """Two open servers, one over fixed text and one over a model, and one that asks for a key."""
    faces: dict[str, dict[str, Face]] = {"scripted": {"scripted": scripted}, "stories": {"stories": engine}}
    faces["locked"] = faces["scripted"]
    running = {
        name: serve(cutting(create_app(found, settings(name), closes_engines=False), scripted))
        for name, found in faces.items()
    }
    yield {name: address for name, (_, _, address) in running.items()}
    for server, _, _ in running.values():
        server.should_exit = True
    for _, thread, _ in running.values():
        thread.join(30)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    assert PROGRAM is not None
    with chromium.browse(PROGRAM) as running:
        yield running


@pytest.fixture
def page(chrome: Browser, addresses: dict[str, str], scripted: Scripted) -> Iterator[Browser]:
    """The page of the server of fixed text, as it is when it has met the server; complaints fail the test."""
    chrome.size(1100, 900)
    chrome.prefer()
    scripted.is_held = False
    opened(chrome, addresses["scripted"])
    chrome.log.clear()
    chrome.addresses.clear()
    yield chrome
    scripted.is_held = scripted.is_cut = False
    offline(chrome, False)
    asked = [address for address in chrome.addresses if not address.startswith("http://127.0.0.1:")]
    assert asked == [] and chrome.log == []


def opened(page: Browser, address: str) -> None:
    page.go(address)
    page.wait("document.querySelector('#method').value === 'auto'")


def as_text(page: Browser) -> None:
    """Choose to continue a text, as models that do not chat always do."""
    page.click("[name=kind][value=text] + span")


def written(page: Browser, selector: str = ".text") -> str:
    found = page.run(f"[...document.querySelectorAll('{selector} .t')].map(t => t.textContent).join('')")
    return str(found)


def counted(page: Browser, selector: str) -> int:
    return int(page.run(f"document.querySelectorAll('{selector}').length"))


def test_text_streams_in_and_every_token_says_where_it_came_from(page: Browser) -> None:
    as_text(page)
    page.click("#prompt")
    page.type("Once upon a time")
    page.press("Enter", modifiers=2)
    page.wait(DONE)
    assert written(page) == TEXT
    assert page.text("#text-view .text").startswith("Once upon a time the quick")
    legend = page.text("#legend")
    for origin in ("drafted by suffix", "drafted by token-recycling", "bonus", "recovered", "plain"):
        assert origin in legend
    kinds = [
        page.run(f"getComputedStyle(document.querySelector('.text .{kind}')).textDecorationStyle")
        for kind in ("d0", "d1", "bonus", "recovered")
    ]
    assert kinds == ["solid", "dashed", "double", "dotted"]  # told apart without their colours
    assert "drafts kept" in page.text(".facts") and "Done" in page.text("#status")
    assert page.text("#spoken") == TEXT
    assert page.text("#load-running") == "3" and page.text("#load-waiting") == "2"
    assert page.text("#load-cache") == "25%"


def test_a_token_leads_to_its_step_and_the_step_to_its_tree(page: Browser) -> None:
    as_text(page)
    page.fill("#prompt", "Once")
    page.click("#write")
    page.wait(DONE)
    page.click(".text .t.bonus")
    tip = page.text("#tip")
    assert "bonus" in tip and "step 2" in tip and "-0.500 (60.7%)" in tip
    assert page.text("#step-facts").startswith("Step 2 of ") and "2 were kept" in page.text("#step-facts")
    assert counted(page, "#tree .node.kept") == 2 and counted(page, "#tree .node.refused") == 2
    assert counted(page, "#tree .node.bonus") == 1 and counted(page, ".text .now") == 3
    assert counted(page, "#spark .column") == page.run("Number(document.querySelector('#step').max) + 1")
    page.click("#step-back")
    assert page.text("#step-facts").startswith("Step 1 of ") and "1 was kept" in page.text("#step-facts")
    assert counted(page, "#tree .node.kept") == 1 and counted(page, "#tree .node.refused") == 3
    assert counted(page, "#tree .node.recovered") == 1
    page.click("#spark .column:nth-child(5) .hit")
    assert page.text("#step-facts").startswith("Step 5 of ")


def test_a_conversation_goes_on_and_begins_anew(page: Browser) -> None:
    for said in ("Hello", "And then"):
        page.wait(IDLE)
        page.fill("#prompt", said)
        page.click("#write")
        page.wait(
            f"document.querySelectorAll('.asked').length && {IDLE} && document.querySelector('#prompt').value === ''"
        )
    assert counted(page, "#thread article") == 2 and written(page, "#thread article:last-child .text") == TEXT
    page.click("#fresh")
    assert counted(page, "#thread article") == 0 and not page.run("document.querySelector('#text-view').offsetHeight")


def test_stop_keeps_what_is_written_and_the_server_hears_of_it(page: Browser, scripted: Scripted) -> None:
    as_text(page)
    scripted.is_held = True
    page.fill("#prompt", "Once")
    page.click("#write")
    page.wait("document.querySelectorAll('.text .t').length === 6")
    page.press("Escape")
    page.wait(IDLE)
    assert page.text("#status") == "Stopped after 6 tokens."
    assert TEXT.startswith(written(page)) and counted(page, ".text .t") == 6
    for _ in range(1000):
        if scripted.tickets[-1].is_cancelled:
            break
        page.run("new Promise(done => setTimeout(done, 10))")
    assert scripted.tickets[-1].is_cancelled
    assert not page.run("document.querySelector('#write').disabled")


def test_a_race_of_a_real_model_ends_in_equal_texts(page: Browser, addresses: dict[str, str], engine: Engine) -> None:
    opened(page, addresses["stories"])
    page.fill("#method", "prompt-lookup")
    page.fill("#max-tokens", 40)
    page.fill("#seed", 5)
    page.fill("#prompt", "Tim had a ball. Tim had a")
    for races in (1, 2):
        page.click("#race")
        page.wait("document.querySelector('#replay').hidden")
        page.wait("!document.querySelector('#replay').hidden")
        assert page.text("#same") == "✓ Identical texts: all 40 tokens are equal."
        assert page.text("#factor").endswith("\N{MULTIPLICATION SIGN}") and float(page.text("#factor")[:-1]) > 0
        assert ("2 races so far" in page.text("#measured")) == (races == 2)
    texts = [written(page, f".lane:nth-child({lane}) .text") for lane in (1, 2)]
    alone = engine.lm.generate("Tim had a ball. Tim had a", max_tokens=40, seed=5, temperature=0.7)
    assert texts == [alone.text, alone.text]
    page.click("#replay")
    page.wait("document.querySelectorAll('.later').length === 0 && !document.querySelector('#replay').disabled")
    assert [page.run(f"document.querySelectorAll('progress')[{lane}].value") for lane in (0, 1)] == [40, 40]


def test_a_race_whose_texts_part_says_where(page: Browser) -> None:
    as_text(page)
    page.fill("#method", "alignment")
    page.fill("#prompt", "Once")
    page.click("#race")
    page.wait("!document.querySelector('#replay').hidden")
    assert page.text("#same").startswith("≠ The texts part at token 6.")
    assert counted(page, ".lane:nth-child(1) .t:not(.parted)") == 5
    assert page.run("document.querySelector('#verdict').className") == "verdict other"


def test_a_lost_connection_is_told_and_trying_again_goes_on(page: Browser, scripted: Scripted) -> None:
    as_text(page)
    scripted.is_held = True
    page.fill("#prompt", "Once")
    page.click("#write")
    page.wait("document.querySelectorAll('.text .t').length === 6")
    offline(page, True)  # nothing new comes through,
    scripted.is_cut = True  # and what runs breaks off
    page.wait("!document.querySelector('#notice').hidden")
    assert page.text("#notice-text").startswith(
        "The connection to the server was lost. What was written stays (6 tokens);"
    )
    assert counted(page, ".text .t") == 6
    page.click("#retry")
    page.wait("!document.querySelector('#notice').hidden")
    offline(page, False)
    scripted.is_held = scripted.is_cut = False
    first = page.run("document.querySelector('.text .t').isMarked = true")
    page.click("#retry")
    page.wait(f"{IDLE} && document.querySelector('#status').textContent.startsWith('Done')")
    assert first and page.run("document.querySelector('.text .t').isMarked")  # it stayed; the same seed wrote it again
    assert written(page) == TEXT and page.run("document.querySelector('#notice').hidden")
    only_the_network_complained(page)


def offline(page: Browser, is_offline: bool) -> None:
    page.call(
        "Network.emulateNetworkConditions", offline=is_offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )


def only_the_network_complained(page: Browser) -> None:
    """A browser logs what it could not load, and answers that are refusals, whatever a page makes of them."""
    page.log[:] = [entry for entry in page.log if json.loads(entry).get("source") != "network"]


def test_a_refusal_is_shown_as_the_sentence_that_the_server_said(page: Browser) -> None:
    as_text(page)
    page.fill("#prompt", "Once")
    page.click("#more summary")
    page.fill("#top-p", 0)
    page.click("#write")
    page.wait("!document.querySelector('#notice').hidden")
    assert "top_p" in page.text("#notice-text") and page.text("#notice-text").endswith(".")
    assert page.run("document.querySelector('#notice').getAttribute('role')") == "alert"
    assert page.run("document.querySelector('#retry').hidden")  # it would be refused again
    page.click("#more summary")
    asked = len(page.addresses)
    page.fill("#top-p", "")
    page.click("#write")  # a form that is not in order asks nothing, and points at what is missing
    page.wait("document.activeElement.id === 'top-p'")
    assert not [address for address in page.addresses[asked:] if "completions" in address]
    only_the_network_complained(page)


def test_a_server_that_asks_for_a_key_is_given_one(page: Browser, addresses: dict[str, str]) -> None:
    page.go(addresses["locked"])
    page.wait("!document.querySelector('#notice').hidden")
    assert "key" in page.text("#notice-text")
    assert page.run("document.activeElement.id") == "key"
    page.type(KEY)
    page.click("#retry")
    page.wait("document.querySelector('#method').value === 'auto'")
    as_text(page)
    page.fill("#prompt", "Once")
    page.click("#write")
    page.wait(DONE)
    assert written(page) == TEXT
    assert not page.run(f"JSON.stringify(localStorage).includes('{KEY}') || location.href.includes('{KEY}')")
    only_the_network_complained(page)


def test_the_keyboard_alone_is_enough(page: Browser) -> None:
    def tab_to(name: str, back: bool = False) -> None:
        for _ in range(40):
            if page.run(f"document.activeElement.matches('{name}')"):
                return
            page.press("Tab", modifiers=8 if back else 0)
        raise AssertionError(f"Tab does not lead to {name}.")

    tab_to(".skip")
    page.press("Enter")
    tab_to("#prompt")
    tab_to("[name=kind]", back=True)
    page.press("ArrowRight")
    tab_to("#prompt")
    page.type("Once")
    for name in ("#method", "#temperature", "#max-tokens", "#seed", "#more summary", "#write"):  # as they are read
        page.press("Tab")
        assert page.run(f"document.activeElement.matches('{name}')"), name
    page.press("Enter")
    page.wait(DONE)
    tab_to("#text-view .text")
    for _ in range(2):
        page.press("ArrowRight")
    assert page.run("document.activeElement.dataset.index") == "1"
    assert page.run("document.activeElement.getAttribute('aria-describedby')") == "tip"
    assert "recovered" in page.text("#tip")
    page.press("End")
    page.press("Enter")
    assert page.run("document.querySelector('#steps').open") and not page.text("#step-facts").startswith("Step 1 ")
    tab_to("#step")
    page.press("Home")
    assert page.text("#step-facts").startswith("Step 1 of ")
    assert page.run("document.querySelector('#step').getAttribute('aria-valuetext')").startswith("Step 1 of ")
    tab_to("#tree")


def test_every_control_has_a_name_and_texts_are_told_as_they_come(page: Browser) -> None:
    as_text(page)
    page.click("#more summary")
    page.fill("#prompt", "Once")
    page.click("#write")
    page.wait(DONE)
    page.click(".text .t.draft")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node.get("ignored")]
    roles = {node["role"]["value"] for node in shown}
    assert {"banner", "main", "heading", "status"} <= roles
    kinds = ("button", "textbox", "combobox", "spinbutton", "slider", "checkbox", "radio", "image", "region")
    nameless = [
        node for node in shown if node["role"]["value"] in kinds and not node.get("name", {}).get("value", "").strip()
    ]
    assert [node["role"]["value"] for node in nameless] == [], nameless
    texts = [node["name"]["value"] for node in shown if node["role"]["value"] == "group" and "name" in node]
    assert "Written text; arrow keys go from token to token" in texts
    live = page.run("[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map(e => e.id)")
    assert live == ["notice", "status", "spoken"]
    assert page.run("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_both_schemes(page: Browser, scheme: str) -> None:
    page.prefer(prefers_color_scheme=scheme)
    as_text(page)
    page.fill("#prompt", "Once")
    page.click("#race")
    page.wait("!document.querySelector('#replay').hidden")
    page.click(".lane:nth-child(2) .t.draft")
    assert page.run("getComputedStyle(document.body).backgroundColor === 'rgb(20, 22, 26)'") == (scheme == "dark")
    low = page.run(
        """(() => {
          const read = text => text.match(/[\\d.]+/g).map(Number);
          const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
          const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
          const ground = e => { for (; e; e = e.parentElement) { const c = read(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c } };
          const low = [];
          for (const e of document.querySelectorAll('body *')) {
            const style = getComputedStyle(e), own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
            if (!own || !e.getClientRects().length || e.disabled || e.closest('svg')) continue;
            const found = ratio(read(style.color), ground(e));
            if (found < 4.5) low.push([e.outerHTML.slice(0, 80), found]);
            if (e.matches('.t') && style.textDecorationLine !== 'none') {
              const line = ratio(read(style.textDecorationColor), ground(e));
              if (line < 3) low.push([e.outerHTML.slice(0, 80), 'line', line]);
            }
          }
          return low })()"""
    )
    assert low == []


def test_the_colours_are_chosen_and_remembered(page: Browser, addresses: dict[str, str]) -> None:
    page.prefer(prefers_color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.run(ground)
    page.click("#theme")
    assert page.run("document.querySelector('#theme').getAttribute('aria-label')") == "Colours: light"
    light = page.run(ground)
    assert light != dark
    opened(page, addresses["scripted"])
    assert page.run(ground) == light
    page.prefer(prefers_color_scheme="light")
    page.click("#theme")
    assert page.run(ground) == dark
    page.run("localStorage.clear()")


def test_a_phone_shows_it_all_without_scrolling_sideways(page: Browser) -> None:
    page.size(360, 740)
    as_text(page)
    page.click("#more summary")
    page.fill("#prompt", "Once")
    page.click("#race")
    page.wait("!document.querySelector('#replay').hidden")
    page.click(".lane:nth-child(2) .t.draft")
    assert page.run("document.documentElement.scrollWidth") == 360
    lanes = page.run("[...document.querySelectorAll('.lane')].map(e => e.getBoundingClientRect().left)")
    assert lanes[0] == lanes[1]  # below each other
    small = page.run(
        "[...document.querySelectorAll('button, select, input:not([type=radio]):not([type=checkbox])')]"
        ".filter(e => e.offsetParent && e.id !== 'step' && e.offsetHeight < 24).map(e => e.id)"
    )
    assert small == []


def test_whoever_wants_no_motion_gets_none(page: Browser) -> None:
    page.prefer(prefers_reduced_motion="reduce")
    moving = page.run(
        "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0 "
        "|| getComputedStyle(e).animationName !== 'none').length"
    )
    assert moving == 0


def test_without_scripts_the_page_says_how_else_to_ask(page: Browser, addresses: dict[str, str]) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.go(addresses["scripted"])
        assert "needs JavaScript" in page.run("document.body.innerText")
        assert page.run("document.querySelector('noscript a').getAttribute('href')") == "v1/models"
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


def test_files_are_kept_by_their_hash_and_nothing_comes_from_elsewhere(addresses: dict[str, str]) -> None:
    with httpx.Client(base_url=addresses["scripted"]) as client:
        first = client.get("/")
        assert first.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert first.headers["cache-control"] == "no-cache"
        assert client.get("/", headers={"if-none-match": first.headers["etag"]}).status_code == 304
        assert "http" not in first.text.replace("http://localhost:8000", "")
        version = first.headers["etag"].strip('"')
        kinds = {"page.js": "text/javascript", "style.css": "text/css", "methods.json": "application/json"}
        for name, kind in kinds.items():
            found = client.get(f"/page/{version}/{name}")
            assert found.headers["content-type"].startswith(kind) and "immutable" in found.headers["cache-control"]
        for other in ("/page/0/page.js", f"/page/{version}/page.py", f"/page/{version}/..%2fpage.py"):
            assert client.get(other).status_code == 404

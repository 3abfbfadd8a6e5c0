"""Take the picture of the page that the docs show, from a server that runs `outpace serve --model smollm2`.

`python docs/scripts/page_picture.py http://127.0.0.1:8000/` rewrites docs/images/page.png. It needs a Chromium.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "server"))

import browser  # noqa: E402

FIRST = "Write a Python class Rectangle with width and height, and the methods area, perimeter and scale."
THEN = "Write the class again with a method is_square."
RACES = 3

with browser.browse(browser.find() or sys.exit("There is no Chromium here.")) as page:
    page.size(1120, 900)
    page.go(sys.argv[1])
    page.wait("document.querySelector('#method').value === 'auto'")
    page.fill("#temperature", 0)
    page.fill("#max-tokens", 110)
    page.fill("#prompt", FIRST)
    page.click("#write")
    page.wait("document.querySelector('#prompt').value === ''")
    page.fill("#prompt", THEN)
    for _ in range(RACES):
        page.click("#race")
        page.wait("document.querySelector('#replay').hidden")
        page.wait("!document.querySelector('#replay').hidden")
    page.click("#steps summary")
    page.wait("document.querySelector('#tree svg')")
    (ROOT / "docs" / "images" / "page.png").write_bytes(page.picture())

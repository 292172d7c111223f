"""A page as a person sees it: headless Chromium lays it out, and says what it found.

seen = look(Path("report.html"), width=390)
assert seen.overflow == 0 and not seen.console
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
SECONDS = 60
# A window is never narrower than 500 pixels; a frame in it is, and takes its own width for that of the screen.
_FRAME = """<!doctype html><html><head><meta charset="utf-8"><style>:root {{ color-scheme: light dark; }}
body {{ margin: 0; }} iframe {{ border: 0; width: {width}px; height: 1500px; }}</style></head><body>
<iframe srcdoc="{page}"></iframe>
<script>
window.addEventListener("load", () => {{
  const inner = document.querySelector("iframe").contentWindow, page = inner.document;
  const boxes = [...page.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  const texts = [...page.querySelectorAll("svg text")].map(one => one.getBoundingClientRect().height);
  const style = inner.getComputedStyle(page.body);
  const found = {{
    width: inner.innerWidth,
    overflow: page.documentElement.scrollWidth - inner.innerWidth,
    svgs: boxes.filter(box => box.width && box.height).map(box => [box.width, box.height]),
    smallest_text: Math.min(...texts.filter(height => height)),
    background: style.backgroundColor,
    ink: style.color,
    fetched: inner.performance.getEntriesByType("resource").map(one => one.name),
  }};
  const told = document.createElement("pre");
  told.id = "measured";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
}});
</script></body></html>
"""


@dataclass(frozen=True)
class Seen:
    """Pixels. ``overflow``: by how much the page is wider than the window; ``console``: errors and warnings."""

    width: int
    overflow: int
    svgs: list[list[float]]
    smallest_text: float
    background: str
    ink: str
    fetched: list[str]
    console: list[str]


def browser() -> str:
    """Its path; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return found


def look(page: Path, width: int, dark: bool = False) -> Seen:
    """Open ``page`` on a screen of that width."""
    with tempfile.TemporaryDirectory() as folder:
        framed = Path(folder) / "framed.html"
        framed.write_text(_FRAME.format(width=width, page=escape(page.read_text())))
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        command = [browser(), *QUIET, scheme, "--enable-logging=stderr", f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={max(width, 500)},1600", "--dump-dom", framed.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(**json.loads(unescape(found[1])), console=console)

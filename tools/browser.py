"""A Chromium that is installed already, without a window: pages opened, asked, photographed and printed.

    with Browser() as browser:
        page = browser.open(Path("report.html"), width=400, height=800, dark=True)
        page.ask("document.documentElement.scrollWidth")
        page.photograph()              # PNG
        page.complaints                # what it wrote to its console, and what it could not load

It is spoken to over a pair of pipes in the DevTools protocol, so nothing has to be installed beside it.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Browser", "Page", "chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
PATIENCE = 60
"""Seconds without a word after which the browser is taken to hang."""

COMPLAINTS = {
    "Runtime.exceptionThrown",
    "Log.entryAdded",
    "Runtime.consoleAPICalled",
    "Network.loadingFailed",
}


def chromium() -> str | None:
    """The path of a Chromium, None where there is none, or on a system without POSIX's pipes."""
    if sys.platform == "win32":
        return None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running Chromium with a profile of its own; a context manager."""

    def __enter__(self) -> Browser:
        program = chromium()
        if program is None:
            raise FileNotFoundError("no Chromium: install one, such as Debian's package `chromium`")
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        theirs, write = os.pipe()
        read, answers = os.pipe()

        def place() -> None:
            """It reads file descriptor 3 and writes 4; both ends are moved first, should they lie there."""
            import fcntl

            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, answers)]
            for number, end in enumerate(ends, start=3):
                os.dup2(end, number)

        options = [*OPTIONS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            [program, *options],
            preexec_fn=place,
            close_fds=False,  # what Python opens is closed at the start of a program all the same
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._write, self._read = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb", buffering=0)
        self._rest, self._number, self._target = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(timeout=20)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._write.close()
        self._read.close()
        self._folder.cleanup()

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """One call of the protocol, and its answer; events that come before it are kept in `events`.

        Raises:
            RuntimeError: it was refused. EOFError: the browser has ended.
        """
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        self._write.write(json.dumps(asked | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']['message']}")
                return dict(said["result"])
            self.events.append(said)

    def wait_for(self, event: str, session: str) -> None:
        """Until something has happened since `events` was emptied."""
        while not any(one["method"] == event and one.get("sessionId") == session for one in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            piece = self._read.read(1 << 20) if ready else b""
            if not piece:
                raise EOFError(
                    "the browser has ended" if ready else f"no word from the browser for {PATIENCE} s"
                )
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, path: Path, *, width: int, height: int = 800, dark: bool = False) -> Page:
        """A file in a window of a size in CSS pixels, once it is loaded; what was open before is closed."""
        if self._target:
            self.call("Target.closeTarget", targetId=self._target)
        target = self._target = str(self.call("Target.createTarget", url="about:blank")["targetId"])
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", session, features=scheme)
        self.events = []
        self.call("Page.navigate", session, url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired", session)
        return Page(self, session)


@dataclass
class Page:
    """An open page.

    Attributes:
        browser, session: whose it is.
    """

    browser: Browser = field(repr=False)
    session: str

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, once the page was drawn twice: what was set before shows."""
        drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))"
        given = {"expression": drawn, "awaitPromise": True}
        self.browser.call("Runtime.evaluate", self.session, **given)
        found = self.browser.call("Runtime.evaluate", self.session, expression=expression, returnByValue=True)
        return found["result"].get("value")

    def photograph(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.browser.call("Page.captureScreenshot", self.session)["data"])

    def print(self) -> bytes:
        """The page on paper, as PDF."""
        options = {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.browser.call("Page.printToPDF", self.session, **options)["data"])

    @property
    def complaints(self) -> list[str]:
        """What the page wrote to its console and could not load, since it was opened."""
        said = [one for one in self.browser.events if one.get("sessionId") == self.session]
        return [json.dumps(one["params"]) for one in said if one["method"] in COMPLAINTS]

"""Headless Chromium, driven over its own debugging pipe: what a page logs, asks of the network, and looks like."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
PHONE, DESKTOP = 360, 1100  # CSS pixels
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
_WIDE = """(() => {
  const most = document.documentElement.clientWidth;
  const clipped = element => element.closest(".scroll, pre, figure.dots, svg, .hidden, .bar") !== null;
  return [...document.querySelectorAll("body *")]
    .filter(element => !clipped(element) && element.getBoundingClientRect().right > most + 1)
    .map(element => element.outerHTML.slice(0, 120));
})()"""
_SMALLEST_TEXT = """(() => {
  const scale = ({a, b}) => Math.hypot(a, b);
  const says = it => [...it.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return Math.min(...[...document.querySelectorAll("body *")]
    .filter(it => says(it) && it.getClientRects().length)
    .map(it => parseFloat(getComputedStyle(it).fontSize) * (it.ownerSVGElement ? scale(it.getScreenCTM()) : 1)));
})()"""


@dataclass(frozen=True)
class Shown:
    """A page as a browser has shown it.

    Attributes:
        logged: messages on the console, exceptions, and what its content security policy has refused.
        requested: every address that was asked for, the page's own first.
        width: CSS pixels that its content takes; wider than the window means that it scrolls sideways.
        sticking_out: elements that end right of the window and lie in nothing that scrolls by itself.
        smallest: the smallest text, in CSS pixels.
        background, ink: the body's computed colours.
        picture: a PNG of the whole page.
    """

    logged: list[str]
    requested: list[str]
    width: int
    sticking_out: list[str]
    smallest: float
    background: str
    ink: str
    picture: bytes


class Browser:
    """One Chromium, one page after the other."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer, self._number = b"", 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None

    def open(self) -> None:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def show(self, page: Path, width: int = DESKTOP, dark: bool = False) -> Shown:
        """Load the page in a window of this width and colour scheme."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self._call("Page.navigate", url=page.resolve().as_uri())
        self._wait_for("Page.loadEventFired")
        width = self._value("document.documentElement.scrollWidth")
        style = "getComputedStyle(document.body)"
        return Shown(
            logged=self._logged(),
            requested=self._requested(),
            width=width,
            sticking_out=self._value(_WIDE),
            smallest=self._value(_SMALLEST_TEXT),
            background=self._value(f"{style}.backgroundColor"),
            ink=self._value(f"{style}.color"),
            picture=base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]),
        )

    def _logged(self) -> list[str]:
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self._events if event["method"] in kinds]

    def _requested(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _value(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        said = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            said["sessionId"] = self._session
        os.write(self._writing, json.dumps(said).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._events.append(message)

    def _wait_for(self, method: str) -> None:
        deadline = time.monotonic() + 60
        while all(event["method"] != method for event in self._events):
            assert time.monotonic() < deadline, f"no {method}"
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._reading, 1 << 16)
            assert more, "Chromium has ended"
            self._buffer += more
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended with the block."""
    from_us, writing = os.pipe()
    reading, to_us = os.pipe()
    command = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
    options = [*_QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["/bin/bash", "-c", command, "chromium", str(CHROMIUM), *options],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        browser = Browser(reading, writing)
        browser.open()
        yield browser
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(reading)
        os.close(writing)

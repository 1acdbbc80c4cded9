"""Every kind of page in headless Chromium: quiet, by itself, no wider than a phone, light and dark."""

import io
from pathlib import Path

import numpy as np
import pytest
from browser_kit import DESKTOP, PHONE, Browser
from PIL import Image
from privacy_audit_kit import audited
from run_factory import SyntheticRun

from fedvlm_secure import report
from fedvlm_secure.audit.catalogue import ATTACKS, Result
from fedvlm_secure.audit.target import OUTCOMES
from fedvlm_secure.audit.verdict import Verdict
from fedvlm_secure.report import audit_page, audit_privacy_page, audit_protocol_page, audit_run_page

pytestmark = pytest.mark.slow
LIGHT, DARK = (0xFF, 0xFF, 0xFF), (0x14, 0x18, 0x1C)
BLUE = {False: (0x00, 0x72, 0xB2), True: (0x56, 0xB4, 0xE9)}  # of charts, by dark
GREEN = {False: (0x00, 0x69, 0x4C), True: (0x4F, 0xD0, 0xA5)}  # of outcomes that are good
READABLE = 8.0  # CSS pixels, of a chart's ticks on a phone


@pytest.fixture(scope="module")
def pages(finished: Path, verdict: Verdict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    results = [
        Result(attack.name, OUTCOMES[place % 3], "seen " * place, attack.consequence, attack.reference)
        for place, attack in enumerate(ATTACKS)
    ]
    audit_page.write(audit_run_page.page(verdict), folder / "run.html")
    audit_page.write(audit_protocol_page.page("flwr-secaggplus", results), folder / "protocol.html")
    halves = bytes([7, 7, 7, 0, 0]) * 820, np.random.default_rng(0).bytes(4100)
    private = SyntheticRun(epsilon=2.0, first_bytes=halves, dropped={2: ["elm"]}).write(folder / "private")
    audit_page.write(audit_privacy_page.page(audited()), folder / "privacy.html")
    audits = {f"audit-{kind}": folder / f"{kind}.html" for kind in ("run", "protocol", "privacy")}
    return {"run": report.write(finished), "private-run": report.write(private), **audits}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("kind", ["run", "private-run", "audit-run", "audit-protocol", "audit-privacy"])
def test_a_page_is_quiet_alone_and_narrow_enough(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, dark: bool
) -> None:
    shown = browser.show(pages[kind], width, dark)
    assert shown.logged == []
    assert [address for address in shown.requested if not address.startswith("data:")] == [pages[kind].as_uri()]
    assert shown.width <= width
    assert shown.sticking_out == []
    assert shown.smallest >= READABLE
    colours = colours_of(shown.picture)
    assert (DARK if dark else LIGHT) in colours
    marks = GREEN if kind.startswith("audit") else BLUE
    assert marks[dark] in colours, "what is drawn takes its colours from the page"
    assert marks[not dark] not in colours


def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """A page with every fault that is looked for."""
    page = tmp_path / "faulty.html"
    wide = "<p style='width: 900px; font-size: 3px'>wide</p><img src='http://127.0.0.1:9/x.png'>"
    page.write_text(f"<!doctype html><meta name=viewport content='width=device-width'>{wide}<script>lost()</script>")
    shown = browser.show(page, PHONE)
    assert any("lost" in line for line in shown.logged)
    assert "http://127.0.0.1:9/x.png" in shown.requested
    assert shown.width > PHONE
    assert shown.sticking_out
    assert shown.smallest < READABLE


def colours_of(picture: bytes) -> set[tuple[int, int, int]]:
    with Image.open(io.BytesIO(picture)) as shot:
        return {colour for _, colour in shot.convert("RGB").getcolors(maxcolors=1 << 24)}

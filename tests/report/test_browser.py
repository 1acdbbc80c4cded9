import subprocess
from pathlib import Path

import pytest
from PIL import Image

from fedvlm_secure import report

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium")
@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_shows_the_page(finished, tmp_path, width):
    page, picture = report.write(finished), tmp_path / "page.png"
    options = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", f"--window-size={width},3000"]
    subprocess.run([CHROMIUM, *QUIET, *options, page.resolve().as_uri()], check=True, timeout=120, capture_output=True)
    with Image.open(picture) as shot:
        colours = {colour for _, colour in shot.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert (0x00, 0x72, 0xB2) in colours  # the marks after the last round: charts are drawn, variables resolved

"""``examples/leakage``: what the server sees of an upload, and that the attacks tell plain from masked."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from browser_kit import PHONE

sys.path.append(str(Path(__file__).parents[2] / "examples/leakage"))


def test_a_plain_upload_is_the_update_and_a_masked_one_tells_nothing_of_it():
    from attack.server import observe

    rng = np.random.default_rng(0)
    updates = {f"h{n}": rng.normal(size=3000).astype(np.float32) / 100 for n in range(4)}
    plain, masked = observe("plain", updates), observe("pairwise", updates)
    for name, update in updates.items():
        np.testing.assert_allclose(plain.uploads[name], update, atol=1e-4)
        assert abs(np.corrcoef(masked.uploads[name], update)[0, 1]) < 0.1
        assert len(masked.wire[name]) == len(plain.wire[name])
    np.testing.assert_allclose(masked.total, sum(updates.values()), atol=1e-3)
    np.testing.assert_allclose(masked.total, plain.total, atol=1e-3)


@pytest.mark.slow
def test_the_attacks_read_plain_updates_and_guess_at_masked_ones(browser, tmp_path):
    from attack.trials import MASKED, PLAIN, ROW
    from leakage import QUICK, run

    rates, shown = run(tmp_path, QUICK)
    for rate in rates:
        if (rate.view, rate.attack) == (PLAIN, ROW):
            assert rate.p_value < 1e-6, rate
        if rate.view == MASKED:
            assert rate.p_value > 1e-4, rate
    told = json.loads((tmp_path / "leakage.json").read_text())
    assert [rate["hits"] for rate in told["rates"]] == [rate.hits for rate in rates]
    assert len(told["pictures"]) == len(shown) == 1
    page = browser.show(tmp_path / "leakage.html", PHONE)
    assert page.logged == []
    assert [address for address in page.requested if not address.startswith(("data:", "file:"))] == []
    assert page.width <= PHONE
    assert page.sticking_out == []

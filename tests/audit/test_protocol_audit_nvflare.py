"""The catalogue on nvflare's real provisioning and filters."""

import pytest

pytest.importorskip("nvflare", reason="this audit drives nvflare's own code; install the extra: bench")

from audit_kit import audited

from fedvlm_secure.audit.target import RESISTED, VULNERABLE


def test_one_key_in_every_kit():
    results = audited("nvflare-he")
    assert results["he-key-reach"].outcome == VULNERABLE
    assert results["private-keys"].outcome == VULNERABLE
    assert "the server's messages and state hold none" in results["private-keys"].observed


def test_what_travels():
    results = audited("nvflare-he")
    assert results["cleartext-weight"].outcome == VULNERABLE
    assert "NUM_STEPS" in results["cleartext-weight"].observed
    assert results["upload-size"].outcome == VULNERABLE
    assert results["cleartext-update"].outcome == RESISTED


def test_nothing_is_inconclusive():
    assert not [each.attack for each in audited("nvflare-he").values() if each.observed.startswith("inconclusive")]

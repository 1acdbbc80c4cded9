"""What a simulated run keeps of one upload, where, and when it keeps nothing."""

import base64
import json
from collections import Counter

import numpy as np
import pytest
from engine_kit import Interrupter, StoppedError

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.encoding.codec import Codec
from fedvlm_secure.engines import local
from fedvlm_secure.engines.first_bytes import FIRST
from fedvlm_secure.report.reading import FIRST_BYTES

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = ("aggregation.protocol=plain", "policy.protocols=['plain']")


def halves(folder):
    """What the hospital had, and what the server was sent."""
    (own,) = folder.glob(f"sites/*/{FIRST_BYTES}")
    sent, received = (json.loads(path.read_text()) for path in (own, folder / "coordinator" / FIRST_BYTES))
    assert own.parent.name == received["hospital"]
    assert (sent["round"], sent["attempt"]) == (received["round"], received["attempt"])
    return sent, received, *(base64.b64decode(half["bytes"]) for half in (sent, received))


def encodings(monkeypatch):
    """What all updates are encoded to from now on, as the first bytes of words of so many bytes."""
    kept, encode = [], Codec.encode

    def watched(codec, update):
        encoded = encode(codec, update)
        kept.append(encoded.integers[: FIRST // 4])
        return encoded

    monkeypatch.setattr(Codec, "encode", watched)
    return lambda value_bytes: [
        values.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :value_bytes].tobytes()[:FIRST] for values in kept
    ]


def test_plain_shows_the_server_what_the_hospital_had(settings, tmp_path):
    local.run(settings(*PLAIN), tmp_path / "run", first_bytes=True)
    sent, _, before, after = halves(tmp_path / "run")
    assert (sent["form"], sent["round"]) == ("words", 1)
    assert before == after
    assert len(before) > 1000


def test_pairwise_shows_it_something_else(settings, tmp_path, monkeypatch):
    encoded = encodings(monkeypatch)
    local.run(settings(), tmp_path / "run", first_bytes=True)
    sent, received, before, after = halves(tmp_path / "run")
    assert received["phase"] == "masked-input"
    assert before in encoded(sent["value-bytes"]), "it is what was masked"
    assert len(before) == len(after)
    alike = sum(one == other for one, other in zip(before, after, strict=True))
    assert alike < len(before) / 32  # a 256th of unrelated bytes
    assert max(Counter(after).values()) < len(after) / 32
    assert max(Counter(before).values()) > len(before) / 32


@pytest.mark.parametrize("protocol", ["bfv", "ckks"])
def test_ciphertexts_are_shown_beside_the_update(settings, tmp_path, protocol):
    stopped = settings(f"aggregation.protocol={protocol}")
    local.run(stopped, tmp_path / "run", first_bytes=True)
    sent, received, before, after = halves(tmp_path / "run")
    assert (sent["form"], sent["value-bytes"], received["phase"]) == ("update", 4, "input")
    assert np.isfinite(np.frombuffer(before, "<f4")).all()
    assert len(after) == FIRST
    assert before[:64] not in after


def test_the_servers_half_holds_nothing_of_a_vector(settings, tmp_path, monkeypatch):
    """Whatever is before masking lies with the hospital whose it is, and in no other file."""
    encoded = encodings(monkeypatch)
    local.run(settings(), tmp_path / "run", first_bytes=True)
    sent, *_ = halves(tmp_path / "run")
    starts = [full[:60] for full in encoded(sent["value-bytes"]) if len(full) > 1000]
    needles = [*starts, *map(base64.b64encode, starts)]
    holding = set()
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if any(needle in content for needle in needles):
                holding.add(path.relative_to(tmp_path / "run").as_posix())
    assert holding == {f"sites/site-a/{FIRST_BYTES}"}


def test_the_manifest_covers_both_and_the_audit_passes(settings, tmp_path):
    local.run(settings(), tmp_path / "run", first_bytes=True)
    verdict = audit_run(tmp_path / "run", sorted((tmp_path / "run").glob("sites/*/log.cbor")))
    assert not verdict.failed
    listed = json.loads((tmp_path / "run/manifest.json").read_text())["files"]
    assert {f"coordinator/{FIRST_BYTES}", f"sites/site-a/{FIRST_BYTES}"} <= listed.keys()
    (tmp_path / "run/coordinator" / FIRST_BYTES).write_text("{}")
    assert audit_run(tmp_path / "run").failed


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [((), None), ((), False), (("privacy.mode=client", "aggregation.rounding=stochastic"), True)],
)
def test_nothing_is_kept_of_own_rows_unasked_nor_under_differential_privacy(settings, tmp_path, overrides, asked):
    local.run(settings(*overrides), tmp_path / "run", first_bytes=asked)
    assert not list((tmp_path / "run").rglob(FIRST_BYTES))


def test_a_resumed_run_keeps_them_of_a_later_round(settings, tmp_path):
    """A hospital that has masked before the interruption repeats its reply, and is not asked again what it had."""
    with pytest.raises(StoppedError):
        local.run(settings(), tmp_path / "run", first_bytes=True, observer=Interrupter(15))
    assert not list((tmp_path / "run").rglob(FIRST_BYTES))
    local.run(settings(), tmp_path / "run", first_bytes=True, resume=True)
    assert halves(tmp_path / "run")[0]["round"] == 2

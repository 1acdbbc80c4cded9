"""What clients' logs hold, what they show, and what hostile files cannot do to an auditor."""

import hashlib
import json
import random
import sqlite3
import sys
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from audit_run_kit import SIZE, Run, finished

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.audit.verdict import FAIL, PASS
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.journal import ClientJournal, logged
from fedvlm_secure.federation.lineage import MOVED
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.encrypted import messages as he
from fedvlm_secure.secagg.envelope import Envelope, join, seal
from fedvlm_secure.secagg.log import ClientLog
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.transcript import Transcript


def verdict_of(folder, logs=(), **given):
    verdict = audit_run(folder, logs, **given)
    return {clause.clause: clause for clause in verdict.clauses}, verdict


def failing(folder, logs=(), **given):
    clauses, _ = verdict_of(folder, logs, **given)
    return {name for name, clause in clauses.items() if clause.outcome == FAIL}


def transcripts(run):
    return sorted((run.folder.coordinator.path / "transcript").iterdir())


def changed(run, path, change):
    transcript = Transcript.from_bytes(path.read_bytes())
    path.write_bytes(replace(transcript, entries=tuple(change(transcript))).to_bytes())
    run.folder.sign_manifest(run.server)


def resealed(run, transcript, entry, change):
    """An entry with another body, signed by the server's true key."""
    envelope = unpack(Envelope, entry.envelope)
    forms = {he.SUM: he.EncryptedSum, he.INPUT: he.Assignment}
    body = change(unpack(forms[entry.phase], envelope.body))
    lie = seal(run.server, entry.phase, envelope.plan, SERVER, entry.client, body)
    return replace(entry, envelope=lie, digest=hashlib.sha256(lie).digest())


def begun(tmp_path, protocol="pairwise"):
    """A run whose first attempt is open, with the sessions of both sides."""
    run = Run(tmp_path / "run", protocol, 5, random.Random(3), 0)
    session = run.attempts.open(run.plan)
    return run, session, {name: run.client(name, run.attempts.place) for name in run.names}


def test_what_a_client_refuses_is_in_its_log(tmp_path):
    run, session, clients = begun(tmp_path)
    victim = run.names[0]
    for name, request in session.requests():
        session.receive(name, clients[name].reply(request))
    weaker = replace(session.plan, threshold=1, attempt=2)
    request = join([seal(run.server, m.KEYS, weaker.hash, SERVER, victim, weaker)])
    for lie in (
        request,
        join([seal(run.server, m.UNMASK, session.plan.hash, SERVER, victim, m.UnmaskRequest((), {}))]),
    ):
        with pytest.raises(ProtocolError):
            clients[victim].reply(lie)
    with pytest.raises(ProtocolError):
        clients[victim].reply(join([seal(run.consortium, m.KEYS, weaker.hash, SERVER, victim, weaker)]))
    lines = logged(run.journal(victim), victim, run.attempts.run).lines
    assert [line.phase for line in lines] == [m.KEYS, m.KEYS, m.KEYS, m.UNMASK]  # and nothing that others have signed
    for each in (session, *clients.values()):
        each.close()


def test_a_plan_that_was_shown_and_not_recorded_is_found(tmp_path):
    run, logs = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    victim = run.names[0]
    plan = unpack(Plan, Transcript.from_bytes(transcripts(run)[0].read_bytes()).plan, STATE_LIMITS)
    other = replace(plan, round=9, threshold=2)
    with closing(run.client(victim, (9, 1))) as client, pytest.raises(ProtocolError):
        client.reply(join([seal(run.server, m.KEYS, other.hash, SERVER, victim, other)]))
    assert failing(run.folder.path, [run.export(victim), *logs[1:]]) == {"A-12"}
    assert failing(run.folder.path, logs[1:]) == set()


def test_a_hospital_with_one_journal_hands_over_one_run(tmp_path):
    first, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    second = Run(tmp_path / "again" / "run", "pairwise", len(first.names), random.Random(2), 0)
    second.identities, second.server, second.roster = first.identities, first.server, first.roster
    second.folder.roster.write_bytes(first.folder.roster.read_bytes())
    second.attempts._identity, second.attempts._roster = first.server, first.roster
    second.journal = first.journal
    while second.attempts.round <= 2:
        second.round()
    logs = second.finish()
    clauses, verdict = verdict_of(second.folder.path, logs)
    assert not verdict.failed, clauses
    assert verdict.covered == second.names


def test_replies_that_the_server_did_not_record_are_told(tmp_path):
    run, session, clients = begun(tmp_path)
    while not session.done:
        for name, request in session.requests():
            session.receive(name, clients[name].reply(request))
        session.end_phase()
    session.aggregate()  # the server has read the sum, and records that the attempt has failed
    kept = session.transcript
    for each in (session, *clients.values()):
        each.close()
    hidden = tuple(entry for entry in kept.entries if (entry.phase, entry.direction) != (m.UNMASK, "reply"))
    run.folder.coordinator.metrics.record(("round", "attempt"), round=1, attempt=1, kind="aborted")
    run.attempts._archive = lambda session: _archived(run, replace(kept, entries=hidden))
    with closing(run.attempts.restored()) as restored:
        run.attempts.fail(restored)
    del run.attempts._archive
    while run.attempts.round <= 2:
        run.round()
    clauses, verdict = verdict_of(run.folder.path, run.finish())
    assert not verdict.failed
    assert any("the server may have used them" in why for why in clauses["A-12"].why)


def _archived(run, transcript):
    path = run.folder.coordinator.path / "transcript/round-0001-attempt-1.cbor"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(transcript.to_bytes())
    return transcript.head


def test_only_logs_to_the_end_of_the_run_count(tmp_path):
    run, logs = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    log = ClientLog.from_bytes(logs[0].read_bytes())
    (tmp_path / "short").write_bytes(replace(log, lines=log.lines[:-1]).to_bytes())
    (tmp_path / "empty").write_bytes(ClientLog(run.names[1]).to_bytes())
    clauses, verdict = verdict_of(run.folder.path, [tmp_path / "short"])
    assert (clauses["A-12"].outcome, verdict.covered) == (PASS, ())
    assert audit_run(run.folder.path, [tmp_path / "empty"]).covered == ()


def test_a_log_says_what_its_digests_say(tmp_path):
    run, logs = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    log = ClientLog.from_bytes(logs[0].read_bytes())
    place = next(at for at, line in enumerate(log.lines) if line.phase == m.CONSISTENCY and line.envelope)
    lie = seal(run.server, m.CONSISTENCY, log.lines[place].plan, SERVER, log.client, m.SurvivorList((log.client,)))
    lines = (*log.lines[:place], replace(log.lines[place], envelope=lie), *log.lines[place + 1 :])
    (tmp_path / "log").write_bytes(replace(log, lines=lines).to_bytes())
    assert failing(run.folder.path, [tmp_path / "log"]) == {"A-12"}


@pytest.mark.parametrize("protocol", ["bfv", "ckks"])
def test_a_sum_of_one_another_key_and_a_sum_that_nobody_adopted_are_found(protocol, tmp_path):
    run, _ = finished(tmp_path / "run", protocol, 1, dropouts=0)
    path = transcripts(run)[0]
    honest = path.read_bytes()

    def lied(phase, change):
        def rewrite(transcript):
            victim = next(it for it in transcript.entries if (it.phase, it.direction) == (phase, "request"))
            return (resealed(run, transcript, it, change) if it == victim else it for it in transcript.entries)

        changed(run, path, rewrite)
        found = failing(run.folder.path)
        path.write_bytes(honest)
        return found

    assert "A-8" in lied(he.SUM, lambda body: replace(body, survivors=body.survivors[:1]))
    assert "A-8" in lied(he.SUM, lambda body: replace(body, digests=(*body.digests[1:], bytes(32))))
    other = run.names[-1]
    assert "A-7" in lied(he.INPUT, lambda body: replace(body, delivery=replace(body.delivery, dealer=other)))
    changed(run, path, lambda it: (e for e in it.entries if (e.phase, e.direction) != (he.SUM, "reply")))
    assert "A-8" in failing(run.folder.path)


def test_a_promise_of_noise_is_held_against_the_plans(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    promised = run.folder.settings.read_text().replace('mode = "none"', 'mode = "client"')
    run.folder.settings.write_text(promised)
    run.folder.sign_manifest(run.server)
    assert "A-13" in failing(run.folder.path)


def test_floors_that_are_nobodys_are_no_failure(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    run.folder.settings.write_text(run.folder.settings.read_text().replace("min-cohort = 3", "min-cohort = 50"))
    run.folder.sign_manifest(run.server)
    clauses, verdict = verdict_of(run.folder.path)
    assert not verdict.failed
    assert any("--policy" in why for why in clauses["A-4"].why)


def test_a_plan_with_an_impossible_graph_is_a_finding(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    path = transcripts(run)[0]
    transcript = Transcript.from_bytes(path.read_bytes())
    plan = unpack(Plan, transcript.plan, STATE_LIMITS)
    path.write_bytes(replace(transcript, plan=pack(replace(plan, degree=3))).to_bytes())
    run.folder.sign_manifest(run.server)
    assert "A-4" in failing(run.folder.path)


def test_a_transcript_under_another_roster_is_found(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    path = transcripts(run)[0]
    path.write_bytes(replace(Transcript.from_bytes(path.read_bytes()), roster=b"another").to_bytes())
    run.folder.sign_manifest(run.server)
    assert "A-2" in failing(run.folder.path)


def test_files_beside_the_run_are_found(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    place = run.folder.path
    (place / "sites/x").mkdir(parents=True)
    for name in ("sites/x/manifest.json", "evil.part", "sites/x/evil"):
        (place / name).write_text("{}")
        assert failing(place) == {"A-1"}, name
        (place / name).unlink()
    for target in (run.folder.settings, place / "nowhere", place / "coordinator"):
        (place / "link").symlink_to(target)
        assert failing(place) == {"A-1"}, target
        (place / "link").unlink()
    assert failing(place) == set()


DEEP = "[" * 200_000
TOLD = (
    "coordinator/summary.json",
    "coordinator/lineage.json",
    "settings.toml",
)  # what they would show is not checkable
MODEL = "coordinator/global/round-0001.safetensors"


def model(size, dtype=np.float32, moved='["B"]'):
    """What a server may say that it has kept of a round."""
    return safetensors.numpy.save({"B": np.zeros(size, dtype)}, {MOVED: moved})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("coordinator/metrics.jsonl", "1\n"),
        ("coordinator/metrics.jsonl", DEEP),
        ("coordinator/summary.json", DEEP),
        ("coordinator/lineage.json", DEEP),
        ("coordinator/lineage.json", '{"base": "00", "adapter": "\\ud800", "common": "00"}'),
        ("settings.toml", f"a = {DEEP}"),
        ("coordinator/payloads/round-0001-attempt-1/keys/site-000", DEEP),
        (MODEL, DEEP),
        (MODEL, model(1)),
        (MODEL, model(SIZE, np.float64)),
        (MODEL, model(SIZE, moved=DEEP)),
        (MODEL, model(SIZE, moved='["C"]')),
        (MODEL, model(SIZE, moved='[["B"]]')),
        (MODEL, model(SIZE, moved="1")),
        ("manifest.json", DEEP),
        ("manifest.json", json.dumps({"files": {"\ud800": ""}, "signer": "00" * 32, "signature": "00" * 64})),
        ("coordinator/transcript/round-0009-attempt-1.cbor", DEEP),
    ],
    ids=range(17),
)
def test_hostile_files_are_findings(name, content, tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0, keep=True)
    victim = run.folder.path / name
    victim.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    if name != "manifest.json":
        run.folder.sign_manifest(run.server)
    assert sys.getrecursionlimit() < len(DEEP)
    with suppress(MisuseError):  # one sentence, where it is no run any more
        assert failing(run.folder.path) or name in TOLD


def test_a_folder_in_a_transcripts_place_is_a_finding(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    (run.folder.coordinator.path / "transcript/round-0009-attempt-1.cbor").mkdir()
    run.folder.sign_manifest(run.server)
    assert "A-5" in failing(run.folder.path)


def test_a_journal_of_before_goes_on(tmp_path):
    run, session, clients = begun(tmp_path)
    session.close()
    for client in clients.values():
        client.close()
    name, path = run.names[0], run.journal(run.names[0])
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE log")
        database.commit()
    assert isinstance(run.client(name, run.attempts.place), ClientJournal)
    assert logged(path, name, run.attempts.run).lines == ()

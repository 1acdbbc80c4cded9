"""Audits of finished runs: honest ones pass, and what was changed is found."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from audit_run_kit import finished

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.audit.verdict import CLAUSES, FAIL, NOT_CHECKABLE, PASS
from fedvlm_secure.errors import MisuseError, VerificationError
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.envelope import Envelope, seal
from fedvlm_secure.secagg.log import ClientLog
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.transcript import Entry, Transcript

PROTOCOLS = ("pairwise", "plain", "bfv", "ckks")


def outcomes(verdict):
    return {clause.clause: clause.outcome for clause in verdict.clauses}


def failing(verdict):
    return {clause.clause for clause in verdict.clauses if clause.outcome == FAIL}


def explain(verdict):
    return [(clause.clause, clause.findings[:2]) for clause in verdict.clauses if clause.findings]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_honest_runs_pass_with_every_clients_log(protocol, tmp_path):
    for seed in range(3):
        run, logs = finished(tmp_path / f"run-{seed}", protocol, seed, dropouts=0.15)
        verdict = audit_run(run.folder.path, logs)
        assert not verdict.failed, explain(verdict)
        found = outcomes(verdict)
        assert found.keys() == CLAUSES.keys()
        assert all(found[clause] == PASS for clause in ("A-1", "A-2", "A-3", "A-4", "A-5", "A-6", "A-8", "A-12"))
        assert all(found[clause] == NOT_CHECKABLE for clause in ("A-11", "A-13"))
        assert (found["A-9"] == PASS) == (protocol == "pairwise")
        assert (found["A-7"] == PASS) == (protocol != "plain")
        assert verdict.logs == verdict.covered == run.names


@pytest.mark.slow
def test_two_hundred_honest_runs_raise_no_alarm(tmp_path):
    for seed in range(200):
        run, logs = finished(tmp_path / "run", PROTOCOLS[seed % 4], seed, dropouts=random.Random(seed).uniform(0, 0.3))
        verdict = audit_run(run.folder.path, logs)
        assert not verdict.failed, (seed, explain(verdict))
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("honest") / "run", "pairwise", 7, dropouts=0.2)


@pytest.fixture
def copied(honest, tmp_path):
    """The run, in a place where it may be changed."""
    run, logs = honest
    shutil.copytree(run.folder.path, tmp_path / "run")
    return type(run.folder)(tmp_path / "run"), logs, run


def tampered(choices, path, files):
    """Change one bit of one file, add a file or take one away; what puts it back."""
    victim, kind = path / choices.choice(files), choices.randrange(20)
    if kind == 0:
        extra = victim.parent / f"extra-{choices.random()}.json"
        extra.write_text("{}")
        return extra.unlink
    content = victim.read_bytes()
    if kind == 1:
        victim.unlink()
    else:
        changed, place = bytearray(content), choices.randrange(len(content))
        changed[place] ^= 1 << choices.randrange(8)
        victim.write_bytes(changed)
    return lambda: victim.write_bytes(content)


@pytest.mark.parametrize("times", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_tampering_is_found(copied, times):
    folder, _, _ = copied
    files = [path.relative_to(folder.path) for path in (*folder.finished_files(), folder.path / "manifest.json")]
    choices, missed = random.Random(1), []
    for number in range(times):
        restore = tampered(choices, folder.path, files)
        try:
            if not audit_run(folder.path).failed:
                missed.append(number)
        except (MisuseError, VerificationError):
            pass  # not even a run with a roster any more
        restore()
    assert missed == []
    assert not audit_run(folder.path).failed


def transcripts(folder):
    return sorted((folder.coordinator.path / "transcript").iterdir())


def rewritten(folder, path, change):
    transcript = Transcript.from_bytes(path.read_bytes())
    path.write_bytes(change(transcript).to_bytes())


def test_a_server_that_signs_everything_anew_is_caught_by_clients_logs_and_by_nothing_else(copied):
    folder, logs, run = copied
    # The last attempt loses its last request: nothing after it names the chain's head, but what clients keep does.
    last = transcripts(folder)[-1]
    kept = Transcript.from_bytes(last.read_bytes()).entries
    lost = max(place for place, entry in enumerate(kept) if entry.phase == m.SHARES and entry.direction == "request")
    resized = replace(kept[lost], digest=bytes(32))
    rewritten(folder, last, lambda it: replace(it, entries=(*kept[:lost], resized, *kept[lost + 1 :])))
    folder.sign_manifest(run.server)
    assert failing(audit_run(folder.path)) == set()
    assert failing(audit_run(folder.path, logs)) == {"A-12"}
    assert failing(audit_run(folder.path, logs[:1])) == {"A-12"}


def test_an_attempt_that_was_left_out_is_found(tmp_path):
    run, logs = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    transcripts(run.folder)[-1].unlink()
    run.folder.sign_manifest(run.server)
    assert failing(audit_run(run.folder.path)) == {"A-3"}  # metrics.jsonl and the settings say that there was more
    metrics = run.folder.coordinator.metrics.path
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    run.folder.settings.write_text(run.folder.settings.read_text().replace("rounds = 2", "rounds = 1"))
    run.folder.sign_manifest(run.server)
    assert failing(audit_run(run.folder.path)) == set()  # nothing does any more
    assert failing(audit_run(run.folder.path, logs)) == {"A-12"}


def test_a_gap_is_found(copied):
    folder, _, run = copied
    transcripts(folder)[0].unlink()
    folder.sign_manifest(run.server)
    assert "A-3" in failing(audit_run(folder.path))


def forged(run, transcript, entry, body):
    """The entry with another body, under the server's true signature."""
    plan = unpack(Plan, transcript.plan, STATE_LIMITS)
    envelope = seal(run.server, entry.phase, plan.hash, SERVER, entry.client, body)
    return replace(entry, envelope=envelope, digest=hashlib.sha256(envelope).digest())


def first(entries, phase, direction):
    return next(place for place, it in enumerate(entries) if (it.phase, it.direction) == (phase, direction))


def with_body(folder, run, phase, change):
    """The first finished attempt with one request of the server's changed; all signed by the true keys."""
    for path in transcripts(folder):
        transcript = Transcript.from_bytes(path.read_bytes())
        kept = transcript.entries
        if any(it.phase == m.UNMASK for it in kept):
            place = first(kept, phase, "request")
            plan = unpack(Plan, transcript.plan, STATE_LIMITS)
            survivors = sorted(it.client for it in kept if (it.phase, it.direction) == (m.MASKED_INPUT, "reply"))
            lie = forged(run, transcript, kept[place], change(kept[place], plan, survivors))
            path.write_bytes(replace(transcript, entries=(*kept[:place], lie, *kept[place + 1 :])).to_bytes())
            folder.sign_manifest(run.server)
            return
    pytest.fail("no finished attempt")


def body_of(entry: Entry, form):
    return unpack(form, unpack(Envelope, entry.envelope).body)


def test_a_request_for_both_shares_is_found(copied):
    folder, _, run = copied

    def both(entry, plan, survivors):
        asked = body_of(entry, m.UnmaskRequest)
        peer = next(name for name in survivors if name != entry.client)
        return replace(asked, dropped=tuple(sorted({*asked.dropped, peer})))

    with_body(folder, run, m.UNMASK, both)
    assert "A-9" in failing(audit_run(folder.path))


def test_another_survivor_list_for_one_client_is_found(copied):
    folder, _, run = copied
    with_body(folder, run, m.CONSISTENCY, lambda entry, plan, survivors: m.SurvivorList(tuple(survivors[:-1])))
    assert "A-8" in failing(audit_run(folder.path))


def test_too_few_consents_are_found(copied):
    folder, _, run = copied

    def fewer(entry, plan, survivors):
        asked = body_of(entry, m.UnmaskRequest)
        return replace(asked, consents=dict(sorted(asked.consents.items())[:-1]))

    with_body(folder, run, m.UNMASK, fewer)
    assert "A-8" in failing(audit_run(folder.path))


def test_another_plan_for_one_client_is_found(copied):
    folder, _, run = copied
    with_body(folder, run, m.KEYS, lambda entry, plan, survivors: replace(plan, model=bytes(32)))
    assert "A-4" in failing(audit_run(folder.path))


def test_a_plan_below_the_floors_is_found(copied):
    folder, _, run = copied
    strict = replace(run.policy, min_cohort=50)
    assert failing(audit_run(folder.path, policy=strict)) == {"A-4"}


def test_a_reply_that_nobody_was_asked_for_and_a_phase_out_of_order_are_found(copied):
    folder, _, run = copied
    path = transcripts(folder)[0]
    kept = Transcript.from_bytes(path.read_bytes()).entries
    without = first(kept, m.KEYS, "request")
    rewritten(folder, path, lambda it: replace(it, entries=(*kept[:without], *kept[without + 1 :])))
    folder.sign_manifest(run.server)
    assert "A-6" in failing(audit_run(folder.path))
    rewritten(folder, path, lambda it: replace(it, entries=tuple(reversed(kept))))
    folder.sign_manifest(run.server)
    assert "A-6" in failing(audit_run(folder.path))


def test_keys_that_are_used_twice_are_found(copied):
    folder, _, run = copied
    paths = transcripts(folder)
    old, new = (Transcript.from_bytes(path.read_bytes()) for path in (paths[0], paths[-1]))
    source = old.entries[first(old.entries, m.KEYS, "reply")]
    keys = body_of(source, m.Keys)
    place = next(
        at
        for at, it in enumerate(new.entries)
        if (it.phase, it.direction, it.client) == (m.KEYS, "reply", source.client)
    )
    plan = unpack(Plan, new.plan, STATE_LIMITS)
    envelope = seal(run.identities[source.client], m.KEYS, plan.hash, source.client, SERVER, keys)
    again = replace(new.entries[place], envelope=envelope, digest=hashlib.sha256(envelope).digest())
    paths[-1].write_bytes(replace(new, entries=(*new.entries[:place], again, *new.entries[place + 1 :])).to_bytes())
    folder.sign_manifest(run.server)
    assert "A-7" in failing(audit_run(folder.path))


def test_a_log_with_a_message_that_the_server_signed_and_did_not_record_is_evidence(copied, tmp_path):
    folder, logs, run = copied
    log = ClientLog.from_bytes(logs[0].read_bytes())
    line = next(line for line in log.lines if line.phase == m.CONSISTENCY and line.direction == "request")
    plan_hash = line.plan
    envelope = seal(run.server, m.CONSISTENCY, plan_hash, SERVER, log.client, m.SurvivorList((log.client,)))
    other = replace(line, envelope=envelope, digest=hashlib.sha256(envelope).digest())
    (tmp_path / "log").write_bytes(replace(log, lines=(*log.lines, other)).to_bytes())
    assert failing(audit_run(folder.path, [tmp_path / "log"])) == {"A-12"}
    unsigned = replace(line, envelope=envelope[:-1] + bytes([envelope[-1] ^ 1]))
    (tmp_path / "log").write_bytes(replace(log, lines=(*log.lines, unsigned)).to_bytes())
    assert failing(audit_run(folder.path, [tmp_path / "log"])) == {"A-12"}


def test_the_manifests_signer_is_the_rosters_server(copied):
    folder, _, run = copied
    folder.sign_manifest(run.consortium)
    assert failing(audit_run(folder.path)) == {"A-1"}


def test_what_is_no_run_and_what_is_no_log_are_one_sentence(copied, tmp_path):
    folder, _, _ = copied
    with pytest.raises(MisuseError, match="is no run directory"):
        audit_run(tmp_path)
    with pytest.raises(MisuseError, match="is no client's log"):
        audit_run(folder.path, [folder.settings])


def test_an_audit_needs_no_torch(honest):
    run, _ = honest
    code = (
        f"import sys; from fedvlm_secure.audit.run import audit_run; audit_run({str(run.folder.path)!r});"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_verdict_as_json_names_every_clause(honest):
    run, logs = honest
    said = audit_run(run.folder.path, logs[:2]).to_json()
    assert said["schema"] == "fedvlm-secure/audit-run/1"
    assert said["verdict"] == PASS
    assert said["client-logs"] == list(run.names[:2])
    assert [clause["clause"] for clause in said["clauses"]] == list(CLAUSES)
    json.dumps(said)

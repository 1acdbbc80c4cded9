"""Sums that an auditor computes again from the replies that a server has kept whole."""

import hashlib
import json
import os
import random
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest
from audit_run_kit import ENCRYPTED, SIZE, Run, finished

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.audit.verdict import FAIL, NOT_CHECKABLE, PASS
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.secagg.envelope import Envelope, seal
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.transcript import Transcript

PROTOCOLS = ("pairwise", "plain", "bfv", "ckks")


def sums(run, logs=()):
    verdict = audit_run(run.folder.path, logs)
    return next(clause for clause in verdict.clauses if clause.clause == "A-11"), verdict


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sums_of_honest_runs_follow(protocol, tmp_path):
    for seed in range(3):
        run, logs = finished(tmp_path / f"run-{seed}", protocol, seed, dropouts=0.15, keep=True)
        clause, verdict = sums(run, logs)
        assert not verdict.failed, [(it.clause, it.findings) for it in verdict.clauses if it.findings]
        assert clause.outcome == PASS
        assert clause.checked > 2 * len(run.names)
        assert bool(clause.why) == (protocol in ENCRYPTED)  # what the ciphertexts say, members only know


def test_without_payloads_nothing_is_said_of_sums(tmp_path):
    run, logs = finished(tmp_path / "run", "pairwise", 1, dropouts=0)
    clause, _ = sums(run, logs)
    assert (clause.outcome, clause.checked) == (NOT_CHECKABLE, 0)


def kept(run):
    return sorted(path for path in run.payloads.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_reply_that_was_changed_taken_away_or_replaced_by_a_link_is_found(protocol, tmp_path):
    run, _ = finished(tmp_path / "run", protocol, 4, dropouts=0, keep=True)
    choices = random.Random(protocol)
    for path in choices.sample(kept(run), 8):
        reply, place = path.read_bytes(), None
        for change in ("bit", "gone", "link", "longer"):
            path.unlink()
            if change == "bit":
                place = choices.randrange(len(reply))
                path.write_bytes(reply[:place] + bytes([reply[place] ^ 1]) + reply[place + 1 :])
            elif change == "link":
                path.symlink_to(next(other for other in kept(run) if other != path))
            elif change == "longer":
                path.write_bytes(reply + b"\0")
            assert sums(run)[0].outcome == FAIL, (path.name, change, place)
            path.unlink(missing_ok=True)
            path.write_bytes(reply)
    assert sums(run)[0].outcome == PASS


@pytest.mark.parametrize("protocol", ["plain", "pairwise"])
def test_a_model_or_a_weight_that_does_not_follow_is_found_though_the_server_signs_it(protocol, tmp_path):
    run = Run(tmp_path / "run", protocol, 5, random.Random(2), 0, keep=True)
    run.round()
    honest = run.model
    run.model = replace(honest, shared=np.full(SIZE, 0.25, "<f4").tobytes())  # all clients are told this one
    run.save_model(1)
    run.round()
    run.finish()
    clause, verdict = sums(run)
    assert {it.clause for it in verdict.clauses if it.outcome == FAIL} == {"A-11"}
    assert [it.where for it in clause.findings] == ["coordinator/transcript/round-0001-attempt-1.cbor"]


def test_a_weight_that_is_not_the_sum_is_found(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 2, dropouts=0, keep=True)
    path = run.folder.coordinator.metrics.path
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "total-weight": 1}) + "\n" for line in lines))
    run.folder.sign_manifest(run.server)
    clause, _ = sums(run)
    assert clause.outcome == FAIL
    assert "another sum of weight" in clause.findings[0].detail


def test_a_server_that_lists_a_survivor_as_dropped_is_found_by_its_own_replies(tmp_path):
    """It signs the lie and takes no reply away: what follows from the uploads is another list."""
    run = Run(tmp_path / "run", "pairwise", 6, random.Random(5), 0, keep=True)
    run.round()
    run.round()
    run.finish()
    path = run.folder.coordinator.path / "transcript/round-0001-attempt-1.cbor"
    transcript = Transcript.from_bytes(path.read_bytes())
    entries = []
    for entry in transcript.entries:
        if (entry.phase, entry.direction, entry.client) == (m.CONSISTENCY, "request", run.names[0]):
            plan = unpack(Envelope, entry.envelope).plan
            lie = seal(run.server, m.CONSISTENCY, plan, SERVER, entry.client, m.SurvivorList(run.names[:-1]))
            entry = replace(entry, envelope=lie, digest=hashlib.sha256(lie).digest())
        entries.append(entry)
    path.write_bytes(replace(transcript, entries=tuple(entries)).to_bytes())
    clause, _ = sums(run)
    assert f"consistency request of {run.names[0]}" in clause.findings[0].where


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_died_between_taking_a_reply_and_keeping_it_keeps_it_when_it_is_back(protocol, tmp_path):
    run = Run(tmp_path / "run", protocol, 4, random.Random(1), 0, keep=True)
    phases, names = lookup(protocol).phases, run.names
    session, replies = run.attempts.open(run.plan), 0
    with ExitStack() as stack:
        clients = {name: stack.enter_context(closing(run.client(name, session.plan.place))) for name in names}
        for phase in phases:
            for name, request in session.requests():
                session.receive(name, clients[name].reply(request))
                lost = run.payloads.place(session.plan.place, phase, name)
                lost.unlink()
                session.close()
                session = run.attempts.restored()
                assert lost.exists()
                replies += 1
            session.end_phase()
        session.close()
    assert len(kept(run)) == replies


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_plan_whose_numbers_mean_nothing_is_not_played_again(protocol, tmp_path):
    run, _ = finished(tmp_path / "run", protocol, 1, dropouts=0, keep=True)
    path = run.folder.coordinator.path / "transcript/round-0001-attempt-1.cbor"
    transcript = Transcript.from_bytes(path.read_bytes())
    plan = unpack(Plan, transcript.plan)
    for wrong in (
        replace(plan, ring_bits=7),
        replace(plan, ring_bits=1 << 40),
        replace(plan, layout=replace(plan.layout, update=1 << 31)),
        replace(plan, cohort=("../../../../../../../../dev/zero", *plan.cohort[1:])),
    ):
        path.write_bytes(replace(transcript, plan=pack(wrong)).to_bytes())
        assert sums(run)[1].failed, wrong


def test_what_is_no_file_is_not_read(tmp_path):
    run, _ = finished(tmp_path / "run", "pairwise", 1, dropouts=0, keep=True)
    victim = kept(run)[0]
    victim.unlink()
    os.mkfifo(victim)  # whoever reads it waits for ever
    assert "is no file" in sums(run)[0].findings[0].detail

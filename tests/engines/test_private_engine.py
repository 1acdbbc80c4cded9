"""Whole runs under differential privacy: what is charged, when, what is stated, and what the server no longer sees."""

import shutil
import struct
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_kit import ROUNDS, adapters, interrupted

from fedvlm_secure.engines import local
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import (
    MisuseError,
    PolicyRefusalError,
    PrivacyBudgetExhaustedError,
    ProtocolError,
    RoundAbortedError,
    VerificationError,
)
from fedvlm_secure.federation import safeguard
from fedvlm_secure.federation.coordinator import Coordinator
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.rundir import Folder, RunDirectory
from fedvlm_secure.federation.safeguard import Protected, Safeguard
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import read_json
from fedvlm_secure.privacy.accounting import SampledGaussian, Unprotected
from fedvlm_secure.privacy.ledger import Ledger
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.training import PrivateSettings, train_private

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Settings]

SITES = [f"site-{letter}" for letter in "abcd"]
RECORD = ("privacy.mode=record", "privacy.target-epsilon=4", "privacy.accountant=rdp", "adapter.init=random")
CLIENT = ("privacy.mode=client", "privacy.target-epsilon=30", "aggregation.rounding=stochastic")
DELTA = 1e-5


def ledger(run: Path, site: str = "site-a") -> Ledger:
    return Ledger(run / "sites" / site / "state" / "ledger.sqlite", accountant="rdp", create=False)


def spent(book: Ledger) -> float:
    (fingerprint,) = {release.fingerprint for release in book.releases()}
    return book.spent(fingerprint, DELTA)


class Steps(Observer):
    """Which site was trained in which round."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, str]] = set()
        self.round = 0

    def round_begins(self, round_index: int, rounds: int, attempt: int, sites: int) -> None:
        self.round = round_index

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        self.seen.add((self.round, site))


def test_record_level_states_what_the_ledgers_hold(settings: Make, tmp_path: Path) -> None:
    result = local.run(settings(*RECORD), tmp_path / "run")
    stated = result.summary["privacy"]
    assert (stated["level"], stated["unit"], stated["releases"]) == ("record", "image", ROUNDS * 2)
    assert 3.9 < stated["epsilon"] <= 4 < stated["epsilon-without-amplification"]
    for site in SITES:
        book = ledger(tmp_path / "run", site)
        assert [(r.round, r.tries, r.released) for r in book.releases()] == [(1, 1, True), (2, 1, True)]
        assert spent(book) == pytest.approx(stated["epsilon"])
        own = read_json(tmp_path / "run" / "sites" / site / "summary.json")
        assert own["epsilon"] == pytest.approx(stated["epsilon"])
        assert own["final"] is not None
    assert "Record-level differential privacy" in (tmp_path / "run/report.html").read_text()
    RunDirectory(tmp_path / "run").verify_manifest()


@pytest.mark.parametrize("mode", [RECORD, CLIENT])
def test_the_server_is_told_no_counts(settings: Make, tmp_path: Path, mode: tuple[str, ...]) -> None:
    result = local.run(settings(*mode), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert [(line["kind"], line["round"]) for line in lines] == [("training", 1), ("training", 2)]
    assert all(line["total-weight"] == len(SITES) for line in lines)
    assert {line[key] for line in lines for key in ("correct", "asked", "accuracy", "loss")} == {None}
    assert result.summary["test-accuracy"] is None


def test_size_bands_weigh_and_are_named_as_known(settings: Make, tmp_path: Path) -> None:
    chosen = settings(*RECORD, "privacy.weights=size-band")
    result = local.run(chosen, tmp_path / "run")
    rows = [read_json(tmp_path / "run" / "sites" / site / "summary.json")["rows"]["train"] for site in SITES]
    bands = [max(band for band in (1, 2, 4, 8, 16, 32, 64) if band <= count) for count in rows]
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert {line["total-weight"] for line in lines} == {sum(bands)} != {sum(rows)}
    assert any("size band" in each for each in result.summary["privacy"]["outside"])


def test_loud_noise_shortens_the_steps(settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PrivateSettings] = []

    def watched(adapter: Any, split: Any, chosen: Any, dp: PrivateSettings, *rest: Any, **named: Any) -> Any:
        seen.append(dp)
        return train_private(adapter, split, chosen, dp, *rest, **named)

    monkeypatch.setattr(safeguard, "train_private", watched)
    for epsilon in ("8", "0.2"):
        local.run(settings(*RECORD, f"privacy.target-epsilon={epsilon}"), tmp_path / epsilon)
    mild, loud = seen[0], seen[-1]
    assert mild.noise_multiplier < 4 < loud.noise_multiplier
    batch = settings(*RECORD).training.batch_size
    assert mild.nominal_batch == batch
    assert loud.noise_multiplier / loud.nominal_batch == pytest.approx(4 / batch)


def test_two_runs_of_one_seed_differ_under_noise_only(settings: Make, tmp_path: Path) -> None:
    for name, mode in (("plain", ()), ("record", RECORD), ("client", CLIENT)):
        ends = []
        for again in "12":
            local.run(settings(*mode), tmp_path / (name + again))
            ends.append(adapters(tmp_path / (name + again)))
        assert (ends[0] == ends[1]) == (name == "plain"), name


def test_adapters_that_share_nothing_are_charged_too(settings: Make, tmp_path: Path) -> None:
    """A personal adapter is published where its hospital likes."""
    result = local.run(settings(*RECORD, "adapter.strategy=local"), tmp_path / "run")
    assert spent(ledger(tmp_path / "run")) == pytest.approx(result.summary["privacy"]["epsilon"])


def test_a_round_above_the_limit_is_refused_before_it_is_trained(settings: Make, tmp_path: Path) -> None:
    watched = Steps()
    with pytest.raises(PrivacyBudgetExhaustedError, match=r"round 2 would bring .* limit is 3\.5"):
        local.run(settings(*RECORD, "privacy.epsilon-limit=3.5"), tmp_path / "run", observer=watched)
    assert watched.seen == {(1, site) for site in SITES}
    assert len(ledger(tmp_path / "run").releases()) == 1


def test_the_account_goes_on_over_runs(settings: Make, tmp_path: Path) -> None:
    kept = (*RECORD, f"privacy.ledger={tmp_path / 'ledgers'}", "privacy.epsilon-limit=4.5")
    local.run(settings(*kept), tmp_path / "first")
    watched = Steps()
    with pytest.raises(PrivacyBudgetExhaustedError, match="round 1"):
        local.run(settings(*kept), tmp_path / "second", observer=watched)
    assert not watched.seen
    with pytest.raises(PrivacyBudgetExhaustedError, match="without differential privacy"):
        local.run(settings(*kept[3:]), tmp_path / "third", observer=watched)
    assert not watched.seen


def test_training_without_privacy_is_written_down_where_an_account_is_kept(settings: Make, tmp_path: Path) -> None:
    local.run(settings(f"privacy.ledger={tmp_path / 'ledgers'}"), tmp_path / "run")
    book = Ledger(tmp_path / "ledgers" / "site-b.sqlite", create=False)
    assert [release.event for release in book.releases()] == [Unprotected(), Unprotected()]


@pytest.mark.parametrize("mode", [RECORD, CLIENT])
@pytest.mark.parametrize("after", [8, 13])
def test_an_interrupted_run_is_charged_for_what_it_releases(
    settings: Make, tmp_path: Path, mode: tuple[str, ...], after: int
) -> None:
    stops = 0
    for stops in interrupted(settings(*mode), tmp_path / "run", after):  # noqa: B007  # used below
        path = tmp_path / "run/sites/site-a/state"
        if (path / "pending.safetensors").exists() and mode is RECORD:
            assert ledger(tmp_path / "run").releases()  # never trained without a charge
    assert stops > 1
    stated = read_json(tmp_path / "run/coordinator/summary.json")["privacy"]
    assert len(ledger(tmp_path / "run").releases()) == ROUNDS
    assert spent(ledger(tmp_path / "run")) == pytest.approx(stated["epsilon"])


@pytest.mark.parametrize("mode", [RECORD, CLIENT])
def test_a_failed_attempt_is_charged_and_stated(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]
) -> None:
    """All have answered ``unmask`` when the first sum turns out to be garbage: it is trained, and noised, anew."""
    monkeypatch.setattr(ServerJournal, "aggregate", _garbage_once(ServerJournal.aggregate))
    local.run(settings(*mode), tmp_path / "run")
    stated = read_json(tmp_path / "run/coordinator/summary.json")["privacy"]
    book = ledger(tmp_path / "run")
    assert [(r.round, r.tries) for r in book.releases()] == [(1, 1), (1, 2), (2, 1)]
    assert spent(book) == pytest.approx(stated["epsilon"])
    assert stated["releases"] == (3 * 2 if mode is RECORD else 3)


def _garbage_once(aggregate: Callable[..., Any]) -> Callable[..., Any]:
    done = []

    def once(session: ServerJournal) -> Any:
        total = aggregate(session)
        if not done:
            done.append(True)
            raise RoundAbortedError("P-8.1", party="server", phase="unmask", detail="garbage", round=session.plan.place)
        return total

    return once


@pytest.mark.parametrize("protocol", ["pairwise", "bfv"])
def test_client_level_noise_is_in_the_sum(settings: Make, tmp_path: Path, protocol: str) -> None:
    chosen = settings(*CLIENT, f"aggregation.protocol={protocol}", "privacy.noise-multiplier=0.5")
    result = local.run(chosen, tmp_path / "run")
    stated = result.summary["privacy"]
    assert (stated["level"], stated["noise-multiplier"], stated["releases"]) == ("client", 0.5, ROUNDS)
    assert spent(ledger(tmp_path / "run")) == pytest.approx(stated["epsilon"])
    assert all(release.unit == "hospital" for release in ledger(tmp_path / "run").releases())


def test_a_server_that_asks_for_less_noise_is_refused(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose = Coordinator._plan

    def quieter(coordinator: Coordinator, *args: Any) -> Plan:
        plan = propose(coordinator, *args)
        return replace(plan, noise=struct.pack(">d", plan.noise_multiplier * 0.999))

    monkeypatch.setattr(Coordinator, "_plan", quieter)
    with pytest.raises(PolicyRefusalError, match="noise multiplier"):
        local.run(settings(*CLIENT), tmp_path / "run")


def test_a_server_that_asks_for_coarser_numbers_is_refused(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding widens what one hospital can change: the same noise would promise less."""
    propose = Coordinator._plan

    def coarser(coordinator: Coordinator, *args: Any) -> Plan:
        plan = propose(coordinator, *args)
        layout = replace(plan.layout, value_bits=3)
        plan = replace(plan, layout=layout)
        return replace(plan, ring_bits=layout.ring_bits(len(plan.cohort), plan.noise_tail))

    monkeypatch.setattr(Coordinator, "_plan", coarser)
    with pytest.raises(ProtocolError, match=r"P-2\.5: its layout is not the one this client has agreed to"):
        local.run(settings(*CLIENT), tmp_path / "run")


def test_a_ledger_that_was_rolled_back_is_noticed(settings: Make, tmp_path: Path) -> None:
    """Even where file and anchor are restored together: the run remembers what it has seen."""
    ledgers = tmp_path / "ledgers"
    chosen = settings(*RECORD, f"privacy.ledger={ledgers}")
    runs = interrupted(chosen, tmp_path / "run", 13)
    next(runs)
    shutil.copytree(ledgers, tmp_path / "backup")
    next(runs)
    shutil.rmtree(ledgers)
    shutil.copytree(tmp_path / "backup", ledgers)
    with pytest.raises(VerificationError, match="L-3"):
        next(runs)


def test_too_few_units_for_delta(settings: Make, tmp_path: Path) -> None:
    chosen = settings(*RECORD, "privacy.target-delta=1e-3")
    for units, sound in ((99, True), (101, False)):
        guard = Safeguard("site-a", Folder(tmp_path), Protected(np.arange(units), "0" * 64), chosen)
        with nullcontext() if sound else pytest.raises(MisuseError, match="delta"):
            guard.check()


def test_a_server_that_runs_another_attempt_than_it_announced_is_refused(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hospital is charged for the announced attempt: the sums of others would be free."""
    propose = Coordinator._plan

    def later(coordinator: Coordinator, *args: Any) -> Plan:
        return replace(propose(coordinator, *args), attempt=coordinator.place[1] + 1)

    monkeypatch.setattr(Coordinator, "_plan", later)
    with pytest.raises(ProtocolError, match=r"P-2\.7: is not for the attempt"):
        local.run(settings(*CLIENT, "aggregation.attempts=1"), tmp_path / "run")


def test_a_server_that_counts_on_fewer_colluders_is_refused(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise is about two colluders; the policy's own floor is one."""
    propose = Coordinator._plan

    def trusting(coordinator: Coordinator, *args: Any) -> Plan:
        plan = propose(coordinator, *args)
        less = replace(plan, max_corrupt=1)
        return replace(less, ring_bits=less.layout.ring_bits(len(less.cohort), less.noise_tail))

    monkeypatch.setattr(Coordinator, "_plan", trusting)
    with pytest.raises(PolicyRefusalError, match="max_corrupt 1 is below 2"):
        local.run(settings(*CLIENT, "aggregation.max-corrupt=2"), tmp_path / "run")


def test_a_hospital_counts_rounds_and_repetitions_for_itself(settings: Make, tmp_path: Path) -> None:
    chosen = settings(*CLIENT, "aggregation.attempts=2")
    guard = Safeguard("site-a", Folder(tmp_path), Protected(np.arange(9), "0" * 64), chosen)
    names = tuple(SITES)
    for place in ((1, 1), (1, 2), (1, 2), (2, 1)):
        assert guard.noised(place, names, 100)
    for place in ((2, 2), (3, 1), (1, 3)):
        with pytest.raises(PrivacyBudgetExhaustedError, match="agreed to"):
            guard.noised(place, names, 100)


def test_a_result_of_a_copied_run_is_not_charged_to_the_first(settings: Make, tmp_path: Path) -> None:
    chosen = settings(*RECORD, f"privacy.ledger={tmp_path / 'ledgers'}")
    guard = Safeguard("site-a", Folder(tmp_path), Protected(np.arange(9), "0" * 64), chosen)
    guard._charge((1, 1), SampledGaussian(1.0, 0.5, 2), "image")
    guard.leaves((1, 1), b"one")
    guard.leaves((1, 1), b"one")
    with pytest.raises(MisuseError, match="another result"):
        guard.leaves((1, 1), b"other")


def test_earlier_training_without_privacy_is_not_forgotten(settings: Make, tmp_path: Path) -> None:
    kept = f"privacy.ledger={tmp_path / 'ledgers'}"
    local.run(settings(kept), tmp_path / "open")
    local.run(settings(*RECORD, kept), tmp_path / "private")
    assert read_json(tmp_path / "private/sites/site-a/summary.json")["epsilon"] == "inf"


def test_ckks_cannot_carry_the_noise(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="ckks"):
        local.run(settings(*CLIENT, "aggregation.protocol=ckks"), tmp_path / "run")

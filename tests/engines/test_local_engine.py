"""Whole runs of the local engine on a random tiny model: results, interruption at any point, dropouts, refusals."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_kit import Interrupter, StoppedError, final_state, interrupted, pending, stopping_after

from fedvlm_secure.encoding.codec import Codec, Encoded, GarbageSumError, Update
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.engines import local
from fedvlm_secure.errors import MisuseError, PolicyRefusalError, RoundAbortedError, VerificationError
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.coordinator import Coordinator
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.participant import Participant
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.federation.standing import Pending, Standing
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.roster import member, read_roster, sign_roster

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_what_it_promises(settings: Callable[..., Settings], tmp_path: Path) -> None:
    result = local.run(settings(), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.verify_manifest()
    assert [row.site for row in result.sites] == ["site-a", "site-b", "site-c", "site-d"]
    assert result.summary["shared-parameters"] > 0
    lines = run.coordinator.metrics.lines()
    assert [(line["kind"], line["round"]) for line in lines] == [("training", 1), ("training", 2), ("evaluation", 3)]
    assert all(line["asked"] == 4 * 8 and line["total-weight"] == 4 * 24 for line in lines)
    assert (run.path / "report.html").stat().st_size > 1000
    assert len(final_state(run.path)) > 10


def test_the_servers_counters_are_the_sum_of_the_sites(settings: Callable[..., Settings], tmp_path: Path) -> None:
    local.run(settings(), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    finals = [line for s in "abcd" for line in run.site(f"site-{s}").metrics.lines() if line["stage"] == "final"]
    server = run.coordinator.metrics.lines()[-1]
    assert server["correct"] == sum(line["correct"] for line in finals)
    assert server["loss"] == pytest.approx(sum(line["loss"] for line in finals) / 4, abs=1e-3)


def test_a_site_is_told_when_the_clip_norm_is_too_small(settings: Callable[..., Settings], tmp_path: Path) -> None:
    local.run(settings("aggregation.clip-norm=1e-3"), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").site("site-a").metrics.lines()
    told = [line for line in lines if line["stage"] == "encoding"]
    assert [line["round"] for line in told] == [1, 2]
    assert all(line["clipped"] and line["saturated"] == 0 for line in told)


def test_nothing_of_one_site_is_in_the_coordinators_folder(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an update as it is nor as encoded integers, in any file, state and transcripts included.

    Nor is it in the hospitals' own folders, but sealed.
    """
    traces: list[bytes] = []
    encode = Codec.encode

    def watched(codec: Codec, update: Update) -> Encoded:
        encoded = encode(codec, update)
        if len(update.values):
            ring = Ring(codec.layout.ring_bits(4))
            traces.append(update.values[-8:].tobytes())
            traces.append(ring.pack(ring.from_signed(encoded.integers[:8])))
        return encoded

    monkeypatch.setattr(Codec, "encode", watched)
    with pytest.raises(StoppedError):  # at the end of masked-input: the sum is there, and the sites' updates still are
        local.run(settings(), tmp_path / "pairwise", observer=Interrupter(15))
    assert len(traces) == 2 * 4

    def found(folder: Path) -> int:
        everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        return sum(trace in everything for trace in traces)

    assert found(tmp_path / "pairwise") == 0
    run = RunDirectory(tmp_path / "pairwise")
    updates = b"".join(pending(run, f"site-{s}").update.values.tobytes() for s in "abcd")
    assert all(trace in updates for trace in traces[::2]), "the search looks for something else"


def test_pairwise_and_plain_agree_exactly(settings: Callable[..., Settings], tmp_path: Path) -> None:
    local.run(settings(), tmp_path / "pairwise")
    plain = settings("aggregation.protocol=plain", 'policy.protocols=["plain"]')
    result = local.run(plain, tmp_path / "plain")
    assert final_state(tmp_path / "pairwise") == final_state(tmp_path / "plain")
    assert "plain" in result.summary["insecure"][0]
    assert "INSECURE" in (tmp_path / "plain/report.html").read_text().upper()


@pytest.mark.parametrize("strategy", ["lora", "local"])
def test_other_strategies_run(settings: Callable[..., Settings], tmp_path: Path, strategy: str) -> None:
    result = local.run(settings(f"adapter.strategy={strategy}"), tmp_path / "run")
    assert (result.summary["shared-parameters"] == 0) == (strategy == "local")


def test_rows_encoded_once_serve_further_runs_on_the_same_layers(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: Encoded = {}
    local.run(settings(), tmp_path / "first", encoded=encoded)
    calls: list[object] = []
    encode = local.data.encode
    monkeypatch.setattr(local.data, "encode", lambda *given: calls.append(given) or encode(*given))
    local.run(settings(), tmp_path / "second", encoded=encoded)
    assert not calls
    assert final_state(tmp_path / "first") == final_state(tmp_path / "second")
    local.run(settings("adapter.layers=1"), tmp_path / "third", encoded=encoded)
    assert calls, "another adapter may leave less to be done beforehand"


@pytest.mark.parametrize("after", [8, 17, 18])  # in the midst of training; all have answered `unmask`; the sum is taken
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    settings: Callable[..., Settings], tmp_path: Path, after: int
) -> None:
    local.run(settings(), tmp_path / "whole")
    stops = list(interrupted(settings(), tmp_path / "pieces", after))
    assert stops
    assert final_state(tmp_path / "pieces") == final_state(tmp_path / "whole")
    whole, pieces = (RunDirectory(tmp_path / name) for name in ("whole", "pieces"))
    strip = {"seconds", "training-seconds"}
    assert [{k: v for k, v in line.items() if k not in strip} for line in pieces.coordinator.metrics.lines()] == [
        {k: v for k, v in line.items() if k not in strip} for line in whole.coordinator.metrics.lines()
    ]
    pieces.verify_manifest()


def test_an_interruption_between_two_answers_to_unmask(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some updates are answered for, the round is not over: those very updates are in its sum."""

    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Callable[[str, str], bool]:
        def stop_at_c(client: str, phase: str) -> bool:
            if (place, client, phase) == ((2, 1), "site-c", "unmask"):
                raise StoppedError
            return True

        return stop_at_c

    local.run(settings(), tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(local._Federation, "_alive", alive)
        with pytest.raises(StoppedError):
            local.run(settings(), tmp_path / "pieces")
    local.resume(tmp_path / "pieces")
    assert final_state(tmp_path / "pieces") == final_state(tmp_path / "whole")
    lines = RunDirectory(tmp_path / "pieces").coordinator.metrics.lines()
    assert [(line["kind"], line["round"], line["attempt"]) for line in lines][1] == ("training", 2, 1)


STEPS = [
    (Pending, "save"),
    (ServerJournal, "begin"),
    (ServerJournal, "aggregate"),
    (Coordinator, "_save_global"),
    (Attempts, "_archive"),
    (Coordinator, "_record"),
    (Attempts, "_go_on"),
    (Participant, "_record_encoding"),
    (Standing, "save"),
]


def test_an_interruption_after_any_step_of_a_round(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.run(settings(), tmp_path / "whole")
    run = tmp_path / "pieces"
    for owner, step in STEPS:
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, stopping_after(getattr(owner, step)))
            with pytest.raises(StoppedError):
                local.run(settings(), run, resume=run.exists())
    local.resume(run)
    assert final_state(run) == final_state(tmp_path / "whole")
    lines = RunDirectory(run).coordinator.metrics.lines()
    assert [(line["kind"], line["round"], line["attempt"]) for line in lines] == [
        ("training", 1, 1),
        ("training", 2, 1),
        ("evaluation", 3, 1),
    ]


def test_an_abort_that_was_interrupted_did_not_happen(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt goes on, here with those who were silent before, and there is one line of it."""
    with monkeypatch.context() as patched:
        patched.setattr(
            local._Federation, "_alive", lambda self, place, phases: lambda client, phase: client < "site-c"
        )
        patched.setattr(Attempts, "_go_on", stopping_after(lambda self, *place: None))
        with pytest.raises(StoppedError):
            local.run(settings(), tmp_path / "run")
    assert RunDirectory(tmp_path / "run").coordinator.metrics.lines()[-1]["kind"] == "aborted"
    local.resume(tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert [(line["kind"], line["round"], line["attempt"]) for line in lines] == [
        ("training", 1, 1),
        ("training", 2, 1),
        ("evaluation", 3, 1),
    ]


def test_dropouts_leave_the_survivors_sum(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Callable[[str, str], bool]:
        return lambda client, phase: client != "site-b" or phases.index(phase) < 2

    monkeypatch.setattr(local._Federation, "_alive", alive)
    local.run(settings(), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert all(line["dropped"] == ["site-b"] and line["total-weight"] == 3 * 24 for line in lines)


def test_a_failed_attempt_is_repeated_with_fresh_keys(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Callable[[str, str], bool]:
        return lambda client, phase: place != (1, 1) or phase != "unmask" or client == "site-a"

    monkeypatch.setattr(local._Federation, "_alive", alive)
    local.run(settings(), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    lines = run.coordinator.metrics.lines()
    assert [(line["kind"], line["round"], line["attempt"]) for line in lines[:2]] == [
        ("aborted", 1, 1),
        ("training", 1, 2),
    ]
    assert lines[1]["dropped"] == []


def test_only_the_answered_train_anew(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an abort in `unmask` some updates have been answered for: those sites train anew (P-7.5)."""

    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Callable[[str, str], bool]:
        return lambda client, phase: place != (1, 1) or phase != "unmask" or client == "site-a"

    monkeypatch.setattr(local._Federation, "_alive", alive)
    with pytest.raises(StoppedError):
        # 12 events of training, 4 phases, then 2 steps of site-a and 4 ready sites: before the second attempt's sum.
        local.run(settings(), tmp_path / "run", observer=Interrupter(12 + 4 + 2 + 4))
    run = RunDirectory(tmp_path / "run")
    tries = {s: pending(run, f"site-{s}").tries for s in "abcd"}
    assert tries == {"a": 2, "b": 1, "c": 1, "d": 1}


def test_a_garbage_sum_ends_the_attempt_and_not_the_run(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every site has answered `unmask` by then, so the second attempt sums updates that were trained anew."""
    counted, fingerprints, encode = Codec.counted, [], Codec.encode

    def garbage_once(codec: Codec, total: np.ndarray) -> tuple[dict[str, int], int]:
        monkeypatch.setattr(Codec, "counted", counted)
        raise GarbageSumError("made up")

    def watched(codec: Codec, update: Update) -> Encoded:
        fingerprints.append(update.values.tobytes())
        return encode(codec, update)

    monkeypatch.setattr(Codec, "counted", garbage_once)
    monkeypatch.setattr(Codec, "encode", watched)
    local.run(settings(), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert [(line["kind"], line["round"], line["attempt"]) for line in lines[:2]] == [
        ("aborted", 1, 1),
        ("training", 1, 2),
    ]
    assert "P-8.1" in lines[0]["reason"]
    assert not set(fingerprints[:4]) & set(fingerprints[4:8])


def test_the_last_allowed_attempt_ends_the_run(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        local._Federation, "_alive", lambda self, place, phases: lambda client, phase: client == "site-a"
    )
    with pytest.raises(RoundAbortedError):
        local.run(settings("aggregation.attempts=2"), tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert [line["attempt"] for line in lines] == [1, 2]
    monkeypatch.undo()
    local.resume(tmp_path / "run")
    lines = RunDirectory(tmp_path / "run").coordinator.metrics.lines()
    assert [(line["round"], line["attempt"]) for line in lines] == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    "override", ["aggregation.protocol=plain", "aggregation.threat-model=honest-but-curious", "policy.min-cohort=5"]
)
def test_a_plan_below_the_hospitals_floors_is_refused(
    settings: Callable[..., Settings], tmp_path: Path, override: str
) -> None:
    with pytest.raises(PolicyRefusalError) as refusal:
        local.run(settings(override), tmp_path / "run")
    assert refusal.value.clause == "P-2.6"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=hospital"], "not known"),
        (['sites=["site-a", "site-b"]'], "2 clients"),
        (['sites=["site-a"]'], "1 clients"),
        (["aggregation.weight-max=5"], "rows-per-weight"),
        (['sites=["site-x"]'], "site-x"),
    ],
)
def test_what_cannot_succeed_is_refused_before_anything_is_written(
    settings: Callable[..., Settings], tmp_path: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(MisuseError, match=says):
        local.run(settings(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_among_other_files(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(MisuseError, match="not empty"):
        local.run(settings(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_was_killed_at_its_first_file_begins_again(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(scratch: Path, path: Path) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(StoppedError):
            local.run(settings(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["settings.toml.part"]
    local.run(settings("rounds=1"), tmp_path / "run")


def test_a_resumed_run_keeps_its_settings(settings: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        local.run(settings(), tmp_path / "run", observer=Interrupter(3))
    with pytest.raises(MisuseError, match="other settings"):
        local.run(settings("seed=1"), tmp_path / "run", resume=True)


def test_an_existing_run_is_not_overwritten(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.toml").write_text("")
    with pytest.raises(MisuseError, match="exists"):
        local.run(settings(), tmp_path / "run")
    with pytest.raises(MisuseError, match="no run directory"):
        local.resume(tmp_path / "nowhere")


def test_damaged_state_is_a_clear_error(settings: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        local.run(settings(), tmp_path / "run", observer=Interrupter(14))
    saved = tmp_path / "run/coordinator/state/session.sqlite"
    assert saved.exists()
    saved.write_bytes(saved.read_bytes()[:-4096])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(MisuseError, match="damaged"):
        local.resume(tmp_path / "copy")


def stopped_in_round_1(settings: Settings, folder: Path) -> RunDirectory:
    with pytest.raises(StoppedError):
        local.run(settings, folder, observer=Interrupter(14))
    return RunDirectory(folder)


def test_every_hospital_has_pinned_the_signed_roster(settings: Callable[..., Settings], tmp_path: Path) -> None:
    run = stopped_in_round_1(settings(), tmp_path / "run")
    roster = read_roster(run.roster.read_bytes())
    assert roster.server == run.coordinator.identity().public
    for listed in roster.members:
        folder = run.site(listed.name)
        assert listed == member(listed.name, folder.identity())
        assert (folder.state / "roster.pin").read_bytes() == roster.hash


@pytest.mark.parametrize("change", ["forged", "damaged"])
def test_no_session_begins_with_another_roster(settings: Callable[..., Settings], tmp_path: Path, change: str) -> None:
    run = stopped_in_round_1(settings(), tmp_path / "run")
    genuine = run.roster.read_bytes()
    match change:
        case "forged":
            board = Identity.generate()
            roster = replace(read_roster(genuine), consortium=board.public)
            run.roster.write_bytes(sign_roster(roster, board))
        case "damaged":
            run.roster.write_bytes(genuine[:-1] + bytes([genuine[-1] ^ 1]))
    with pytest.raises(VerificationError) as refusal:
        local.resume(run.path)
    assert refusal.value.clause == {"forged": "R-3", "damaged": "R-2"}[change]
    run.roster.write_bytes(genuine)
    local.resume(run.path)


def test_no_session_begins_under_an_expired_roster(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "NEVER", 1)  # the year 1970
    with pytest.raises(VerificationError) as refusal:
        local.run(settings(), tmp_path / "run")
    assert refusal.value.clause == "R-5"


def test_a_hospital_pins_no_roster_that_lists_another_key_for_it(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        local, "member", lambda name, own: member(name, Identity.generate() if name == "site-b" else own)
    )
    with pytest.raises(MisuseError, match="does not list 'site-b'"):
        local.run(settings(), tmp_path / "run")

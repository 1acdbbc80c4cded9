"""Whole runs under the protocols whose sums only hospitals can read: the coordinator works without the model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from engine_kit import Interrupter, StoppedError, adapters, interrupted, pending, stopping_after

from fedvlm_secure.engines import local
from fedvlm_secure.errors import MisuseError, PolicyRefusalError
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.coordinator import Coordinator
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.participant import Participant
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.federation.standing import Standing
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.encrypted.server import Carried

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Settings]
Alive = Callable[[str, str], bool]

BFV, CKKS = "aggregation.protocol=bfv", "aggregation.protocol=ckks"


def lines_of(folder: Path) -> list[tuple[str, int, int]]:
    lines = RunDirectory(folder).coordinator.metrics.lines()
    return [(line["kind"], line["round"], line["attempt"]) for line in lines]


def epoch_of(folder: Path) -> int:
    carried = RunDirectory(folder).coordinator.state / "carried.cbor"
    return unpack(Carried, carried.read_bytes(), STATE_LIMITS).epoch


def test_bfv_ends_where_pairwise_does(settings: Make, tmp_path: Path) -> None:
    local.run(settings(), tmp_path / "pairwise")
    local.run(settings(BFV), tmp_path / "bfv")
    assert adapters(tmp_path / "bfv") == adapters(tmp_path / "pairwise")
    RunDirectory(tmp_path / "bfv").verify_manifest()


def test_ckks_ends_close_to_it(settings: Make, tmp_path: Path) -> None:
    local.run(settings(), tmp_path / "pairwise")
    local.run(settings(CKKS), tmp_path / "ckks")
    one, other = (
        [np.frombuffer(value, np.float32) for _, value in sorted(adapters(tmp_path / name).items())]
        for name in ("pairwise", "ckks")
    )
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_the_coordinator_knows_no_state_and_no_metric(settings: Make, tmp_path: Path, protocol: str) -> None:
    result = local.run(settings(protocol), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    for line in run.coordinator.metrics.lines():
        assert {line[key] for key in ("total-weight", "correct", "asked", "accuracy", "loss", "update-norm")} == {None}
        assert line["survivors"] == ["site-a", "site-b", "site-c", "site-d"]
    assert result.summary["test-accuracy"] is None
    # The common initial state is public; after it there are ciphertexts only.
    assert [path.name for path in sorted((run.coordinator.path / "global").glob("*.safetensors"))] == [
        "round-0000.safetensors"
    ]
    everything = b"".join(path.read_bytes() for path in run.coordinator.path.rglob("*") if path.is_file())
    shared = Standing.load(run.site("site-a").state / "standing.safetensors").shared
    assert shared is not None
    assert shared.tobytes()[-64:] not in everything
    assert f"protocol {protocol.partition('=')[2]}: every hospital holds the key" in result.summary["insecure"][0]


def test_published_counters_and_nothing_else(settings: Make, tmp_path: Path) -> None:
    published = (BFV, 'policy.published=["correct", "asked"]')
    with pytest.raises(PolicyRefusalError, match="compares what several clients publish"):
        local.run(settings(*published), tmp_path / "refused")
    curious = ("aggregation.threat-model=honest-but-curious", "policy.threat-model=honest-but-curious")
    result = local.run(settings(*published, *curious), tmp_path / "run")
    line = RunDirectory(tmp_path / "run").coordinator.metrics.lines()[-1]
    assert (line["asked"], line["total-weight"], line["loss"]) == (4 * 8, None, None)
    assert result.summary["test-accuracy"] == line["accuracy"] == line["correct"] / line["asked"]


def test_the_key_is_dealt_once_a_run_or_as_often_as_asked(settings: Make, tmp_path: Path) -> None:
    local.run(settings(BFV), tmp_path / "once")
    local.run(settings(BFV, "aggregation.key-rounds=1"), tmp_path / "often")
    dealt = {
        name: ["keys" in line["bytes"] for line in RunDirectory(tmp_path / name).coordinator.metrics.lines()]
        for name in ("once", "often")
    }
    assert dealt == {"once": [True, False, False], "often": [True, True, True]}


def test_a_dealer_that_stays_silent_does_not_hold_up_the_run(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Alive:
        return lambda client, phase: (client, phase) != ("site-a", "keys")

    monkeypatch.setattr(local._Federation, "_alive", alive)
    local.run(settings(BFV), tmp_path / "run")
    assert lines_of(tmp_path / "run")[:2] == [("aborted", 1, 1), ("training", 1, 2)]
    assert epoch_of(tmp_path / "run") == 2
    tries = pending(RunDirectory(tmp_path / "run"), "site-b").tries
    assert tries == 1, "nothing had been uploaded, so nobody needed to train anew"


def test_whoever_missed_the_sum_reads_it_later(settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent at `input` one does not take part; silent at `sum` one does. Both go on from the same model."""

    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Alive:
        gone = {"site-b": "input", "site-c": "sum"}
        return lambda client, phase: gone.get(client) != phase

    monkeypatch.setattr(local._Federation, "_alive", alive)
    local.run(settings(BFV), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert all(line["dropped"] == ["site-b"] for line in run.coordinator.metrics.lines())
    states = [Standing.load(run.site(f"site-{s}").state / "standing.safetensors").shared for s in "abcd"]
    assert len({state.tobytes() for state in states if state is not None}) == 1


def test_too_few_uploads_cost_a_training_and_a_key(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was uploaded is never sent again (E-4.4)."""

    def alive(self: object, place: tuple[int, int], phases: tuple[str, ...]) -> Alive:
        return lambda client, phase: place != (1, 1) or phase != "input" or client < "site-c"

    monkeypatch.setattr(local._Federation, "_alive", alive)
    with pytest.raises(StoppedError):  # 12 events of training, `keys`, then two sites train anew and four are ready
        local.run(settings(BFV), tmp_path / "run", observer=Interrupter(12 + 1 + 4 + 4))
    run = RunDirectory(tmp_path / "run")
    tries = {s: pending(run, f"site-{s}").tries for s in "abcd"}
    assert tries == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert epoch_of(tmp_path / "run") == 2


@pytest.mark.parametrize("after", [8, 15, 16])  # in the midst of training; all have read the sum; the round is over
def test_an_interrupted_run_ends_as_if_it_had_not_been(settings: Make, tmp_path: Path, after: int) -> None:
    local.run(settings(BFV), tmp_path / "whole")
    assert list(interrupted(settings(BFV), tmp_path / "pieces", after))
    assert adapters(tmp_path / "pieces") == adapters(tmp_path / "whole")
    assert lines_of(tmp_path / "pieces") == lines_of(tmp_path / "whole")


STEPS = [
    (ServerJournal, "begin"),
    (ServerJournal, "aggregate"),
    (Attempts, "_archive"),
    (Coordinator, "_record"),
    (Attempts, "_carry"),
    (Attempts, "_go_on"),
    (Participant, "_record_encoding"),
    (Standing, "save"),
]


def test_an_interruption_after_any_step_of_a_round(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.run(settings(BFV), tmp_path / "whole")
    run = tmp_path / "pieces"
    for owner, step in STEPS:
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, stopping_after(getattr(owner, step)))
            with pytest.raises(StoppedError):
                local.run(settings(BFV), run, resume=run.exists())
    local.resume(run)
    assert adapters(run) == adapters(tmp_path / "whole")
    assert lines_of(run) == [("training", 1, 1), ("training", 2, 1), ("evaluation", 3, 1)]


def test_a_relayed_sum_of_another_round_is_refused(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server hands a hospital that comes back the sum of round 1 as that of round 2."""
    with monkeypatch.context() as patched:
        patched.setattr(Participant, "adopt", stopping_after(lambda *_: None))
        with pytest.raises(StoppedError):
            local.run(settings(BFV), tmp_path / "run")
        with pytest.raises(StoppedError):
            local.resume(tmp_path / "run")
    local.run(settings(BFV, "seed=1"), tmp_path / "other")
    sums = RunDirectory(tmp_path / "run").coordinator.path / "global"
    other = RunDirectory(tmp_path / "other").coordinator.path / "global"
    (sums / "round-0001.sum.cbor").write_bytes((other / "round-0002.sum.cbor").read_bytes())
    with pytest.raises(Exception, match=r"P-2\.|roster|model"):
        local.resume(tmp_path / "run")


def test_collusion_under_a_shared_key_needs_a_word(settings: Make, tmp_path: Path) -> None:
    corrupt = (BFV, "aggregation.max-corrupt=1")
    with pytest.raises(PolicyRefusalError, match="colluding clients read every input"):
        local.run(settings(*corrupt), tmp_path / "refused")
    result = local.run(settings(*corrupt, "policy.shared-key-despite-collusion=true"), tmp_path / "run")
    assert result.summary["max-corrupt"] == 1


def test_a_hospital_that_named_pairwise_refuses(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefusalError, match="'bfv' is not accepted"):
        local.run(settings(BFV, 'policy.protocols=["pairwise"]', "policy.max-corrupt=0"), tmp_path / "run")


def test_too_wide_sums_are_refused_before_anything_is_trained(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="lower value_bits"):
        local.run(settings(BFV, "aggregation.weight-max=1000000"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_saved_shared_state_is_the_exported_one(settings: Make, tmp_path: Path) -> None:
    local.run(settings(CKKS), tmp_path / "run")
    site = RunDirectory(tmp_path / "run").site("site-d")
    shared = Standing.load(site.state / "standing.safetensors").shared
    exported = safetensors.numpy.load_file(site.path / "adapter/adapter_model.safetensors")
    assert shared is not None
    values = np.concatenate([value.ravel() for name, value in sorted(exported.items()) if "lora_B" in name])
    assert sorted(values.tolist()) == sorted(shared.tolist())

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flower_kit import LocalGrid, Place, found
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from fedvlm_secure.engines import local
from fedvlm_secure.engines.flower import client_app, coordination
from fedvlm_secure.engines.flower.node import load_identity
from fedvlm_secure.engines.flower.wire import FINISH, REFUSAL, Header, put, raw, take
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.journal import remembered
from fedvlm_secure.federation.rundir import Folder, RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.roster import NEVER, Roster, read_roster, sign_roster

SITES = ("site-a", "site-b", "site-c", "site-d")
QUICK = coordination.Deadlines(2.0, 0.5, 0.5)


@pytest.fixture
def grid(tmp_path, model_folder, data_folder, settings):
    folders = found(tmp_path / "net", SITES)
    for name in SITES:
        own = f'model = "{model_folder}"\ndata = "{data_folder}"\nsites = ["{name}"]\nthreads = 1\n'
        (folders[name] / "hospital.toml").write_text(own)
        (folders[name] / "settings.toml").write_text(settings().to_toml())
    made = LocalGrid({number: Place(folders[name], client_app()) for number, name in enumerate(SITES, 10)})
    made.server = folders["server"]
    return made


def agree(grid, settings: Settings) -> None:
    """Hand the run's settings out."""
    for place in grid.sites.values():
        (place.folder / "settings.toml").write_text(settings.to_toml())


def shared(folder: Path) -> np.ndarray:
    tensors = safetensors.numpy.load_file(sorted((folder / "coordinator/global").glob("*.safetensors"))[-1])
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def test_a_run_on_flower_ends_where_the_local_engine_does(grid, settings, tmp_path):
    summary = coordination.run(grid, settings(), grid.server, QUICK)
    expected = local.run(settings(), tmp_path / "local")
    run = grid.server / "runs/t"
    assert shared(run).tobytes() == shared(tmp_path / "local").tobytes()
    assert summary["test-accuracy"] == expected.summary["test-accuracy"]
    RunDirectory(run).verify_manifest()
    for place in grid.sites.values():
        assert (place.folder / "runs/t/adapter/adapter_model.safetensors").exists()
    # A hello and five messages a round, of which there are two and a closing one, and the end.
    assert len(grid.sent) == (1 + 3 * 5 + 1) * len(SITES)


@pytest.mark.parametrize("protocol", ["bfv", "ckks"])
def test_hospitals_read_sums_that_the_server_cannot(grid, settings, protocol):
    for place in grid.sites.values():
        path = place.folder / "hospital.toml"
        path.write_text(path.read_text() + f'[policy]\nprotocols = ["{protocol}"]\nmax-corrupt = 0\n')
    agree(grid, settings(f"aggregation.protocol={protocol}"))
    coordination.run(grid, settings(f"aggregation.protocol={protocol}"), grid.server, QUICK)
    states = [place.folder / "runs/t/state/standing.safetensors" for place in grid.sites.values()]
    assert len({safetensors.numpy.load_file(state)["shared"].tobytes() for state in states}) == 1


def test_a_protocol_that_the_hospital_has_not_named_is_refused(grid, settings, caplog):
    proposed = settings("aggregation.protocol=bfv", "aggregation.attempts=1")
    agree(grid, proposed)
    with pytest.raises(ProtocolError, match="did not deal a key"):
        coordination.run(grid, proposed, grid.server, QUICK)
    assert "protocol 'bfv' is not accepted" in caplog.text


def test_a_hospital_that_was_away_joins_the_next_round(grid, settings):
    def away(node, asked, reply):
        return None if node == 12 and take(asked.content)[0].place == (1, 1) else reply

    grid.tamper = away
    coordination.run(grid, settings(), grid.server, QUICK)
    lines = RunDirectory(grid.server / "runs/t").coordinator.metrics.lines()
    assert [len(line["survivors"]) for line in lines] == [3, 4, 4]


@pytest.mark.parametrize("phase", ["keys", "masked-input", "unmask"])
def test_a_server_that_comes_back_ends_where_it_would_have(grid, settings, phase, tmp_path):
    def killed(node, asked, reply):
        header, _ = take(asked.content)
        if header.phase == phase and header.place == (2, 1) and node == 12:
            raise KeyboardInterrupt
        return reply

    grid.tamper = killed
    with pytest.raises(KeyboardInterrupt):
        coordination.run(grid, settings(), grid.server, QUICK)
    grid.tamper = lambda node, asked, reply: reply
    coordination.run(grid, settings(), grid.server, QUICK)
    local.run(settings(), tmp_path / "local")
    assert shared(grid.server / "runs/t").tobytes() == shared(tmp_path / "local").tobytes()


def test_other_settings_do_not_continue_a_run(grid, settings):
    coordination.run(grid, settings(), grid.server, QUICK)
    with pytest.raises(MisuseError, match="other settings"):
        coordination.run(grid, settings("seed=1"), grid.server, QUICK)


def test_two_runs_that_train_alike_never_send_the_same_update(grid, settings, tmp_path):
    for name in ("t", "u"):
        agree(grid, settings("rounds=1", f"name={name}"))
        coordination.run(grid, settings("rounds=1", f"name={name}"), grid.server, QUICK)
    for place in grid.sites.values():
        memory, _ = remembered(place.folder / "state/session.sqlite", load_identity(place.folder / "identity.key"))
        assert len(memory.answered) == 2


def test_a_second_run_under_the_same_settings_is_refused(grid, settings, tmp_path, caplog):
    agree(grid, settings("rounds=1"))
    coordination.run(grid, settings("rounds=1"), grid.server, QUICK)
    shutil.rmtree(grid.server / "runs")
    with pytest.raises(ProtocolError):
        coordination.run(grid, settings("rounds=1", "aggregation.attempts=1"), grid.server, QUICK)
    assert "is of another run" in caplog.text


@pytest.mark.parametrize("proposed", ["adapter.strategy=lora", "aggregation.weight-max=4", "training.steps=2"])
def test_settings_that_the_hospitals_have_not_agreed_to_do_not_count(grid, settings, proposed, tmp_path):
    """A server with others is refused, or trains nobody otherwise than agreed."""
    agree(grid, settings("training.steps=3"))
    given = settings(proposed, "aggregation.attempts=1")
    if proposed.startswith("training"):
        coordination.run(grid, given, grid.server, QUICK)
        local.run(settings("training.steps=3"), tmp_path / "local")
        assert shared(grid.server / "runs/t").tobytes() == shared(tmp_path / "local").tobytes()
        return
    with pytest.raises(ProtocolError):
        coordination.run(grid, given, grid.server, QUICK)
    for place in grid.sites.values():
        lines = Folder(place.folder / "runs/t").metrics.lines()
        assert not [line for line in lines if line["stage"] == "training"]


def test_the_servers_own_signature_ends_a_run(grid, settings):
    agree(grid, settings("rounds=1"))
    coordination.run(grid, settings("rounds=1"), grid.server, QUICK)
    arrays = RecordDict({"fedvlm-secure.start": ArrayRecord({"shared": raw(bytes(4 * 64))})})
    (reply,) = grid.send_and_receive([Message(put(Header(FINISH), bytes(64), arrays), 10, MessageType.TRAIN)])
    assert take(reply.content)[0].kind == REFUSAL


def test_a_run_ends_under_the_roster_that_it_began_with(grid, settings, caplog):
    """Another one is refused before anybody trains or is charged (R-3)."""

    def killed(node, asked, reply):
        header, _ = take(asked.content)
        if header.place == (2, 1) and node == 10:  # the first of four
            raise KeyboardInterrupt
        return reply

    grid.tamper = killed
    with pytest.raises(KeyboardInterrupt):
        coordination.run(grid, settings(), grid.server, QUICK)
    grid.tamper = lambda node, asked, reply: reply
    consortium, old = Identity.generate(), read_roster((grid.server / "roster.cbor").read_bytes())
    other = sign_roster(Roster(consortium.public, 1, NEVER, old.server, old.members), consortium)
    for place in grid.sites.values():
        (place.folder / "roster.cbor").write_bytes(other)
    with pytest.raises(ProtocolError):
        coordination.run(grid, settings(), grid.server, QUICK)
    for number in (11, 12, 13):
        lines = Folder(grid.sites[number].folder / "runs/t").metrics.lines()
        assert [line["round"] for line in lines if line["stage"] == "training"] == [1]
    assert "P-2.2" in caplog.text or "R-3" in caplog.text

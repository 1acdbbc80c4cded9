import json
import stat
from pathlib import Path

import pytest

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives.signing import Identity


def a_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    write(run.settings, b"rounds = 1\n")
    run.site("a").metrics.record(("round",), round=1, loss=0.5)
    return run


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path).site("a")
    first, second = folder.identity(), folder.identity()
    assert first.public == second.public
    assert stat.S_IMODE((folder.state / "identity.key").stat().st_mode) == PRIVATE


def test_a_line_recorded_again_is_there_once(tmp_path: Path) -> None:
    metrics = RunDirectory(tmp_path).coordinator.metrics
    metrics.record(("round", "kind"), round=1, kind="training", loss=2.0)
    metrics.record(("round", "kind"), round=2, kind="training", loss=1.5)
    metrics.record(("round", "kind"), round=1, kind="training", loss=2.0)
    assert sorted(line["round"] for line in metrics.lines()) == [1, 2]


def test_the_manifest_covers_results_and_no_secret(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.coordinator.identity()
    run.sign_manifest(run.coordinator.identity())
    run.verify_manifest()
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert sorted(files) == ["settings.toml", "sites/a/metrics.jsonl"]


def test_a_hospital_called_state_is_in_the_manifest_and_its_state_is_not(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.site("state").metrics.record(("round",), round=1)
    run.site("state").identity()
    assert [path.parent.name for path in run.finished_files()] == [tmp_path.name, "a", "state"]


@pytest.mark.parametrize("change", ["edit", "add", "remove", "forge"])
def test_a_changed_run_is_noticed(tmp_path: Path, change: str) -> None:
    run = a_run(tmp_path)
    run.sign_manifest(Identity.generate())
    match change:
        case "edit":
            run.settings.write_text("rounds = 2\n")
        case "add":
            write(run.site("b").path / "metrics.jsonl", b"{}\n")
        case "remove":
            run.settings.unlink()
        case "forge":
            manifest = json.loads((tmp_path / "manifest.json").read_text())
            manifest["files"]["settings.toml"] = "0" * 64
            (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MisuseError):
        run.verify_manifest()


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with run.locked(), pytest.raises(MisuseError, match="another process"), run.locked():
        pass
    with run.locked():
        pass


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    metrics = RunDirectory(tmp_path).coordinator.metrics
    metrics.record(("round",), round=1, loss=float("nan"))
    assert metrics.lines() == [{"round": 1, "loss": None}]

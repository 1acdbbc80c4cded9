"""Studies with a stand-in for the engine: what is run, what is kept, what is refused."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedvlm_secure.engines import budget
from fedvlm_secure.engines.budget import Plan, cell_name, parse_epsilons
from fedvlm_secure.engines.study_workers import Failure, Watch
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write
from fedvlm_secure.report import SiteRow
from fedvlm_secure.report.budget import load

SMALL = Plan((None, 4, 1.0), ("plora", "lora"), 2)
CELLS = 2 * (3 * 2 + 1)


def answer(settings: Settings) -> SimpleNamespace:
    private = settings.privacy.mode != "none"
    final = 0.5 + 0.01 * settings.seed + (0.01 * settings.privacy.target_epsilon if private else 0.2)
    privacy = {"epsilon": settings.privacy.target_epsilon - 0.001, "delta": 1e-5, "noise-multiplier": 1.25}
    summary = {"versions": {"fedvlm-secure": "0"}, "insecure": [], "seconds": 1.0} | (
        {"privacy": privacy} if private else {}
    )
    return SimpleNamespace(summary=summary, sites=[SiteRow("a", "", 100, 0.2, 0.3, final)])


def begin(settings: Settings, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "calls").open("a", encoding="utf-8") as calls:
        calls.write(settings.name + "\n")
    write(folder / "settings.toml", settings.to_toml().encode())


def quick(settings, folder, observer):
    begin(settings, folder)
    observer.loading("nothing")
    observer.round_begins(1, 2, 1, 1)
    observer.step("a", 1, 2, 0.5)
    observer.trained("a")
    observer.phase_ends("input", 0.0)
    return answer(settings)


def lora_fails(settings, folder, observer):
    begin(settings, folder)
    if settings.adapter.strategy == "lora":
        raise ProtocolError("P-1.1", party="server", phase="keys", detail="said so", round=(1, 1))
    return answer(settings)


def lora_dies(settings, folder, observer):
    begin(settings, folder)
    if settings.adapter.strategy == "lora":
        os._exit(7)
    return answer(settings)


def interrupted(settings, folder, observer):
    begin(settings, folder)
    if settings.seed == 1:
        raise KeyboardInterrupt
    return answer(settings)


def endless(settings, folder, observer):
    begin(settings, folder)
    write(folder.with_suffix(".pid"), str(os.getpid()).encode())
    try:
        while True:
            time.sleep(0.05)
    except SystemExit as asked:
        raise ValueError("as safetensors answers in the middle of a read") from asked


def lora_fails_and_the_rest_is_endless(settings, folder, observer):
    if settings.adapter.strategy == "lora":
        return lora_fails(settings, folder, observer)
    return endless(settings, folder, observer)


class Record(Watch):
    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.shares: list[float] = []

    def study_begins(self, cells, kept):
        self.events.append(("study", cells, kept))

    def cell_begins(self, name):
        self.events.append(("begins", name))

    def cell_moves(self, name, done, what):
        self.shares.append(done)

    def cell_ends(self, name, accuracy):
        self.events.append(("ends", name))

    def cell_fails(self, failure):
        self.events.append(("fails", failure.name))


def calls(out: Path) -> list[str]:
    path = out / "cells" / "calls"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_every_cell_is_one_run_with_its_own_settings(tmp_path):
    tasks = SMALL.tasks(tmp_path)
    assert len({task.name for task in tasks}) == len(tasks) == CELLS
    assert [task.settings.seed for task in tasks] == [0] * 7 + [1] * 7
    by_name = {task.name: task.settings for task in tasks}
    private = by_name["lora-epsilon-4-seed-1"]
    assert (private.privacy.mode, private.privacy.target_epsilon) == ("record", 4.0)
    assert (private.adapter.strategy, private.seed, private.threads) == ("lora", 1, 1)
    assert by_name["plora-epsilon-none-seed-0"].privacy.mode == "none"
    assert by_name["local-epsilon-none-seed-0"].adapter.strategy == "local"
    assert {task.folder for task in tasks} == {tmp_path / "cells" / task.name for task in tasks}


@pytest.mark.parametrize("mode", ["record", "client"])
def test_private_cells_differ_in_their_target_only_and_the_others_are_runs_without_privacy(mode):
    given = ("rounds=3", "privacy.sample-rate=0.25", *(["privacy.mode=client"] if mode == "client" else []))
    plan = Plan((1.0, 2.0, None), ("plora",), 1, given)
    strict, private, free = (plan.settings("plora", epsilon, 0) for epsilon in (1.0, 2.0, None))
    assert (private.privacy.mode, private.privacy.sample_rate, private.rounds) == (mode, 0.25, 3)
    loose = strict.privacy.model_copy(update={"target_epsilon": 2.0})
    assert strict.model_copy(update={"name": private.name, "privacy": loose}) == private
    # What one would run without asking for privacy: with that mode's own defaults, not those of private training.
    assert free == Settings.from_tables({"name": free.name, "threads": 1, "rounds": 3})


def test_epsilons():
    assert parse_epsilons("1, 0.5,none") == (1.0, 0.5, None)
    assert Plan(parse_epsilons("none,8,1,1"), ("plora",), 1).epsilons == (1.0, 8.0, None)
    assert cell_name("plora", 0.5, 3) == "plora-epsilon-0.5-seed-3"
    for wrong in ("1,x", "", "inf", "nan"):
        with pytest.raises(MisuseError, match="not understood"):
            parse_epsilons(wrong)
    for wrong in (0.0, -1.0, 1e6):
        with pytest.raises(MisuseError, match="outside"):
            Plan((wrong,), ("plora",), 1)


@pytest.mark.parametrize("swept", ["seed=3", "adapter.strategy=lora", " privacy.target-epsilon =2", "name=x"])
def test_what_is_swept_cannot_be_set(swept):
    with pytest.raises(MisuseError, match="cell by cell"):
        Plan((1.0,), ("plora",), 1, (swept,))


def test_the_command_asks_for_the_same_study():
    plan = Plan((None, 0.5, 4), ("plora", "lora"), 2, ('sites=["a", "b"]', "rounds=3"))
    assert plan.command == (
        "fedvlm-secure budget --epsilons 0.5,4,none --strategies plora,lora --seeds 2"
        ' --set \'sites=["a", "b"]\' --set rounds=3'
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_keeps_every_cell_and_runs_none_twice(tmp_path, workers):
    watch = Record()
    assert budget.run(SMALL, tmp_path, workers=workers, watch=watch, runner=quick) == ()
    names = [task.name for task in SMALL.tasks(tmp_path)]
    assert sorted(calls(tmp_path)) == sorted(names)
    assert watch.events[0] == ("study", CELLS, 0)
    assert sorted(watch.events[1:]) == sorted(("begins", n) for n in names) + sorted(("ends", n) for n in names)
    assert all(0 <= share <= 1 for share in watch.shares)
    assert {0.25, 0.5} <= set(watch.shares)  # half of the steps of the first of two rounds, then all of them
    study = load(tmp_path)
    assert len(study.cells) == CELLS
    assert study.group("lora", 4.0)[1].sites[0].final == pytest.approx(0.55)
    assert study.group("lora", 4.0)[1].spent == pytest.approx(3.999)
    assert study.group("lora", None)[1].spent is None
    page = (tmp_path / "budget.html").read_bytes()

    again = Record()
    assert budget.run(SMALL, tmp_path, workers=workers, watch=again, runner=lora_fails) == ()
    assert again.events == [("study", CELLS, CELLS)]
    assert len(calls(tmp_path)) == CELLS
    assert (tmp_path / "budget.html").read_bytes() == page


def test_a_study_grows(tmp_path):
    budget.run(Plan((1.0,), ("plora",), 1), tmp_path, runner=quick)
    budget.run(Plan((1.0, 2.0), ("plora",), 1), tmp_path, runner=quick)
    assert sorted(calls(tmp_path)) == [
        "local-epsilon-none-seed-0",
        "plora-epsilon-1-seed-0",
        "plora-epsilon-2-seed-0",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_fails_leaves_the_others(tmp_path, workers):
    failures = budget.run(SMALL, tmp_path, workers=workers, runner=lora_fails)
    assert {failure.name for failure in failures} == {
        task.name for task in SMALL.tasks(tmp_path) if task.settings.adapter.strategy == "lora"
    }
    assert failures[0].family == "ProtocolError"
    assert "violates P-1.1: said so" in failures[0].reason
    assert len(load(tmp_path).cells) == CELLS - 6
    assert (tmp_path / "budget.html").exists()
    assert budget.run(SMALL, tmp_path, runner=quick) == ()
    assert len(load(tmp_path).cells) == CELLS


def test_a_worker_that_dies_takes_one_cell_with_it(tmp_path):
    failures = budget.run(SMALL, tmp_path, workers=2, runner=lora_dies)
    assert len(failures) == 6
    assert set(failures) == {Failure(f.name, "died", "its process ended with code 7") for f in failures}
    assert len(load(tmp_path).cells) == CELLS - 6


def test_an_interrupted_cell_is_run_again_in_its_folder_and_finished_ones_are_not(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        budget.run(SMALL, tmp_path, runner=interrupted)
    begun = calls(tmp_path)
    assert len(begun) == CELLS // 2 + 1
    budget.run(SMALL, tmp_path, runner=quick)
    assert calls(tmp_path)[len(begun)] == begun[-1]
    assert len(calls(tmp_path)) == CELLS + 1


def test_cells_of_other_settings_are_refused(tmp_path):
    budget.run(SMALL, tmp_path, runner=quick)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(MisuseError, match="other settings"):
        budget.run(Plan(SMALL.epsilons, SMALL.strategies, 2, ("rounds=3",)), tmp_path, runner=quick)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        budget.run(Plan((None,), ("plora",), 2), tmp_path, runner=interrupted)
    for path in (tmp_path / "cells").glob("*.json"):
        path.unlink()
    with pytest.raises(MisuseError, match="other settings"):
        budget.run(Plan((None,), ("plora",), 2, ("rounds=3",)), tmp_path, runner=quick)


def test_a_folder_that_is_no_study_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(MisuseError, match="holds no study"):
        budget.run(SMALL, tmp_path, runner=quick)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_cell_is_named(tmp_path):
    budget.run(SMALL, tmp_path, runner=quick)
    path = tmp_path / "cells" / "plora-epsilon-1-seed-0.json"
    figures = json.loads(path.read_text())
    del figures["epsilon"]  # else it would pass for a run without noise
    path.write_text(json.dumps(figures))
    with pytest.raises(MisuseError, match="plora-epsilon-1-seed-0"):
        budget.run(SMALL, tmp_path, runner=quick)


def test_no_worker_outlives_its_study(tmp_path):
    class Impatient(Record):
        def cell_fails(self, failure):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        budget.run(SMALL, tmp_path, workers=2, watch=Impatient(), runner=lora_fails_and_the_rest_is_endless)
    assert multiprocessing.active_children() == []


def test_ctrl_c_ends_study_and_workers(tmp_path):
    program = (
        "import pathlib, signal, sys\nimport test_budget_engine as t\nfrom fedvlm_secure.engines import budget\n"
        # Whoever runs the tests in the background may have had the signal ignored, and children inherit that.
        "if __name__ == '__main__':\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    budget.run(t.SMALL, pathlib.Path(sys.argv[1]), workers=2, runner=t.endless)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, script, out], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(pids := list(out.glob("cells/*.pid"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.decode().count("Traceback") == 1  # the study's own, which the command line turns into a line
    for path in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    assert not list(out.glob("cells/*.json"))

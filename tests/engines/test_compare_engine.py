"""Comparisons with a stand-in for the engine: what is tuned, what is run with it, what is kept."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedvlm_secure.engines import compare
from fedvlm_secure.engines.compare import TUNING_SEED, Plan, parse_tuned
from fedvlm_secure.engines.study_workers import Failure, Watch
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write
from fedvlm_secure.report import SiteRow
from fedvlm_secure.report.comparison import load

RATES = parse_tuned(["training.learning-rate=0.001,0.002,0.004"])
SMALL = Plan(("plora", "lora"), ("hospitals", "hospitals-iid"), 2, RATES)
BEST = {"plora": 0.002, "lora": 0.004}


def answer(settings: Settings, folder: Path) -> SimpleNamespace:
    """Validation is best at the strategy's own rate; the test accuracy would choose another."""
    write(folder / "settings.toml", settings.to_toml().encode())
    rate = settings.training.learning_rate
    validation = 0.9 if rate == BEST.get(settings.adapter.strategy) else 0.5
    summary = {
        "validation": validation,
        "shared-parameters": 10,
        "upload-bytes": 1000.0,
        "training-seconds": 2.5,
        "protocol": settings.aggregation.protocol,
        "newcomer": {"rows": 9, "steps": 4, "question-only": 0.1, "zero-shot": 0.2, "trained": 0.3},
    }
    return SimpleNamespace(
        summary=summary, sites=[SiteRow("a", "", 100, 0.2, 0.0, 1.0 - validation + 0.01 * settings.seed)]
    )


def quick(settings, folder, observer):
    return answer(settings, folder)


def iid_fails(settings, folder, observer):
    if settings.data == "hospitals-iid":
        raise ProtocolError("P-1.1", party="server", phase="keys", detail="said so", round=(1, 1))
    return answer(settings, folder)


def tuning_fails(settings, folder, observer):
    if settings.seed == TUNING_SEED and settings.adapter.strategy == "lora":
        raise ProtocolError("P-1.1", party="server", phase="keys", detail="said so", round=(1, 1))
    return answer(settings, folder)


class Begun(Watch):
    def __init__(self) -> None:
        self.names: list[str] = []

    def cell_begins(self, name):
        self.names.append(name)


def test_every_strategy_is_tried_with_the_same_candidates(tmp_path):
    tuning = SMALL.tuning(tmp_path)
    assert list(tuning) == ["plora", "lora"]
    for strategy, tried in tuning.items():
        assert [candidate for candidate, _ in tried] == list(SMALL.candidates)
        assert {task.settings.seed for _, task in tried} == {TUNING_SEED}
        assert {task.settings.data for _, task in tried} == {"hospitals"}
        assert {task.settings.adapter.strategy for _, task in tried} == {strategy}
    both = Plan(("plora",), ("hospitals",), 1, parse_tuned(["training.learning-rate=1,2", "adapter.rank=2,4,8"]))
    assert len(both.candidates) == 6


def test_each_strategy_runs_with_what_validation_chose(tmp_path):
    assert compare.run(SMALL, tmp_path, runner=quick) == ()
    study = load(tmp_path)
    assert len(study.cells) == study.planned == 2 * 2 * 2
    assert len(study.tuning) == 2 * 3
    for cell in study.cells:
        assert cell.tuned == (f"training.learning-rate={BEST[cell.strategy]}",)
        settings = Settings.from_toml(
            tmp_path / "cells" / f"{cell.data}-{cell.strategy}-seed-{cell.seed}" / "settings.toml"
        )
        assert settings.training.learning_rate == BEST[cell.strategy]
        assert (settings.data, settings.seed, settings.threads) == (cell.data, cell.seed, 1)
        assert cell.newcomer is not None
        assert (cell.newcomer.zero_shot, cell.newcomer.trained, cell.newcomer.steps) == (0.2, 0.3, 4)
        assert (cell.shared_parameters, cell.upload, cell.seconds, cell.protocol) == (10, 1000.0, 2.5, "pairwise")
    assert (tmp_path / "comparison.html").exists()


def test_a_finished_comparison_runs_nothing_again_and_more_seeds_add_to_it(tmp_path):
    compare.run(SMALL, tmp_path, runner=quick)
    page, again = (tmp_path / "comparison.html").read_bytes(), Begun()
    compare.run(SMALL, tmp_path, runner=quick, watch=again)
    assert again.names == []
    assert (tmp_path / "comparison.html").read_bytes() == page
    compare.run(Plan(SMALL.strategies, SMALL.levels, 3, RATES), tmp_path, runner=quick, watch=again)
    assert {name.rpartition("-")[2] for name in again.names} == {"2"}


def test_a_strategy_that_begins_as_lora_is_one_of_its_own(tmp_path):
    plan = Plan(("plora", "plora-warm4"), ("hospitals",), 1, RATES)
    assert [task.settings.adapter.warm_up for task in plan.tasks({}, tmp_path)] == [0, 4]
    assert compare.run(plan, tmp_path, runner=quick) == ()
    study = load(tmp_path)
    assert [cell.strategy for cell in study.cells] == ["plora", "plora-warm4"]
    assert [len(study.group("hospitals", strategy)) for strategy in study.strategies] == [1, 1]
    for wrong in ("plora-warmer", "plora-warm12", "plora-warm-1"):
        with pytest.raises(MisuseError, match="warm-up"):
            Plan((wrong,), ("hospitals",), 1).tasks({}, tmp_path)
    with pytest.raises(MisuseError, match="cell by cell"):
        Plan(("plora",), ("hospitals",), 1, (), ("adapter.warm-up=2",))


def test_without_tuning_all_run_as_set(tmp_path):
    compare.run(Plan(("plora",), ("hospitals",), 1, (), ("training.steps=3",)), tmp_path, runner=quick)
    study = load(tmp_path)
    assert (study.tuning, study.cells[0].tuned) == ((), ())
    assert Settings.from_toml(tmp_path / "cells/hospitals-plora-seed-0/settings.toml").training.steps == 3
    assert "--no-tune" in study.command


def test_no_strategy_is_compared_while_one_is_untuned(tmp_path):
    (failure,) = compare.run(Plan(SMALL.strategies, SMALL.levels, 1, RATES[:1]), tmp_path, runner=tuning_fails)[:1]
    assert isinstance(failure, Failure)
    assert load(tmp_path).cells == ()
    assert not (tmp_path / "comparison.html").exists()
    assert compare.run(SMALL, tmp_path, runner=quick) == ()


def test_a_failed_cell_is_tried_again(tmp_path):
    failures = compare.run(SMALL, tmp_path, runner=iid_fails)
    assert {failure.name.rpartition("-seed")[0] for failure in failures} == {
        "hospitals-iid-plora",
        "hospitals-iid-lora",
    }
    assert {cell.data for cell in load(tmp_path).cells} == {"hospitals"}
    assert compare.run(SMALL, tmp_path, runner=quick) == ()
    assert len(load(tmp_path).cells) == 8


def test_cells_of_other_settings_are_refused(tmp_path):
    compare.run(SMALL, tmp_path, runner=quick)
    with pytest.raises(MisuseError, match="began with other settings"):
        compare.run(Plan(SMALL.strategies, SMALL.levels, 2, RATES, ("rounds=3",)), tmp_path, runner=quick)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strategies": ()}, "needs a strategy"),
        ({"seeds": 0}, "needs a strategy"),
        ({"overrides": ("data=easy-vqa",)}, "use --strategies, --data, --seeds"),
        ({"overrides": ("aggregation.protocol=ckks",)}, "plain or pairwise"),
        ({"overrides": ("privacy.mode=record",)}, "fedvlm-secure budget"),
    ],
)
def test_what_makes_no_comparison_is_refused(change, says):
    given = {"strategies": ("plora",), "levels": ("hospitals",), "seeds": 1} | change
    with pytest.raises(MisuseError, match=says):
        Plan(**given)


@pytest.mark.parametrize("word", ["training.learning-rate", "=1,2", "training.steps=", "seed=1,2"])
def test_a_candidate_that_is_none_is_refused(word):
    with pytest.raises(MisuseError, match="is not understood"):
        parse_tuned([word])


def test_the_command_asks_the_same():
    plan = Plan(("plora", "lora"), ("hospitals",), 2, RATES, ("rounds=3",))
    assert plan.command == (
        "fedvlm-secure compare --strategies plora,lora --data hospitals --seeds 2"
        " --tune training.learning-rate=0.001,0.002,0.004 --set rounds=3"
    )

"""``fedvlm-secure ledger``: what a hospital reads of its own account, and how it ends when the account is not sound."""

import hashlib
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvlm_secure import cli
from fedvlm_secure.cli import main
from fedvlm_secure.errors import PrivacyBudgetExhaustedError
from fedvlm_secure.privacy.accounting import SampledGaussian, Unprotected, epsilon
from fedvlm_secure.privacy.chain import anchor_of
from fedvlm_secure.privacy.ledger import Ledger

Call = Callable[..., str]
PATH = Path("st-mary.sqlite")
EVENT = SampledGaussian(3.0, 0.2, 5)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs the command in an empty folder and expects an exit code; gives stdout, or of an error its line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["fedvlm-secure", "ledger", *line.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err or out
        if code:
            assert err.count("\n") == 1, err
            return err
        return out

    return run


def charge(rounds: int, run: str = "run-1") -> Ledger:
    ledger = Ledger(PATH, accountant="rdp")
    for index in range(1, rounds + 1):
        ledger.reserve(run, index, 1, fingerprint="a" * 64, event=EVENT, unit="image", delta=1e-5)
        if index < rounds:
            ledger.release(run, index, 1)
    return ledger


def test_show_tells_what_was_spent(call: Call) -> None:
    head = charge(3).head()
    values = json.loads(call(f"show {PATH} --json --accountant rdp"))
    assert (values["entries"], values["head"]) == (head.entries, head.hash.hex())
    (found,) = values["data-sets"]
    assert found["epsilon"] == epsilon([EVENT] * 3, 1e-5, "rdp")
    assert found["epsilon-without-amplification"] == epsilon([EVENT] * 3, 1e-5, amplification=False)
    assert (found["releases"], found["reserved-only"], found["runs"]) == (3, 1, ["run-1"])
    assert (found["unit"], found["delta"], found["fingerprint"]) == ("image", 1e-5, "a" * 64)
    other = json.loads(call(f"show {PATH} --json --accountant rdp --delta 1e-7"))["data-sets"][0]
    assert other["epsilon"] == epsilon([EVENT] * 3, 1e-7, "rdp")
    said = call(f"show {PATH} --accountant rdp")
    assert f"epsilon {found['epsilon']:.4g} at delta 1e-05" in said
    assert "3 releases (1 reserved" in said


def test_show_says_that_there_is_no_bound(call: Call) -> None:
    ledger = charge(1)
    assert "nothing" not in call(f"show {PATH} --accountant rdp")
    ledger.reserve("run-2", 1, 1, fingerprint="a" * 64, event=Unprotected(), unit="image", delta=1e-5)
    assert "no bound" in call(f"show {PATH}")
    assert json.loads(call(f"show {PATH} --json"))["data-sets"][0]["epsilon"] is None
    Ledger(Path("new.sqlite"))
    assert "nothing has been charged" in call("show new.sqlite")


def test_export_can_be_checked_by_anybody(call: Call) -> None:
    charge(2)
    call(f"export {PATH} --out out.json --accountant rdp")
    assert stat.S_IMODE(Path("out.json").stat().st_mode) == 0o600
    values = json.loads(Path("out.json").read_text())
    before = bytes.fromhex(values["chain"]["genesis"])
    for entry in values["chain"]["entries"]:
        before = hashlib.sha256(before + entry["content"].encode()).digest()
        assert entry["sha256"] == before.hex()
    assert before.hex() == values["head"]
    kinds = [json.loads(entry["content"])["kind"] for entry in values["chain"]["entries"]]
    assert kinds == ["ledger", "reserve", "release", "reserve"]
    whole = Path("out.json").read_bytes()
    assert "exists" in call(f"export {PATH} --out out.json", 2)
    assert Path("out.json").read_bytes() == whole


def test_a_rolled_back_ledger_exits_with_6(call: Call) -> None:
    charge(1)
    old = PATH.read_bytes()
    charge(2, "run-2")
    PATH.write_bytes(old)
    assert "L-2" in call(f"show {PATH}", 6)
    assert "L-2" in call(f"export {PATH} --out out.json", 6)
    assert not Path("out.json").exists()
    PATH.unlink()
    assert "L-2" in call(f"show {PATH}", 6)
    anchor_of(PATH).unlink()
    assert "no ledger" in call(f"show {PATH}", 2)


def test_mistakes_exit_with_2_and_make_nothing(call: Call) -> None:
    for line, says in (
        ("show missing.sqlite", "no ledger missing.sqlite"),
        ("show .", "folder"),
        ("show missing.sqlite --accountant gdp", "prv, rdp, pld"),
        ("export missing.sqlite --out x.json", "no ledger"),
    ):
        assert says in call(line, 2)
    assert list(Path().iterdir()) == []
    charge(1)
    assert "delta" in call(f"show {PATH} --delta 2", 2)


def test_an_exhausted_budget_exits_with_5(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(**options: object) -> None:
        raise PrivacyBudgetExhaustedError("round 3 would bring this data set's epsilon to 9")

    monkeypatch.setattr(cli, "app", exhausted)
    assert "round 3" in call("show x", 5)

"""``fedvlm-secure audit protocol``: what it prints, what it needs, and what it says where that is missing."""

import json
import subprocess
import sys

import pytest

from fedvlm_secure.audit.target import OUTCOMES
from fedvlm_secure.audit.targets import TARGETS
from fedvlm_secure.cli import main


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedvlm-secure", "audit", "protocol", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_json_is_one_object_of_the_promised_form(call):
    code, out, _ = call("plain", "--json")
    printed = json.loads(out)
    assert code == 0
    assert list(printed) == ["target", "results"]
    assert printed["target"] == "plain"
    for result in printed["results"]:
        assert list(result) == ["attack", "outcome", "observed", "consequence", "reference"]
        assert all(isinstance(value, str) and value for value in result.values())
        assert result["outcome"] in OUTCOMES


def test_the_table_says_what_was_tried(call):
    code, out, err = call("plain")
    assert code == 0
    assert "cleartext-update" in out
    assert "reads an upload without any" in out
    assert out.splitlines()[-1].endswith("not-applicable")
    assert "trying cleartext-update" in err


def test_an_unknown_target_is_a_usage_error_with_a_suggestion(call):
    code, out, err = call("flwr-secagg")
    assert (code, out) == (2, "")
    assert "'flwr-secaggplus'" in err
    assert all(name in err for name in TARGETS)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("flwr-secaggplus", "flwr", "flower"), ("nvflare-he", "nvflare", "bench")]
)
def test_a_missing_package_is_named_with_its_extra(call, monkeypatch, target, module, extra):
    for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = call(target)
    assert code == 2
    assert f"pip install 'fedvlm-secure[{extra}]'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["pairwise", "bfv"])
def test_auditing_needs_no_torch(name):
    code = (
        "import sys\n"
        "from fedvlm_secure.cli import main\n"
        f"sys.argv = ['fedvlm-secure', 'audit', 'protocol', {name!r}, '--json']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)


def test_auditing_flower_needs_no_torch():
    pytest.importorskip("flwr")
    code = (
        "import sys\n"
        "from fedvlm_secure.audit.targets import target\n"
        "from fedvlm_secure.audit.catalogue import ATTACKS, audit\n"
        "audit(target('flwr-secaggplus'), [each for each in ATTACKS if each.name == 'dual-share-request'])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)

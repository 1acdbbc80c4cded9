"""The guide's adapter runs as it stands, and its tables name attacks that exist."""

import re
from pathlib import Path

import pytest
from audit_kit import EVERY_ATTACK

GUIDE = (Path(__file__).parents[2] / "docs/audit-protocol.md").read_text(encoding="utf-8")


def test_the_adapter_of_the_guide_runs(capsys: pytest.CaptureFixture[str]):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(compile(code, "docs/audit-protocol.md", "exec"), {"__name__": "guide"})
    printed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(printed) == EVERY_ATTACK
    assert "vulnerable" in printed["seed-entropy"]
    assert "at most 8 bits in effect" in printed["seed-entropy"]
    assert "vulnerable" in printed["upload-size"]
    assert "resisted" in printed["cleartext-update"]
    assert "not-applicable" in printed["dual-share-request"]


def test_tables_name_every_attack():
    for section in GUIDE.split("\n## ")[1:3]:
        rows = re.findall(r"^\| ([a-z].*?) \|", section, re.MULTILINE)[1:]
        named = [name for row in rows for name in row.removesuffix(" *").split(", ")]
        named = [name if not name.startswith("-") else "cleartext" + name for name in named]
        assert sorted(named) == sorted(EVERY_ATTACK)

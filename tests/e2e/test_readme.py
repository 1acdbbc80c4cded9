"""What README and the examples show is run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedvlm_secure.cli import app
from fedvlm_secure.federation.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_readmes_python_runs(block: str, tmp_path: Path) -> None:
    assert "(0, 1, 2, 4, 5, 6, 7, 8, 9)" in python("-c", block, cwd=tmp_path)


def test_the_example_runs(tmp_path: Path) -> None:
    out = python(ROOT / "examples/secure_mean.py", cwd=tmp_path)
    error = float(re.search(r"weighted mean: (\S+)", out)[1])  # type: ignore[index]
    assert error < 1e-5


def test_readmes_commands_exist() -> None:
    commands = set(typer.main.get_group(app).commands)
    assert set(re.findall(r"^\$ fedvlm-secure (\w+)", README, re.MULTILINE)) <= commands


def test_readmes_links_lead_somewhere() -> None:
    for target in re.findall(
        r"\]\(([^)#]+?)(?:#[^)]*)?\)", README + (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    ):
        assert (ROOT / target).exists(), target


def test_the_settings_file_says_what_the_defaults_are() -> None:
    settings = Settings.from_toml(ROOT / "examples/hospitals.toml")
    assert settings.model_copy(update={"name": "demo"}) == Settings()

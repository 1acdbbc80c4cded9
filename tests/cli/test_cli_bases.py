"""``fedvlm-secure bases``: public bases for a model that came without."""

import shutil
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from fedvlm_secure import models
from fedvlm_secure.cli import bases as module
from fedvlm_secure.errors import MisuseError


@pytest.fixture
def call():
    app = typer.Typer()
    app.command()(module.bases)
    return lambda *words: CliRunner().invoke(app, [*map(str, words)])


def test_a_model_gets_bases_and_another_digest(call, model_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    before = models.load(str(folder))
    assert before.bases == {}
    done = call(folder, "--public", "easy-vqa", "--rows", "70", "--rank", "5", "--set", "adapter.modules=['down_proj']")
    assert done.exit_code == 0, done.output
    after = models.load(str(folder))
    assert [name.rsplit(".", 1)[-1] for name in after.bases] == ["down_proj"]
    assert all(len(basis) == 5 and basis.any() for basis in after.bases.values())
    assert after.digest != before.digest
    assert all(torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))


def test_a_folder_that_is_not_there_is_named(call, tmp_path: Path):
    done = call(tmp_path / "nothing", "--public", "easy-vqa")
    assert isinstance(done.exception, MisuseError)
    assert "no model folder" in str(done.exception)

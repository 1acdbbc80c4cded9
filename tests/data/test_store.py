import sys

import datasets
import pytest

from fedvlm_secure import data
from fedvlm_secure.data import sources, store
from fedvlm_secure.errors import MisuseError


def rows(count):
    from fedvlm_secure.data.rows import FEATURES, png

    picture = png(__import__("numpy").zeros((64, 64, 3), "uint8"))
    return [{name: picture if name == "image" else f"{name}{number}" for name in FEATURES} for number in range(count)]


@pytest.fixture
def tiny_builder(monkeypatch):
    calls = []

    def build():
        calls.append(1)
        return {"train": rows(3), "validation": rows(1), "test": rows(2)}

    monkeypatch.setattr("fedvlm_secure.data.easyvqa.build", build)
    return calls


def test_a_build_is_kept_and_reused(tmp_path, tiny_builder):
    for _ in range(2):
        loaded = data.load("easy-vqa", tmp_path)
        assert {split: len(kept) for split, kept in loaded.items()} == {"train": 3, "validation": 1, "test": 2}
    assert len(tiny_builder) == 1


def test_only_safe_formats_are_written(tmp_path, tiny_builder):
    data.load("easy-vqa", tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".arrow", ".json"}


def test_a_crash_leaves_no_half_cache(tmp_path, tiny_builder, monkeypatch):
    def crash(self, folder, **_):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(datasets.DatasetDict, "save_to_disk", crash)
        with pytest.raises(OSError, match="disk full"):
            data.load("easy-vqa", tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(data.load("easy-vqa", tmp_path)["train"]) == 3


def test_a_changed_rule_does_not_meet_old_rows(tmp_path, tiny_builder, monkeypatch):
    data.load("easy-vqa", tmp_path)
    monkeypatch.setattr(store, "content_version", lambda: "another")
    data.load("easy-vqa", tmp_path)
    assert len(tiny_builder) == 2


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FEDVLM_SECURE_CACHE", raising=False)
    assert store.default_cache() == tmp_path / "xdg" / "fedvlm-secure"
    monkeypatch.setenv("FEDVLM_SECURE_CACHE", str(tmp_path / "own"))
    assert store.default_cache() == tmp_path / "own"


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(MisuseError, match="hospitals-iid, easy-vqa"):
        data.load("hospital")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda package: None)
    with pytest.raises(MisuseError, match=r"pip install 'fedvlm-secure\[demo\]'"):
        sources.package_folder("nilearn")


def test_listing_the_sites_imports_neither_torch_nor_datasets():
    import subprocess

    code = "import sys; from fedvlm_secure import data; data.SITES; print({'torch', 'datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_easy_vqa_splits_share_no_picture(easy_vqa):
    paths = {split: set(rows["image_path"]) for split, rows in easy_vqa.items()}
    assert not paths["train"] & paths["validation"]
    assert not (paths["train"] | paths["validation"]) & paths["test"]


def test_easy_vqa_sites_are_alike(easy_vqa):
    per_site = data.by_site(easy_vqa["train"])
    assert len(per_site) == 4
    assert {len(kept) for kept in per_site.values()} == {800}
    for kept in per_site.values():
        kinds = kept["origin_split"]
        assert all(0.25 < kinds.count(kind) / len(kinds) < 0.42 for kind in set(kinds))


def test_question_only_baseline_counts_per_question():
    from fedvlm_secure.data.rows import to_split

    def split(pairs):
        made = rows(len(pairs))
        return to_split([row | {"question": q, "chosen": a} for row, (q, a) in zip(made, pairs, strict=True)])

    train = split([("a", "x"), ("a", "x"), ("a", "y"), ("b", "z")])
    test = split([("a", "x"), ("a", "y"), ("b", "z"), ("unseen", "x")])
    assert data.question_only_baseline(train, test) == 0.75

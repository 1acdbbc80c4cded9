"""What many tests need: a random tiny model in a folder, a small data set in a folder, one torch thread."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (128, 128, 128)}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM with random weights, its tokenizer and processor, as any Hugging Face folder."""
    import torch

    from fedvlm_secure.models.architecture import Tower, new_model, new_processor, new_tokenizer

    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = new_tokenizer(["Which colour is it?", *COLOURS], 300)
        small = Tower(width=48, layers=1, heads=1, inner=64)
        new_model(tokenizer, small, small).save_pretrained(folder)
    new_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of every family, by the name of its builder."""
    from tests.models.tiny_families import BUILDERS

    places = {name: tmp_path_factory.mktemp("family") / name for name in BUILDERS}
    for name, place in places.items():
        BUILDERS[name](place)
    return places


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sites with plain-coloured pictures, saved as any DatasetDict in RLAIF-V's schema."""
    import datasets

    from fedvlm_secure.data.rows import png, to_split

    rng = np.random.default_rng(0)

    def row(site: str, place: str) -> dict[str, object]:
        answer, other = rng.choice(list(COLOURS), 2, replace=False)
        picture = np.full((64, 64, 3), COLOURS[answer], np.uint8)
        texts = {"question": "Which colour is it?", "chosen": str(answer), "rejected": str(other)}
        origin = {"ds_name": "colours", "origin_dataset": "colours", "origin_split": "{}", "idx": "0"}
        return {**origin, **texts, "image": png(picture), "image_path": place, "site": site}

    sizes = {"train": 24, "validation": 8, "test": 8}
    splits = {
        split: to_split([row(f"site-{s}", f"{split}/{s}/{i}") for s in "abcd" for i in range(size)])
        for split, size in sizes.items()
    }
    folder = tmp_path_factory.mktemp("data") / "colours"
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="session")
def csv_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sites with plain-coloured pictures as PNG files, and a CSV with a line for each; two lines are no use."""
    import csv

    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("own") / "scans"
    folder.mkdir()
    with (folder / "rows.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["image", "question", "answer", "site", "patient"])
        for number in range(160):
            answer = str(rng.choice(list(COLOURS)))
            shade = np.clip(np.array(COLOURS[answer]) + rng.integers(-20, 21, 3), 0, 255)
            Image.fromarray(np.full((64, 64, 3), shade, np.uint8)).save(folder / f"{number:03d}.png")
            whose = [f"Clinic {'ABCD'[number % 4]}", f"p{number // 8}"]
            rows.writerow([f"{number:03d}.png", "Which colour is it?", answer, *whose])
        rows.writerow(["../rows.csv", "Which colour is it?", "red", "Clinic A", "p0"])
        rows.writerow(["000.png", "Which colour is it?", "", "Clinic A", "p0"])
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads wait for each other at every tiny operation, for ages where cores are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

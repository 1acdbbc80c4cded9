import pytest
import torch

from fedvlm_secure import data, models
from fedvlm_secure.models.architecture import Tower, new_model, new_processor, new_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random model of the embedded model's class, saved as a user would save one."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = new_tokenizer(["User:What is this?\nAssistant: a ring"], 300)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = new_model(tokenizer, Tower(32, 48, 2, 2), Tower(48, 64, 2, 2))
    model.save_pretrained(folder)
    new_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded():
    return models.load("embedded", device="cpu")


@pytest.fixture(scope="session")
def hospitals():
    return data.load("hospitals")


@pytest.fixture(scope="session")
def easy_vqa():
    return data.load("easy-vqa")

import pytest

from fedvlm_secure import data


@pytest.fixture(scope="session")
def hospitals():
    return data.load("hospitals")


@pytest.fixture(scope="session")
def easy_vqa():
    return data.load("easy-vqa")

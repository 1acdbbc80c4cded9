from pathlib import Path

import pytest

from fedvlm_secure.data import card

CARD = Path(__file__).parents[2] / "docs" / "data-hospitals.md"


@pytest.mark.parametrize("table", [card.sites_table, card.looks_table, card.questions_table])
def test_the_data_card_shows_what_the_command_prints(hospitals, table):
    assert table() in CARD.read_text()


def test_the_data_card_says_what_the_data_is_not():
    text = " ".join(CARD.read_text().split())
    assert "hospitals are simulated" in text
    assert "diagnosis" in text

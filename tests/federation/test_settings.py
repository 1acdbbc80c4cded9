import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings


def refusal(*overrides: str, **tables: object) -> str:
    with pytest.raises(MisuseError) as error:
        Settings.from_tables(tables, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_misspelt_choice_names_the_nearest() -> None:
    text = refusal(aggregation={"protocol": "pairwize"})
    assert text == (
        'settings: [aggregation] protocol = "pairwize" is not known. Did you mean "pairwise"? '
        "Choices: plain, pairwise, ckks, bfv."
    )


def test_a_misspelt_key_names_the_nearest() -> None:
    assert 'Did you mean "batch-size"?' in refusal(training={"batch-sise": 3})
    assert 'Did you mean "rounds"?' in refusal("round=3")


@pytest.mark.parametrize(
    "override",
    [
        "rounds=0",
        "training.learning-rate=nan",
        "aggregation.clip-norm=0",
        "aggregation.value-bits=25",
        "name=a/b",
        "seed=-1",
    ],
)
def test_values_out_of_range_are_refused(override: str) -> None:
    assert override.split("=")[0].rpartition(".")[2] in refusal(override)


def test_noise_inside_the_sum_needs_equal_weights() -> None:
    assert refusal("privacy.mode=client", "privacy.weights=size-band") == (
        'settings: [privacy] weights = "size-band" is for mode = "record"; noise inside the sum needs equal weights.'
    )


@pytest.mark.parametrize("override", ["rounds", "=3", "a.b.c=1", "rounds.x=1"])
def test_overrides_that_are_none(override: str) -> None:
    assert override in refusal(override, rounds=3)


def test_overrides_take_bare_words_and_toml_values() -> None:
    settings = Settings.from_tables({}, ["adapter.strategy=lora", 'sites=["a", "b"]', "training.steps=7"])
    assert (settings.adapter.strategy, settings.sites, settings.training.steps) == ("lora", ("a", "b"), 7)


@given(
    st.builds(
        Settings,
        name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
        model=st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20),
        seed=st.integers(0, 2**32 - 1),
        sites=st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=5), max_size=3).map(tuple),
    )
)
def test_settings_survive_toml(settings: Settings) -> None:
    assert Settings.from_tables(tomllib.loads(settings.to_toml())) == settings


def test_data_is_one_place_or_one_for_each_site() -> None:
    told = {"north": "/srv/north", "st.-mary": 'C:\\scans "new"'}
    settings = Settings.from_tables({"data": told})
    assert settings.data == told
    assert Settings.from_tables(tomllib.loads(settings.to_toml())) == settings
    assert Settings.from_tables({}, ["data.north=a", "data.west=b"]).data == {"north": "a", "west": "b"}
    assert Settings.from_tables({}, ["data=a/b"]).data == "a/b"
    for data, reason in (
        (5, '[data] 5 is no folder or file; write data = "FOLDER", or [data] with SITE = "FOLDER" for each site.'),
        ({}, '[data] is empty; write SITE = "FOLDER" for each site.'),
        ({"north": 5}, '[data] 5 is no folder or file; write north = "FOLDER".'),
        ({"../north": "a"}, "[data] '../north' cannot name a party; use 1 to 64 of a-z"),
    ):
        assert refusal(data=data).startswith(f"settings: {reason}")
    for rows in ({"partition": "iid"}, {"by": "ward"}):
        assert refusal(data=told, rows=rows).endswith("[data] says which site holds which rows.")


def test_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="cannot read"):
        Settings.from_toml(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("rounds = ")
    with pytest.raises(MisuseError, match="not TOML"):
        Settings.from_toml(tmp_path / "broken.toml")


def test_what_protects_less_than_the_default_is_said() -> None:
    assert Settings().insecure == ()
    plain = Settings.from_tables({"aggregation": {"protocol": "plain", "max-corrupt": 0}})
    assert [text.split(":")[0] for text in plain.insecure] == ["protocol plain", "max-corrupt 0"]

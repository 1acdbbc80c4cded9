"""A statement says all that dp practice asks for, and nothing that does not hold."""

import json
import math
from dataclasses import replace

import pytest

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.privacy.accounting import SampledGaussian, epsilon
from fedvlm_secure.privacy.distributed import DistributedGaussian
from fedvlm_secure.privacy.statement import PrivacyStatement, _up

STEPS = SampledGaussian(2.0, 0.1, 12 * 10)
SUMS = DistributedGaussian(4.0, 0.5, 2176, 1e-7, min_survivors=5, max_corrupt=2, answered=13)


def record(unit: str = "image") -> PrivacyStatement:
    return PrivacyStatement.record(STEPS, unit=unit, delta=1e-5, clip_norm=0.5, rounds=12, accountant="pld")


def client(protocol: str = "pairwise") -> PrivacyStatement:
    return PrivacyStatement.client(SUMS, delta=1e-6, rounds=12, protocol=protocol)


def test_record_level_figures() -> None:
    values = record().to_json()
    assert values["epsilon"] == epsilon([STEPS], 1e-5, "pld")
    assert values["epsilon-without-amplification"] == epsilon([STEPS], 1e-5, amplification=False)
    assert values["epsilon"] < values["epsilon-without-amplification"]
    expected = {
        "level": "record",
        "unit": "image",
        "adjacency": "add-or-remove-one",
        "delta": 1e-5,
        "accountant": "pld",
        "rounds": 12,
        "releases": 120,
        "noise-multiplier": 2.0,
        "clip-norm": 0.5,
        "sampler": "poisson",
        "sample-rate": 0.1,
        "secure-rng": True,
        "float-noise": "mitigated, not proven",
    }
    assert expected.items() <= values.items()


def test_client_level_figures() -> None:
    values = client().to_json()
    assert values["epsilon"] == values["epsilon-without-amplification"] == SUMS.epsilon(1e-6)
    expected = {
        "level": "client",
        "unit": "hospital",
        "adjacency": "zero-out",
        "accountant": "rdp",
        "releases": 13,
        "sampler": "none",
        "min-survivors": 5,
        "max-corrupt": 2,
        "honest-hospitals-needed": 3,
        "float-noise": "exact integers",
    }
    assert expected.items() <= values.items()


def test_personal_adapters_are_covered_where_they_were_noised() -> None:
    assert not any("personal" in each for each in record().outside)
    assert any("personal" in each for each in client().outside)
    for statement in (record(), client()):
        covered = " ".join(statement.outside)
        assert all(word in covered for word in ("validation", "settings", "timing", "takes part"))


def test_size_bands_are_outside_where_they_weigh() -> None:
    assert not any("size band" in each for each in record().outside)
    weighed = replace(record(), size_bands=True)
    assert "Not covered: a hospital's size band" in weighed.sentences()[-1]
    assert PrivacyStatement.from_json(weighed.to_json()) == weighed


def test_one_observer_always_knows_its_own_noise() -> None:
    nobody = DistributedGaussian(4.0, 0.5, 2176, 1e-7, min_survivors=5, max_corrupt=0, answered=1)
    statement = PrivacyStatement.client(nobody, delta=1e-6, rounds=1, protocol="pairwise")
    assert statement.honest == nobody.shares == 4
    assert client().honest == SUMS.shares == 3


@pytest.mark.parametrize(
    "statement", [record(), record("patient id"), client(), client("bfv"), PrivacyStatement.none()]
)
def test_plain_values_and_back(statement: PrivacyStatement) -> None:
    text = json.dumps(statement.to_json(), allow_nan=False)
    again = PrivacyStatement.from_json(json.loads(text))
    assert again == statement
    assert again.sentences() == statement.sentences()


def test_what_is_said() -> None:
    said = " ".join(record().sentences())
    for part in (
        f"ε = {_up(record().epsilon)} at δ = 1e-05",
        f"ε would be {_up(record().epsilon_without_amplification)}",
        "one image with all its questions",
        "add-or-remove-one",
        "12 rounds with 120 steps",
        "every intermediate model",
        "2 x 0.5",
        "Poisson",
        "mitigated, not proven",
        "secure_rng: true",
        "without a bound on how many",
        "(PLD)",
    ):
        assert part in said
    said = " ".join(client().sentences())
    for part in ("zero-out", "13 sums", "2 hospitals", "as few as 5", "3 hospitals together", "secure_rng: true"):
        assert part in said
    assert "gives it to the server" not in said
    assert "gives it to the server" in " ".join(client("bfv").sentences())
    assert "“patient id”" in " ".join(record("patient id").sentences())


def test_without_noise_nothing_is_claimed() -> None:
    none = PrivacyStatement.none()
    assert none.to_json() == {"level": "none"}
    (sentence,) = none.sentences()
    assert sentence.startswith("No differential privacy")


def test_a_figure_is_never_rounded_down() -> None:
    for value, text in (
        (7.991, "8"),
        (8.0, "8"),
        (7.951, "7.96"),
        (0.01234, "0.0124"),
        (123.2, "124"),
        (1e-9, "1e-09"),
    ):
        assert _up(value) == text
        assert float(text) >= value
    assert (_up(0.0), _up(math.inf)) == ("0", "infinite")


def test_an_unknown_level_is_refused() -> None:
    for values in ({}, {"level": "example"}):
        with pytest.raises(MisuseError):
            PrivacyStatement.from_json(values)

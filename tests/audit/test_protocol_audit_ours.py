"""Our own protocols under the catalogue: what they resist, by which clause, and that a missing rule would be found."""

import pytest
from audit_kit import EVERY_ATTACK, audited, outcome

from fedvlm_secure.audit.target import NOT_APPLICABLE, OUTCOMES, RESISTED, VULNERABLE
from fedvlm_secure.audit.targets import ours
from fedvlm_secure.secagg import envelope, policy
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.encrypted.client import EncryptedClient
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.roster import Roster

PROTECTING = ("pairwise", "bfv", "ckks")

# Of what the catalogue finds in flwr's SecAgg+, nothing may be found here.
FOUND_IN_FLOWER = {
    "seed-entropy",
    "mask-uniformity",
    "dual-share-request",
    "split-dual-request",
    "equivocation",
    "threshold-downgrade",
    "modulus-downgrade",
    "key-substitution",
    "sybil",
    "cleartext-weight",
    "cleartext-metrics",
    "dropout",
    "overflow",
    "precision",
    "upload-size",
    "malformed-messages",
    "replay",
    "second-sum",
    "another-model",
}


@pytest.mark.parametrize("name", ["plain", *PROTECTING])
def test_every_attack_has_a_result_and_none_is_inconclusive(name):
    results = audited(name)
    assert list(results) == EVERY_ATTACK
    assert {result.outcome for result in results.values()} <= set(OUTCOMES)
    assert all(result.observed and result.consequence and result.reference for result in results.values())
    assert [result.attack for result in results.values() if result.observed.startswith("inconclusive")] == []


@pytest.mark.parametrize("name", PROTECTING)
def test_nothing_is_found_that_is_found_in_flower(name):
    found = {attack for attack, result in audited(name).items() if result.outcome == VULNERABLE}
    assert not found & FOUND_IN_FLOWER


def test_pairwise_resists_all_that_applies_to_it():
    by_outcome = {each: set[str]() for each in OUTCOMES}
    for attack, result in audited("pairwise").items():
        by_outcome[result.outcome].add(attack)
    assert by_outcome[VULNERABLE] == set()
    assert by_outcome[NOT_APPLICABLE] == {"he-key-reach", "ckks-decryption"}


@pytest.mark.parametrize(
    ("attack", "clause"),
    [
        ("key-substitution", "P-1.2"),
        ("sybil", "P-2.2"),
        ("threshold-downgrade", "P-2.4"),
        ("modulus-downgrade", "P-2.5"),
        ("replay", "P-2.7"),
        ("second-sum", "P-7.5"),
        ("another-model", "P-2.3"),
        ("dual-share-request", "P-7.4"),
        ("split-dual-request", "P-7.4"),
        ("equivocation", "P-7.3"),
        ("overflow", "P-2.5"),
    ],
)
def test_pairwise_names_the_clause(attack, clause):
    result = audited("pairwise")[attack]
    assert result.outcome == RESISTED
    assert result.reference.startswith(clause)
    assert clause in result.observed


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_a_shared_key_is_found_to_be_shared(name):
    """A member opens every upload, and its identity key every box: what SPEC says in its sections 7 and 9."""
    found = {attack for attack, result in audited(name).items() if result.outcome == VULNERABLE}
    assert found == {"he-key-reach", "private-keys"}
    assert "the server's messages and state hold none" in audited(name)["private-keys"].observed


def test_plain_is_found_to_protect_nothing():
    found = {attack for attack, result in audited("plain").items() if result.outcome == VULNERABLE}
    assert found == {"cleartext-update", "cleartext-weight", "cleartext-metrics", "mask-uniformity", "mask-reuse"}


def test_dropouts_of_the_dealer_cost_an_attempt():
    assert "keys: 5 of 6 rounds ended, 1 more at the second attempt (E-3.1" in audited("bfv")["dropout"].observed


def no_rule(*args):
    return None


def anyone(*args):
    return True


@pytest.mark.parametrize(
    ("attack", "switched_off"),
    [
        ("dual-share-request", [(rules, "never_both", no_rule), (rules, "dropped_are_the_rest", no_rule)]),
        ("equivocation", [(rules, "consents", no_rule)]),
        ("threshold-downgrade", [(policy, "_thresholds_are_sound", anyone)]),
        ("key-substitution", [(envelope, "verify", no_rule)]),
        ("replay", [(policy, "_is_news", anyone)]),
        ("second-sum", [(ClientSessionBase, "latched", ())]),
        ("overflow", [(policy, "_ring_fits", anyone)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_its_rule_pairwise_is_found_vulnerable(monkeypatch, attack, switched_off):
    for owner, name, replacement in switched_off:
        monkeypatch.setattr(owner, name, replacement)
    result = outcome("pairwise", attack)
    assert result.outcome == VULNERABLE, result.observed


class AnyoneTheServerNames(dict):
    """A key for every name."""

    def __missing__(self, name):
        return bytes(32)


def test_without_a_roster_sybils_are_found_to_work(monkeypatch):
    genuine = Roster.keys
    monkeypatch.setattr(policy, "_cohort_is_sound", anyone)
    monkeypatch.setattr(Roster, "keys", lambda roster: AnyoneTheServerNames(genuine(roster)))
    monkeypatch.setattr(envelope, "verify", no_rule)
    assert outcome("pairwise", "sybil").outcome == VULNERABLE


@pytest.mark.parametrize("name", ["plain", "pairwise", "bfv"])
def test_clients_that_believe_the_plan_are_found_to_be_alone_in_the_sum(monkeypatch, name):
    """They take the plan's word for what they have loaded."""
    monkeypatch.setattr(ours.Federation, "model_of", lambda federation, client: b"what the server says")
    assert outcome(name, "another-model").outcome == VULNERABLE


def test_a_reader_that_tells_what_it_decrypted_is_found(monkeypatch):
    """Four numbers of the mean where the hash of the next model belongs."""
    genuine = ours.digest

    def telling(label, *parts):
        return parts[0][:32] if label == "next" else genuine(label, *parts)

    monkeypatch.setattr(ours, "digest", telling)
    result = outcome("ckks", "ckks-decryption")
    assert result.outcome == VULNERABLE
    assert result.observed.startswith("4 of")


@pytest.mark.parametrize(
    ("attack", "switched_off"),
    [
        ("key-substitution", [(envelope, "verify", no_rule)]),
        ("replay", [(policy, "_is_news", anyone)]),
        ("second-sum", [(EncryptedClient, "latched", ())]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_its_rule_bfv_is_found_vulnerable(monkeypatch, attack, switched_off):
    for owner, name, replacement in switched_off:
        monkeypatch.setattr(owner, name, replacement)
    result = outcome("bfv", attack)
    assert result.outcome == VULNERABLE, result.observed


def test_a_refusal_beside_the_point_is_no_resistance(monkeypatch):
    """Were the plan refused for another reason, the dual request would never be tried."""
    monkeypatch.setattr(policy, "_ring_fits", lambda plan: False)
    result = outcome("pairwise", "dual-share-request")
    assert (result.outcome, result.observed.split(":")[0]) == (NOT_APPLICABLE, "inconclusive")


def test_a_rule_that_another_stands_behind_is_not_missed():
    """Only one of two rules is off: the refusal names the other, of the same family."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "never_both", no_rule)
        result = outcome("pairwise", "dual-share-request")
    assert result.outcome == RESISTED
    assert result.reference.startswith("P-7.2")

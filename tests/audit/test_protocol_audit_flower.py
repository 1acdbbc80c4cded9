"""The catalogue on flwr's real SecAgg+: it rediscovers by itself what is known of it."""

import logging

import pytest

pytest.importorskip("flwr", reason="the audit of SecAgg+ drives flwr's own code; install the extra: flower")

from audit_kit import EVERY_ATTACK, audited, outcome

from fedvlm_secure.audit.target import NOT_APPLICABLE, RESISTED, VULNERABLE

# Weaknesses of SecAgg+, the attacks that find them, and what has to be in the figures they report.
KNOWN = [
    ("a seed of 32 bits", "seed-entropy", "self seeds: of 256 bits, flipping one gives 32 different streams"),
    (
        "28 bits where it is base64",
        "seed-entropy",
        "28 of which differ among 200 seeds of the protocol",
    ),
    ("masks without the top value", "mask-uniformity", "15 never drawn"),
    ("one request for both shares", "dual-share-request", "3 of 6 clients gave both shares of c01"),
    ("both shares, from two halves", "split-dual-request", "and none both"),
    ("a threshold of 1", "threshold-downgrade", "all clients took threshold 1 of 6"),
    ("one survivor many times", "malformed-messages", "one survivor 100,000 times (unmask)"),
    ("unsigned keys", "key-substitution", "c01 took 5 keys of the server's"),
    ("the weight in the clear", "cleartext-weight", "num_examples"),
    ("metrics in the clear", "cleartext-metrics", "metrics"),
    ("dropouts in setup", "dropout", "setup: 0 of 6 rounds ended"),
    ("dropouts in share_keys", "dropout", "share_keys: 0 of 6 rounds ended"),
    ("silent overflow", "overflow", "and no error"),
    ("small weights", "precision", "at deviation 0.001 and weight 10"),
    ("int64 uploads", "upload-size", "8.00 bytes a parameter, 2.00 times float32; 50% of the bytes are zero"),
    ("keys that outlive the round", "private-keys", "holds sk1 and sk2 and rd_seed"),
]


@pytest.fixture(scope="module")
def results():
    return audited("flwr-secaggplus")


@pytest.mark.parametrize(("weakness", "attack", "figure"), KNOWN, ids=[each[0] for each in KNOWN])
def test_known_weaknesses_are_found(results, weakness, attack, figure):
    assert results[attack].outcome == VULNERABLE
    assert figure in results[attack].observed


@pytest.mark.parametrize(
    "attack", ["sybil", "equivocation", "modulus-downgrade", "replay", "second-sum", "another-model"]
)
def test_what_else_a_lying_server_can_do(results, attack):
    assert results[attack].outcome == VULNERABLE


def test_what_it_resists_is_said(results):
    by_outcome = {each: set[str]() for each in (VULNERABLE, RESISTED, NOT_APPLICABLE)}
    for attack, result in results.items():
        by_outcome[result.outcome].add(attack)
    assert by_outcome[RESISTED] == {"cleartext-update", "mask-reuse"}
    assert by_outcome[NOT_APPLICABLE] == {"he-key-reach", "ckks-decryption"}


def test_every_attack_is_conclusive(results):
    assert list(results) == EVERY_ATTACK
    assert not [each.attack for each in results.values() if each.observed.startswith("inconclusive")]


def test_the_error_at_small_weights_is_measured(results):
    errors = [float(part.split()[0]) for part in results["precision"].observed.split(": ")[1].split(", ")]
    assert errors == sorted(errors)
    assert 0.005 < errors[0] < 0.05 < errors[1] < 0.5 < errors[2]


def test_what_an_audited_library_logs_is_told_again_afterwards():
    """Flower's logger, which the audit quiets, is the one that our Flower engine writes refusals to."""
    before = logging.getLogger("flwr").level
    outcome("flwr-secaggplus", "replay")
    assert logging.getLogger("flwr").level == before != logging.CRITICAL

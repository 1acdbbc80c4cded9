"""What lies open: numbers beside the masked vector, malformed messages, keys where they should not be."""

from collections import Counter
from dataclasses import replace

import numpy as np

from fedvlm_secure.audit.attacks.trial import (
    RECOVERED,
    VICTIM,
    Attack,
    Finding,
    InconclusiveError,
    cohort,
    relative,
)
from fedvlm_secure.audit.target import (
    AGREEMENT,
    RESISTED,
    VULNERABLE,
    AuditTarget,
    Cohort,
    RefusedError,
    TooLittleError,
)

WEIGHT, METRIC = 617, 431  # numbers that are found only where they were put


def cleartext_update(target: AuditTarget) -> Finding:
    """The upload as it is, no secret asked for."""
    clients = cohort()
    attempt = target.open(clients)
    attempt.until(AGREEMENT)
    try:
        found = attempt.recover(VICTIM)
    except TooLittleError as error:
        return Finding(RESISTED, f"the upload alone does not open: {error}")
    error_of_it = relative(found.values, clients.updates[VICTIM].astype(np.float64))
    if not error_of_it < RECOVERED:
        raise InconclusiveError(f"what was read is off by {error_of_it:.1e}")
    return Finding(VULNERABLE, f"{VICTIM}'s update reads off its upload, to {error_of_it:.1e} (relative L2)")


def cleartext_weight(target: AuditTarget) -> Finding:
    """The sample count in what a client says."""
    clients = cohort()
    return _found(target, replace(clients, weights={**clients.weights, VICTIM: WEIGHT}), WEIGHT, "weight")


def cleartext_metrics(target: AuditTarget) -> Finding:
    """A metric in what a client says."""
    clients = cohort()
    metrics = {name: METRIC if name == VICTIM else index for index, name in enumerate(clients.names)}
    return _found(target, replace(clients, metrics=metrics), METRIC, "number of right answers")


def _found(target: AuditTarget, clients: Cohort, number: int, what: str) -> Finding:
    attempt = target.open(clients)
    attempt.until(AGREEMENT)
    said = attempt.said(VICTIM)
    where = sorted({each.where for each in said if not isinstance(each.value, bytes | str) and each.value == number})
    if where:
        return Finding(VULNERABLE, f"{VICTIM}'s {what}, {number}, is in the clear as {', '.join(where)}")
    numbers = sum(not isinstance(each.value, bytes | str) for each in said)
    return Finding(RESISTED, f"{VICTIM}'s {what} is in none of {len(said)} values it sent, {numbers} of them numbers")


def malformed(target: AuditTarget) -> Finding:
    """Messages of another form than the protocol's, at every step."""
    clients = cohort(dimension=20)
    tried, answered, stumbled = 0, list[str](), Counter[str]()
    for each in target.open(clients).malformed():
        tried += 1
        try:
            each.send()
        except RefusedError as error:
            if not error.deliberate:
                stumbled[error.detail.split(":")[0]] += 1
        else:
            answered.append(f"{each.what} ({each.step})")
    if not tried:
        raise InconclusiveError("the target has no malformed message to try")
    fell = f"; {stumbled.total()} ended in {', '.join(sorted(stumbled))} and no check" if stumbled else ""
    if answered:
        return Finding(VULNERABLE, f"{len(answered)} of {tried} were answered: {', '.join(answered)}{fell}")
    return Finding(VULNERABLE if stumbled else RESISTED, f"{tried} of {tried} were refused{fell}")


def private_keys(target: AuditTarget) -> Finding:
    """A client's keys and seeds in what the server sees, and in what the client keeps when the round is over."""
    attempt = target.open(cohort())
    attempt.finish()
    secrets = attempt.secrets(VICTIM)
    seen = [name for name, secret in secrets.items() if secret in attempt.server_view()]
    kept = [name for name, secret in secrets.items() if secret in attempt.at_rest(VICTIM)]
    in_view = f"the server's messages and state hold {' and '.join(seen) or 'none'}"
    at_rest = f"what the client keeps after the round holds {' and '.join(kept) or 'none'}"
    return Finding(VULNERABLE if seen or kept else RESISTED, f"looked for {', '.join(secrets)}: {in_view}; {at_rest}")


def he_key_reach(target: AuditTarget) -> Finding:
    """One member gives its key to the server."""
    clients = cohort()
    member = clients.names[-1]
    attempt = target.open(clients)
    attempt.until(AGREEMENT)
    found = attempt.read_by_member(VICTIM, member)
    error_of_it = relative(found.values, clients.updates[VICTIM].astype(np.float64))
    if not error_of_it < RECOVERED:
        return Finding(
            RESISTED, f"what {member} holds opens {VICTIM}'s upload to an error of {error_of_it:.1e}, to nothing"
        )
    return Finding(
        VULNERABLE,
        f"with what {member} holds, {VICTIM}'s ciphertexts opened to its update, to {error_of_it:.1e} (relative L2)",
    )


def ckks_decryption(target: AuditTarget) -> Finding:
    """The numbers of an approximate decryption in what its reader tells others."""
    attempt = target.open(cohort())
    attempt.finish()
    decryption = attempt.decryption()
    values = decryption.values
    patterns = [form for each in values for form in (np.float64(each).tobytes(), np.float32(each).tobytes())]
    told = sum(pattern in decryption.told for pattern in patterns)
    observed = (
        f"{told} of {len(values)} decrypted numbers are in the {len(decryption.told)} bytes told to {decryption.to}"
    )
    return Finding(VULNERABLE if told else RESISTED, observed)


ATTACKS = (
    Attack(
        "cleartext-update",
        "reads an upload without any secret",
        "everything",
        "what secure aggregation is for",
        cleartext_update,
    ),
    Attack(
        "cleartext-weight",
        "looks for a client's sample count in what it sends",
        "the size of a hospital's data; where the weight is masked as well, known plaintext of its mask word",
        "known plaintext for the mask beside it",
        cleartext_weight,
    ),
    Attack(
        "cleartext-metrics",
        "looks for a client's metrics in what it sends",
        "how well the model does on each client's data, round by round",
        "metrics are functions of private data",
        cleartext_metrics,
    ),
    Attack(
        "malformed-messages",
        "sends truncated, oversized and ill-typed messages in every phase",
        "what is accepted unchecked is where other attacks begin; large replies to small requests",
        "every message is input",
        malformed,
    ),
    Attack(
        "private-keys",
        "searches the server's view, and what a client keeps after the round, for the client's keys and seeds",
        "recorded traffic opens to whoever gets at either later; in the server's view, at once",
        "forward secrecy",
        private_keys,
    ),
    Attack(
        "he-key-reach",
        "has one member hand its key to the server",
        "server and one member read every update; takes one colluder",
        "threshold decryption avoids it: Mouchet et al. (PETS 2021)",
        he_key_reach,
    ),
    Attack(
        "ckks-decryption",
        "looks for a raw decryption outside the key holders",
        "the noise in it gives the key away, after enough of them",
        "Li and Micciancio (EUROCRYPT 2021): IND-CPA-D",
        ckks_decryption,
    ),
)

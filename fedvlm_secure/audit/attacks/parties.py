"""Attacks with false parties, false parameters, or the same thing twice."""

from dataclasses import replace

import numpy as np

from fedvlm_secure.audit.attacks.trial import (
    RECOVERED,
    VICTIM,
    Attack,
    Finding,
    InconclusiveError,
    Moves,
    cohort,
    exposure,
    relative,
)
from fedvlm_secure.audit.target import (
    AGREEMENT,
    INPUT,
    KEYS,
    PROPOSAL,
    VULNERABLE,
    AuditTarget,
    BrokenRoundError,
    Cohort,
    Proposal,
)

DEAD = b"a model that learns nothing"


def key_substitution(target: AuditTarget) -> Finding:
    """The server shows the victim keys of its own as those of all its peers."""
    clients = cohort()
    peers = tuple(name for name in clients.names if name != VICTIM)
    attempt = target.open(clients, Proposal(impersonated=peers))
    moves = Moves((KEYS, INPUT), ("P-1", "P-3", "E-3"))
    moves.make(lambda: attempt.until(AGREEMENT))
    return exposure(attempt, clients, moves, f"{VICTIM} took {len(peers)} keys of the server's for its peers'")


def sybils(target: AuditTarget) -> Finding:
    """The victim is alone among clients that the server has made up."""
    invented = tuple(f"sybil-{index}" for index in range(5))
    clients = cohort(names=(VICTIM, *invented))
    attempt = target.open(clients, Proposal(sybils=invented))
    moves = Moves((PROPOSAL, KEYS), ("P-2", "P-3"))
    moves.make(lambda: attempt.until(AGREEMENT))
    return exposure(
        attempt, clients, moves, f"{VICTIM} masked its update with {len(invented)} clients that do not exist"
    )


def threshold_downgrade(target: AuditTarget) -> Finding:
    """One share is said to be enough."""
    clients = cohort()
    colluder = clients.names[-1]
    attempt = target.open(clients, Proposal(threshold=1, colluders=(colluder,)))
    moves = Moves((PROPOSAL,), ("P-2",))
    moves.make(lambda: attempt.until(AGREEMENT))
    how = f"all clients took threshold 1 of {len(clients.names)}; with what {colluder} held before anyone was asked"
    return exposure(attempt, clients, moves, how)


def modulus_downgrade(target: AuditTarget) -> Finding:
    """The smallest modulus there is."""
    dimension = 200
    # Whole numbers of the finest steps around, at full weight: nothing of them is rounded at random.
    steps = np.arange(dimension) * 7919 % 1000 - 500
    whole = {name: (steps * 2.0**-18).astype(np.float32) for name in cohort().names}
    clients = Cohort(whole, dict.fromkeys(whole, 1000), 1000)
    attempt = target.open(clients, Proposal(modulus_bits=1))
    moves = Moves((PROPOSAL,), ("P-2",))
    if not moves.make(lambda: attempt.until(AGREEMENT)):
        return moves.resisted()
    upload = attempt.upload(VICTIM)
    if upload.words is None or upload.encoded is None:
        raise InconclusiveError("the modulus was taken, and the upload is no vector of words")
    readable = int(np.count_nonzero(upload.words == upload.encoded))
    return Finding(
        VULNERABLE,
        f"all clients took modulus 2; {readable} of {dimension} uploaded words are the lowest bits of the victim's own",
    )


def replay(target: AuditTarget) -> Finding:
    """The recorded proposal of a round that is over, once more."""
    clients = cohort()
    first = target.open(clients)
    first.finish()
    moves = Moves((PROPOSAL,), ("P-2",))
    if not moves.make(lambda: first.again(new=False, trained=True).finish()):
        return moves.resisted()
    return Finding(
        VULNERABLE,
        f"all {len(clients.names)} clients took the recorded proposal of a finished round, and uploaded again",
    )


def second_sum(target: AuditTarget) -> Finding:
    """A second round over the same updates, without the victim."""
    clients = cohort()
    first = target.open(clients)
    total = first.finish()
    moves = Moves((PROPOSAL,), ("P-7", "E-4"))
    means = []
    if not moves.make(lambda: means.append(first.again(new=True, trained=False).finish({VICTIM: target.input_phase}))):
        return moves.resisted()
    (without,) = means
    weight = total.weight - without.weight
    difference = (total.values * total.weight - without.values * without.weight) / weight
    error = relative(difference, clients.updates[VICTIM].astype(np.float64))
    if VICTIM in without.survivors or not error < RECOVERED:
        raise InconclusiveError(f"the difference of the two sums is off by {error:.1e}")
    return Finding(
        VULNERABLE,
        f"the same updates went into two sums; their difference is {VICTIM}'s update to {error:.1e} (relative L2)",
    )


def another_model(target: AuditTarget) -> Finding:
    """All but the victim are shown a model for which training gives nothing."""
    alive = cohort()
    still = {name: update if name == VICTIM else update * 0 for name, update in alive.updates.items()}
    clients = replace(alive, updates=still)
    attempt = target.open(clients, Proposal(shown={name: DEAD for name in clients.names if name != VICTIM}))
    moves = Moves((PROPOSAL, INPUT), ("P-2",))
    means = []
    try:
        if not moves.make(lambda: means.append(attempt.finish())):
            return moves.resisted()
    except BrokenRoundError as error:
        raise InconclusiveError(str(error)) from error
    (mean,) = means
    alone = mean.values * mean.weight / clients.weights[VICTIM]
    error_of_it = relative(alone, alive.updates[VICTIM].astype(np.float64))
    if not error_of_it < RECOVERED:
        raise InconclusiveError(f"the sum is off the victim's update by {error_of_it:.1e}")
    return Finding(
        VULNERABLE,
        f"{len(clients.names)} clients trained from two models; their sum is {VICTIM}'s update to {error_of_it:.1e} "
        "(relative L2)",
    )


ATTACKS = (
    Attack(
        "key-substitution",
        "passes on keys of its own as those of a client's peers",
        "the client shares its secrets with the server and masks with masks that the server knows: its update in the "
        "clear; takes a server in the middle, which every server is",
        "Bonawitz et al. (CCS 2017): signed keys against an active adversary",
        key_substitution,
    ),
    Attack(
        "sybil",
        "makes up all peers of a client",
        "the sum is that client's update; nothing but a list of members that the server does not keep prevents it",
        "Douceur (IPTPS 2002)",
        sybils,
    ),
    Attack(
        "threshold-downgrade",
        "proposes a threshold of one share, and has one colluder",
        "one colluding client opens everybody's masks, before or after the round",
        "Bell et al. (CCS 2020): thresholds follow from n and the number of colluders",
        threshold_downgrade,
    ),
    Attack(
        "modulus-downgrade",
        "proposes the smallest modulus",
        "masks of one value hide nothing: clients upload the lowest bits of their numbers, and how coarse these are "
        "is the server's to say as well; or sums wrap",
        "parameters that the server names and no client checks",
        modulus_downgrade,
    ),
    Attack(
        "replay",
        "sends the proposal of a finished round again",
        "rounds are run as often as the server likes, and by their records cannot be told apart",
        "messages bound to run, round and attempt",
        replay,
    ),
    Attack(
        "second-sum",
        "has the same updates summed again, without one client",
        "the difference of two sums is that client's update; takes an application that returns the update it has",
        "So et al. (AAAI 2023): leakage over rounds",
        second_sum,
    ),
    Attack(
        "another-model",
        "shows all clients but one a model that does not learn",
        "the sum is the update of that one client, by an honest protocol",
        "Pasquini et al. (CCS 2022): model inconsistency",
        another_model,
    ),
)

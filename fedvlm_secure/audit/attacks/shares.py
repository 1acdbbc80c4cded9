"""Attacks on what removes the masks: the server wants both of a client's secrets, of which it may have one."""

from fedvlm_secure.audit.attacks.trial import VICTIM, Attack, Finding, Moves, cohort, exposure
from fedvlm_secure.audit.target import AGREEMENT, UNMASK, AuditTarget

BONAWITZ = "Bonawitz et al. (CCS 2017), section 4: never both shares of one client"


def dual_share_request(target: AuditTarget) -> Finding:
    """To as many peers as it takes: the victim survived, and the victim dropped."""
    clients = cohort()
    attempt = target.open(clients)
    attempt.until(UNMASK)
    asked = [name for name in clients.names if name != VICTIM][: target.threshold(len(clients.names))]
    moves = Moves((UNMASK,), ("P-7",))
    for name in asked:
        moves.make(lambda name=name: attempt.unmask(name, clients.names, (VICTIM,)))  # type: ignore[misc]
    return exposure(
        attempt, clients, moves, f"{len(asked)} of {len(clients.names)} clients gave both shares of {VICTIM}"
    )


def split_dual_request(target: AuditTarget) -> Finding:
    """To one half: the victim survived; to the other: it dropped. Nobody is asked for both shares."""
    clients = cohort()
    attempt = target.open(clients)
    attempt.until(UNMASK)
    half = len(clients.names) // 2
    told_it_survived = (VICTIM, *(name for name in clients.names if name != VICTIM))[:half]
    moves = Moves((UNMASK,), ("P-7",))
    for name in clients.names:
        if name in told_it_survived:
            moves.make(lambda name=name: attempt.unmask(name, clients.names, ()))  # type: ignore[misc]
        else:
            rest = [each for each in clients.names if each != VICTIM]
            moves.make(lambda name=name, rest=rest: attempt.unmask(name, rest, (VICTIM,)))  # type: ignore[misc]
    how = f"{half} clients gave one share of {VICTIM}, {len(clients.names) - half} the other, and none both"
    return exposure(attempt, clients, moves, how)


def equivocation(target: AuditTarget) -> Finding:
    """Two survivor lists, each told to one half of the cohort throughout: with the victim, and without it."""
    clients = cohort()
    attempt = target.open(clients)
    attempt.until(AGREEMENT)
    names = clients.names
    rest = tuple(name for name in names if name != VICTIM)
    half = (VICTIM, *rest)[: len(names) // 2]
    lists = {name: names if name in half else rest for name in names}
    moves = Moves((AGREEMENT, UNMASK), ("P-6", "P-7"))
    for name, survivors in lists.items():
        moves.make(lambda name=name, survivors=survivors: attempt.agree(name, survivors))  # type: ignore[misc]
    for name, survivors in lists.items():
        dropped = () if name in half else (VICTIM,)
        moves.make(lambda name=name, survivors=survivors, dropped=dropped: attempt.unmask(name, survivors, dropped))  # type: ignore[misc]
    return exposure(attempt, clients, moves, "clients answered for two contradictory survivor lists in one attempt")


ATTACKS = (
    Attack(
        "dual-share-request",
        "names one client among the survivors and among the dropped, in the same request",
        "one client's update and weight in the clear; takes a server that lies in one message, and no colluder",
        BONAWITZ,
        dual_share_request,
    ),
    Attack(
        "split-dual-request",
        "asks one half of the clients for a client's first secret, and the other half for its second",
        "the same, though no client has given both shares; a check that each client makes by itself does not help",
        "Bell et al. (CCS 2020), section 4.3: semi-malicious thresholds",
        split_dual_request,
    ),
    Attack(
        "equivocation",
        "tells the halves of a cohort different survivor lists, from the first mention to the last",
        "two sums that differ by one client's update, which is thereby in the clear",
        "Bonawitz et al. (CCS 2017), section 6.2: consistency check",
        equivocation,
    ),
)

"""Attacks on what removes the masks: the server wants both of a client's secrets, of which it may have one."""

from fedvlm_secure.audit.attacks.trial import VICTIM, Attack, Finding, Moves, cohort, exposure
from fedvlm_secure.audit.target import AGREEMENT, UNMASK, AuditTarget, Proposal

BONAWITZ = "Bonawitz et al. (CCS 2017): never both shares of one client"


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
    """Everyone is told another survivor list: the victim's self mask is all they agree on; each gives one share a peer.

    The victim was given the shares of three peers only, so that the masks of two others and a colluder's protect it.
    """
    clients = cohort()
    names = clients.names
    first, victim, second, third, fourth, colluder = names
    assert victim == VICTIM
    withheld = {victim: (third, fourth)}
    lists = {
        victim: (first, victim, second, colluder),
        first: (first, victim, third, fourth, colluder),
        second: (victim, second, third, fourth, colluder),
        third: (victim, third, fourth, colluder),
        fourth: (victim, third, fourth, colluder),
    }
    attempt = target.open(clients, Proposal(colluders=(colluder,)))
    attempt.until(AGREEMENT, withheld)
    moves = Moves((AGREEMENT, UNMASK), ("P-6", "P-7"))
    for name, survivors in lists.items():
        dropped = set(names) - set(survivors) - set(withheld.get(name, ()))

        def told(name: str = name, survivors: tuple[str, ...] = survivors, dropped: set[str] = dropped) -> None:
            attempt.agree(name, survivors)
            attempt.unmask(name, survivors, sorted(dropped))

        moves.make(told)
    how = f"{len(lists)} clients answered for {len(set(lists.values()))} survivor lists in one attempt, one colluding"
    return exposure(attempt, clients, moves, how)


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
        "Bell et al. (CCS 2020): thresholds against a semi-malicious server",
        split_dual_request,
    ),
    Attack(
        "equivocation",
        "tells every client another survivor list, each sound by itself, and has one colluder",
        "one client's update and weight in the clear, though nobody gave two shares of one client, at any threshold",
        "Bonawitz et al. (CCS 2017): consistency check against an active adversary",
        equivocation,
    ),
)

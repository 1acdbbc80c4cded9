"""What the server can work out in a state of the model: seeds by counting shares, sums of updates by linear algebra."""

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

from pairwise_model import Clients, Model, Rule, State, union, without

# Coefficients start as 0 and ±1, in fewer than twenty rows: no minor reaches this prime, so that ranks modulo it are
# ranks over the rationals. The server combines over the integers, and a multiple of one update counts as that update.
PRIME = 2**61 - 1

Vector = tuple[int, ...]


class Seeds(NamedTuple):
    """The honest clients whose seeds the server has recovered."""

    self_mask: Clients
    mask: Clients


class Exposure(NamedTuple):
    """A combination of updates of few clients: how often each column counts in it."""

    clients: Clients
    combination: Vector


def known_seeds(model: Model, state: State) -> Seeds:
    """Count, for each honest client's two seeds, whose shares of it the server has: t of them are the seed."""
    self_mask, mask = dealt_to_the_server(model, state), dealt_to_the_server(model, state)
    for name, client in model.named(state):
        held = union(client.parcels or "", name)
        for survivors, dropped in client.answered:
            for owner in self_mask:
                if owner in survivors and owner in held:
                    self_mask[owner].add(name)
                if owner in dropped:
                    mask[owner].add(name)
    seeds = recovered(model, self_mask, mask)
    while not model.has(Rule.SHARE_KEY):
        # A mask seed then opens what others sealed to its owner's share key: one share of each of their seeds.
        for name, client in model.named(state):
            if client.keys is not None:
                opened = set(without(client.keys.names, client.keys.forged + name)) & set(seeds.mask)
                self_mask[name] |= opened
                mask[name] |= opened
        before, seeds = seeds, recovered(model, self_mask, mask)
        if seeds == before:
            break
    return seeds


def dealt_to_the_server(model: Model, state: State) -> dict[str, set[str]]:
    """For each honest client the holders of its shares that are one with the server, from its parcels on."""
    return {
        name: set() if client.keys is None else set(client.keys.names) & {*model.setting.colluders, *client.keys.forged}
        for name, client in model.named(state)
    }


def recovered(model: Model, self_mask: dict[str, set[str]], mask: dict[str, set[str]]) -> Seeds:
    """The owners of seeds with t holders."""
    seeds = (
        "".join(name for name, known in holders.items() if len(known) >= model.setting.threshold)
        for holders in (self_mask, mask)
    )
    return Seeds(*seeds)


def known_sums(model: Model, state: State) -> tuple[Vector, ...]:
    """All combinations of the honest clients' updates that the server can compute in this attempt.

    Returns:
        Their basis in reduced echelon form, one coefficient for each honest client.
    """
    uploads = tuple(
        # What is masked with a colluder or under a forged key has no secret in that pair.
        (name, without(client.parcels, model.setting.colluders + client.keys.forged))
        for name, client in model.named(state)
        if client.keys is not None and client.parcels is not None
    )
    return unmasked(model.setting.honest, uploads, known_seeds(model, state))


@cache
def unmasked(honest: Clients, uploads: tuple[tuple[str, Clients], ...], seeds: Seeds) -> tuple[Vector, ...]:
    """Eliminate the masks that the server cannot compute from the uploads of clients, each masked with some peers."""
    secret_pairs = ["".join(pair) for pair in combinations(honest, 2) if not set(pair) & set(seeds.mask)]
    secrets = [*without(honest, seeds.self_mask), *secret_pairs]
    rows = []
    for name, peers in uploads:
        signs = {name: 1} | {"".join(sorted(name + peer)): 1 if name < peer else -1 for peer in peers}
        rows.append((*(signs.get(secret, 0) for secret in secrets), *(int(name == owner) for owner in honest)))
    return tuple(row[len(secrets) :] for row in free_of(range(len(secrets)), rows))


@cache
def fewest_clients(sums: tuple[Vector, ...], owners: Clients) -> Exposure | None:
    """The known combination that depends on the fewest clients; None if none is known.

    Args:
        sums: linearly independent rows.
        owners: whose update each column is; in two attempts a client can own two.
    """
    for size in range(1, len(owners) + 1):
        for chosen in combinations(sorted(set(owners)), size):
            others = [column for column, owner in enumerate(owners) if owner not in chosen]
            if alone := free_of(others, sums):
                return Exposure("".join(chosen), alone[0])
    return None


def free_of(columns: Sequence[int], rows: Sequence[Vector]) -> tuple[Vector, ...]:
    """The combinations of ``rows`` that are zero in ``columns``: a basis of them, in reduced echelon form."""
    left, done = list(rows), list[Vector]()
    width = len(rows[0]) if rows else 0
    for column in (*columns, *(column for column in range(width) if column not in columns)):
        pivot = next((row for row in left if row[column]), None)
        if pivot is None:
            continue
        left.remove(pivot)
        inverse = pow(pivot[column], -1, PRIME)
        pivot = tuple(value * inverse % PRIME for value in pivot)
        left = [without_pivot(row, column, pivot) for row in left]
        done = [*(without_pivot(row, column, pivot) for row in done), pivot]
    return tuple(row for row in done if not any(row[column] for column in columns))


def without_pivot(row: Vector, column: int, pivot: Vector) -> Vector:
    """``row`` minus the multiple of ``pivot`` that makes it zero in ``column``."""
    return tuple((value - row[column] * other) % PRIME for value, other in zip(row, pivot, strict=True))

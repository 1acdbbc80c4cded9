"""Servers that do less than anything: one that follows the protocol, and one for a cohort too large for all."""

from functools import cache

from pairwise_model import Client, Clients, KeyList, Model, State, union, without


@cache
def phases_done(client: Client) -> int:
    """In how many of the five phases a client has answered."""
    done = (client.published, client.keys, client.parcels is not None, client.signed, client.answered)
    return sum(bool(phase) for phase in done)


def remaining(model: Model, state: State, phases: int) -> Clients:
    """Who has answered in so many phases; colluders always have."""
    honest = "".join(name for name, client in model.named(state) if phases_done(client) >= phases)
    return union(honest, model.setting.colluders)


def as_prescribed(model: Model, state: State, me: str, after: Client) -> bool:
    """Honest but curious: phase after phase, everyone is told the same, and it is the truth."""
    phase = phases_done(after)
    if any(phases_done(client) > phase for client in state):
        return False
    told_the_truth = {
        1: True,
        2: after.keys == KeyList(remaining(model, state, 1)),
        3: after.parcels == without(remaining(model, state, 2), me),
        4: after.signed == (remaining(model, state, 3),),
        5: True,
    }
    return told_the_truth[phase]


def in_turn(model: Model, state: State, me: str, after: Client) -> bool:
    """Malicious in few ways: all keys and parcels, but as few parcels as possible to A; the shortest survivor lists.

    One client after the other, and from each but its keys and parcels it takes all that there is, or nothing.
    """
    phase, setting = phases_done(after), model.setting
    done = {name: phases_done(client) for name, client in model.named(state)}
    if phase <= 2:
        ready = all(done[name] >= phase if name < me else done[name] < phase for name in done)
        return ready and after.keys in (None, KeyList(setting.cohort))
    if phase == 3:
        ready = all(done[name] in (2, 5) if name < me else done[name] == 2 for name in done)
        return ready and len(after.parcels or "") == (setting.min_survivors if me == "A" else setting.clients) - 1
    return len(after.signed[0]) == setting.min_survivors

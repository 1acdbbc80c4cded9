"""An abstract model of the pairwise protocol for an exhaustive search: who holds which seed, never a byte of one.

Honest clients ``A``, ``B``, … follow the clauses in ``protocols/pairwise/``; each thing a client checks is a small
function here, named after its clause. Colluders ``X``, ``Y``, … and the server are one: it knows their secrets and
shares, they sign and send what it likes. It sends any client anything that it can make up or has been sent, in any
order, and leaves out what it likes; a client that it never asks again is one that fell silent. A set of clients is
written as the sorted string of their letters.

Only what a client answers is a step: a request that a guard refuses closes the session, which is silence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import chain, combinations
from typing import NamedTuple

from fedvlm_secure.secagg.plan import majority

Clients = str


class Rule(Enum):
    """A rule that a model can be without, and its clauses."""

    SIGNED_KEYS = "P-1.2, P-3.2: keys and parcels passed on are their owner's signed words"
    MIN_SURVIVORS = "P-3.3, P-5.1, P-6.3: key list, parcels and survivors of at least min_survivors clients"
    SHARE_KEY = "P-4.1: the share key does not depend on the mask seed"
    KEY_ROOT = "P-4.4, P-6.2: parcels and consents are bound to one key list"
    HELD = "P-6.1: survivors are clients whose parcels the client holds"
    ONE_ANSWER = "P-6.2, P-7.5: one survivor list is signed, one request is answered"
    NEVER_BOTH = "P-7.2, P-7.4: the dropped are the rest, so no peer's two seeds"
    CONSENTS = "P-7.3: a quorum has signed this very list"
    LATCH = "P-7.5: a vector is not sent again once an answer covered it"


@dataclass(frozen=True)
class Setting:
    """The numbers of a plan. All colluders that it allows for are there: one that behaves is a weaker server."""

    clients: int
    colluding: int
    threshold: int
    min_survivors: int
    quorum: int

    @property
    def honest(self) -> Clients:
        """The honest clients."""
        return "ABCDE"[: self.clients - self.colluding]

    @property
    def colluders(self) -> Clients:
        """The clients that are one with the server."""
        return "XYZ"[: self.colluding]

    @property
    def cohort(self) -> Clients:
        """Everyone; all of it has its place in the order of names."""
        return self.honest + self.colluders


def p_2_4_settings(clients: int, colluding: int) -> list[Setting]:
    """Every threshold and ``min_survivors`` that a client accepts against a malicious server (P-2.4)."""
    least = majority(clients, colluding)
    return [
        Setting(clients, colluding, threshold, min_survivors, quorum=least)
        for threshold in range(least, clients + 1)
        for min_survivors in range(max(threshold, colluding + 2), clients + 1)
    ]


class KeyList(NamedTuple):
    """A key list as a client was shown it; two that differ anywhere have different key roots.

    An honest client has one key message in an attempt. Colluders may sign several, the server may forge (only without
    SIGNED_KEYS): lists of the same names with other such keys are other ``edition``s.
    """

    names: Clients
    forged: Clients = ""
    edition: int = 0


class Client(NamedTuple):
    """What one honest client has done in this attempt."""

    published: bool = False
    keys: KeyList | None = None  # its parcels are out: shares for, and pairs with, everyone on this list
    parcels: Clients | None = None  # it has uploaded, masked with these peers
    signed: tuple[Clients, ...] = ()
    answered: tuple[tuple[Clients, Clients], ...] = ()  # (survivors, dropped)


State = tuple[Client, ...]  # in the order of Setting.honest
Server = Callable[["Model", State, str, Client], bool]  # whether it brings this client to this next state


def anything(model: "Model", state: State, me: str, after: Client) -> bool:
    """The malicious server: what it can send, it may send."""
    return True


@dataclass(frozen=True, eq=False)  # equal if identical, so that what it says can be cached
class Model:
    """A setting, the rules that are off in it, and the server."""

    setting: Setting
    off: frozenset[Rule] = frozenset()
    server: Server = anything

    def has(self, rule: Rule) -> bool:
        """Whether the clients keep ``rule``."""
        return rule not in self.off

    def named(self, state: State) -> Iterator[tuple[str, Client]]:
        """The honest clients with their states."""
        return zip(self.setting.honest, state, strict=True)

    @property
    def start(self) -> State:
        """Nobody has been asked anything."""
        return (Client(),) * len(self.setting.honest)


@cache
def subsets(names: Clients) -> tuple[Clients, ...]:
    """All subsets, small ones first."""
    sizes = (combinations(names, size) for size in range(len(names) + 1))
    return tuple("".join(chosen) for chosen in chain.from_iterable(sizes))


@cache
def union(some: Clients, others: Clients) -> Clients:
    """Those in either."""
    return "".join(sorted({*some, *others}))


@cache
def without(some: Clients, others: Clients) -> Clients:
    """Those in the first only."""
    return "".join(name for name in some if name not in others)


# What a client checks, by clause.


def p_3_3_enough_keys(model: Model, shown: KeyList) -> bool:
    return not model.has(Rule.MIN_SURVIVORS) or len(shown.names) >= model.setting.min_survivors


def p_3_4_own_keys(me: str, shown: KeyList) -> bool:
    return me in shown.names and me not in shown.forged


def p_4_4_same_keys(model: Model, mine: KeyList, theirs: KeyList) -> bool:
    """Of parcels, and of consents (P-6.2)."""
    return not model.has(Rule.KEY_ROOT) or mine == theirs


def p_5_1_enough_parcels(model: Model, parcels: Clients) -> bool:
    return not model.has(Rule.MIN_SURVIVORS) or len(parcels) + 1 >= model.setting.min_survivors


def p_6_1_held(model: Model, me: str, parcels: Clients, survivors: Clients) -> bool:
    return me in survivors and (not model.has(Rule.HELD) or not without(survivors, parcels + me))


def p_6_2_one_list(model: Model, client: Client, survivors: Clients) -> bool:
    return not client.signed or (not model.has(Rule.ONE_ANSWER) and survivors not in client.signed)


def p_6_3_enough_survivors(model: Model, survivors: Clients) -> bool:
    return not model.has(Rule.MIN_SURVIVORS) or len(survivors) >= model.setting.min_survivors


def p_7_2_dropped_are_the_rest(model: Model, held: Clients, survivors: Clients, dropped: Clients) -> bool:
    """Implies P-7.4: no survivor is asked for as dropped."""
    return not model.has(Rule.NEVER_BOTH) or dropped == without(held, survivors)


def p_7_3_quorum(model: Model, consents: Clients) -> bool:
    return not model.has(Rule.CONSENTS) or len(consents) >= model.setting.quorum


def p_7_5_one_answer(model: Model, client: Client, survivors: Clients) -> bool:
    """Without the rule, a second list is answered for; a second answer for one list would say nothing new."""
    lists = [answered for answered, _ in client.answered]
    return not lists or (not model.has(Rule.ONE_ANSWER) and survivors not in lists)


# What the server can send, and the client's state once it has answered.


def steps(model: Model, state: State) -> Iterator[State]:
    """Every state that one more answer of one honest client leads to."""
    for place, (me, client) in enumerate(model.named(state)):
        for after in next_of(model, state, me, client):
            if model.server(model, state, me, after):
                yield (*state[:place], after, *state[place + 1 :])


def next_of(model: Model, state: State, me: str, client: Client) -> Iterator[Client]:
    """Phase by phase, once in each (P-1.4, P-1.7): a repeat gets the same bytes or a refusal, which is nothing new."""
    if not client.published:
        yield client._replace(published=True)
    elif client.keys is None:
        yield from (client._replace(keys=shown) for shown in key_lists(model, state, me))
    elif client.parcels is None:
        yield from (client._replace(parcels=parcels) for parcels in deliveries(model, state, me, client.keys))
    else:
        yield from consents(model, me, client, client.keys, client.parcels)
        yield from answers(model, state, client, client.keys, union(client.parcels, me))


def key_lists(model: Model, state: State, me: str) -> Iterator[KeyList]:
    """Lists of keys that exist: honest clients' once published, colluders' at any time, forged ones where they pass."""
    setting, unpublished = model.setting, {name for name, client in model.named(state) if not client.published}
    for names in subsets(setting.cohort):
        for forged in subsets("" if model.has(Rule.SIGNED_KEYS) else without(names, setting.colluders)):
            if unpublished & set(without(names, forged)):
                continue
            # Where a key can vary, no more lists can matter than there are clients to show them to.
            varies = forged or without(names, setting.honest)
            for edition in range(len(setting.honest) if varies else 1):
                shown = KeyList(names, forged, edition)
                if p_3_3_enough_keys(model, shown) and p_3_4_own_keys(me, shown):
                    yield shown


def deliveries(model: Model, state: State, me: str, keys: KeyList) -> Iterator[Clients]:
    """Any of the parcels that ``me`` accepts, all from clients on its key list (P-4.3)."""
    passing = {name for name in keys.names if name in model.setting.colluders + keys.forged}
    for name, sender in model.named(state):
        if sender.keys is None or me not in without(sender.keys.names, sender.keys.forged + name):
            continue  # has dealt no parcel that opens
        if name in keys.names and p_4_4_same_keys(model, keys, sender.keys):
            passing.add(name)
    for parcels in subsets("".join(sorted(passing))):
        if p_5_1_enough_parcels(model, parcels):
            yield parcels


@cache
def consents(model: Model, me: str, client: Client, keys: KeyList, parcels: Clients) -> tuple[Client, ...]:
    """Any survivor list that ``me`` signs."""
    return tuple(
        client._replace(signed=(*client.signed, survivors))
        for survivors in subsets(keys.names)
        if p_6_1_held(model, me, parcels, survivors)
        and p_6_2_one_list(model, client, survivors)
        and p_6_3_enough_survivors(model, survivors)
    )


def answers(model: Model, state: State, client: Client, keys: KeyList, held: Clients) -> Iterator[Client]:
    """Any unmask request that the client answers, with all the consents there are by now: more do no harm."""
    for survivors in client.signed:
        if not p_7_5_one_answer(model, client, survivors):
            continue
        if not p_7_3_quorum(model, signatures(model, state, keys, survivors)):
            continue
        for dropped in subsets(held):
            if p_7_2_dropped_are_the_rest(model, held, survivors, dropped):
                yield client._replace(answered=(*client.answered, (survivors, dropped)))


def signatures(model: Model, state: State, keys: KeyList, survivors: Clients) -> Clients:
    """The survivors whose signature over this list and these keys exists, or is a colluder's to make."""
    signers = set(model.setting.colluders)
    for name, client in model.named(state):
        if survivors in client.signed and client.keys and p_4_4_same_keys(model, keys, client.keys):
            signers.add(name)
    return "".join(name for name in survivors if name in signers)

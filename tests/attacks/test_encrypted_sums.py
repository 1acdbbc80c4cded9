"""A lying server and the sum that it returns. Each lie with the tags off, to see what it would win, and on.

What a participation count would notice is said for each: it is little, and the server chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from encrypted_attacker import READER, VICTIM, Chunks, LyingServer, at_the_sum, forged, lying_server, without_tags
from encrypted_kit import THREE_CHUNKS, EncryptedFederation, held
from secagg_kit import refused

from fedvlm_secure.primitives.schema import pack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, LIMB_BITS, PLAIN_MODULUS, SLOTS
from fedvlm_secure.secagg.encrypted.scheme import IntegrityError
from fedvlm_secure.secagg.encrypted.server import Carried
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.session import SERVER

OTHER = "c03"
ALL = ("c00", "c01", "c02", "c03", "c04")
BUT_VICTIM = ("c00", "c02", "c03", "c04")
SHIFT = 1000.0  # steps that the server would add to coordinates


def part(server: LyingServer, name: str) -> np.ndarray:
    """The client's weighted update, in steps: what nobody but itself should ever read."""
    plan, update = server.federation.plan, server.federation.updates[name]
    if server.federation.protocol == CKKS:
        return plan.codec.weigh(update)[0]
    return plan.codec.encode(update).integers[: plan.layout.update].astype(float)


def parts(server: LyingServer, *names: str) -> np.ndarray:
    return sum(part(server, name) for name in names)


def swapped(values: np.ndarray, server: LyingServer) -> np.ndarray:
    """The first two ciphertexts' coordinates in each other's place."""
    size = per_chunk(server)
    return np.concatenate([values[size : 2 * size], values[:size], values[2 * size :]])


def per_chunk(server: LyingServer) -> int:
    """Coordinates in a ciphertext: one to a slot, beside tag, or indicators and tags."""
    return SLOTS - 1 if server.federation.protocol == BFV else SLOTS - len(server.names) - 4


def unit(server: LyingServer, where: slice | int) -> np.ndarray:
    """Public slots that add :data:`SHIFT` steps ``where``, and nothing elsewhere."""
    layout = server.federation.plan.layout
    if server.federation.protocol == BFV:
        slots = np.zeros(SLOTS, np.int64)
        slots[where] = int(SHIFT)
    else:
        slots = np.zeros(SLOTS)
        slots[where] = SHIFT / (layout.weight_max * layout.levels)
    return slots


def plus(server: LyingServer, where: slice | int) -> Chunks:
    plain = server.plaintext(unit(server, where))
    return server.changed(
        server.honest_sum(), lambda ciphertext: server.evaluator.add_plain_inplace(ciphertext, plain), [0]
    )


def times(server: LyingServer, chunks: Chunks, factor: int) -> Chunks:
    return server.sum_of((), [chunks] * factor)


def negated(server: LyingServer) -> Chunks:
    return server.changed(server.honest_sum(), server.evaluator.negate_inplace)


def masked(server: LyingServer) -> Chunks:
    """Half of the data slots multiplied by 0, the rest, tag and indicators among them, by 1."""
    slots = np.ones(SLOTS, np.int64 if server.federation.protocol == BFV else np.float64)
    slots[: SLOTS // 2] = 0

    def mask(ciphertext) -> None:
        scale = ciphertext.scale
        # Under CKKS the scales multiply, and the server calls the product's the old one: 64 times the half that stays.
        # At scale 1 the mask would round to the polynomial 0 or 1. Other short polynomials can come near 1 at the
        # indicators; what they then do to the data the tags show, as of any change.
        plain = server.plaintext(slots, scale=64.0)
        server.evaluator.multiply_plain_inplace(ciphertext, plain)
        ciphertext.scale = scale

    return server.changed(server.honest_sum(), mask, [0])


def chosen(server: LyingServer) -> Chunks:
    """A sum of the server's choice, all ones at the right count, without knowing the key: c₁ is 1, so the secret, all
    of -1, 0 and 1, is noise to it."""
    layout, clients = server.federation.plan.layout, len(server.names)
    size, edge = per_chunk(server), layout.weight_max * layout.levels
    coordinates = np.full(layout.update, SHIFT)
    if server.federation.protocol == BFV:
        values = np.concatenate([coordinates, [clients, clients, 0, 0]]).astype(np.int64)
    else:
        higher = [0] * (-(-layout.weight_max.bit_length() // LIMB_BITS) - 1)
        values = np.concatenate([coordinates / edge, np.array([clients, *higher, clients, 0, 0]) / (1 << LIMB_BITS)])
    chunks = []
    for start in range(0, len(values), size):
        slots = np.zeros(SLOTS, values.dtype)
        slots[: len(values[start : start + size])] = values[start : start + size]
        chunks.append(trivial(server, slots))
    return chunks


def trivial(server: LyingServer, slots: np.ndarray, second: int = 1) -> bytes:
    """(Δm, ``second``), with ``second`` a constant polynomial."""
    scheme, plain = server.scheme, server.plaintext(slots)
    words = [plain.dyn_array().at(index) for index in range(plain.coeff_count())]
    words += [0] * (SLOTS - len(words))
    if scheme.kind == CKKS:
        return forged(scheme, words, [second] * SLOTS)
    prime = scheme.context.key_context_data().parms().coeff_modulus()[0].value()
    scaled = [(prime * word + PLAIN_MODULUS // 2) // PLAIN_MODULUS % prime for word in words]
    return forged(scheme, scaled, [second] + [0] * (SLOTS - 1))


def under_another_key(server: LyingServer) -> Chunks:
    key = server.scheme.key(Secret.generate(64))
    slots = np.zeros(SLOTS, np.int64 if server.federation.protocol == BFV else np.float64)
    return [key.encrypt(slots) for _ in server.honest_sum()]


@dataclass(frozen=True)
class Lie:
    """A sum that is none.

    Attributes:
        make: the ciphertexts.
        reads: what clients without tags take for the weighted sum of updates; None where it is garbage.
        counted: whether the participation count alone would notice.
        listed: the survivors that the server names.
    """

    make: Callable[[LyingServer], Chunks]
    reads: Callable[[LyingServer], np.ndarray] | None
    counted: bool = False
    listed: tuple[str, ...] = ALL


LIES = {
    "one client's": Lie(lambda s: s.uploads[VICTIM], lambda s: part(s, VICTIM), True),
    "one client's five times": Lie(lambda s: s.sum_of([VICTIM] * 5), lambda s: 5 * part(s, VICTIM)),
    "one left out": Lie(lambda s: s.sum_of(BUT_VICTIM), lambda s: parts(s, *BUT_VICTIM), True),
    "one left out, another twice": Lie(
        lambda s: s.sum_of([*BUT_VICTIM, OTHER]), lambda s: parts(s, *BUT_VICTIM, OTHER)
    ),
    "one not listed": Lie(lambda s: s.sum_of(ALL), lambda s: parts(s, *ALL), True, BUT_VICTIM),
    "another one listed": Lie(
        lambda s: s.sum_of(BUT_VICTIM), lambda s: parts(s, *BUT_VICTIM), False, ("c00", "c01", "c02", "c03")
    ),
    "an earlier sum": Lie(lambda s: s.earlier.honest_sum(), lambda s: parts(s.earlier, *ALL)),
    "an earlier upload": Lie(
        lambda s: s.sum_of(BUT_VICTIM, [s.earlier.uploads[VICTIM]]),
        lambda s: parts(s, *BUT_VICTIM) + part(s.earlier, VICTIM),
    ),
    "an earlier one's five times": Lie(
        lambda s: times(s, s.earlier.uploads[VICTIM], 5), lambda s: 5 * part(s.earlier, VICTIM)
    ),
    "doubled": Lie(lambda s: times(s, s.honest_sum(), 2), lambda s: 2 * parts(s, *ALL), True),
    "doubled in one ciphertext": Lie(
        lambda s: [*times(s, s.honest_sum()[:1], 2), *s.honest_sum()[1:]],
        lambda s: parts(s, *ALL) * np.where(np.arange(THREE_CHUNKS) < per_chunk(s), 2, 1),
    ),
    "negated": Lie(negated, lambda s: -parts(s, *ALL), True),
    "ciphertexts swapped": Lie(
        lambda s: [s.honest_sum()[number] for number in (1, 0, 2)], lambda s: swapped(parts(s, *ALL), s)
    ),
    "one client's ciphertexts swapped": Lie(
        lambda s: s.sum_of(BUT_VICTIM, [[s.uploads[VICTIM][number] for number in (1, 0, 2)]]),
        lambda s: parts(s, *BUT_VICTIM) + swapped(part(s, VICTIM), s),
    ),
    "one ciphertext of one client's": Lie(
        lambda s: [s.uploads[VICTIM][0], *s.honest_sum()[1:]],
        lambda s: np.where(np.arange(THREE_CHUNKS) < per_chunk(s), part(s, VICTIM), parts(s, *ALL)),
    ),
    "a coordinate shifted": Lie(
        lambda s: plus(s, 7), lambda s: parts(s, *ALL) + SHIFT * (np.arange(THREE_CHUNKS) == 7)
    ),
    "coordinates shifted": Lie(
        lambda s: plus(s, slice(0, per_chunk(s))),
        lambda s: parts(s, *ALL) + SHIFT * (np.arange(THREE_CHUNKS) < per_chunk(s)),
    ),
    "every slot shifted": Lie(
        lambda s: plus(s, slice(None)),
        lambda s: parts(s, *ALL) + SHIFT * (np.arange(THREE_CHUNKS) < per_chunk(s)),
    ),
    "the last slot shifted": Lie(lambda s: plus(s, SLOTS - 1), lambda s: parts(s, *ALL)),
    "masked": Lie(masked, None),
    "a chosen sum": Lie(chosen, lambda s: np.full(THREE_CHUNKS, SHIFT)),
    "under another key": Lie(under_another_key, None, True),
}


@pytest.fixture(scope="module", params=[BFV, CKKS])
def second_round(request) -> LyingServer:
    return lying_server(request.param, dimension=THREE_CHUNKS)


@pytest.fixture
def server(second_round) -> LyingServer:
    return second_round.copy()


@pytest.fixture(params=LIES)
def lie(request) -> Lie:
    return LIES[request.param]


def test_off(server, lie, monkeypatch):
    """Without tags and without a count: the lie is taken for the sum, and says what the server meant it to say."""
    without_tags(monkeypatch, count=False)
    taken = server.taken(server.message(READER, lie.make(server), lie.listed))[:THREE_CHUNKS]
    honest = parts(server, *lie.listed)
    if lie.reads is None:
        assert np.abs(taken - honest).max() > SHIFT
        return
    exact = server.federation.protocol == BFV
    np.testing.assert_allclose(taken, lie.reads(server), rtol=0, atol=0 if exact else 1e-3)
    assert np.abs(taken - honest).max() > SHIFT / 2 or lie is LIES["the last slot shifted"]


def test_a_count_alone(server, lie, monkeypatch):
    """What a plain participation count notices, and what passes it: one client's vector five times does."""
    without_tags(monkeypatch)
    message = server.message(READER, lie.make(server), lie.listed)
    if lie.counted:
        server.refuses(message, "E-5.5")
    else:
        server.taken(message)


def test_on(server, lie):
    error = server.refuses(server.message(READER, lie.make(server), lie.listed), "E-5.4")
    assert ", ".join(lie.listed) in error.detail


def test_the_truth_is_taken(server):
    """As a check of the checks: the same messages around the honest sum are answered."""
    total = server.taken(server.message(READER, server.honest_sum()))
    server.table.check(total, ALL)
    # A list that is short is one that the sum can follow.
    fewer = server.taken(server.message(VICTIM, server.sum_of(BUT_VICTIM), BUT_VICTIM), VICTIM)
    server.table.check(fewer, BUT_VICTIM)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lie_in_any_one_ciphertext(server, number):
    chunks = server.honest_sum()
    chunks[number] = server.sum_of(BUT_VICTIM)[number]
    error = server.refuses(server.message(READER, chunks), "E-5.4")
    assert "ciphertext" not in error.detail, "which one it was is for the client's own log"
    assert isinstance(error.__cause__, IntegrityError)


def test_ckks_names_the_client_whose_part_is_odd(server):
    if server.federation.protocol != CKKS:
        pytest.skip("bfv has one tag for all clients")
    error = server.refuses(server.message(READER, server.sum_of(BUT_VICTIM)), "E-5.4")
    assert f"the part of {VICTIM} is not" in str(error.__cause__)
    assert "part of" not in error.detail


@pytest.mark.parametrize(
    "listed",
    [
        (),
        (VICTIM,),
        (READER, VICTIM),
        (VICTIM,) * 5,
        tuple(reversed(ALL)),
        (*ALL[:-1], ALL[0]),
        ("c00", "c00", "c01", "c02"),
        (*ALL, "stranger"),
        ("c00", "c01", "c02", "server"),
        ("c00", "c01", "c02", "nobody"),
    ],
    ids=",".join,
)
def test_bad_survivor_lists(server, listed):
    """Before anything is decrypted: the epoch's key is not spoilt by it, the session is closed."""
    known = [name for name in listed if name in server.uploads] or [VICTIM]
    server.refuses(server.message(READER, server.sum_of(known), listed), "E-5.1")


def test_a_short_list_is_all_that_hides_one_client(server):
    """The tags fit a list of one: that `min_survivors` holds is E-5.1's doing alone."""
    key = held(server.table, READER)
    sheet = sheet_of(server.federation.plan)
    slots = (key.key.decrypt(sheet.scheme.load(chunk)) for chunk in server.uploads[VICTIM])
    total = sheet.read(slots, key.secret, (VICTIM,))
    np.testing.assert_allclose(total[:THREE_CHUNKS], part(server, VICTIM), rtol=0, atol=1e-3)
    server.refuses(server.message(READER, server.uploads[VICTIM], (VICTIM,)), "E-5.1")


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_ciphertexts_of_an_attempt_that_failed(protocol, monkeypatch):
    """A server may go on under the key of an attempt that it let fail, and has its ciphertexts: they fit no other."""
    failed = at_the_sum(EncryptedFederation(protocol=protocol, dimension=THREE_CHUNKS).table())
    kept = pack(Carried(1, failed.table.server._key()))
    again = at_the_sum(failed.federation.after(failed.table, attempt=3, carried=kept).table())
    again = replace(again, earlier=failed)
    lies = (LIES["an earlier sum"], LIES["an earlier upload"], LIES["an earlier one's five times"])
    for lie in lies:
        server = again.copy()
        server.refuses(server.message(READER, lie.make(server)), "E-5.4")
    without_tags(monkeypatch)
    for lie in lies:
        server = again.copy()
        taken = server.taken(server.message(READER, lie.make(server)))[:THREE_CHUNKS]
        np.testing.assert_allclose(taken, lie.reads(server), rtol=0, atol=1e-3)


def test_a_sum_for_another_reader(server):
    message = server.message(VICTIM, server.honest_sum())
    refused(lambda: server.table.clients[READER].reply(message), "P-1.5", "network")
    server.taken(server.message(READER, server.honest_sum()))


def test_a_sum_with_another_plan_inside(server):
    error = server.refuses(server.message(READER, server.honest_sum(), plan=server.earlier.federation.plan), "P-1.3")
    assert error.party == SERVER

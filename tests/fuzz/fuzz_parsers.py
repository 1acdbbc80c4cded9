"""The functions that read foreign or saved bytes, with something genuine for each to read."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cbor2
from fuzz_scenes import PAIRWISE, Scene, party_of
from fuzz_targets import ParserTarget
from secagg_kit import identity

from fedvlm_secure.errors import MisuseError, VerificationError
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import WireError, decode, encode
from fedvlm_secure.secagg.envelope import Envelope, join, split
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.roster import (
    CONSORTIUM,
    check_succession,
    enrol,
    open_enrolment,
    open_roster,
    sign_roster,
)
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.transcript import Transcript
from fedvlm_secure.secagg.upload import Upload

REQUESTS: dict[str, type] = {
    m.KEYS: Plan,
    m.SHARES: m.KeyList,
    m.MASKED_INPUT: m.Deliveries,
    m.CONSISTENCY: m.SurvivorList,
    m.UNMASK: m.UnmaskRequest,
}
REPLIES: dict[str, type] = {
    m.KEYS: m.Keys,
    m.SHARES: m.ParcelList,
    m.MASKED_INPUT: Upload,
    m.CONSISTENCY: m.Consent,
    m.UNMASK: m.Revealed,
}


def parsers(scene: Scene) -> Iterator[ParserTarget]:
    """The parsers for which a scene has something genuine."""
    yield from _of_messages(scene)
    yield from _of_states(scene)
    if scene.phase == m.KEYS:
        yield from _of_rosters(scene)


def _of_messages(scene: Scene) -> Iterator[ParserTarget]:
    envelope, *chunks = map(bytes, split(scene.reply))
    yield ParserTarget("parse: value", envelope, _identically(decode, encode))
    yield ParserTarget("parse: frames", scene.reply, _identically(split, join))
    yield ParserTarget("parse: Envelope", envelope, _as_dataclass(Envelope))
    if scene.sessions != PAIRWISE:
        return
    for message, classes in ((scene.request, REQUESTS), (scene.reply, REPLIES)):
        form = classes[scene.phase]
        body = unpack(Envelope, split(message)[0]).body
        errors = (WireError, MisuseError) if form is Plan else (WireError,)
        yield ParserTarget(f"parse: {form.__name__}", body, _as_dataclass(form), errors)
    if scene.phase == m.SHARES:
        with_pair = len(chunks[-1]) == max(map(len, chunks))
        read = _identically(lambda data: m.Parcel.from_bytes(data, with_pair), m.Parcel.to_bytes)
        yield ParserTarget("parse: Parcel", chunks[-1], read)


def _of_states(scene: Scene) -> Iterator[ParserTarget]:
    """A damaged file is refused as such; whether a well-formed one says the truth is its owner's business."""
    client, party, update = scene.client, party_of(scene.federation, scene.me), scene.federation.updates[scene.me]
    errors = (WireError, MisuseError)
    state = client.to_bytes()

    def read_client(data: bytes) -> None:
        type(client).from_bytes(data, party, update).to_bytes()
        type(client).plan_of(data)

    def read_server(data: bytes) -> None:
        type(scene.server).from_bytes(data, identity(SERVER)).to_bytes()

    yield ParserTarget("state: client", state, read_client, errors, ("fields",))
    yield ParserTarget("state: server", scene.server.to_bytes(), read_server, errors, ("own",))
    transcript = scene.server.transcript.to_bytes()
    yield ParserTarget("parse: Transcript", transcript, _identically(Transcript.from_bytes, Transcript.to_bytes))


def _of_rosters(scene: Scene) -> Iterator[ParserTarget]:
    consortium, member = identity(CONSORTIUM), identity("c00")
    small = replace(scene.federation.roster, members=scene.federation.roster.members[:3], revoked=(bytes(31) + b"\1",))

    def read_roster(data: bytes) -> None:
        roster = open_roster(data, consortium=consortium.public)
        roster.check_current(1_800_000_000)
        check_succession(small, roster)
        assert open_roster(data, pinned=roster.hash) == roster

    def sign(purpose: str, field: str, signer: Identity) -> Callable[[Any], None]:
        def seal(value: Any) -> None:
            value["signature"] = signer.sign(purpose, cbor2.dumps(value.get(field), canonical=True))

        return seal

    next_version = replace(
        small, version=small.version + 1, members=(*small.members, scene.federation.roster.members[3])
    )
    errors = (VerificationError,)
    yield ParserTarget(
        "parse: roster",
        sign_roster(next_version, consortium),
        read_roster,
        errors,
        (),
        sign("roster", "roster", consortium),
    )
    yield ParserTarget(
        "parse: enrolment", enrol("c00", member), open_enrolment, errors, (), sign("enrolment", "member", member)
    )


def _as_dataclass(form: type) -> Callable[[bytes], None]:
    return _identically(lambda data: unpack(form, data), pack)


def _identically(read: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> Callable[[bytes], None]:
    """Whatever is read is written in the same bytes: one value has one form."""

    def both(data: bytes) -> None:
        assert write(read(data)) == data, "two encodings of one value"

    return both

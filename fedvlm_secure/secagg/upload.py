"""A protected vector on the wire: a signed list of digests, and the chunks that it covers (P-5.3)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.primitives.schema import Digest
from fedvlm_secure.primitives.stream import CHUNK
from fedvlm_secure.secagg.envelope import NETWORK, Expected
from fedvlm_secure.secagg.plan import Plan


@dataclass(frozen=True, slots=True)
class Upload:
    """Client → server, in front of a vector's chunks: their SHA-256 digests, in order."""

    digests: tuple[Digest, ...]


def digests_of(chunks: Sequence[bytes]) -> tuple[Digest, ...]:
    """What stands for the chunks under a signature."""
    return tuple(hashlib.sha256(chunk).digest() for chunk in chunks)


def upload_frames(words: Words, plan: Plan) -> tuple[Upload, list[bytes]]:
    """A protected vector as its signed part and its chunks, ``CHUNK`` values each."""
    chunks = [plan.ring.pack(words[start : start + CHUNK]) for start in range(0, len(words), CHUNK)]
    return Upload(digests_of(chunks)), chunks


def verified_chunks(expected: Expected, frames: list[memoryview], plan: Plan) -> list[memoryview]:
    """The chunks behind an upload's envelope; raises :class:`~fedvlm_secure.errors.ProtocolError`."""
    size, chunks = plan.layout.size, frames[1:]
    sizes = [min(CHUNK, size - start) * plan.ring.value_bytes for start in range(0, size, CHUNK)]
    check_chunks(expected, "P-5.3", chunks, expected.open(frames[0], Upload).digests, len(sizes))
    if [len(chunk) for chunk in chunks] != sizes:
        raise expected.fault("P-5.3", "the chunks have other lengths than the plan's layout")
    return chunks


def check_chunks(
    expected: Expected, clause: str, chunks: Sequence[memoryview], digests: Sequence[Digest], count: int
) -> None:
    """The chunks behind an envelope are those that it signs; raises :class:`~fedvlm_secure.errors.ProtocolError`."""
    if len(digests) != count:
        raise expected.fault(clause, "the vector has another length than the plan's layout")
    if len(chunks) != count:
        raise expected.fault(clause, "chunks are missing or too many", NETWORK)
    for chunk, digest in zip(chunks, digests, strict=True):
        # The copy, since it lies in the cache: read from memory, SHA-256 takes nearly twice as long.
        if hashlib.sha256(bytes(chunk)).digest() != digest:
            raise expected.fault(clause, "a chunk does not match its signed digest", NETWORK)

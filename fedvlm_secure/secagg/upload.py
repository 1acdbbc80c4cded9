"""A protected vector on the wire: a signed list of digests, and the chunks that it covers (P-5.3)."""

import hashlib
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


def upload_frames(words: Words, plan: Plan) -> tuple[Upload, list[bytes]]:
    """A protected vector as its signed part and its chunks, ``CHUNK`` values each."""
    chunks = [plan.ring.pack(words[start : start + CHUNK]) for start in range(0, len(words), CHUNK)]
    return Upload(tuple(hashlib.sha256(chunk).digest() for chunk in chunks)), chunks


def verified_chunks(expected: Expected, frames: list[memoryview], plan: Plan) -> list[memoryview]:
    """The chunks behind an upload's envelope; raises :class:`~fedvlm_secure.errors.ProtocolError`."""
    upload = expected.open(frames[0], Upload)
    size, chunks = plan.layout.size, frames[1:]
    sizes = [min(CHUNK, size - start) * plan.ring.value_bytes for start in range(0, size, CHUNK)]
    if len(upload.digests) != len(sizes):
        raise expected.fault("P-5.3", "the vector has another length than the plan's layout")
    if len(chunks) != len(sizes):
        raise expected.fault("P-5.3", "chunks are missing or too many", NETWORK)
    for chunk, digest in zip(chunks, upload.digests, strict=True):
        # The copy, since it lies in the cache: read from memory, SHA-256 takes nearly twice as long.
        if hashlib.sha256(bytes(chunk)).digest() != digest:
            raise expected.fault("P-5.3", "a chunk does not match its signed digest", NETWORK)
    if [len(chunk) for chunk in chunks] != sizes:
        raise expected.fault("P-5.3", "the chunks have other lengths than the plan's layout")
    return chunks

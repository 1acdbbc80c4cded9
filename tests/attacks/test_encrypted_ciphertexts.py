"""What is no ciphertext of the protocol's parameters is neither added by the server nor decrypted by a client."""

import contextlib
import resource
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from encrypted_attacker import READER, VICTIM, LyingServer, forged, lying_server
from encrypted_kit import THREE_CHUNKS, EncryptedFederation, EncryptedTable, held, opened
from secagg_kit import identity, refused

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, DEGREE, PLAIN_MODULUS
from fedvlm_secure.secagg.encrypted.scheme import CiphertextError, Scheme
from fedvlm_secure.secagg.encrypted.server import EncryptedServer
from fedvlm_secure.secagg.envelope import join, split
from fedvlm_secure.secagg.envelope import seal as sealed
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.upload import digests_of

PRIME = 18014398509309953  # the protocol's


def encrypted_with(
    folder: Path, kind: str, degree: int = DEGREE, bits: tuple[int, ...] = (54,), plain: int = PLAIN_MODULUS, scale=1.0
) -> bytes:
    """A sound ciphertext under other parameters, in one piece: both polynomials."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV if kind == BFV else seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(degree, list(bits)))
    if kind == BFV:
        parameters.set_plain_modulus(plain)
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.NONE)
    assert context.parameters_set()
    secret, message = seal.KeyGenerator(context).secret_key(), seal.Plaintext()
    if kind == BFV:
        seal.BatchEncoder(context).encode([1] * degree, message)
    else:
        seal.CKKSEncoder(context).encode([1.0] * (degree // 2), scale, message)
    seal.Encryptor(context, secret).encrypt_symmetric(message).save(str(folder / "ciphertext"))
    return (folder / "ciphertext").read_bytes()


def words(scheme: Scheme, chunk: bytes) -> tuple[list[int], list[int]]:
    """Both polynomials of a ciphertext."""
    array = scheme.load(chunk).dyn_array()
    values = [array.at(index) for index in range(array.size())]
    return values[:DEGREE], values[DEGREE:]


def other(kind: str) -> str:
    return CKKS if kind == BFV else BFV


def saved(folder: Path, thing: Any) -> bytes:
    thing.save(str(folder / "thing"))
    return (folder / "thing").read_bytes()


def switched(scheme: Scheme, chunk: bytes) -> bytes:
    """The same ciphertext in the other form: NTT for BFV, coefficients for CKKS."""
    ciphertext, evaluator = scheme.load(chunk), scheme._evaluator
    (evaluator.transform_to_ntt_inplace if scheme.kind == BFV else evaluator.transform_from_ntt_inplace)(ciphertext)
    return scheme.dump(ciphertext)


def scaled(scheme: Scheme, chunk: bytes, scale: float) -> bytes:
    """The same ciphertext, told to have another scale."""
    ciphertext = scheme.load(chunk)
    ciphertext.scale = scale
    return scheme.dump(ciphertext)


def bomb(chunk: bytes, before: bytes = b"") -> bytes:
    """A frame of Zstandard in 32 KB that unpacks to a gigabyte of zeros, behind the frames ``before``."""
    zeros = [struct.pack("<I", 131072 << 3 | 1 << 1 | last)[:3] + b"\0" for last in (0, 1)]
    data = before + b"\x28\xb5\x2f\xfd\x00\x38" + zeros[0] * 8000 + zeros[1]
    return chunk[:8] + struct.pack("<Q", 16 + len(data)) + data


def nothing(scheme: Scheme, chunk: bytes, folder: Path) -> bytes:
    """No bytes at all, in the place of another ciphertext that was just read."""
    scheme.load(chunk)
    return b""


Bad = Callable[[Scheme, bytes, Path], bytes]
BAD: dict[str, Bad] = {
    "nothing": nothing,
    "a byte": lambda s, c, f: b"\x5e",
    "header only": lambda s, c, f: c[:16],
    "last byte missing": lambda s, c, f: c[:-1],
    "half missing": lambda s, c, f: c[: len(c) // 2],
    "half missing, and told so": lambda s, c, f: c[:8] + struct.pack("<Q", len(c) // 2) + c[16 : len(c) // 2],
    "a byte too many": lambda s, c, f: c + b"\0",
    "twice": lambda s, c, f: c + c,
    "beyond what a ciphertext takes": lambda s, c, f: c + bytes(1 << 20),
    "another magic": lambda s, c, f: bytes([c[0] ^ 1]) + c[1:],
    "another compression": lambda s, c, f: c[:5] + b"\x07" + c[6:],
    "not compressed, it says": lambda s, c, f: c[:5] + b"\x00" + c[6:],
    "a decompression bomb": lambda s, c, f: bomb(c),
    "half the degree": lambda s, c, f: encrypted_with(f, s.kind, DEGREE // 2, scale=2.0**20, plain=65537),
    "twice the degree": lambda s, c, f: encrypted_with(f, s.kind, DEGREE * 2, scale=s.scale, plain=65537),
    "another prime": lambda s, c, f: encrypted_with(f, s.kind, bits=(53,), scale=2.0**40),
    "two primes": lambda s, c, f: encrypted_with(f, s.kind, bits=(55, 54), scale=s.scale),
    "three primes": lambda s, c, f: encrypted_with(f, s.kind, bits=(40, 40, 40), scale=s.scale),
    "another plain modulus or scale": lambda s, c, f: encrypted_with(f, s.kind, plain=1032193, scale=2.0**30),
    "half the scale": lambda s, c, f: scaled(s, c, s.scale / 2),
    "no number of a scale": lambda s, c, f: scaled(s, c, float("nan")),
    "the other scheme": lambda s, c, f: encrypted_with(f, other(s.kind), scale=2.0**40),
    "the other form": lambda s, c, f: switched(s, c),
    "the other form, it says": lambda s, c, f: forged(s, *words(s, c), ntt=s.kind == BFV),
    "three polynomials": lambda s, c, f: forged(s, words(s, c)[0] * 2, words(s, c)[1], size=3),
    "one polynomial": lambda s, c, f: forged(s, words(s, c)[0], [], size=1),
    "no polynomial": lambda s, c, f: forged(s, [], [], size=0),
    "another degree, it says": lambda s, c, f: forged(s, *words(s, c), degree=DEGREE // 2, size=4),
    "more primes, it says": lambda s, c, f: forged(s, *words(s, c), primes=2, size=1),
    "a coefficient that is the prime": lambda s, c, f: forged(s, [PRIME, *words(s, c)[0][1:]], words(s, c)[1]),
    "a coefficient of 64 ones": lambda s, c, f: forged(s, words(s, c)[0], [*words(s, c)[1][:-1], 2**64 - 1]),
    "zero": lambda s, c, f: forged(s, [0] * DEGREE, [0] * DEGREE),
    "a plaintext in the open": lambda s, c, f: forged(s, words(s, c)[0], [0] * DEGREE),
    "a plaintext": lambda s, c, f: saved(f, seal.Plaintext()),
    "parameters": lambda s, c, f: saved(f, s.context.key_context_data().parms()),
    "a secret key": lambda s, c, f: saved(f, s.key(Secret.generate(64))._secret),
}


@pytest.fixture(scope="module", params=[BFV, CKKS])
def second_round(request) -> LyingServer:
    return lying_server(request.param, dimension=THREE_CHUNKS)


@pytest.fixture
def server(second_round) -> LyingServer:
    return second_round.copy()


@pytest.fixture(params=BAD)
def make(request) -> Bad:
    return BAD[request.param]


@pytest.fixture
def bad(server, make, tmp_path) -> bytes:
    """What is no ciphertext, made of one that the victim uploaded."""
    if server.scheme.kind == BFV and make in (BAD["half the scale"], BAD["no number of a scale"]):
        pytest.skip("bfv has no scale")
    return make(server.scheme, server.uploads[VICTIM][1], tmp_path)


def test_it_is_not_loaded(server, bad):
    with pytest.raises(CiphertextError):
        server.scheme.load(bad)
    server.scheme.load(server.uploads[VICTIM][1])


def test_a_client_does_not_decrypt_it(server, bad):
    chunks = server.honest_sum()
    chunks[1] = bad
    server.refuses(server.message(READER, chunks), "E-5.3")


@pytest.fixture(scope="module", params=[BFV, CKKS])
def one_uploaded(request) -> EncryptedTable:
    """One client has uploaded; the victim's reply is on its way."""
    federation = EncryptedFederation(protocol=request.param, dimension=THREE_CHUNKS)
    table = federation.table().play_until(m.INPUT)
    request = table.request(READER)
    table.server.receive(READER, table.clients[READER].reply(request))
    table.replies[m.INPUT][VICTIM] = table.clients[VICTIM].reply(table.request(VICTIM))
    return table


@pytest.fixture
def input_phase(one_uploaded) -> EncryptedTable:
    state = one_uploaded.server.to_bytes()
    return replace(one_uploaded, server=EncryptedServer.from_bytes(state, identity(SERVER)))


@pytest.mark.parametrize("number", [0, 2])
def test_the_server_does_not_add_it(input_phase, make, number, tmp_path):
    """Nor anything else of that upload: the sum so far is what it was, and the client may still send a good one."""
    server, good = input_phase.server, input_phase.replies[m.INPUT][VICTIM]
    upload, chunks = opened(good, m.EncryptedUpload)
    if server._scheme.kind == BFV and make in (BAD["half the scale"], BAD["no number of a scale"]):
        pytest.skip("bfv has no scale")
    chunks[number] = make(server._scheme, chunks[number], tmp_path)
    lie = m.EncryptedUpload(upload.dealing, digests_of(chunks))
    message = join([sealed(identity(VICTIM), m.INPUT, server.plan.hash, VICTIM, SERVER, lie), *chunks])
    before = server.to_bytes()
    refused(lambda: server.receive(VICTIM, message), "E-4.3", VICTIM)
    assert server.to_bytes() == before


def test_a_bomb_is_not_unpacked(server):
    """Behind a sound ciphertext, within its limit of bytes, a gigabyte of zeros: SEAL unpacks what it needs only."""
    chunk = server.uploads[VICTIM][0]
    data = bomb(chunk, chunk[16:])
    assert len(data) < 2 * 8 * DEGREE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(CiphertextError):
        server.scheme.load(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"


def test_bits_flipped_under_a_true_signature(server):
    """Most flips are ciphertexts still, of garbage: the tags find those. None does anything else."""
    random, key = np.random.default_rng(0), held(server.table, READER).key
    good, loaded = server.uploads[VICTIM][0], 0
    for _ in range(400):
        flipped = bytearray(good)
        for _ in range(random.integers(1, 4)):
            flipped[random.integers(random.choice([16, 140, len(good)]))] ^= 1 << random.integers(8)
        try:
            ciphertext = server.scheme.load(bytes(flipped))
        except CiphertextError:
            continue
        loaded += bytes(flipped) != good
        server.scheme.dump(ciphertext)
        key.decrypt(ciphertext)
    assert loaded, "no flip was subtle enough to test anything"


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_in_a_signed_sum(server, place):
    chunks = server.honest_sum()
    flipped = bytearray(chunks[1])
    flipped[int(len(flipped) * place)] ^= 16
    chunks[1] = bytes(flipped)
    client = server.table.clients[READER]
    with contextlib.suppress(ProtocolError):
        client.reply(server.message(READER, chunks))
    if client.sum is not None:  # it was one of the bits that decryption rounds away
        server.table.check(client.sum.total, server.names)
    else:
        assert client.refusal.clause in ("E-5.3", "E-5.4")
        assert client.refusal.party == SERVER


def tampered(message: bytes) -> dict[str, bytes]:
    """What happens on the way, to any of the frames."""
    envelope, *chunks = (bytes(frame) for frame in split(message))
    flip = bytearray(chunks[1])
    flip[len(flip) // 2] ^= 1
    return {
        "cut short": message[:-1],
        "cut in half": message[: len(message) // 2],
        "a byte too many": message + b"\0",
        "an empty frame too many": join([envelope, *chunks, b""]),
        "a chunk missing": join([envelope, *chunks[:-1]]),
        "a chunk twice": join([envelope, *chunks, chunks[-1]]),
        "two chunks swapped": join([envelope, chunks[1], chunks[0], chunks[2]]),
        "no chunks": join([envelope]),
        "chunks only": join(chunks),
        "a bit of a chunk flipped": join([envelope, chunks[0], bytes(flip), chunks[2]]),
        "a bit of the envelope flipped": join([envelope[:-1] + bytes([envelope[-1] ^ 1]), *chunks]),
        "nothing": b"",
    }


KINDS = list(tampered(join([b"e", b"1", b"22", b"333"])))


@pytest.mark.parametrize("kind", KINDS)
def test_what_happens_to_an_upload_on_the_way(input_phase, kind):
    """Nobody is blamed whose signature does not cover it, nothing is added, and the upload may come again."""
    server = input_phase.server
    before, message = server.to_bytes(), tampered(input_phase.replies[m.INPUT][VICTIM])[kind]
    with pytest.raises(ProtocolError) as refusal:
        server.receive(VICTIM, message)
    assert refusal.value.party == "network"
    assert refusal.value.clause == "E-4.2" or refusal.value.clause.startswith("P-1.")
    assert server.to_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_happens_to_a_sum_on_the_way(server, kind):
    """The session is as it was, the key is good: whoever flips bits on the way cannot spoil an epoch with them."""
    client = server.table.clients[READER]
    truth = server.table.request(READER)
    before, message = client.to_bytes(), tampered(truth)[kind]
    with pytest.raises(ProtocolError) as refusal:
        client.reply(message)
    assert refusal.value.party == "network"
    assert refusal.value.clause == "E-5.2" or refusal.value.clause.startswith("P-1.")
    assert client.to_bytes() == before
    client.reply(truth)
    server.table.check(client.sum.total, server.names)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_signed_sum_of_another_length(server, count):
    chunks = (server.honest_sum() * 2)[:count]
    server.refuses(server.message(READER, chunks), "E-5.2")


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_signed_upload_of_another_length(input_phase, count):
    server = input_phase.server
    upload, chunks = opened(input_phase.replies[m.INPUT][VICTIM], m.EncryptedUpload)
    chunks = (chunks * 2)[:count]
    lie = m.EncryptedUpload(upload.dealing, digests_of(chunks))
    message = join([sealed(identity(VICTIM), m.INPUT, server.plan.hash, VICTIM, SERVER, lie), *chunks])
    before = server.to_bytes()
    refused(lambda: server.receive(VICTIM, message), "E-4.2", VICTIM)
    assert server.to_bytes() == before

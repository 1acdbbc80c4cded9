"""What the server sees of a vector is uniform bytes, whatever the vector; two runs share nothing."""

import math

import numpy as np
import pytest
from secagg_kit import Federation, chunks_of

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.rotation import unrotate
from fedvlm_secure.errors import MisuseError

FALSE_ALARM = 1e-6
DIMENSION = 120_000
TESTS = 3 * 3 * 2  # inputs × clients × (all bytes, each place in a value)


def chi_square_limit(freedom: int, odds: float) -> float:
    """The value that chi-square exceeds with probability at most ``odds`` (Laurent and Massart 2000, lemma 1)."""
    x = -math.log(odds)
    return freedom + 2 * math.sqrt(freedom * x) + 2 * x


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum(axis=-1, keepdims=True) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def federation(kind: str) -> Federation:
    it = Federation(clients=3, dimension=DIMENSION, value_bits=20, weight_max=4096)
    values = np.zeros(DIMENSION)
    if kind == "all-maximum":
        values[:] = it.plan.codec.clip_norm / math.sqrt(DIMENSION)
    if kind == "maximum-after-rotation":
        values = unrotate(np.full(DIMENSION, it.plan.codec.clip_norm / math.sqrt(DIMENSION)), it.plan.codec.seed)
    it.updates = {name: Update(values.astype(np.float32), {"weight": 4096}) for name in it.names}
    return it


@pytest.mark.parametrize("kind", ["all-zero", "all-maximum", "maximum-after-rotation"])
def test_bytes_are_uniform_and_no_chunk_repeats(kind):
    it, seen = federation(kind), []
    for _ in range(2):
        table = it.table().play_until("masked-input")
        uploads = {name: table.clients[name].reply(request) for name, request in table.server.requests()}
        seen += [chunk for upload in uploads.values() for chunk in chunks_of(upload)]
        width = it.plan.ring.value_bytes
        for upload in uploads.values():
            values = np.frombuffer(b"".join(chunks_of(upload)), np.uint8).reshape(-1, width)
            assert len(values) == it.plan.layout.size
            counts = np.stack([np.bincount(column, minlength=256) for column in values.T])
            limit = FALSE_ALARM / (2 * TESTS)
            assert chi_square(counts.sum(axis=0)) < chi_square_limit(255, limit)
            assert chi_square(counts) < chi_square_limit(255 * width, limit)
    assert len(set(seen)) == len(seen) == 2 * 3 * 4
    # The test has teeth: the same vectors unmasked are as far from uniform as can be.
    words = it.plan.ring.from_signed(it.plan.codec.encode(it.updates["c00"]).integers)
    bare = np.bincount(np.frombuffer(it.plan.ring.pack(words), np.uint8), minlength=256)
    assert chi_square(bare) > 100 * chi_square_limit(255, FALSE_ALARM)


def test_the_limit_is_a_bound():
    scipy_stats = pytest.importorskip("scipy.stats")
    for freedom in (255, 1275):
        assert scipy_stats.chi2.sf(chi_square_limit(freedom, 1e-8), freedom) <= 1e-8


def test_an_unsent_update_cannot_be_too_small():
    with pytest.raises(MisuseError):
        Federation(clients=2).plan  # noqa: B018  # of two, each reads the other off the sum

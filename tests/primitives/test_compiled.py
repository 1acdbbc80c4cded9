import numba
import numpy as np
import pytest

from fedvlm_secure.primitives.compiled import compiled, reading


def doubled(words):
    for i in range(len(words)):
        words[i] += words[i]


def test_where_nothing_can_be_kept_it_is_compiled_anew(monkeypatch):
    """numba refuses to keep what it compiles if neither the source's folder nor its own can be written to."""
    real, asked = numba.njit, []

    def njit(*arguments, **options):
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'doubled': no locator available for file")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", njit)
    words = np.arange(4)
    compiled(doubled)(words)
    assert words.tolist() == [0, 2, 4, 6]
    assert asked[:2] == [{"cache": True}, {}]


def test_arrays_that_may_and_may_not_be_written_are_one_type():
    frozen = np.frombuffer(bytes(32), np.uint32)
    strided = np.zeros((8, 2), np.uint32)[:, 0]
    assert {numba.typeof(reading(array, np.uint32)) for array in (frozen, strided, np.zeros(8, np.uint32))} == {
        numba.typeof(frozen)
    }


def test_other_words_are_refused():
    with pytest.raises(TypeError, match="words of int64 where uint64 is needed"):
        reading(np.zeros(3, np.int64), np.uint64)

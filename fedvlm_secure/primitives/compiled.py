"""Inner loops in machine code: plain loops over integers that numba compiles at their first call.

Only what numpy cannot express at speed is compiled. No fast mathematics, no threads, no objects: a compiled function is
its Python text, with integers of fixed width. Such a text mixes no signed with unsigned 64-bit integers, since numba
takes their sum for a float; and it converts every result of 32 bits back to 32 bits, since numba widens them.

A compiled function calls compiled functions of its own file only. numba takes a kept one for fresh as long as the date
and size of its own file are the same, whatever has become of what it calls.

What has been compiled is kept beside the source, as ``.pyc`` files are, or in numba's own folder (its setting
``NUMBA_CACHE_DIR``) where the source's folder cannot be written to. numba reads it back by pickle. So that folder
deserves the trust that the source's folder deserves. Where there is neither, each process compiles again.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")
Scalar = TypeVar("Scalar", bound=np.generic)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` in machine code, compiled once for each combination of argument types."""
    try:
        made = numba.njit(cache=True)(function)
    except RuntimeError:  # no folder to keep it in
        made = numba.njit(function)
    return cast(Callable[P, R], made)


def reading(array: NDArray[Scalar], word: type[Scalar]) -> NDArray[Scalar]:
    """``array`` for a compiled function that reads it: contiguous, of ``word``, and not to be written.

    One compiled function then serves arrays that may be written and those that may not, and none is compiled for words
    of another width or sign, with which it would be wrong.

    Raises:
        TypeError: the words are others.
    """
    if array.dtype != word:
        raise TypeError(f"words of {array.dtype} where {word.__name__} is needed")
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view

import contextlib
import signal
from types import SimpleNamespace

import pytest

from fedvlm_secure.cli.interruption import interrupting


def interrupted_read() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ValueError("as safetensors answers in the middle of a read") from error


def test_an_error_that_follows_ctrl_c_is_ctrl_c():
    watch = SimpleNamespace(interrupted=False)
    with pytest.raises(KeyboardInterrupt), interrupting(watch):
        interrupted_read()
    assert watch.interrupted


def test_another_error_stays_what_it_is():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="rows"), interrupting(SimpleNamespace(interrupted=False)):
        raise ValueError("rows")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_swallowed_ctrl_c_is_told():
    watch = SimpleNamespace(interrupted=False)
    with interrupting(watch), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert watch.interrupted

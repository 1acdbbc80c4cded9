"""Ctrl-C that cannot be lost: a library may swallow the exception or raise its own, so whoever watches is told."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Interruptible(Protocol):
    """Watches something that Ctrl-C ends; it looks at ``interrupted`` when it is called next."""

    interrupted: bool


@contextmanager
def interrupting(watch: Interruptible) -> Iterator[None]:
    """Let ``watch`` know of Ctrl-C as well as whatever runs at that moment.

    Raises:
        KeyboardInterrupt: also in place of an error that follows Ctrl-C. safetensors, for one, answers an interrupted
            read with a ValueError.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        watch.interrupted = True
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():  # where signals never arrive
        yield
        return
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if watch.interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, previous)

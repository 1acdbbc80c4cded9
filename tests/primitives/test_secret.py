import copy
import logging
import pickle
import traceback

import pytest

from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity

VALUE = b"do not print this, not even once"


def test_it_does_not_print():
    secret, identity = Secret(VALUE), Identity(Secret(VALUE))
    try:
        raise RuntimeError("with a secret as argument", secret, identity)
    except RuntimeError:
        text = traceback.format_exc()
    record = logging.LogRecord("log", 20, "path", 1, "%s %r", (secret, identity), None).getMessage()
    for shown in (repr(secret), str(secret), f"{secret}", repr([secret]), repr(identity), text, record):
        assert "do not print" not in shown


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy, hash, iter, vars, bytes])
def test_it_refuses(act):
    with pytest.raises(TypeError):
        act(Secret(VALUE))


def test_it_is_immutable():
    secret = Secret(VALUE)
    with pytest.raises(AttributeError):
        secret._value = b""
    with pytest.raises(AttributeError):
        del secret._value
    mutable = bytearray(VALUE)
    secret = Secret(mutable)
    mutable[0] = 0
    assert secret.reveal() == VALUE


@pytest.mark.parametrize("value", [32, "x" * 32, None, [1, 2]])
def test_only_bytes_become_secrets(value):
    with pytest.raises(TypeError):
        Secret(value)


def test_equality():
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret(VALUE[:-1] + b"?")
    assert Secret(VALUE) != VALUE
    assert Secret.generate() != Secret.generate()
    assert len(Secret.generate()) == 32

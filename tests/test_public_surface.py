import subprocess
import sys

import pytest

import fedvlm_secure as fs


def test_the_public_names_are_these() -> None:
    assert sorted(fs.__all__) == [
        "MisuseError",
        "ProtocolError",
        "RunResult",
        "SecureMean",
        "Settings",
        "run",
        "secure_mean",
    ]
    for name in fs.__all__:
        assert getattr(fs, name) is not None
    with pytest.raises(AttributeError):
        _ = fs.nothing_of_the_kind


def test_importing_the_package_is_cheap() -> None:
    probe = "import sys, fedvlm_secure; assert not {'torch', 'numpy', 'cryptography'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)

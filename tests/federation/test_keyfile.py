"""Key files: what they hold is for their owner only, nothing overwrites them, and damage is noticed."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation import keyfile
from fedvlm_secure.primitives.schema import pack, unpack

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses at a passphrase cost nothing here."""
    monkeypatch.setattr(keyfile, "COST", keyfile.Cost(1, 1, 8))


def say(passphrase: str) -> Callable[[], str]:
    return lambda: passphrase


def test_a_key_comes_back_as_it_was(tmp_path: Path) -> None:
    made = keyfile.create(tmp_path / "new" / "a.key")
    assert keyfile.load(tmp_path / "new/a.key").seed == made.seed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.key"]


def test_a_passphrase_is_needed_and_the_seed_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    made = keyfile.create(path, PASSPHRASE)
    assert made.seed.reveal() not in path.read_bytes()
    assert unpack(keyfile.KeyFile, path.read_bytes()).header.lock.cost == keyfile.Cost(3, 4, 65536)
    assert keyfile.load(path, say(PASSPHRASE)).seed == made.seed
    with pytest.raises(MisuseError, match="wrong passphrase"):
        keyfile.load(path, say(PASSPHRASE + " "))
    with pytest.raises(MisuseError, match="has a passphrase"):
        keyfile.load(path)


def test_nobody_is_asked_for_a_passphrase_that_is_not_there(tmp_path: Path) -> None:
    keyfile.create(tmp_path / "a.key")
    keyfile.load(tmp_path / "a.key", lambda: pytest.fail("asked"))


def test_the_same_passphrase_typed_on_another_keyboard(tmp_path: Path, cheap: None) -> None:
    keyfile.create(tmp_path / "a.key", "grün wie grün")
    keyfile.load(tmp_path / "a.key", say("gru\u0308n wie gru\u0308n"))


def test_a_short_passphrase_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="8 characters"):
        keyfile.create(tmp_path / "a.key", "1234567")
    assert not any(tmp_path.iterdir())


def test_the_file_is_private_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever bytes are about to be on disk, whatever the umask, only the owner can read them."""
    seen: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_mode)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watched)
    before = os.umask(0)
    try:
        keyfile.create(tmp_path / "a.key")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(mode) for mode in seen if stat.S_ISREG(mode)] == [0o600]
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_key_that_others_can_reach_is_not_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    keyfile.create(path)
    path.chmod(mode)
    with pytest.raises(MisuseError, match=f"chmod 600 {path}$"):
        keyfile.load(path)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    first = keyfile.create(path)
    with pytest.raises(MisuseError, match="never overwritten"):
        keyfile.create(path)
    assert keyfile.load(path).seed == first.seed


def test_an_interruption_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.key.part").write_bytes(b"left by a process that was killed")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            keyfile.create(tmp_path / "a.key")
    assert not any(tmp_path.iterdir())
    keyfile.create(tmp_path / "a.key")


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_any_flipped_bit_is_noticed(tmp_path: Path, cheap: None, passphrase: str | None) -> None:
    path = tmp_path / "a.key"
    keyfile.create(path, passphrase)
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        with pytest.raises(MisuseError, match=r"a\.key"):
            keyfile.load(path, say(PASSPHRASE))
    for cut in (whole[:-1], whole + b"\0", b"", bytes(32), bytes(1 << 20)):
        path.write_bytes(cut)
        with pytest.raises(MisuseError, match="damaged"):
            keyfile.load(path, say(PASSPHRASE))


@pytest.mark.parametrize("cost", [{"memory_kib": 1 << 30}, {"iterations": 1 << 30}, {"lanes": 1 << 20}])
def test_a_file_cannot_ask_for_more_than_the_machine_has(
    tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch, cost: dict[str, int]
) -> None:
    path = tmp_path / "a.key"
    keyfile.create(path, PASSPHRASE)
    with monkeypatch.context() as unbounded:
        unbounded.setattr(keyfile.Cost, "__post_init__", lambda self: None)
        greedy = keyfile.Cost(**({"iterations": 1, "lanes": 1, "memory_kib": 8} | cost))
    file = unpack(keyfile.KeyFile, path.read_bytes())
    lock = keyfile.Lock(file.header.lock.salt, file.header.lock.nonce, greedy)
    path.write_bytes(pack(keyfile.KeyFile(keyfile.Header(file.header.public, lock), file.secret)))
    with pytest.raises(MisuseError, match="out of bounds"):
        keyfile.load(path, lambda: pytest.fail("asked"))


def test_importing_it_loads_no_torch() -> None:
    probe = "import sys, fedvlm_secure.federation.keyfile; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)

"""``fedvlm-secure roster`` as its three users meet it: a hospital, the consortium, and whoever checks a roster."""

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvlm_secure.cli import main
from fedvlm_secure.federation import keyfile
from fedvlm_secure.secagg.roster import open_roster

Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs the command in an empty folder and expects an exit code; gives stdout, or of an error its line on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDVLM_SECURE_PASSPHRASE", raising=False)

    def run(line: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["fedvlm-secure", "roster", *line.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err or out
        if code:
            assert err.count("\n") == 1, err
            return err
        return out

    return run


@pytest.fixture
def signed(call: Call) -> Path:
    """A consortium of three, whose roster is signed."""
    for name in ("consortium", "server", "a", "b", "c", "d"):
        call(f"key {name}")
    call("new roster.cbor --consortium consortium.pub --server server.pub --expires 2099-01-31")
    call("add roster.cbor a.pub b.pub")
    call("add roster.cbor c.pub")
    call("sign roster.cbor --key consortium.key")
    return Path("roster.cbor")


def test_a_key_is_secret_and_its_public_half_is_not(call: Call) -> None:
    out = call("key st-mary")
    assert stat.S_IMODE(Path("st-mary.key").stat().st_mode) == 0o600
    assert keyfile.load(Path("st-mary.key")).public.hex() in out
    assert keyfile.load(Path("st-mary.key")).seed.reveal() not in Path("st-mary.pub").read_bytes()
    secret = Path("st-mary.key").read_bytes()
    for line in ("key st-mary", "key st-mary --out st-mary.pub", "key other --out st-mary.key"):
        call(line, 2)
    assert Path("st-mary.key").read_bytes() == secret
    Path("st-mary.key").unlink()
    assert "st-mary.pub exists" in call("key st-mary", 2)
    assert not Path("st-mary.key").exists()
    assert "cannot name" in call("key St.Mary", 2)
    assert not Path("St.Mary.key").exists()


def test_the_whole_life_of_a_roster(call: Call, signed: Path) -> None:
    assert "genuine: version 1, 3 members" in call("verify roster.cbor --consortium consortium.pub")
    first = json.loads(call("show roster.cbor --json"))
    assert (first["signed"], first["version"], list(first["members"])) == (True, 1, ["a", "b", "c"])
    call(f"verify roster.cbor --pin {first['hash']}")
    call(f"verify roster.cbor --consortium {first['consortium']} --pin {first['hash']}")

    Path("trusted.cbor").write_bytes(signed.read_bytes())
    call("revoke roster.cbor b")
    assert signed.read_bytes() == Path("trusted.cbor").read_bytes()
    assert "UNSIGNED DRAFT, version 2, 2 members" in call("show roster.cbor.draft")
    call("sign roster.cbor --key consortium.key")
    assert not Path("roster.cbor.draft").exists()
    assert "version 2, 2 members" in call("verify roster.cbor --previous trusted.cbor")
    assert json.loads(call("show roster.cbor --json"))["revoked"] == [first["members"]["b"]]

    assert "'b' is revoked" in call("add roster.cbor b.pub", 2)
    Path("b.key").unlink()
    Path("b.pub").unlink()
    call("key b")
    call("add roster.cbor b.pub d.pub")
    call("renew roster.cbor --expires 2100-01-31")
    call("sign roster.cbor --key consortium.key")
    third = json.loads(call("show roster.cbor --json"))
    assert (third["version"], list(third["members"])) == (3, ["a", "b", "c", "d"])
    assert third["expires"] == "2100-01-31 00:00 UTC"
    call("verify roster.cbor --previous trusted.cbor --consortium consortium.pub")
    assert "R-6" in call("verify trusted.cbor --previous roster.cbor", 6)


def test_what_is_verified_is_what_a_program_opens(call: Call, signed: Path) -> None:
    roster = open_roster(signed.read_bytes(), consortium=keyfile.load(Path("consortium.key")).public)
    assert roster.server == keyfile.load(Path("server.key")).public
    assert [listed.signing_key for listed in roster.members] == [
        keyfile.load(Path(f"{name}.key")).public for name in "abc"
    ]


def test_a_draft_never_passes_for_a_roster(call: Call, signed: Path) -> None:
    call("add roster.cbor d.pub")
    assert "nobody has signed" in call("verify roster.cbor.draft --consortium consortium.pub", 6)
    signed.write_bytes(Path("roster.cbor.draft").read_bytes())
    assert "nobody has signed" in call("verify roster.cbor --consortium consortium.pub", 6)
    assert json.loads(call("show roster.cbor --json"))["signed"] is False


def test_what_does_not_verify_exits_with_6(call: Call, signed: Path) -> None:
    whole = signed.read_bytes()
    call("key consortium --out other.key")
    call("new other.cbor --consortium other.pub --server server.pub --expires 2099-01-01")
    call("renew other.cbor --expires 2099-01-02")
    call("sign other.cbor --key other.key")
    assert "R-6" in call("verify roster.cbor --previous other.cbor", 6)
    assert "R-2" in call("verify roster.cbor --consortium other.pub", 6)
    assert "R-3" in call(f"verify roster.cbor --pin {'0' * 64}", 6)
    for position in range(0, len(whole), 97):
        signed.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert "roster.cbor" in call("verify roster.cbor --consortium consortium.pub", 6)
        call("show roster.cbor", 6)


def test_an_expired_roster_exits_with_6(call: Call, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = time.mktime((2099, 2, 2, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(time, "time", lambda: after)
    assert "R-5" in call("verify roster.cbor --consortium consortium.pub", 6)
    assert json.loads(call("show roster.cbor --json"))["expired"] is True
    call("add roster.cbor d.pub")
    assert "renew" in call("sign roster.cbor --key consortium.key", 2)
    call("renew roster.cbor --expires 2101-01-01")
    call("sign roster.cbor --key consortium.key")


def test_mistakes_exit_with_2_and_change_nothing(call: Call, signed: Path) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    for line, says in (
        ("verify roster.cbor", "say what you trust"),
        ("verify roster.cbor --pin 12", "64 hex digits"),
        ("verify roster.cbor --consortium server.pub", "make one for this use"),
        ("verify missing.cbor --consortium consortium.pub", "missing.cbor"),
        ("add missing.cbor a.pub", "roster new"),
        ("add roster.cbor a.pub", "already"),
        ("add roster.cbor server.pub", "'server'"),
        ("revoke roster.cbor z", "'z' is not in the roster"),
        ("renew roster.cbor --expires 2001-01-01", "not in the future"),
        ("sign roster.cbor --key consortium.key", "no draft"),
        ("new roster.cbor --consortium consortium.pub --server server.pub --expires 2099-01-01", "exists"),
        ("new x.cbor --consortium server.pub --server server.pub --expires 2099-01-01", "'server'"),
        ("new x.cbor --consortium consortium.pub --server a.pub --expires 2099-01-01", "'a'"),
    ):
        assert says in call(line, 2)
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_a_public_key_file_that_was_altered_is_not_enrolled(call: Call, signed: Path) -> None:
    genuine = Path("d.pub").read_bytes()
    Path("e.pub").write_bytes(genuine.replace(b"\x64name\x61d", b"\x64name\x61e"))
    assert Path("e.pub").read_bytes() != genuine
    assert "e.pub" in call("add roster.cbor e.pub", 6)
    assert not Path("roster.cbor.draft").exists()


def test_only_the_consortium_signs(call: Call, signed: Path) -> None:
    call("key consortium --out other.key")
    call("add roster.cbor d.pub")
    for key in ("other.key", "server.key", "a.key"):
        assert "not the consortium's key" in call(f"sign roster.cbor --key {key}", 2)
    Path("consortium.key").chmod(0o644)
    assert "chmod 600" in call("sign roster.cbor --key consortium.key", 2)


def test_another_draft_cannot_take_a_rosters_place(call: Call, signed: Path) -> None:
    """A first version, made elsewhere under the same consortium, forgets the one that is out."""
    call("new x.cbor --consortium consortium.pub --server server.pub --expires 2099-01-01")
    Path("x.cbor.draft").rename("roster.cbor.draft")
    assert "R-6" in call("sign roster.cbor --key consortium.key", 6)


def test_signing_goes_on_where_it_was_interrupted(call: Call, signed: Path) -> None:
    """Signed, and stopped before the draft was gone."""
    call("add roster.cbor d.pub")
    draft = Path("roster.cbor.draft").read_bytes()
    call("sign roster.cbor --key consortium.key")
    Path("roster.cbor.draft").write_bytes(draft)
    published = signed.read_bytes()
    call("sign roster.cbor --key consortium.key")
    assert signed.read_bytes() == published
    assert not Path("roster.cbor.draft").exists()


def test_a_passphrase_comes_from_the_environment_or_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prompt(text: str, **options: object) -> str:
        assert options["hide_input"]
        asked.append(text)
        return "an old lighthouse"

    monkeypatch.setattr("typer.prompt", prompt)
    call("key consortium --passphrase")
    monkeypatch.setenv("FEDVLM_SECURE_PASSPHRASE", "another passphrase")
    call("key server --passphrase")
    assert keyfile.load(Path("server.key"), lambda: "another passphrase")
    call("new roster.cbor --consortium consortium.pub --server server.pub --expires 2099-01-01")
    assert "wrong passphrase" in call("sign roster.cbor --key consortium.key", 2)
    monkeypatch.delenv("FEDVLM_SECURE_PASSPHRASE")
    call("sign roster.cbor --key consortium.key")
    assert asked == ["Passphrase of consortium.key"] * 2

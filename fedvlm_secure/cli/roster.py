"""``fedvlm-secure roster``: keys for every party, and the list of members that the consortium signs."""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvlm_secure.errors import MisuseError

if TYPE_CHECKING:
    from fedvlm_secure.secagg.roster import Roster

PASSPHRASE_VARIABLE = "FEDVLM_SECURE_PASSPHRASE"  # noqa: S105  # its name, not its value

app = typer.Typer(
    name="roster",
    help="Make keys, and keep the signed list of who may take part.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RosterFile = Annotated[Path, typer.Argument(metavar="ROSTER", help="The roster; its draft is ROSTER.draft.")]
Date = typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="The day, in UTC, on which it expires.")


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="The party's name; 'server' and 'consortium' for those two.")],
    out: Annotated[Path | None, typer.Option(help="The secret key file; NAME.key if not given.")] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help=f"Protect it with a passphrase, asked for or in {PASSPHRASE_VARIABLE}.")
    ] = False,
) -> None:
    """Make a party's keys: NAME.key stays secret, NAME.pub is for the consortium."""
    from fedvlm_secure.federation import keyfile
    from fedvlm_secure.files import write
    from fedvlm_secure.secagg.roster import check_name, enrol

    check_name(name)
    secret = Path(f"{name}.key") if out is None else out
    public = secret.with_suffix(".pub")
    if secret == public:
        raise MisuseError(f"--out {secret} is where the public key goes; end the secret key's name in .key")
    for path in (secret, public):
        if path.exists():
            raise MisuseError(f"{path} exists; keys are never overwritten, name another file with --out")
    identity = keyfile.create(secret, _passphrase(secret, new=True)() if passphrase else None)
    write(public, enrol(name, identity))
    typer.echo(f"{secret} is secret and stays here; give {public} to whoever keeps the roster")
    typer.echo(f"signing key of {name}, to compare by telephone: {identity.public.hex()}")


@app.command()
def new(
    roster: RosterFile,
    consortium: Annotated[Path, typer.Option(help="Public key file of the consortium.")],
    server: Annotated[Path, typer.Option(help="Public key file of the server.")],
    expires: Annotated[datetime, Date],
) -> None:
    """Begin a roster without members, as a draft."""
    from fedvlm_secure.federation import rosterfile
    from fedvlm_secure.secagg.roster import CONSORTIUM, Roster
    from fedvlm_secure.secagg.session import SERVER

    keys = _key_of(consortium, CONSORTIUM), _key_of(server, SERVER)
    draft = Roster(keys[0], 1, _future(expires), keys[1], ())
    rosterfile.start(roster, draft)
    _say_drafted(roster, draft)


@app.command()
def add(
    roster: RosterFile,
    members: Annotated[list[Path], typer.Argument(metavar="MEMBER.pub…", help="Public key files of the new members.")],
) -> None:
    """Add members to the draft, or to a new draft of the next version."""
    from fedvlm_secure.federation import rosterfile

    draft = rosterfile.edit(roster)
    for path in members:
        new_member = rosterfile.read_member(path)
        draft = draft.with_member(new_member)
        typer.echo(f"{new_member.name} has signing key {new_member.signing_key.hex()}; ask its owner whether it does")
    rosterfile.save(roster, draft)
    _say_drafted(roster, draft)


@app.command()
def revoke(
    roster: RosterFile,
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Members whose keys never count again.")],
) -> None:
    """Remove members from the next version and revoke their keys for good."""
    from fedvlm_secure.federation import rosterfile

    draft = rosterfile.edit(roster)
    for name in names:
        draft = draft.without(name)
    rosterfile.save(roster, draft)
    _say_drafted(roster, draft)


@app.command()
def renew(
    roster: RosterFile,
    expires: Annotated[datetime, Date],
    server: Annotated[Path | None, typer.Option(help="Public key file of another server, from now on.")] = None,
) -> None:
    """Give the next version a later expiry, and another server if one is named."""
    from dataclasses import replace

    from fedvlm_secure.federation import rosterfile
    from fedvlm_secure.secagg.session import SERVER

    draft = replace(rosterfile.edit(roster), expires=_future(expires))
    if server is not None:
        draft = replace(draft, server=_key_of(server, SERVER))
    rosterfile.save(roster, draft)
    _say_drafted(roster, draft)


@app.command()
def sign(
    roster: RosterFile,
    secret: Annotated[Path, typer.Option("--key", help="The consortium's secret key file.")],
) -> None:
    """Sign the draft, which thereby becomes the roster."""
    from fedvlm_secure.federation import keyfile, rosterfile

    draft = rosterfile.read_draft(roster)
    if draft.expires <= time.time():
        raise MisuseError("the draft has expired; give it a later day with roster renew --expires")
    rosterfile.publish(roster, draft, keyfile.load(secret, _passphrase(secret)))
    typer.echo(f"signed {roster}: {_in_words(draft)}; members pin this hash:")
    typer.echo(draft.hash.hex())


@app.command()
def verify(
    roster: RosterFile,
    consortium: Annotated[
        str | None, typer.Option(help="Public key file of the consortium, or its signing key in 64 hex digits.")
    ] = None,
    pin: Annotated[str | None, typer.Option(metavar="HASH", help="The hash of the one version to accept.")] = None,
    previous: Annotated[Path | None, typer.Option(help="The version trusted so far, which this one succeeds.")] = None,
) -> None:
    """Check a signed roster against what you trust: the consortium's key, a hash, or the version before."""
    from fedvlm_secure.federation import rosterfile
    from fedvlm_secure.secagg.roster import CONSORTIUM, check_succession

    if consortium is None and pin is None and previous is None:
        raise MisuseError("a roster vouches for itself only; say what you trust: --consortium, --pin or --previous")
    trusted = None
    if consortium is not None:
        trusted = _hex(consortium) if _is_hex(consortium) else _key_of(Path(consortium), CONSORTIUM)
    old = None if previous is None else rosterfile.read_signed(previous, trusted)
    checked = rosterfile.read_signed(roster, trusted, None if pin is None else _hex(pin))
    if old is not None:
        check_succession(old, checked)
    checked.check_current(time.time())
    typer.echo(f"{roster} is genuine: {_in_words(checked)}, hash {checked.hash.hex()}")


@app.command()
def show(
    roster: RosterFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Print a roster or a draft. Not a check of whose it is: that is `roster verify`."""
    from fedvlm_secure.federation import rosterfile

    shown, signed = rosterfile.read_any(roster)
    values = _as_dict(shown, signed)
    if as_json:
        typer.echo(json.dumps(values))
        return
    typer.echo(f"{roster}: {'signed' if signed else 'UNSIGNED DRAFT'}, {_in_words(shown)}")
    for title in ("hash", "consortium", "server"):
        typer.echo(f"{title:<16}{values[title]}")
    for member in shown.members:
        typer.echo(f"{member.name:<16}{member.signing_key.hex()}")
    for gone in shown.revoked:
        typer.echo(f"{'revoked':<16}{gone.hex()}")


def _as_dict(roster: "Roster", signed: bool) -> dict[str, Any]:
    return {
        "signed": signed,
        "version": roster.version,
        "expires": _day(roster),
        "expired": roster.expires <= time.time(),
        "hash": roster.hash.hex(),
        "consortium": roster.consortium.hex(),
        "server": roster.server.hex(),
        "members": {member.name: member.signing_key.hex() for member in roster.members},
        "revoked": [key.hex() for key in roster.revoked],
    }


def _in_words(roster: "Roster") -> str:
    members = "1 member" if len(roster.members) == 1 else f"{len(roster.members)} members"
    return f"version {roster.version}, {members}, expires {_day(roster)}"


def _day(roster: "Roster") -> str:
    return datetime.fromtimestamp(roster.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _say_drafted(path: Path, draft: "Roster") -> None:
    from fedvlm_secure.federation.rosterfile import draft_of

    typer.echo(f"wrote the draft {draft_of(path)}: {_in_words(draft)}")
    typer.echo(f"look at it with roster show {draft_of(path)}, and sign it with roster sign {path} --key FILE")


def _key_of(path: Path, name: str) -> bytes:
    """The signing key in a public key file, which has to be of the party ``name``."""
    from fedvlm_secure.federation import rosterfile

    party = rosterfile.read_member(path)
    if party.name != name:
        raise MisuseError(f"{path} is the key of {party.name!r}; make one for this use with: roster key {name}")
    return party.signing_key


def _future(day: datetime) -> int:
    seconds = int(day.replace(tzinfo=UTC).timestamp())
    if seconds <= time.time():
        raise MisuseError(f"--expires {day:%Y-%m-%d} is not in the future; name a later day")
    return seconds


def _is_hex(text: str) -> bool:
    return len(text) == 64 and set(text.lower()) <= set("0123456789abcdef")


def _hex(text: str) -> bytes:
    if not _is_hex(text):
        raise MisuseError(f"{text[:80]!r} is not 64 hex digits, as roster show prints them")
    return bytes.fromhex(text)


def _passphrase(path: Path, *, new: bool = False) -> Callable[[], str]:
    """Who to ask for a passphrase: the environment, or else the person at the terminal. Never the command line."""

    def ask() -> str:
        given = os.environ.get(PASSPHRASE_VARIABLE)
        if given is not None:
            return given
        answer: str = typer.prompt(f"Passphrase of {path}", hide_input=True, confirmation_prompt=new, err=True)
        return answer

    return ask

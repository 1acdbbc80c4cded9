"""``fedvlm-secure ledger``: what a hospital's data has spent of its privacy, and the account as a file."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvlm_secure.errors import MisuseError

if TYPE_CHECKING:
    from fedvlm_secure.privacy.ledger import Ledger, Release

app = typer.Typer(
    name="ledger",
    help="Look at a hospital's privacy ledger, which charges every release of its data.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="The hospital's ledger file.")]
Accountant = Annotated[str, typer.Option(help="prv, pld or rdp.")]
Delta = Annotated[
    float | None, typer.Option(help="The δ of the totals; the smallest that a data set's releases were charged at.")
]


@app.command()
def show(
    ledger: LedgerFile,
    delta: Delta = None,
    accountant: Accountant = "prv",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Verify a ledger, and print what every data set in it has spent."""
    opened = _open(ledger, accountant)
    values = _as_dict(opened, delta, accountant)
    if as_json:
        typer.echo(json.dumps(values, allow_nan=False))
        return
    typer.echo(f"{ledger}: genuine as far as it can tell, {values['entries']} entries, head {values['head'][:16]}")
    for each in values["data-sets"]:
        typer.echo(f"data set {each['fingerprint'][:16]}, unit {each['unit']}: {_spent(each)}")
        typer.echo(f"  {_counted(each)} in {len(each['runs'])} runs, {each['first']} to {each['last']}")
    if not values["data-sets"]:
        typer.echo("nothing has been charged")


@app.command()
def export(
    ledger: LedgerFile,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="The file to write; never over one that exists.")],
    delta: Delta = None,
    accountant: Accountant = "prv",
) -> None:
    """Verify a ledger, and write all its entries and totals as JSON."""
    from fedvlm_secure.files import PRIVATE, write_json
    from fedvlm_secure.privacy.chain import GENESIS

    if out.exists():
        raise MisuseError(f"{out} exists; name another file with --out")
    opened = _open(ledger, accountant)
    values = _as_dict(opened, delta, accountant)
    values["chain"] = {
        "genesis": GENESIS.hex(),
        "rule": "sha256 of an entry: SHA-256(sha256 of the entry before, as bytes, then content in UTF-8)",
        "entries": [{"content": content, "sha256": digest.hex()} for content, digest in opened.entries()],
    }
    write_json(out, values, PRIVATE)
    typer.echo(f"wrote {out}: {values['entries']} entries; it tells this hospital's own spending, keep it here")


def _open(path: Path, accountant: str) -> "Ledger":
    from fedvlm_secure.privacy.accounting import ACCOUNTANTS
    from fedvlm_secure.privacy.ledger import Ledger

    if accountant not in ACCOUNTANTS:
        raise MisuseError(f"--accountant {accountant!r} is not known; choices: {', '.join(ACCOUNTANTS)}")
    if path.is_dir():
        inside = sorted(each.name for each in path.glob("*.sqlite"))
        raise MisuseError(f"{path} is a folder; name a ledger in it" + (f", such as {inside[0]}" if inside else ""))
    return Ledger(path, accountant=accountant, create=False)


def _as_dict(opened: "Ledger", delta: float | None, accountant: str) -> dict[str, Any]:
    head = opened.head()
    by_data: dict[str, list[Release]] = {}
    for release in opened.releases():
        by_data.setdefault(release.fingerprint, []).append(release)
    return {
        "entries": head.entries,
        "head": head.hash.hex(),
        "accountant": accountant,
        "data-sets": [_data_set(name, releases, delta, accountant) for name, releases in by_data.items()],
    }


def _data_set(name: str, releases: "list[Release]", delta: float | None, accountant: str) -> dict[str, Any]:
    from fedvlm_secure.privacy.accounting import epsilon

    smallest = min(release.delta for release in releases) if delta is None else delta
    events = [release.event for release in releases]
    spent = epsilon(events, smallest, accountant)
    unsampled = epsilon(events, smallest, accountant, amplification=False)
    return {
        "fingerprint": name,
        "unit": releases[0].unit,
        "delta": smallest,
        # JSON has no infinity: null is a data set that was used without differential privacy.
        "epsilon": spent if math.isfinite(spent) else None,
        "epsilon-without-amplification": unsampled if math.isfinite(unsampled) else None,
        "releases": len(releases),
        "reserved-only": sum(not release.released for release in releases),
        "runs": sorted({release.run for release in releases}),
        "first": _day(min(release.time for release in releases)),
        "last": _day(max(release.time for release in releases)),
    }


def _spent(each: dict[str, Any]) -> str:
    if each["epsilon"] is None:
        return "no bound, it was used without differential privacy"
    unsampled = f"{each['epsilon-without-amplification']:.4g} without sampling amplification"
    return f"epsilon {each['epsilon']:.4g} at delta {each['delta']:g} ({unsampled})"


def _counted(each: dict[str, Any]) -> str:
    total = "1 release" if each["releases"] == 1 else f"{each['releases']} releases"
    return total + (f" ({each['reserved-only']} reserved and not known to have left)" if each["reserved-only"] else "")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

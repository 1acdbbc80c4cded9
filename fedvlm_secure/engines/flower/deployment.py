"""A whole VLM run on Flower on this machine: real processes and connections, for ``run --engine flower``.

Every hospital is a SuperNode with a folder of its own. What it would keep to itself is gathered into one run directory
afterwards, as the local engine leaves it: one machine, one person, nothing to hide.
"""

import json
import re
import shutil
from collections import deque
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedvlm_secure import data, models
from fedvlm_secure.engines.assembly import attached, sites_in
from fedvlm_secure.engines.flower.network import SERVER, Network
from fedvlm_secure.engines.flower.node import KEY, OWN, ROSTER, SETTINGS, load_identity
from fedvlm_secure.engines.local import RunResult, check_folder
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.floors import policy_of
from fedvlm_secure.federation.rounds import check_settings
from fedvlm_secure.federation.rundir import DEPLOYMENT, RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import read_json, write
from fedvlm_secure.report import table
from fedvlm_secure.report import write as write_report

_APP = "app"
_DAY = 86_400.0
_SHOWN, _LONG = 5, 300  # lines of the server's log in an error, and how much of each
# A line of Flower's log: colours and level before what was said.
_COLOUR = re.compile(r"\x1b\[\d*m")
_LEVEL = re.compile(r"^(?:\x1b\[\d*m|\s)*(?P<level>[A-Z]+)(?:\x1b\[\d*m|\s)*:\s+(?P<text>.*)$")
_OURS = ("round ", "a round is over", "node ", *(f"{digit}" for digit in range(10)))  # "8 of 8 hospitals have …"


def run(
    settings: Settings, out: Path | str | None = None, *, resume: bool = False, observer: Observer | None = None
) -> RunResult:
    """Start SuperLink and SuperNodes on loopback, run the federation over them, and end them.

    Args:
        out, resume: as for :func:`fedvlm_secure.engines.local.run`.

    Raises:
        MisuseError: as there; Flower's programs did not start, or the run failed, with what its log says.
    """
    watch = observer or Observer()
    folder = RunDirectory(Path("runs") / settings.name if out is None else Path(out))
    check_folder(folder, settings, resume)
    if find_spec("flwr") is None:
        raise MisuseError("--engine flower needs Flower: pip install 'fedvlm-secure[flower]'")
    if settings.simulation.dropout_rate:
        raise MisuseError("simulation.dropout-rate is the local engine's; with --engine flower end SuperNodes instead")
    with folder.locked():
        names = _names(settings, watch)
        network = Network(folder.path.absolute() / DEPLOYMENT, names)
        network.make_keys()  # before the settings: a run with settings and without keys is one of the local engine
        write(folder.settings, settings.to_toml().encode())
        outfit(network, settings)
        watch.loading(f"a SuperLink and {len(names)} SuperNodes")
        log = Log(watch)
        with network:
            number = network.run(network.folder / _APP, {"folder": str(network.party(SERVER))})
            status = network.wait(number, _DAY * settings.rounds, log.line)
        absent = [name for name in names if not (_results(network, name, settings) / "summary.json").exists()]
        if status != "finished:completed" or absent:
            fate = f"the run ended as {status}" if not absent else f"{', '.join(absent)} did not take over the result"
            raise MisuseError(
                f"{fate}: {log.reason}; all logs are in {network.folder / 'logs'}, "
                f"and fedvlm-secure run --resume {folder.path} goes on with it"
            )
        _gather(network, settings, folder)
        write_report(folder.path)
        folder.sign_manifest(load_identity(network.party(SERVER) / KEY))
    return RunResult(folder.path, read_json(folder.coordinator.path / "summary.json"), table(folder.path))


def began(path: Path | str) -> bool:
    """Whether the run in this directory began on Flower."""
    return (Path(path) / DEPLOYMENT).is_dir()


def resume(path: Path | str, observer: Observer | None = None) -> RunResult:
    """Go on with an interrupted run, with the settings it began with; raises as :func:`run` does."""
    folder = RunDirectory(Path(path))
    return run(Settings.from_toml(folder.settings), folder.path, resume=True, observer=observer)


class Log:
    """The server's log as it comes: what this project says is passed on, the rest is kept for an error."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._tail = deque[str](maxlen=_SHOWN)

    @property
    def reason(self) -> str:
        """The last lines that may say why a run failed."""
        return " | ".join(self._tail) or "no reason was logged"

    def line(self, line: str) -> None:
        """Take one line."""
        found = _LEVEL.match(line)
        if found is None:
            if line.strip():
                self._tail.append(" ".join(_COLOUR.sub("", line).split())[:_LONG])
        elif found["level"] != "INFO":
            self._tail.append(found["text"][:_LONG])
            self._observer.logged(found["text"])
        elif found["text"].startswith(_OURS):
            self._observer.logged(found["text"])


def _names(settings: Settings, observer: Observer) -> list[str]:
    """The hospitals; what cannot succeed is refused before anything starts."""
    observer.loading(f"data {data.called(settings.data)}")
    sites = sites_in(settings, observer)
    observer.loading(f"model {settings.model}")
    _, adapter = attached(settings)
    check_settings(settings, {name: len(splits["train"]) for name, splits in sites.items()}, adapter.layout(1).size)
    return sorted(sites)


def outfit(network: Network, settings: Settings) -> None:
    """Give every party what it would have been given: the settings that were agreed on, and its own."""
    agreed = _absolute(settings)
    for name in (SERVER, *network.names):
        write(network.party(name) / SETTINGS, agreed.to_toml().encode())
    resolved = policy_of(settings)  # what the settings leave to the protocol, spelt out
    policy = settings.policy.model_dump(by_alias=True, exclude_none=True)
    policy |= {"protocols": list(resolved.protocols), "max-corrupt": resolved.max_corrupt}
    for name in network.names:
        if isinstance(agreed.data, Mapping):
            rows: dict[str, Any] = {"data": {name: agreed.data[name]}}
        else:
            rows = {"data": agreed.data, "sites": [name]}
        write(network.party(name) / OWN, _toml({**rows, "policy": policy}).encode())
    write_app(network.folder / _APP)


def _absolute(settings: Settings) -> Settings:
    """The settings with places that hold wherever a process stands; what has a name of ours keeps it."""

    def place(given: str) -> str:
        path = Path(given).expanduser()
        return str(path.absolute()) if given not in (*data.NAMES, *models.NAMES) and path.exists() else given

    rows: Any = settings.data
    told = {name: place(path) for name, path in rows.items()} if isinstance(rows, Mapping) else place(rows)
    tables = settings.model_dump(by_alias=True, exclude_none=True)
    if settings.privacy.ledger is not None:
        tables["privacy"]["ledger"] = str(Path(settings.privacy.ledger).expanduser().absolute())
    return Settings.from_tables({**tables, "data": told, "model": place(settings.model)})


def _toml(tables: Mapping[str, Any]) -> str:
    """Tables of strings, numbers and lists of them, whose JSON is TOML too."""
    top = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    for key, entries in tables.items():
        if isinstance(entries, Mapping):
            top += ["", f"[{key}]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in entries.items())]
    return "\n".join(top) + "\n"


def write_app(folder: Path) -> None:
    """The Flower app of ``examples/hospitals``, as small as it can be."""
    write(folder / "pyproject.toml", _PYPROJECT.encode())
    write(folder / "hospitals/__init__.py", b"")
    for side in ("client", "server"):
        text = f"from fedvlm_secure.engines.flower import {side}_app\n\napp = {side}_app()\n"
        write(folder / f"hospitals/{side}_app.py", text.encode())


_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "hospitals"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["fedvlm-secure[flower]"]

[tool.flwr.app]
publisher = "fedvlm-secure"

[tool.flwr.app.components]
serverapp = "hospitals.server_app:app"
clientapp = "hospitals.client_app:app"

[tool.flwr.app.config]
folder = "server"
"""


def _gather(network: Network, settings: Settings, folder: RunDirectory) -> None:
    """One run directory from everybody's; keys and unfinished work stay where they are."""
    ignore = shutil.ignore_patterns("state")
    write(folder.roster, (network.party(SERVER) / ROSTER).read_bytes())
    coordinator = _results(network, SERVER, settings) / "coordinator"
    shutil.copytree(coordinator, folder.coordinator.path, ignore=ignore, dirs_exist_ok=True)
    for name in network.names:
        shutil.copytree(_results(network, name, settings), folder.site(name).path, ignore=ignore, dirs_exist_ok=True)


def _results(network: Network, name: str, settings: Settings) -> Path:
    """What a party has of the run."""
    return network.party(name) / "runs" / settings.name

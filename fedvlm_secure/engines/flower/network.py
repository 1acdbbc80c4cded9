"""A whole Flower deployment on this machine: SuperLink and SuperNodes as processes, TLS and node authentication on.

It does what ``examples/hospitals/loopback.sh`` does with commands: for ``run --engine flower`` and for tests.
"""

import ctypes
import datetime as dt
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from fedvlm_secure.engines.flower.node import KEY, ROSTER
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation import keyfile
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.roster import NEVER, Roster, member, sign_roster

SERVER = "server"
_LINK = "fedvlm-secure"  # what the connection is called in Flower's configuration
_PATIENCE = 60.0  # seconds for a process to come up or to end
_DAYS = 30


@dataclass
class Network:
    """SuperLink and SuperNodes in ``folder``, as a context manager.

    Args:
        folder: keys, certificates, logs and every party's own folder.
        names: the hospitals.
        environment: more variables for the processes, such as ``PYTHONPATH``.
    """

    folder: Path
    names: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}

    def party(self, name: str) -> Path:
        """The folder of the server (``"server"``) or a hospital."""
        return self.folder / "parties" / name

    def log(self, name: str) -> Path:
        """What the process of ``"superlink"`` or a hospital has written."""
        return self.folder / "logs" / f"{name}.log"

    def __enter__(self) -> Self:
        self.make_keys()
        self._connect()
        for path in self.folder.glob("superlink.sqlite*"):
            path.unlink()  # of a deployment that has ended; what a run needs to go on lies with its parties
        try:
            self.start_superlink()
            for name in self.names:
                self.register(name)
            for name in self.names:
                self.start(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def make_keys(self) -> None:
        """Certificates for TLS, new ones every time; once, keys and a signed roster for the protocol."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _certificates(self.folder / "tls")
        if all((self.party(name) / ROSTER).exists() for name in (SERVER, *self.names)):
            return
        keys = {name: self.party(name) / KEY for name in (SERVER, *self.names)}
        identities = {
            name: keyfile.load(path) if path.exists() else keyfile.create(path) for name, path in keys.items()
        }
        consortium = Identity.generate()
        members = tuple(member(name, identities[name]) for name in sorted(self.names))
        roster = sign_roster(Roster(consortium.public, 1, NEVER, identities[SERVER].public, members), consortium)
        for name in self.names:
            self.make_supernode_key(name)
        for name in (SERVER, *self.names):
            write(self.party(name) / ROSTER, roster)

    def make_supernode_key(self, name: str) -> None:
        """The key by which the SuperLink knows a hospital's SuperNode, once it is registered."""
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write(self.party(name) / "supernode.key", private, PRIVATE)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write(self.party(name) / "supernode.pub", public)

    def _connect(self) -> None:
        """Tell Flower's command line where the SuperLink is."""
        connection = {"address": f"127.0.0.1:{self._port('superlink')}", "root-certificates": str(self._ca)}
        lines = [f"[superlink]\ndefault = {json.dumps(_LINK)}\n\n[superlink.{_LINK}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in connection.items()]
        write(self.folder / "flwr/config.toml", ("\n".join(lines) + "\n").encode())

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it listens."""
        tls = [f"--ssl-{kind}file={self.folder / 'tls' / name}" for kind, name in _TLS_FILES]
        options = ["--enable-supernode-auth", "--disable-runtime-dependency-installation", *tls]
        database = f"--database={self.folder / 'superlink.sqlite'}"
        self._spawn("superlink", "flower-superlink", f"--port={self._port('superlink')}", database, *options)
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            self._check("superlink")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port("superlink")), 1):
                return
            time.sleep(0.2)
        raise MisuseError(f"the SuperLink did not come up in {_PATIENCE:.0f} s; see {self.log('superlink')}")

    def _port(self, name: str) -> int:
        """Where a process listens; the same when it is started again."""
        while name not in self._ports:
            (port,) = free_ports(1)
            if port not in self._ports.values():
                self._ports[name] = port
        return self._ports[name]

    def register(self, name: str) -> None:
        """Let the SuperLink know the hospital's SuperNode key."""
        self.flwr("supernode", "register", str(self.party(name) / "supernode.pub"), _LINK)

    def start(self, name: str) -> None:
        """Start a hospital's SuperNode."""
        self._spawn(
            name,
            "flower-supernode",
            f"--superlink=127.0.0.1:{self._port('superlink')}",
            f"--port={self._port(name)}",
            f"--root-certificates={self._ca}",
            f"--auth-supernode-private-key={self.party(name) / 'supernode.key'}",
            *(f"--ssl-{kind}file={self.folder / 'tls' / file}" for kind, file in _TLS_FILES),
            f"--node-config=folder={json.dumps(str(self.party(name)))}",
        )

    def kill(self, name: str) -> None:
        """End a process and all that it started, at once."""
        self._end([self.processes.pop(name)], signal.SIGKILL)

    def revive(self) -> list[str]:
        """Start again what has ended by itself, as an init system would, and say what that was.

        A SuperNode that comes back at once ends again: the SuperLink does not take it in until the one before it has
        missed its heartbeats.
        """
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            self.kill(name)  # what it has left behind
            if name == "superlink":
                self.start_superlink()
            else:
                self.start(name)
        return ended

    def run(self, app: Path, config: Mapping[str, object]) -> str:
        """Submit the app in the folder ``app``; Flower's number of the run."""
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        told = json.loads(self.flwr("run", str(app), _LINK, "--run-config", given, "--format", "json"))
        if not told.get("success"):
            raise MisuseError(f"Flower did not take the run: {told.get('error-message', told)}")
        return str(told["run-id"])

    def status(self, run: str) -> str:
        """Such as ``"running"``, ``"finished:completed"``, ``"finished:failed"``."""
        told = json.loads(self.flwr("list", "--run-id", run, _LINK, "--format", "json"))
        return str(told["runs"][0]["status"])

    def wait(self, run: str, seconds: float, tell: Callable[[str], None] = lambda line: None) -> str:
        """Wait for the run to end; its status then, or the one it has when time is up.

        Args:
            tell: gets the server's log, line by line.

        Raises:
            MisuseError: the SuperLink has ended.
        """
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._follow(run, ends, tell)  # ends with the run, or with the SuperLink
            self._check("superlink")
            with suppress(MisuseError):  # it may still be coming up again
                if (status := self.status(run)).startswith("finished"):
                    return status
            time.sleep(2.0)
        return self.status(run)

    def _check(self, name: str) -> None:
        """Raise :class:`MisuseError`, with the end of its log, if a process has ended by itself."""
        process = self.processes.get(name)
        if process is not None and process.poll() is not None:
            said = self.log(name).read_text(errors="replace").strip().splitlines()[-3:]
            raise MisuseError(f"{name} has ended: {' '.join(said)} ({self.log(name)})")

    def _follow(self, run: str, ends: float, tell: Callable[[str], None]) -> None:
        """Read the server's log until there is no more of it."""
        command = [self._program("flwr"), "log", run, _LINK, "--stream"]
        with subprocess.Popen(
            command, env=self._environment("flwr"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            timer = threading.Timer(max(ends - time.monotonic(), 0.0), process.kill)
            timer.start()
            try:
                for line in process.stdout or ():
                    tell(line.rstrip())
            finally:
                timer.cancel()
                process.kill()

    def flwr(self, *words: str) -> str:
        """Run Flower's command line; its standard output. Raises :class:`MisuseError` with what it said."""
        done = subprocess.run(
            [self._program("flwr"), *words], env=self._environment("flwr"), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MisuseError(f"flwr {words[0]} failed: {' '.join((done.stdout + done.stderr).split())[-500:]}")
        return done.stdout

    def stop(self) -> None:
        """End all processes: asked first, then made to."""
        self._end(list(self.processes.values()), signal.SIGTERM)
        self.processes.clear()

    @staticmethod
    def _end(processes: Sequence[subprocess.Popen[bytes]], sign: int) -> None:
        """Send a signal to the processes and what they have started, which Flower detaches; wait for all of them."""
        family, groups = set[psutil.Process](), {process.pid for process in processes}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                top = psutil.Process(process.pid)
                family |= {top, *top.children(recursive=True)}
        for each in psutil.process_iter():  # what a SuperNode that ended by itself has left is nobody's child any more
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                family |= {each} if os.getpgid(each.pid) in groups else set()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(sign)
        _, alive = psutil.wait_procs(family, timeout=10)
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(alive, timeout=10)
        for process in processes:
            process.wait()

    @property
    def _ca(self) -> Path:
        return self.folder / "tls/ca.pem"

    def _spawn(self, name: str, program: str, *words: str) -> None:
        path = self.log(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [self._program(program), *words]
        with path.open("ab") as file:
            # A session of its own: whatever Flower starts for it ends with it.
            self.processes[name] = subprocess.Popen(
                command,
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # two calls into C
            )

    @staticmethod
    def _program(name: str) -> str:
        """One of Flower's programs, of this environment whether or not it is activated."""
        return str(Path(sys.executable).with_name(name))

    def _environment(self, name: str) -> dict[str, str]:
        home = self.folder / ("flwr" if name in ("flwr", "superlink") else f"flwr-{name}")
        own = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "FLWR_HOME": str(home),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # a second otherwise, for every message
            # Flower starts programs of its own by their names.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }
        return {**os.environ, **own, **self.environment}


def _end_with_parent() -> None:
    """Nothing is left running of a deployment whose process was killed, or whose thread has ended that started it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

_TLS_FILES = (("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem"))


def _certificates(folder: Path) -> None:
    """A certificate authority of one month, and a certificate for this machine's loopback addresses."""
    authority, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer, subject = _name("fedvlm-secure loopback CA"), _name("localhost")
    ca = _builder(issuer, issuer, authority.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    loopback = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    own = _builder(subject, issuer, key.public_key())
    own = own.add_extension(x509.SubjectAlternativeName(loopback), critical=False)
    write(folder / "ca.pem", ca.sign(authority, hashes.SHA384()).public_bytes(Encoding.PEM))
    write(folder / "server.pem", own.sign(authority, hashes.SHA384()).public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write(folder / "server.key", private, PRIVATE)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - dt.timedelta(minutes=5),
        not_valid_after=now + dt.timedelta(days=_DAYS),
    )


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below those that systems give to outgoing connections."""
    found = list[int]()
    while len(found) < count:
        port = 10_000 + int.from_bytes(entropy.random_bytes(4)) % 20_000
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found = [*found, port] if port not in found else found
    return found

"""The start scripts of ``examples/hospitals``, as somebody types them."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedvlm_secure.engines.flower.network import free_ports

SCRIPTS = Path(__file__).parents[2] / "examples/hospitals"
NGINX = Path(__file__).parents[2] / "docs/deployment/nginx.conf"
SITES = ("site-a", "site-b", "site-c")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in ("bash", "openssl", "ssh-keygen")),
        reason="bash, openssl and ssh-keygen make the keys",
    ),
]


def ports_in_a_row(count: int) -> int:
    """The first of so many that nobody listens on."""
    while True:
        (first,) = free_ports(1)
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def environment(**more: object) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in more.items()}}


def test_a_run_on_one_machine_then_each_party_by_itself(tmp_path: Path, model_folder: Path, data_folder: Path) -> None:
    settings, folder = tmp_path / "settings.toml", tmp_path / "net"
    settings.write_text(
        f'name = "t"\nmodel = "{model_folder}"\ndata = "{data_folder}"\nsites = {list(SITES)}\n'
        "rounds = 1\nthreads = 1\n"
        "[training]\nsteps = 1\nbatch-size = 8\n[adapter]\nrank = 2\n"
    )
    words = ["bash", SCRIPTS / "loopback.sh", folder, settings, *SITES]
    done = subprocess.run(
        words, env=environment(PORT=ports_in_a_row(8)), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (folder / "server/runs/t/coordinator/summary.json").exists()
    assert all((folder / site / "runs/t/adapter/adapter_model.safetensors").exists() for site in SITES)
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert (again.returncode, again.stderr) == (2, f"{folder} exists; name another folder\n")
    each_by_itself(folder)


def each_by_itself(folder: Path) -> None:
    """The same parties with ``machines.sh``; the run is finished, so they only take over its result again."""
    first, processes = ports_in_a_row(8), list[subprocess.Popen[bytes]]()
    script, server = ["bash", str(SCRIPTS / "machines.sh")], folder / "server"

    def start(*words: object, port: int) -> None:
        command = [*script, *map(str, words)]
        processes.append(subprocess.Popen(command, env=environment(PORT=port), start_new_session=True))

    def do(*words: object) -> str:
        command = [*script, *map(str, words)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=True)
        return done.stdout + done.stderr

    shutil.rmtree(folder / "tls")
    for site in SITES:
        for left in ("supernode.key", "supernode.key.pub"):
            (folder / site / left).unlink()
    try:
        do("keys", server, "127.0.0.1")
        start("superlink", server, port=first)
        await_listener(first)
        outside = first
        if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
            outside = first + 7
            text = NGINX.read_text()
            for ours, here in (("/tmp/", f"{folder}/"), ("/srv/fedvlm", server), ("9092", outside), ("9093", first)):
                assert ours in text
                text = text.replace(ours, str(here))
            (folder / "nginx.conf").write_text(text)
            command = [nginx, "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
            processes.append(subprocess.Popen(command, start_new_session=True))
            await_listener(outside)
            assert asked(outside, "/v1/control/list-runs", server) == 404
            assert asked(first, "/v1/control/list-runs", server) != 404  # as it is behind nginx
        for number, site in enumerate(SITES, 1):
            do("node-key", folder / site)
            do("register", server, folder / site / "supernode.key.pub")
            shutil.copy(server / "tls/ca.pem", folder / site / "ca.pem")
            start("hospital", folder / site, f"127.0.0.1:{outside}", port=first + number)
        assert "3 of 3 hospitals have taken over the result" in do("run", server)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(30)


def await_listener(port: int) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    pytest.fail(f"nobody listens on port {port}")


def asked(port: int, path: str, server: Path) -> int:
    """The status of a POST without a key."""
    trust = ssl.create_default_context(cafile=str(server / "tls/ca.pem"))
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", data=b"", method="POST")
    try:
        return urllib.request.urlopen(request, context=trust, timeout=30).status
    except urllib.error.HTTPError as answer:
        return answer.code

"""The start scripts of ``examples/hospitals``, as somebody types them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedvlm_secure.engines.flower.network import free_ports

SCRIPTS = Path(__file__).parents[2] / "examples/hospitals"
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
    told = {"SUPERLINK": f"127.0.0.1:{first}", "LISTEN": "127.0.0.1"}
    script = ["bash", str(SCRIPTS / "machines.sh")]

    def start(what: str, party: str, **more: object) -> None:
        command = [*script, what, str(folder / party)]
        processes.append(subprocess.Popen(command, env=environment(**told, **more), start_new_session=True))

    for name in ("server", *SITES):
        for left in ("flwr", "tls", "supernode.key", "supernode.key.pub"):
            shutil.rmtree(folder / name / left, ignore_errors=True)
            (folder / name / left).unlink(missing_ok=True)
    try:
        start("superlink", "server")
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            with suppress(OSError), socket.create_connection(("127.0.0.1", first), 1):
                break
            time.sleep(0.5)
        else:
            pytest.fail("the SuperLink did not come up")
        for number, site in enumerate(SITES, 1):
            shutil.copy(folder / "server/tls/ca.pem", folder / site / "ca.pem")
            subprocess.run([*script, "hospital", folder / site], env=environment(**told), check=True)  # makes keys
            key = folder / site / "supernode.key.pub"
            subprocess.run([*script, "register", folder / "server", key], env=environment(**told), check=True)
            start("hospital", site, OWN_PORT=first + number)
        done = subprocess.run(
            [*script, "run", folder / "server"], env=environment(**told), capture_output=True, text=True, check=False
        )
        assert "3 of 3 hospitals have taken over the result" in done.stdout + done.stderr
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(30)

"""What tests of whole runs share: the state a run ends in, and ways to interrupt it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.numpy

from fedvlm_secure.engines import local
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.federation.standing import Pending

ROUNDS = 2


def final_state(folder: Path) -> dict[str, bytes]:
    """Everything that a run computes: the shared state and every hospital's adapter."""
    return adapters(folder) | tensors(folder, folder / "coordinator/global" / f"round-{ROUNDS:04d}.safetensors")


def adapters(folder: Path) -> dict[str, bytes]:
    """Every hospital's adapter, which holds the shared part too."""
    return tensors(folder, *sorted(folder.glob("sites/*/adapter/adapter_model.safetensors")))


def tensors(folder: Path, *files: Path) -> dict[str, bytes]:
    """Tensors' bytes by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": value.tobytes()
        for path in files
        for name, value in safetensors.numpy.load_file(path).items()
    }


def pending(run: RunDirectory, site: str) -> Pending:
    """The update that waits at a hospital."""
    folder = run.site(site)
    return Pending.load(folder.state / "pending.safetensors", folder.identity())


class StoppedError(Exception):
    """Stands for Ctrl-C or a crash."""


class Interrupter(Observer):
    """Stops the run at the n-th event, whatever it is."""

    def __init__(self, after: int) -> None:
        self.left = after

    def _tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise StoppedError

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        self._tick()

    def trained(self, site: str) -> None:
        self._tick()

    def phase_ends(self, phase: str, seconds: float) -> None:
        self._tick()

    def round_ends(self, round_index: int, survivors: int, cohort: int, accuracy: float) -> None:
        self._tick()


def interrupted(settings: Settings, folder: Path, after: int) -> Iterator[int]:
    """Run and resume, stopping after so many events each time; gives how often it was stopped."""
    stops = 0
    while True:
        try:
            local.run(settings, folder, resume=stops > 0, observer=Interrupter(after))
        except StoppedError:
            stops += 1
            yield stops
            assert stops < 50, "the run makes no progress"
        else:
            return


def stopping_after(step: Callable[..., object]) -> Callable[..., object]:
    def stopping(*args: object, **named: object) -> object:
        step(*args, **named)
        raise StoppedError

    return stopping

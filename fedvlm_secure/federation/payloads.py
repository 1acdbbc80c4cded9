"""Replies kept whole, for auditors who shall recompute sums: opt-in, for this is more than transcripts hold.

Who has them can unmask every sum again, and no single client's vector; under a protocol whose key every member holds,
whoever has them and that key reads every member's update.
"""

from dataclasses import dataclass
from pathlib import Path

from fedvlm_secure.federation.rundir import Folder
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.secagg.session import ClientId


@dataclass(frozen=True, slots=True)
class Payloads:
    """The replies of a run's attempts, a file each, in the server's folder."""

    folder: Folder

    @property
    def path(self) -> Path:
        """Where they all lie; it is not there unless the run keeps them."""
        return self.folder.path / "payloads"

    def place(self, place: tuple[int, int], phase: str, client: ClientId) -> Path:
        """The file of one reply in the attempt (round, attempt)."""
        return self.path / f"round-{place[0]:04d}-attempt-{place[1]}" / phase / client

    def keep(self, place: tuple[int, int], phase: str, client: ClientId, reply: bytes) -> None:
        """Write a reply, durably; in place of the same one."""
        write(self.place(place, phase, client), reply, PRIVATE)

"""What an engine tells whoever watches: a terminal, a log, a test. Nothing here changes what a run does."""

from collections.abc import Mapping


class Observer:
    """Watches a run. Every method may be overridden; by default nothing happens."""

    def loading(self, what: str) -> None:
        """Something slow begins before the first round."""

    def skipped(self, what: str) -> None:
        """Rows of the data set are left out, because they cannot be used and the settings say so."""

    def logged(self, what: str) -> None:
        """The server's process has logged something about the run."""

    def round_begins(self, round_index: int, rounds: int, attempt: int, sites: int) -> None:
        """An attempt at a round begins, with ``sites`` hospitals; round ``rounds + 1`` is the closing evaluation."""

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        """A hospital has made one optimizer step of ``steps`` this round."""

    def trained(self, site: str) -> None:
        """A hospital's update for this round is ready."""

    def phase_ends(self, phase: str, seconds: float) -> None:
        """A protocol phase is over."""

    def round_ends(self, round_index: int, survivors: int, cohort: int, accuracy: float) -> None:
        """A round is aggregated; ``accuracy`` is the mean over hospitals' validation rows, as this process sees it."""

    def spent(self, epsilons: Mapping[str, float]) -> None:
        """After a round: ε of all that each hospital's data has released, as its own ledger says."""

    def round_aborts(self, round_index: int, attempt: int, reason: str) -> None:
        """An attempt failed cleanly; another may follow."""

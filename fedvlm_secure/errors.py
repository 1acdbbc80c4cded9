"""The two families of error: this program was called wrongly, or a peer broke a rule.

Verification raises one of these; it never returns a boolean. A user's mistake is a :class:`MisuseError` whose text is
one sentence that says what to change. A peer's fault is a :class:`ProtocolError` that names round, phase, party and
the violated clause of ``protocols/``.
"""


class MisuseError(Exception):
    """The caller's mistake: a setting, an argument or a call out of order. The text says what to change."""


class PrivacyBudgetExhaustedError(MisuseError):
    """A release would exceed the privacy limit that a hospital has set for its data. Nothing was trained for it."""


class ProtocolError(Exception):
    """A peer broke a rule of the protocol, or its message did not survive the way.

    Attributes:
        clause: the violated clause, such as ``"P-5.3"``.
        party: who is at fault: ``"server"`` or a client's name; ``"network"`` where a signature cannot tell.
        phase: the protocol phase, such as ``"shares"``.
        round: ``(round, attempt)``, or None before a plan is known.
        detail: what was wrong, in plain words; never holds a secret.
    """

    def __init__(
        self, clause: str, *, party: str, phase: str, detail: str, round: tuple[int, int] | None = None
    ) -> None:
        self.clause = clause
        self.party = party
        self.phase = phase
        self.round = round
        self.detail = detail
        super().__init__(clause, party, phase, detail, round)

    @property
    def where(self) -> str:
        """Round, attempt and phase, in words."""
        place = "before any round" if self.round is None else f"round {self.round[0]}, attempt {self.round[1]}"
        return f"{place}, phase {self.phase}"

    def __str__(self) -> str:
        return f"{self.where}: {self.party} violates {self.clause}: {self.detail}"


class PolicyRefusalError(ProtocolError):
    """A client's own policy is stricter than the plan it was sent: nothing is wrong with the message itself."""


class RoundAbortedError(ProtocolError):
    """Too few parties remain for the round to end safely. No input has been revealed; a new attempt may start."""

    def __str__(self) -> str:
        return f"{self.where}: ended by {self.clause}: {self.detail}"


class VerificationError(ProtocolError):
    """Something signed that outlives a session, such as a roster, is not genuine, not the expected one, or expired."""

    def __str__(self) -> str:
        return f"refused by {self.clause}: {self.detail}"


def one_line(error: BaseException) -> str:
    """The error's text on one line, for a terminal or a log."""
    return " ".join(str(error).split()) or type(error).__name__

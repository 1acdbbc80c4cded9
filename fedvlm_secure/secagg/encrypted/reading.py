"""Reading a sum: decrypt it, check it against its list, count the reading (E-5).

Whether a client accepts what a lying server sends it as a sum depends on the noise in it, and so on the key: every
answer is worth about a bit to that server. Readings are therefore counted and limited, whatever their outcome, and
which ciphertext failed stays with the client.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fedvlm_secure.encoding.codec import GarbageSumError, Update
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.client import Turn
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import Held, key_for, pin_of
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY, readings_allowed
from fedvlm_secure.secagg.encrypted.scheme import CiphertextError, IntegrityError, Key
from fedvlm_secure.secagg.encrypted.sheets import Sheet, sheet_of
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, check_plan
from fedvlm_secure.secagg.session import SERVER, KeyPin, Memory, RingSum
from fedvlm_secure.secagg.upload import check_chunks

# The sum was decrypted and is not what its list says: nothing is encrypted under this key any more (E-5.6).
SPOILING = ("E-5.3", "E-5.4", "E-5.5")


class Reading:
    """A sum that may be read: everything is verified that needs no decryption. Raises :class:`ProtocolError`.

    Attributes:
        pin: what the client has to remember, durably, before anyone can see that :meth:`total` has succeeded.
    """

    def __init__(self, turn: Turn, request: m.EncryptedSum) -> None:
        plan, listed = turn.plan, set(request.survivors)
        if list(request.survivors) != sorted(listed) or not listed <= set(plan.cohort):
            raise turn.fault("E-5.1", "the survivor list is not a sorted list of clients of the cohort")
        if len(listed) < plan.min_survivors:
            raise turn.fault("E-5.1", f"{len(listed)} survivors, {plan.min_survivors} are needed")
        self._turn, self._survivors, self._sheet = turn, request.survivors, sheet_of(plan)
        self.held: Held = key_for(turn, request.plan, request.delivery, self._sheet.scheme)
        check_chunks(turn.expected, "E-5.2", turn.chunks, request.digests, self._sheet.chunks)
        pin, allowed = pin_of(turn.memory, self.held, plan), readings_allowed(len(turn.party.roster.members))
        if pin.readings >= allowed:
            raise turn.fault("E-5.6", f"{pin.readings} sums were read under this key, which is as many as are allowed")
        self.pin: KeyPin = replace(pin, readings=pin.readings + 1)

    def total(self) -> RingSum:
        """The decrypted sum; raises :class:`ProtocolError` with a clause of :data:`SPOILING`."""
        plan, survivors, fault = self._turn.plan, self._survivors, self._turn.fault
        listed = f"listed are {', '.join(survivors)}"
        try:
            total = self._sheet.read(_decrypted(self.held.key, self._sheet, self._turn), self.held.secret, survivors)
        except CiphertextError as error:
            raise fault("E-5.3", str(error)) from None
        except IntegrityError as error:
            # Where it does not fit is in the cause, for the client's own log: to the server it would be more bits.
            raise fault("E-5.4", f"the sum is not that of its list; {listed}") from error
        try:
            participants = plan.codec.counted(total)[1]
        except GarbageSumError as error:
            raise fault("E-5.5", f"a client on the list has sent nonsense; {listed}") from error
        if participants != len(survivors):
            raise fault("E-5.5", f"a client on the list has sent nonsense; {listed}")
        return RingSum(total, survivors, tuple(name for name in plan.cohort if name not in survivors))


class CatchUp:
    """The sum of a round that a member took no part in, or has not kept; the server sends it to whoever asks.

    Args:
        party: with the model that this member held at the start of that round; it need not be in the round's cohort.
        memory: what the member remembers now.

    Attributes:
        plan: the round's.
        memory: what the member has to remember, durably, before :meth:`read` and after.

    Raises:
        ProtocolError: the message breaks a rule.
    """

    def __init__(self, party: Party, memory: Memory, message: bytes) -> None:
        expected = Expected(m.SUM, SERVER, party.name, party.roster.server, None, None)
        frames = expected.frames(message)
        self.plan: Plan = expected.open(frames[0], m.EncryptedSum).plan
        expected = replace(expected, plan=self.plan.hash, place=self.plan.place)
        request = expected.open(frames[0], m.EncryptedSum)
        check_plan(self.plan, party, memory, m.SUM, taking_part=False)
        if self.plan.protocol not in SHARED_KEY:
            raise expected.fault("P-2.6", f"has protocol {self.plan.protocol[:40]!r}, whose sums the server reads")
        turn = Turn(party, self.plan, Update(np.zeros(0), {}), b"", expected, memory, frames[1:])
        self._reading = Reading(turn, request)
        self.memory = remembering(memory, self.plan, self._reading.pin)

    def read(self) -> RingSum:
        """The sum; raises :class:`ProtocolError`."""
        try:
            return self._reading.total()
        except ProtocolError:
            self.memory = remembering(self.memory, self.plan, replace(self._reading.pin, spoiled=True))
            raise


def spoiled(pin: KeyPin) -> KeyPin:
    """The pin after a reading that failed."""
    return replace(pin, readings=pin.readings + 1, spoiled=True)


def remembering(memory: Memory, plan: Plan, pin: KeyPin) -> Memory:
    """The memory with another pin for the plan's run."""
    return replace(memory, keys={**memory.keys, plan.run.hex(): pin})


def _decrypted(key: Key, sheet: Sheet, turn: Turn) -> Iterator[Any]:
    for chunk in turn.chunks:
        yield key.decrypt(sheet.scheme.load(chunk))

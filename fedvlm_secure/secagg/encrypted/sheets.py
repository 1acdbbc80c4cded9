"""A plan's vector as sheets of slots, one sheet a ciphertext: how it is laid out, and how a sum of sheets is read."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from fedvlm_secure.encoding.codec import Total, Update
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted.bfv import BfvSheet
from fedvlm_secure.secagg.encrypted.ckks import CkksSheet
from fedvlm_secure.secagg.encrypted.parameters import BFV
from fedvlm_secure.secagg.encrypted.scheme import Scheme
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import ClientId


class Sheet(Protocol):
    """What both schemes offer."""

    scheme: Scheme
    chunks: int

    def fill(self, update: Update, secret: Secret, client: ClientId) -> Iterator[Any]:
        """The client's slots, one ciphertext after the other, checks included."""

    def read(self, sums: Iterable[Any], secret: Secret, survivors: Sequence[ClientId]) -> Total:
        """The sum [layout.size] from the decrypted ciphertexts of the sum.

        Raises:
            IntegrityError: they are not the sum of the survivors' ciphertexts.
        """


def sheet_of(plan: Plan) -> Sheet:
    """The plan's sheets; its protocol is one of the two."""
    return BfvSheet(plan) if plan.protocol == BFV else CkksSheet(plan)

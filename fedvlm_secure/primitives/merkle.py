"""Merkle trees as in Certificate Transparency (RFC 9162, section 2.1): one signature covers many messages, each of
which can be passed on alone with the few digests that lead from it to the root.
"""

import hashlib
from collections.abc import Sequence

_DIGEST_BYTES = 32


class MerkleError(ValueError):
    """The path does not lead from the leaf to the root."""


class MerkleTree:
    """The tree over ``leaves`` (at least one), in their order."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [[_leaf(leaf) for leaf in leaves]]
        while len(self._levels[-1]) > 1:
            level = self._levels[-1]
            pairs = [_node(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
            # A node without a sibling moves up unchanged, which gives the same tree as splitting at powers of two.
            self._levels.append(pairs + level[len(pairs) * 2 :])

    @property
    def root(self) -> bytes:
        """The digest of the whole tree."""
        return self._levels[-1][0]

    def path(self, index: int) -> bytes:
        """The inclusion proof of leaf ``index``: digests of 32 bytes in a row, from the leaf's sibling up."""
        siblings = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                siblings.append(level[index ^ 1])
            index >>= 1
        return b"".join(siblings)


def check_path(root: bytes, size: int, index: int, leaf: bytes, path: bytes) -> None:
    """Raise :class:`MerkleError` unless ``leaf`` is leaf ``index`` of the tree of ``size`` leaves under ``root``."""
    if not 0 <= index < size:
        raise MerkleError(f"no leaf {index} in a tree of {size}")
    node, used = _leaf(leaf), 0
    while size > 1:
        if index ^ 1 < size:
            sibling, used = path[used : used + _DIGEST_BYTES], used + _DIGEST_BYTES
            node = _node(sibling, node) if index & 1 else _node(node, sibling)
        index, size = index >> 1, (size + 1) >> 1
    if used != len(path) or node != root:
        raise MerkleError("the path does not lead to the root")


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()

"""Merkle trees against the definition in RFC 9162 and its published example tree."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm_secure.primitives.merkle import MerkleError, MerkleTree, check_path


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


def defined_path(index: int, leaves: list[bytes]) -> bytes:
    """PATH of RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return b""
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return defined_path(index, leaves[:k]) + defined_root(leaves[k:])
    return defined_path(index - k, leaves[k:]) + defined_root(leaves[:k])


LEAVES = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def test_known_roots():
    """The eight leaves of Certificate Transparency's reference tests."""
    leaves = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
    leaves.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
    assert MerkleTree(leaves[:1]).root.hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert MerkleTree(leaves).root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(LEAVES)
def test_root_and_paths_follow_the_definition(leaves):
    tree = MerkleTree(leaves)
    assert tree.root == defined_root(leaves)
    for index, leaf in enumerate(leaves):
        assert tree.path(index) == defined_path(index, leaves)
        check_path(tree.root, len(leaves), index, leaf, tree.path(index))


@given(LEAVES, st.data())
def test_anything_else_is_refused(leaves, data):
    tree = MerkleTree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, leaf = tree.path(index), leaves[index]
    wrong = [
        (tree.root, len(leaves), index, leaf + b"x", path),
        (bytes(32), len(leaves), index, leaf, path),
        (tree.root, len(leaves), index, leaf, path + bytes(32)),
        (tree.root, len(leaves), index, leaf, path + bytes(1)),
        (tree.root, len(leaves), len(leaves), leaf, path),
        (tree.root, len(leaves), -1, leaf, path),
    ]
    if path:
        wrong.append((tree.root, len(leaves), index, leaf, path[:-32]))
        wrong.append((tree.root, len(leaves), index, leaf, path[:-1]))
        wrong.append((tree.root, len(leaves), index, leaf, bytes(32) + path[32:]))
    others = [other for other in range(len(leaves)) if leaves[other] != leaf]
    wrong += [(tree.root, len(leaves), other, leaf, tree.path(other)) for other in others]
    for arguments in wrong:
        with pytest.raises(MerkleError):
            check_path(*arguments)

"""Every derivation depends on the plan, the seed and the names; masks of a pair cancel and nothing else does."""

from itertools import product

import numpy as np
import pytest

from fedvlm_secure.primitives.sealing import SealError
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import CHUNK
from fedvlm_secure.secagg.pairwise.masks import Bound, Mask, apply_masks

PLANS, SEEDS, NAMES = (b"p" * 32, b"q" * 32), (Secret(b"s" * 32), Secret(b"t" * 32)), ("a", "b", "c")
ROOT = bytes(32)


def test_no_two_derivations_agree():
    derived = []
    for plan, seed, name in product(PLANS, SEEDS, NAMES):
        bound = Bound(plan)
        derived += [
            bound.share_key(seed, name).seed.reveal(),
            bound.mask_key(seed, name).seed.reveal(),
            bound.self_commitment(seed, name),
            bound.self_mask(seed, name).key.reveal(),
            *(bound.pair_seed(seed, name, later).reveal() for later in NAMES if name < later),
            *(bound.pair_mask(seed, name, later).key.reveal() for later in NAMES if name < later),
        ]
    assert len(set(derived)) == len(derived) == 2 * 2 * (3 * 4 + 3 * 2)


def test_consent_depends_on_plan_root_and_list():
    signed = {
        Bound(plan).consent(root, survivors)
        for plan, root, survivors in product(PLANS, (ROOT, b"r" * 32), (("a", "b"), ("ab",), ("a", "b", "c"), ()))
    }
    assert len(signed) == 16


def test_the_key_root_depends_on_every_name_and_key():
    bound = Bound(PLANS[0])
    base = {"a": b"1", "b": b"2"}
    others = [{"a": b"2", "b": b"1"}, {"a": b"1"}, {"a": b"1", "c": b"2"}, {"ab": b"12"}, {}]
    assert len({bound.key_root(keys) for keys in (base, *others)}) == 6
    assert bound.key_root(base) == bound.key_root(dict(reversed(base.items())))


@pytest.mark.parametrize("word", ["<u4", "<u8"])
def test_pair_masks_cancel_and_self_masks_do_not(word):
    bound = Bound(PLANS[0])
    for size in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 3):
        total = np.zeros(size, word)
        ours, theirs = bound.pair_mask(SEEDS[0], "a", "b"), bound.pair_mask(SEEDS[0], "b", "a")
        assert (ours.added, theirs.added) == (True, False)
        apply_masks(total, [ours])
        assert size < 2 or total.any()
        apply_masks(total, [theirs, bound.self_mask(SEEDS[1], "a")])
        assert size < 2 or total.any()
        apply_masks(total, [bound.self_mask(SEEDS[1], "a").inverse])
        assert not total.any()


def test_masks_of_a_vector_are_one_stream_over_its_chunks():
    whole = np.zeros(2 * CHUNK + 5, "<u8")
    apply_masks(whole, [Mask(SEEDS[0], added=True)])
    assert len(np.unique(whole)) == len(whole)


def test_boxes_open_for_their_pair_and_key_list_only():
    bound, key = Bound(PLANS[0]), Bound(PLANS[0]).mask_key(SEEDS[0], "b")
    box = bound.seal_pair(SEEDS[1], key.public, ROOT, "a", "b")
    assert bound.open_pair(box, key, ROOT, "a", "b") == SEEDS[1]
    shares = bound.seal_shares(SEEDS[1], key.public, ROOT, "a", "b")
    for wrong in (
        lambda: Bound(PLANS[1]).open_pair(box, key, ROOT, "a", "b"),
        lambda: bound.open_pair(box, key, b"r" * 32, "a", "b"),
        lambda: bound.open_pair(box, key, ROOT, "c", "b"),
        lambda: bound.open_pair(box, key, ROOT, "b", "a"),
        lambda: bound.open_pair(shares, key, ROOT, "a", "b"),
        lambda: bound.open_shares(box, key, ROOT, "a", "b"),
    ):
        with pytest.raises(SealError):
            wrong()

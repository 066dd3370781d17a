"""Chained prefix hashes."""

from hypothesis import given
from hypothesis import strategies as st

from paceline_core.prefix import BLOCK_BYTES, prefix_hashes, shared_blocks


@given(st.binary(max_size=1500), st.binary(max_size=700), st.binary(max_size=700))
def test_hashes_agree_exactly_as_far_as_whole_blocks_do(common, a, b):
    x, y = prefix_hashes(common + a), prefix_hashes(common + b)
    equal = 0
    while common[:0] + (common + a)[: (equal + 1) * BLOCK_BYTES] == (common + b)[: (equal + 1) * BLOCK_BYTES]:
        if (equal + 1) * BLOCK_BYTES > min(len(common + a), len(common + b)):
            break
        equal += 1
    assert shared_blocks(x, y) == equal
    assert shared_blocks(x, y) >= len(common) // BLOCK_BYTES


def test_a_late_block_depends_on_the_first():
    tail = b"x" * BLOCK_BYTES
    assert prefix_hashes(b"a" * BLOCK_BYTES + tail)[1] != prefix_hashes(b"b" * BLOCK_BYTES + tail)[1]


def test_salts_keep_tenants_apart():
    text = b"y" * (3 * BLOCK_BYTES)
    assert shared_blocks(prefix_hashes(text, b"one"), prefix_hashes(text, b"two")) == 0


def test_blocks_are_bounded_and_whole():
    assert len(prefix_hashes(b"z" * (BLOCK_BYTES * 5 + 255))) == 5
    assert len(prefix_hashes(b"z" * (BLOCK_BYTES * 5), max_blocks=2)) == 2

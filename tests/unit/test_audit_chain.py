"""The audit chain: whatever is changed, removed, swapped or put in is found, and where; a key cannot be done without."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import audit
from aerodrome.core.audit import Broken, Head, Record

KEY, OTHER = b"k" * 32, b"o" * 32
COUNT = 8


def record(at: float = 1.0, **members) -> Record:
    return Record(**{"number": 0, "at": at, "action": "call", "outcome": "refused", "by": "user", **members})


def chain(count: int = COUNT, keys=()) -> list[bytes]:
    lines, head = [], Head()
    for number in range(count):
        line, head = audit.append(head, record(float(number), method=f"m{number}"), keys)
        lines.append(line)
    return lines


def walk(lines, keys=()) -> Head:
    head = Head()
    for line in lines:
        _, head = audit.check(head, line, keys)
    return head


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_a_chain_holds_as_it_was_written(keys):
    head = walk(chain(keys=keys), keys)
    assert (head.number, head.is_sealed) == (COUNT, bool(keys))


def test_a_record_is_written_with_sorted_keys_on_one_line():
    line = chain(1)[0]
    assert line.startswith(b'{"hash":"')
    assert b'"record":{"action":"call","at":0.0,"by":"user","method":"m0","number":1,"outcome":"refused"}' in line
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


@given(at=st.integers(0, COUNT - 1), position=st.integers(0, 10_000), byte=st.integers(0, 255), sealed=st.booleans())
def test_any_changed_byte_is_found_in_its_record_or_at_the_next(at, position, byte, sealed):
    keys = (KEY,) if sealed else ()
    lines = chain(keys=keys)
    position %= len(lines[at])
    assume(lines[at][position] != byte)
    lines[at] = lines[at][:position] + bytes([byte]) + lines[at][position + 1 :]
    with pytest.raises((Broken, errors.ConfigError)) as caught:
        walk(lines, keys)
    if isinstance(caught.value, Broken):
        assert caught.value.number == at + 1


@given(at=st.integers(0, COUNT - 2))
def test_a_removed_record_is_found_and_named(at):
    lines = chain()
    del lines[at]
    with pytest.raises(Broken, match=f"record {at + 1}: is missing") as caught:
        walk(lines)
    assert caught.value.number == at + 1


@given(pair=st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2, unique=True))
def test_swapped_records_are_found_at_the_first_of_them(pair):
    lines = chain()
    one, other = sorted(pair)
    lines[one], lines[other] = lines[other], lines[one]
    with pytest.raises(Broken) as caught:
        walk(lines)
    assert caught.value.number == one + 1


@given(at=st.integers(0, COUNT), copied=st.integers(0, COUNT - 1))
def test_a_copy_put_in_is_found_there(at, copied):
    lines = chain()
    lines.insert(at, lines[copied])
    with pytest.raises(Broken) as caught:
        walk(lines)
    assert caught.value.number in (at + 1, at + 2)


@given(at=st.integers(0, COUNT - 2))
def test_a_record_put_in_with_a_good_hash_breaks_the_one_behind_it(at):
    lines = chain()
    forged, _ = audit.append(walk(lines[:at]), record(99.0, method="forged"), ())
    with pytest.raises(Broken) as caught:
        walk([*lines[:at], forged, *lines[at:]])
    assert caught.value.number == at + 2
    with pytest.raises(Broken, match=f"record {at + 2}: does not follow record {at + 1}"):
        walk([*lines[:at], forged, *lines[at + 1 :]])


def test_a_chain_written_anew_without_the_key_does_not_hold():
    lines = chain(keys=(KEY,))
    forged, _ = audit.append(walk(lines[:3], (KEY,)), record(), (OTHER,))
    with pytest.raises(errors.ConfigError, match="record 4 is sealed with the key"):
        walk([*lines[:3], forged], (KEY,))
    unsealed, _ = audit.append(Head(3, walk(lines[:3], (KEY,)).hash), record(), ())
    with pytest.raises(Broken, match="record 4: is not sealed, though records before it are"):
        walk([*lines[:3], unsealed], (KEY,))


def test_a_sealed_chain_takes_no_unsealed_record():
    with pytest.raises(errors.ConfigError, match="AERODROME_AUDIT_KEY"):
        audit.append(walk(chain(keys=(KEY,)), (KEY,)), record(), ())


def test_a_key_is_replaced_by_one_before_it():
    line, _ = audit.append(walk(chain(keys=(OTHER,)), (OTHER,)), record(), (KEY, OTHER))
    assert walk([*chain(keys=(OTHER,)), line], (KEY, OTHER)).number == COUNT + 1


def test_keys_are_long_and_anchors_have_a_form():
    assert audit.parse_keys(f"{'a' * 32}, {'b' * 40}\n") == (b"a" * 32, b"b" * 40)
    with pytest.raises(errors.ConfigError, match="32 characters or more"):
        audit.parse_keys("short")
    head = walk(chain())
    assert audit.parse_anchor(str(head)) == head
    for text in ("", "1", "1:abc", f"x:{'0' * 64}", f"1:{'G' * 64}", f"-1:{'0' * 64}"):
        with pytest.raises(errors.ConfigError, match="NUMBER:HASH"):
            audit.parse_anchor(text)


def test_a_pseudonym_needs_its_salt():
    assert audit.pseudonym(b"1", "u", "ann") == audit.pseudonym(b"1", "u", "ann")
    assert len({audit.pseudonym(salt, kind, "ann") for salt in (b"1", b"2") for kind in "us"}) == 4


@given(st.text())
def test_a_field_stays_on_one_line_and_within_its_length(text):
    cut = audit.cut(text)
    assert cut is not None
    assert len(cut) <= audit.MAX_FIELD_CHARACTERS
    line, _ = audit.append(Head(), record(method=cut), ())
    assert walk([line]).number == 1

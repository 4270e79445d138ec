"""The cache of logits."""

import tracemalloc
from threading import Thread

import numpy as np
import pytest

from trunkline.core.errors import SpecError
from trunkline.engine.results_cache import ResultKey, ResultsCache, entry_bytes

KEY = ResultKey(branch="b" * 64, trunk="t" * 64, precision="fp32", row=b"\1\0\0\0|\0\0\0\0")
LOGITS = np.array([0.5, -1.25, 3.0], dtype=np.float32)


def key(number: int) -> ResultKey:
    return KEY._replace(row=number.to_bytes(4, "little"))


def room_for(n_entries: int) -> int:
    return n_entries * entry_bytes(key(0), LOGITS)


def kept(cache: ResultsCache, numbers: range) -> list[int]:
    return [number for number in numbers if cache.get(key(number)) is not None]


def test_what_was_put_is_found_bit_for_bit() -> None:
    cache = ResultsCache(room_for(2))
    tags = np.arange(12, dtype=np.float32).reshape(3, 4).T
    cache.put(KEY, tags)
    found = cache.get(KEY._replace())
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tags)


@pytest.mark.parametrize("part", ResultKey._fields)
def test_a_key_that_differs_in_one_part_finds_nothing(part: str) -> None:
    cache = ResultsCache(room_for(2))
    cache.put(KEY, LOGITS)
    other = getattr(KEY, part)[:-1] + (b"\1" if part == "row" else "x")
    assert cache.get(KEY._replace(**{part: other})) is None


def test_keys_of_equal_hash_are_still_told_apart() -> None:
    class Clash(bytes):
        def __hash__(self) -> int:
            return 1

    cache = ResultsCache(room_for(2))
    one, other = KEY._replace(row=Clash(b"1")), KEY._replace(row=Clash(b"2"))
    assert hash(one) == hash(other)
    cache.put(one, LOGITS)
    assert cache.get(other) is None


def test_arrays_handed_out_are_read_only_copies() -> None:
    cache = ResultsCache(room_for(2))
    mine = LOGITS.copy()
    cache.put(KEY, mine)
    mine[0] = 99.0
    found = cache.get(KEY)
    assert found is not None
    assert found[0] == LOGITS[0]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0
    assert mine.flags.writeable


def test_the_least_recently_used_is_forgotten_first() -> None:
    cache = ResultsCache(room_for(3))
    for number in range(3):
        cache.put(key(number), LOGITS)
    cache.get(key(0))
    cache.put(key(1), LOGITS)
    cache.put(key(3), LOGITS)
    assert kept(cache, range(4)) == [0, 1, 3]


def test_size_never_passes_the_limit_and_counts_what_is_kept() -> None:
    cache = ResultsCache(room_for(5) - 1)
    for number in range(20):
        cache.put(key(number % 7), np.zeros(1 + number % 3, dtype=np.float32))
        found = {each: logits for each in range(7) if (logits := cache.get(key(each))) is not None}
        assert cache.size_bytes == sum(entry_bytes(key(each), logits) for each, logits in found.items())
        assert 0 < cache.size_bytes <= room_for(5) - 1
        assert len(cache) == len(found)


def test_an_entry_as_large_as_the_limit_is_kept_and_a_larger_one_not() -> None:
    cache = ResultsCache(room_for(1))
    cache.put(key(0), LOGITS)
    cache.put(key(1), np.zeros(4, dtype=np.float32))
    assert kept(cache, range(2)) == [0]
    cache.put(key(2), LOGITS)
    assert kept(cache, range(3)) == [2]


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = ResultsCache(0)
    cache.put(KEY, LOGITS)
    assert (cache.get(KEY), len(cache), cache.size_bytes) == (None, 0, 0)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(SpecError, match="results cache: -1 bytes are not allowed"):
        ResultsCache(-1)


def test_hits_and_misses_are_counted() -> None:
    cache = ResultsCache(room_for(2))
    cache.get(KEY)
    cache.put(KEY, LOGITS)
    cache.get(KEY)
    cache.get(KEY)
    assert (cache.hits, cache.misses) == (2, 1)


@pytest.mark.parametrize("n_entries", [100, 683, 1366, 1400])  # tables have just grown, or are nearly full
def test_entries_take_no_more_memory_than_is_counted_and_not_much_less(n_entries: int) -> None:
    cache = ResultsCache(1 << 30)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(n_entries):
            # no two entries share a string here, though digests are shared in an engine
            cache.put(
                ResultKey(f"{number:064}", f"{number:064}", f"bf16 {number}", number.to_bytes(80, "little")), LOGITS
            )
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.75 * cache.size_bytes < taken <= cache.size_bytes


def test_threads_that_share_a_cache_leave_it_whole() -> None:
    cache = ResultsCache(room_for(8))
    wrong: list[object] = []

    def use(seed: int) -> None:
        draws = np.random.default_rng(seed).integers(0, 16, size=3000)
        for number in draws.tolist():
            try:
                found = cache.get(key(number))
                if found is not None and found[0] != number:
                    wrong.append(found)
                cache.put(key(number), np.full(3, number, dtype=np.float32))
            except (KeyError, RuntimeError) as error:
                wrong.append(error)

    threads = [Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.hits + cache.misses == 4 * 3000
    assert cache.size_bytes == room_for(8)
    assert len(cache) == 8


def test_reading_waits_while_another_thread_changes_the_cache() -> None:
    cache = ResultsCache(room_for(2))
    reader = Thread(target=cache.get, args=(KEY,))
    with cache._lock:
        reader.start()
        reader.join(timeout=0.05)
        assert reader.is_alive()
    reader.join()
    assert cache.misses == 1

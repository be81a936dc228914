"""What is told of clients' work: rates, keys, conditions, readers, and what it costs."""

import hashlib
import math
import time
from functools import partial

import pytest

from peerd.core.batch import BatchHeader
from peerd.core.ids import ShardId
from peerd.transport.workload import COUNTERS_MAX, PERIOD_S, Workload

ONE, TWO = ShardId(1), ShardId(2)


def hash_of(key: int) -> int:
    return int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8], "big")


def header(low: int = 0, high: int | None = None, records: int = 1, size: int = 100):
    return BatchHeader(
        record_count=records,
        payload_crc=0,
        payload_bytes=size,
        key_hash_low=low,
        key_hash_high=low if high is None else high,
    )


def told(workload: Workload, shard: ShardId = ONE):
    return workload.figures(PERIOD_S).shards[shard]


@pytest.fixture
def workload() -> Workload:
    made = Workload()
    assert made.figures(0.0).number == 0
    return made


def test_rates_and_shares_are_of_a_whole_interval(workload):
    for number in range(20):
        workload.appended(ONE, header(records=5, size=200), conditional=number < 5)
    workload.read(TWO, 300, age_ms=10)
    workload.read(TWO, 100, age_ms=3_600_000)
    assert workload.figures(PERIOD_S - 0.1).number == 0, "the interval is not over"
    one, two = told(workload), told(workload, TWO)
    assert (one.appends_per_s, one.records_per_s, one.bytes_per_s) == (2.0, 10.0, 400.0)
    assert (one.records_per_batch, one.conditional_share) == (5.0, 0.25)
    assert (two.read_bytes_per_s, two.cold_read_share) == (40.0, 0.25)
    # What did not happen has no share: NaN, not 0.
    assert math.isnan(one.cold_read_share)
    assert math.isnan(two.conditional_share)
    assert math.isnan(two.records_per_batch)
    assert workload.figures(2 * PERIOD_S).shards == {}
    assert workload.figures(2 * PERIOD_S).number == 2


@pytest.mark.parametrize("keys", [1, 10, 300, 5_000, 100_000])
def test_distinct_keys_are_estimated(workload, keys):
    for key in range(keys):
        workload.appended(ONE, header(hash_of(key)), conditional=False)
        if key % 3 == 0:
            workload.appended(ONE, header(hash_of(key)), conditional=False)
    # Three standard errors of the sketch.
    assert told(workload).distinct_keys == pytest.approx(keys, rel=0.2, abs=0.5)


@pytest.mark.parametrize("shards", [32, 65_536])
def test_the_keys_of_one_shard_of_many_are_told_apart(workload, shards):
    """They lie in a small part of the hashes."""
    for key in range(200):
        workload.appended(ONE, header(hash_of(key) // shards), conditional=False)
    assert told(workload).distinct_keys == pytest.approx(200, rel=0.2)


def test_a_batch_with_several_keys_shows_two_of_them_and_one_without_none(workload):
    for key in range(0, 40, 2):
        low, high = sorted((hash_of(key), hash_of(key + 1)))
        workload.appended(ONE, header(low, high, records=9), conditional=False)
    workload.appended(TWO, header(records=9), conditional=False)
    figures = workload.figures(PERIOD_S).shards
    assert figures[ONE].distinct_keys == pytest.approx(40, rel=0.2)
    assert figures[TWO].distinct_keys == 0
    assert math.isnan(figures[TWO].hottest_key_share)


def test_a_hot_key_is_found_among_many(workload):
    rounds = 3_000
    for number in range(rounds):
        hot = number % 2 == 0
        workload.appended(ONE, header(hash_of(-1 if hot else number)), conditional=False)
    share = told(workload).hottest_key_share
    assert 0.5 - 1 / (COUNTERS_MAX + 1) <= share <= 0.5


def test_the_reader_that_is_furthest_behind_is_told(workload):
    lags = {"a": 7, "b": 900}
    for reader, lag in lags.items():
        workload.reader_begins(reader, ONE, partial(int, lag))
    workload.reader_ends("never was there")
    one = told(workload)
    assert (one.readers, one.reader_lag_records) == (2, 900)
    workload.reader_ends("b")
    one = workload.figures(2 * PERIOD_S).shards[ONE]
    assert (one.readers, one.reader_lag_records) == (1, 7)


def test_an_account_costs_some_microseconds_a_batch(workload):
    headers = [header(hash_of(key)) for key in range(5_000)]
    begun_s = time.thread_time()
    for each in headers:
        workload.appended(ONE, each, conditional=False)
    spent_us = (time.thread_time() - begun_s) / len(headers) * 1e6
    assert spent_us < 25.0, "ten times what it takes"

"""The pool's clock follows Redis's, whatever this machine believes."""

import time

from app.clock import PoolClock


def test_until_redis_answers_the_clock_tells_local_time() -> None:
    assert abs(PoolClock().now_ms() - time.time() * 1000) < 1000


def test_the_clock_takes_over_the_time_that_redis_tells() -> None:
    clock = PoolClock()
    clock.adjust((86_400, 250_000), time.monotonic())
    assert 86_400_250 <= clock.now_ms() < 86_410_250
    clock.adjust((100, 0), time.monotonic())
    assert 100_000 <= clock.now_ms() < 110_000


def test_the_time_that_redis_tells_is_that_of_the_middle_of_the_round_trip() -> None:
    clock = PoolClock()
    clock.adjust((100, 0), time.monotonic() - 20)
    assert 110_000 <= clock.now_ms() < 115_000


def test_a_slow_answer_does_not_spoil_what_is_known_better_but_one_that_contradicts_it_counts() -> None:
    clock = PoolClock()
    clock.adjust((100, 0), time.monotonic())
    clock.adjust((95, 0), time.monotonic() - 20)  # now it is 95 to 115: nothing new
    assert 100_000 <= clock.now_ms() < 101_000
    clock.adjust((500, 0), time.monotonic() - 20)
    assert 510_000 <= clock.now_ms() < 511_000
    clock.adjust((501, 0), time.monotonic() - 1)
    assert 501_500 <= clock.now_ms() < 502_500

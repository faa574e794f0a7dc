"""The pool's clock follows Redis's, whatever this machine believes."""

from app.clock import PoolClock


def test_until_redis_answers_the_clock_tells_local_time() -> None:
    import time

    assert abs(PoolClock().now_ms() - time.time() * 1000) < 1000


def test_the_clock_takes_over_the_time_that_redis_tells() -> None:
    clock = PoolClock()
    clock.adjust((86_400, 250_000))
    assert 86_400_250 <= clock.now_ms() < 86_410_250
    clock.adjust((100, 0))
    assert 100_000 <= clock.now_ms() < 110_000

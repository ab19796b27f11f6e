"""Slots: how many trials fit a worker, and which devices each may see."""

import threading
from fractions import Fraction

import pytest

from dask_hpo.cluster.slots import DevicePool, slots_of, visible_devices
from dask_hpo.errors import ClusterError


def test_whole_devices_are_exclusive():
    pool = DevicePool(["0", "1", "2"])
    first, second = pool.acquire(2), pool.acquire(1)
    assert sorted(first + second) == ["0", "1", "2"]
    with pytest.raises(ClusterError, match="GPU=1 was asked for"):
        pool.acquire(1)
    pool.release(2, first)
    assert sorted(pool.acquire(2)) == sorted(first)


def test_shares_fill_one_device_before_the_next():
    pool = DevicePool(["0", "1"])
    halves = [pool.acquire(0.5) for _ in range(2)]
    assert halves[0] == halves[1]
    assert pool.acquire(1) != halves[0]


def test_ten_tenths_are_one_device():
    pool = DevicePool(["GPU-abc"])
    assert [pool.acquire(0.1) for _ in range(10)] == [("GPU-abc",)] * 10
    with pytest.raises(ClusterError, match="only this is free: GPU-abc: 0"):
        pool.acquire(0.1)
    for _ in range(10):
        pool.release(0.1, ("GPU-abc",))
    assert pool.acquire(1) == ("GPU-abc",)


def test_thirds_fit_three_times():
    pool = DevicePool(["0"])
    assert [pool.acquire(Fraction(1, 3)) for _ in range(3)] == [("0",)] * 3


@pytest.mark.parametrize("amount", [0, -1, 1.5, 1e-5, float("nan"), float("inf")])
def test_other_amounts_are_refused(amount):
    with pytest.raises(ClusterError, match="whole devices"):
        DevicePool(["0", "1"]).acquire(amount)


def test_a_worker_without_devices_says_so():
    with pytest.raises(ClusterError, match="there are none"):
        DevicePool([]).acquire(1)


def test_many_threads_never_share_a_whole_device():
    pool = DevicePool(["0", "1", "2"])
    held, clashes, gate = set(), [], threading.Semaphore(3)

    def take():
        for _ in range(200):
            with gate:
                (device,) = pool.acquire(1)
                clashes.extend(held & {device})
                held.add(device)
                held.discard(device)
                pool.release(1, (device,))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert len(pool.acquire(3)) == 3


@pytest.mark.parametrize(
    ("named", "offered", "expected"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        (None, 0.5, ["0"]),
        ("2,3", 2, ["2", "3"]),
        ("GPU-1a, MIG-2b", 1, ["GPU-1a", "MIG-2b"]),
        ("1,-1,2", 3, ["1"]),
        ("", 2, []),
    ],
)
def test_devices_are_those_that_cuda_sees(named, offered, expected):
    environ = {} if named is None else {"CUDA_VISIBLE_DEVICES": named}
    assert visible_devices(environ, offered) == expected


@pytest.mark.parametrize(
    ("offered", "nthreads", "needed", "expected"),
    [
        ({}, 4, {}, 4),
        ({"GPU": 2}, 4, {"GPU": 1}, 2),
        ({"GPU": 8}, 4, {"GPU": 1}, 4),
        ({"GPU": 1}, 8, {"GPU": 0.25}, 4),
        ({"GPU": 0.3}, 8, {"GPU": 0.1}, 3),
        ({}, 4, {"GPU": 1}, 0),
        ({"GPU": 4, "MEM": 100}, 4, {"GPU": 1, "MEM": 40}, 2),
        ({}, 4, {"GPU": 0}, 4),
    ],
)
def test_slots(offered, nthreads, needed, expected):
    assert slots_of(offered, nthreads, needed) == expected

"""The virtual clock: waits cost nothing, and add up exactly."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from batchinfer.testing import VirtualClock


def test_waits_add_up() -> None:
    """Threads that wait beside each other take as long as the longest, one after the other the sum."""
    with VirtualClock() as clock:
        began = time.monotonic()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(clock.sleep, [3600.0, 7200.0, 1.5]))
        assert clock.now() == 7200.0
        clock.sleep(10.0)
        assert clock.now() == 7210.0
        assert time.monotonic() - began < 60


def test_work_takes_no_time() -> None:
    """A thread that computes, or takes its turn with another, is waited for: the clock stands still."""
    passed: queue.Queue[int] = queue.Queue()
    with VirtualClock() as clock:

        def produce() -> None:
            """Compute for a while, then pass something on; three times."""
            for item in range(3):
                deadline = time.monotonic() + 0.05
                while time.monotonic() < deadline:
                    pass
                passed.put(item)
                clock.sleep(1.0)

        thread = threading.Thread(target=produce)
        thread.start()
        took = []
        for _ in range(3):
            passed.get()
            took.append(clock.now())
            clock.sleep(0.25)
        thread.join()
    assert took == [0.0, 1.0, 2.0]

"""A request to stop where there is nothing to save: it ends what is done there, and says so by the signal's code."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from launcher.errors import Interrupted, StoppedEarly
from launcher.stop import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def request_to_stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    request.listen()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, StoppedEarly), (signal.SIGUSR1, StoppedEarly), (signal.SIGINT, Interrupted)]
)
@pytest.mark.parametrize("is_early", [True, False])
def test_at_once(
    request_to_stop: StopRequest, number: signal.Signals, error: type[Exception], *, is_early: bool
) -> None:
    """Also when it came before, and past a library that keeps every exception to itself."""
    reached = []

    def work() -> None:
        try:
            reached.append("began")
            signal.raise_signal(number)
        except Exception:
            reached.append("swallowed")
        reached.append("went on")

    if is_early:
        signal.raise_signal(number)
    with pytest.raises(error, match="nothing yet"), request_to_stop.at_once("nothing yet"):
        work()
    assert reached == ([] if is_early else ["began"])


def test_elsewhere_the_loop_finds_it(request_to_stop: StopRequest) -> None:
    with request_to_stop.at_once("nothing yet"):
        pass
    signal.raise_signal(signal.SIGTERM)
    assert request_to_stop.look()

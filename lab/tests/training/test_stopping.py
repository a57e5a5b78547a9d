"""The first signal is a request, the second an interrupt; handlers are put back."""

from __future__ import annotations

import signal
import threading

import pytest
from equirelax_lab.training.stopping import SIGNALS, graceful_interrupt


@pytest.mark.parametrize("number", SIGNALS)
def test_once_and_twice(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with graceful_interrupt() as request:
        assert not request.made
        signal.raise_signal(number)
        assert request.made
        assert "again: at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_is_handled() -> None:
    handlers: list[object] = []

    def run() -> None:
        with graceful_interrupt() as request:
            handlers.extend([signal.getsignal(signal.SIGINT), request.made])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT), False]

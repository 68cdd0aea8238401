import os
import signal
import threading

import pytest

from lbgen.runs.signals import noted_signals


def test_first_signal_is_noted_and_the_second_acts_as_before():
    """Against what Python does by itself with SIGINT: KeyboardInterrupt."""
    with noted_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with noted_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_works_in_a_thread():
    """Only the main thread may set handlers; elsewhere a run simply cannot be interrupted."""
    lists = []

    def run():
        with noted_signals() as signals:
            lists.append(signals)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert lists == [[]]

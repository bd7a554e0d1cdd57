"""Signals that ask a run to stop."""

import os
import signal

import pytest

from contextdiff_jax.system.interruption import Watch


@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGHUP])
def test_a_notice_as_often_as_it_comes_only_asks(notice):
    with Watch() as watch:
        for _ in range(3):
            os.kill(os.getpid(), notice)
        assert watch.triggered


def test_under_nohup_a_closed_terminal_does_not_ask():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Watch() as watch:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not watch.triggered
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_notices_wait_that_would_end_the_process_at_once():
    """As notices.py does it: what reads the other end of this pipe ends the process."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    with Watch():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    assert signal.set_wakeup_fd(before) == writer


def test_a_second_ctrl_c_does_not_wait():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), Watch() as watch:
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.triggered
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_signals_act_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with Watch():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before

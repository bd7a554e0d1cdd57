"""Signals that ask a run to stop."""

import os
import signal

import pytest

from contextdiff_jax.training.interruption import Watch


def test_sigterm_as_often_as_it_comes_only_asks():
    with Watch() as watch:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert watch.triggered


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

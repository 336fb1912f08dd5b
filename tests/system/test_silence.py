"""Third-party output is suppressed, and nothing of ours is lost."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from evitseg.system.silence import silenced


def test_a_log_handler_made_in_silence_speaks_after_it() -> None:
    script = """
import logging
from evitseg.system.silence import silenced

with silenced():
    handler = logging.StreamHandler()  # of a library that is imported here
    logging.getLogger("library").addHandler(handler)
    logging.getLogger("library").error("noise")
logging.getLogger("library").error("heard")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("", "heard\n", 0)


def test_native_and_buffered_output_goes_nowhere() -> None:
    script = """
import ctypes, os, sys
from evitseg.system.silence import silenced

print("before")
with silenced():
    print("noise", flush=False)
    print("noise", file=sys.stderr)
    os.write(1, b"noise")
    ctypes.CDLL(None).puts(b"noise")
print("after")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("before\nafter\n", "")


def test_streams_that_are_no_descriptors_are_silenced_too(capsys: pytest.CaptureFixture[str]) -> None:
    with silenced():
        print("noise")
        print("noise", file=sys.stderr)
        warnings.warn("noise", stacklevel=1)
    print("heard")
    assert capsys.readouterr() == ("heard\n", "")


def test_two_threads_may_be_silent_at_the_same_time() -> None:
    # Enter one, enter two, leave one, leave two: each would have put back what the other had changed.
    script = """
import os, sys, threading
from evitseg.system.silence import silenced
before, streams = os.fstat(1).st_ino, (sys.stdout, sys.stderr)
entered, left = threading.Event(), threading.Event()

def other():
    with silenced():
        entered.set()
        left.wait(10)
        print("noise")

with silenced():
    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
left.set()
thread.join()
assert (os.fstat(1).st_ino, (sys.stdout, sys.stderr)) == (before, streams)
print("heard")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("heard\n", "", 0)


def test_an_interrupt_waits_while_a_converter_works() -> None:
    # In a process of its own: pytest's signal stack and processors with AMX do not go together.
    script = """
import signal
from evitseg.system.silence import silenced

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
for signals in (1, 2):
    done = False
    try:
        with silenced():
            signal.raise_signal(signal.SIGINT)
            print("noise")
            if signals == 2:
                signal.raise_signal(signal.SIGINT)  # a second one does not wait
            done = True
    except KeyboardInterrupt:
        print("interrupted", done)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["interrupted True", "interrupted False", "True", ""]
    assert run.stderr == ""

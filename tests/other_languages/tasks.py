"""What `tests/program/other_languages.rs` has served."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "python"))

from procpool_worker import Pairs, Some, serve, task

_prepared = []


@task("echo.v1")
def echo(value):
    return value


@task("add.v1")
def add(a, b):
    return a + b


@task("nothing.v1")
def nothing():
    return None


@task("pid.v1")
def pid():
    return os.getpid()


@task("describe.v1")
def describe(value):
    """How a value looks here."""

    def look(value):
        if isinstance(value, Some):
            return f"Some({look(value.value)})"
        if isinstance(value, Pairs):
            return "Pairs[" + ", ".join(f"{look(k)}: {look(v)}" for k, v in value) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{look(k)}: {look(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(look, value)) + "]"
        return repr(value)

    return look(value)


@task("halve.v1")
def halve(n):
    """A task's own result, good or bad."""
    return {"Err": f"{n} is odd"} if n % 2 else {"Ok": n // 2}


@task("fail.v1")
def fail(text):
    raise ValueError(text)


@task("no value.v1")
def no_value():
    return object()


@task("large.v1")
def large(size):
    return bytes(size)


@task("exit.v1")
def end(code):
    sys.exit(code)


@task("crash.v1")
def crash():
    ctypes.string_at(0)


@task("sleep.v1")
def sleep(path):
    """Says that it runs, and does not end."""
    child = subprocess.Popen(["sleep", "1000"])
    with open(path, "a") as log:
        log.write(f"{os.getpid()} {child.pid}\n")
    while True:
        time.sleep(1000)


@task("wait.v1")
def wait(log, gate):
    """Says that it runs, and waits until the gate exists."""
    with open(log, "a") as log:
        log.write(f"{os.getpid()}\n")
    while not os.path.exists(gate):
        time.sleep(0.001)
    return os.getpid()


@task("surroundings.v1")
def surroundings():
    blocked = [line for line in open("/proc/self/status") if line.startswith("SigBlk")][0].split()[1]
    return {
        "marker": os.environ.get("PROCPOOL_WORKER"),
        "stdin": os.readlink("/proc/self/fd/0"),
        "variable": os.environ.get("PROCPOOL_TEST_VARIABLE"),
        "blocked": int(blocked, 16),
        "leads": os.getpgrp() == os.getpid(),
        "arguments": sys.argv[1:],
        "prepared": list(_prepared),
    }


def init():
    if "fail in init" in sys.argv:
        raise RuntimeError("there is no model")
    _prepared.append("prepared")


serve(init)

"""A worker of a procpool pool in Python: serves tasks by name.

    from procpool_worker import serve, task

    @task("resize.v1")
    def resize(image, width):
        ...

    serve()

It needs the standard library and the package `msgpack`, and is written from procpool's `docs/protocol.md`. Copy it, and
change it as you like. Values come as Python has them; what has no like there, or is not what it looks like:

    Rust                              Python
    Vec<u8>, [u8; N], (u8, u8)        bytes; an empty one is []
    byte strings                      bytes
    list, tuple, tuple struct         list (what is written may be a tuple)
    struct                            dict from field name to value
    unit variant of an enum           str, its name
    any other variant                 dict of one entry, {"Name": content}
    Result                            {"Ok": value} or {"Err": error}
    None, (); Some(x)                 None; x
    Some(None), Some(())              Some(None)
    map                               dict; Pairs where a key is a list or a dict
    i128 and u128 beyond 64 bits      int

An exception in a task is told to its caller as a panic, with its text, its place and its traceback.
"""

import fcntl
import os
import signal
import socket
import struct
import sys
import traceback

import msgpack

HELLO, READY, INIT_FAILED, DONE, FAILED = 1, 2, 3, 4, 5
WELCOME, CALL = 32, 34
EXT_SOME, EXT_BYTES, EXT_I128, EXT_U128 = 1, 2, 3, 4
HANDSHAKE_LIMIT = 64 << 10
# Kept free for the heads around a result or a text.
SPARE = 128

_tasks = {}


def task(name):
    """Serves a function under this name."""

    def register(function):
        if name in _tasks:
            raise ValueError(f"two tasks are named {name}")
        _tasks[name] = function
        return function

    return register


# ---- values


class Some:
    """An option whose content reads as nothing."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Some) and self.value == other.value

    def __repr__(self):
        return f"Some({self.value!r})"


class Pairs(list):
    """A map, as a list of its pairs: where a key is one that a dict cannot have."""


def _from_pairs(pairs):
    try:
        return dict(pairs)
    except TypeError:  # keys that cannot be keys here
        return Pairs(pairs)


def _from_ext(code, content):
    if code == EXT_SOME:
        return Some(decode(content))
    if code == EXT_BYTES:
        return content
    if code in (EXT_I128, EXT_U128) and len(content) == 16:
        return int.from_bytes(content, "big", signed=code == EXT_I128)
    raise ValueError(f"unknown extension {code} of {len(content)} bytes")


def _write(packer, value):
    if isinstance(value, (dict, Pairs)):
        pairs = value.items() if isinstance(value, dict) else value
        packer.pack_map_header(len(pairs))
        for key, content in pairs:
            _write(packer, key)
            _write(packer, content)
    elif isinstance(value, (list, tuple)):
        packer.pack_array_header(len(value))
        for element in value:
            _write(packer, element)
    elif isinstance(value, Some):
        packer.pack_ext_type(EXT_SOME, encode(value.value))
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        signed = value < 1 << 127
        content = value.to_bytes(16, "big", signed=signed)
        packer.pack_ext_type(EXT_I128 if signed else EXT_U128, content)
    else:
        packer.pack(value)


def encode(value):
    packer = msgpack.Packer(autoreset=False)
    _write(packer, value)
    return packer.bytes()


def decode(content):
    return msgpack.unpackb(content, strict_map_key=False, ext_hook=_from_ext, object_pairs_hook=_from_pairs)


# ---- the socket


class _Pool:
    def __init__(self, connection):
        self.connection = connection
        self.received = bytearray()

    def send(self, *elements, descriptors=()):
        self.send_body(encode(list(elements)), descriptors)

    def send_body(self, body, descriptors=()):
        frame = struct.pack("<I", len(body)) + body
        sent = 0
        if descriptors:
            sent = socket.send_fds(self.connection, [frame], descriptors)
        self.connection.sendall(frame[sent:])

    def _take(self, count):
        while len(self.received) < count:
            more = self.connection.recv(max(count - len(self.received), 1 << 16))
            if not more:
                return None
            self.received += more
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    def receive(self, limit):
        """The body of the next frame, or None when the pool has closed its side."""
        head = self._take(4)
        if head is None:
            return None
        (length,) = struct.unpack("<I", head)
        if length > limit:
            refuse(f"a frame of {length} bytes, where {limit} is the limit")
        return self._take(length)

    def receive_welcome(self):
        """The first message, and the descriptors that come with it."""
        frame, descriptors = bytearray(), []
        while len(frame) < 4 or len(frame) < 4 + struct.unpack("<I", frame[:4])[0]:
            # No more than this frame: what follows is read without descriptors.
            due = 4 if len(frame) < 4 else 4 + struct.unpack("<I", frame[:4])[0]
            if due > 4 + HANDSHAKE_LIMIT:
                refuse("a welcome that is too long")
            more, fds, _, _ = socket.recv_fds(self.connection, due - len(frame), 2)
            descriptors += fds
            if not more:
                refuse("the pool has gone")
            frame += more
        return bytes(frame[4:]), descriptors


def refuse(why):
    print(f"procpool_worker: this process cannot be a worker: {why}", file=sys.stderr, flush=True)
    os._exit(126)


# ---- the life of a worker


def _take_socket():
    if os.environ.pop("PROCPOOL_WORKER", None) != "protocol-2":
        refuse("it was not started by a pool")
    try:
        connection = socket.socket(fileno=os.dup(0))  # close-on-exec, as all descriptors that Python makes
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError as error:
        refuse(f"its standard input is no socket ({error})")
    # Nobody but the process that started this one may give it orders.
    if struct.unpack("3i", credentials)[0] != os.getppid():
        refuse("the socket at its standard input was not made by its parent")
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return connection


def _arm_lifeline():
    """Whatever happens at our end kills this process and its group: the end of the application does."""
    ours, theirs = socket.socketpair()
    own = os.getpid()
    fcntl.fcntl(ours, 10, signal.SIGKILL)  # F_SETSIG, which the module does not name
    fcntl.fcntl(ours, fcntl.F_SETOWN, -own if os.getpgrp() == own else own)
    fcntl.fcntl(ours, fcntl.F_SETFL, fcntl.fcntl(ours, fcntl.F_GETFL) | os.O_ASYNC)
    return ours, theirs


def _take_stderr(descriptor):
    """What was written so far went to a file; it is written out."""
    sys.stderr.flush()
    early = b""
    try:
        os.lseek(2, 0, os.SEEK_SET)
        while more := os.read(2, 1 << 16):
            early += more
    except OSError:
        pass  # somebody has put something else in its place
    os.dup2(descriptor, 2)
    os.close(descriptor)
    if early:
        os.write(2, early)


def _failure(kind, **texts):
    return {kind: texts}


def _panicked(error, limit, backtrace):
    texts = {"message": f"{type(error).__name__}: {error}", "location": None, "backtrace": None}
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        texts["location"] = f"{frames[-1].filename}:{frames[-1].lineno}"
    if backtrace:
        texts["backtrace"] = "".join(traceback.format_exception(error))
    # They must fit into a frame, all together.
    share = max(0, limit - SPARE) // 3
    for name, text in texts.items():
        if text is not None:
            texts[name] = text.encode("utf-8", "replace")[:share].decode("utf-8", "ignore")
    return _failure("Panicked", **texts)


def _answer(pool, body, limit):
    try:
        # The package takes no arguments apart that cannot be decoded, so the number is lost with them.
        message = decode(body)
    except Exception as error:
        number = _number_of(body)
        return pool.send(FAILED, number, _failure("Arguments", reason=str(error)))
    kind, _slot, _attempt, number, flags, name, *arguments = message
    if kind != CALL:
        refuse(f"a message of kind {kind} instead of a call")
    function = _tasks.get(name)
    if function is None:
        return pool.send(FAILED, number, "Unknown")
    try:
        result = function(*arguments)
    except Exception as error:
        return pool.send(FAILED, number, _panicked(error, limit, backtrace=not flags & 2))
    try:
        answer = encode(result)
    except Exception as error:
        return pool.send(FAILED, number, _failure("Result", reason=str(error)))
    if len(answer) > limit - SPARE:
        return pool.send(FAILED, number, "TooLarge")
    # In place: an array of three, the kind, the number, and the result as it is.
    pool.send_body(b"\x93" + encode(DONE) + encode(number) + answer)


def _number_of(body):
    """The number of a call whose arguments cannot be decoded."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body[:64])
    count = unpacker.read_array_header()
    kind, _slot, _attempt, number = (unpacker.unpack() for _ in range(4))
    if count < 6 or kind != CALL:
        refuse("a message that is no call")
    return number


def serve(init=None):
    """Serves the pool that has started this process, until it closes its side; then the process ends.

    `init` is called before the first task. What it raises fails the start, and is told to those who wait for it.
    """
    connection = _take_socket()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever starts us has blocked them all
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pool = _Pool(connection)
    _ours, theirs = _arm_lifeline()
    pool.send(HELLO, {"protocol": 2, "version": "python"}, descriptors=[theirs.fileno()])
    theirs.close()  # from here on the application's copy is the only one

    body, descriptors = pool.receive_welcome()
    kind, welcome = decode(body)
    if kind != WELCOME or len(descriptors) != 2:
        refuse("no welcome with two descriptors")
    memory, stderr = descriptors
    os.close(memory)  # one may do without
    _take_stderr(stderr)
    limit = welcome["frame_limit"]

    if init is not None:
        try:
            init()
        except Exception as error:
            traceback.print_exc()
            pool.send(INIT_FAILED, _failure("Error", message=f"{type(error).__name__}: {error}"))
            connection.recv(1)  # the pool reads why, and kills
            os._exit(1)
    pool.send(READY)
    while (body := pool.receive(limit)) is not None:
        _answer(pool, body, limit)
    sys.exit(0)

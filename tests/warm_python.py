"""A Python that starts at once: its processes are forked from one that has imported the libraries.

`started` gives an executable to take the place of Python; it has a server start a process with the arguments,
environment, folder, open files, signals and exit code that it would have itself. So do processes that this one starts.
All that is spared is importing torch, diffusers and transformers, 6 seconds of CPU each time.

Not for tests of what happens at the start, nor with variables that libraries read when they are imported.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PRELOADED = (
    "lbgen.cli",
    "lbgen.alignment.run",
    "lbgen.audit.run",
    "lbgen.generation.verify",
    "lbgen.generation.workers.dispatch",
    "lbgen.models.families.stable_diffusion",
    "lbgen.pretraining.loop",
)
HIGH = 500
"""The server's own files have lower numbers, and so have those of callers."""


@contextmanager
def started(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The path of an executable, as long as the context lasts.

    environment: variables that the libraries find besides the present ones when they are imported.
    """
    import subprocess
    import tempfile
    import time
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:  # not one of pytest's: the path of a socket has at most 107 characters
        address, executable = Path(name, "socket"), Path(name, "python")
        python = os.path.realpath("/proc/self/exe")
        executable.write_text(f'#!/bin/sh\nexec {python} -I -S {__file__} {address} "$@"\n')
        executable.chmod(0o755)
        command = [sys.executable, __file__, "serve", address, executable]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | (environment or {}))
        while not address.exists():
            assert server.poll() is None, "the server ended"
            time.sleep(0.02)
        yield str(executable)
        server.communicate()


# ---- the caller: imports as little as it can ----


def call(address: str, arguments: list[str]) -> None:
    """Start a process with this one's files, environment and folder, and end as it ends.

    It gets the signals that this one gets; where this one is killed, so is it.
    """
    import marshal

    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    files = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    files.remove(server.fileno())
    blocked = [int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, frame: server.send(bytes([signum])))
    request = marshal.dumps((arguments, os.getcwd(), dict(os.environb), files, blocked))
    socket.send_fds(server, [len(request).to_bytes(4)], files)
    server.sendall(request)
    code = int.from_bytes(server.recv(4), signed=True)
    if code < 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# ---- the server ----


def serve(address: str, executable: str) -> None:
    """Import the libraries, then start processes until standard input ends."""
    import gc
    import importlib
    import selectors

    gc.disable()
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    listener, waiting = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(f"{address}-not-ready")
    listener.listen()
    os.rename(f"{address}-not-ready", address)

    def begin() -> None:
        caller, _ = listener.accept()
        request, files = received(caller)
        if not (pid := os.fork()):
            try:
                become(executable, files, *request)
            finally:  # also after an error of ours
                os._exit(1)
        for file in files:
            os.close(file)
        end_of_process = os.pidfd_open(pid)
        waiting.register(caller, selectors.EVENT_READ, lambda: pass_on(caller, pid))
        waiting.register(end_of_process, selectors.EVENT_READ, lambda: end(caller, pid, end_of_process))

    def pass_on(caller: socket.socket, pid: int) -> None:
        signum = caller.recv(1)  # nothing where the caller was killed
        os.kill(pid, signum[0] if signum else signal.SIGKILL)
        if not signum:
            waiting.unregister(caller)

    def end(caller: socket.socket, pid: int, end_of_process: int) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if caller in waiting.get_map():
            waiting.unregister(caller)
            caller.sendall(code.to_bytes(4, signed=True))
        caller.close()
        waiting.unregister(end_of_process)
        os.close(end_of_process)

    waiting.register(listener, selectors.EVENT_READ, begin)
    waiting.register(sys.stdin, selectors.EVENT_READ, lambda: os._exit(0))
    while True:
        for key, _ in waiting.select()[:1]:  # one a look: what it does may be the end of another
            key.data()


def received(caller: socket.socket) -> tuple[tuple, list[int]]:
    """A request, and the open files that came with it."""
    import marshal

    length, files, _, _ = socket.recv_fds(caller, 4, 250)
    content = b""
    while len(content) < int.from_bytes(length):
        content += caller.recv(1 << 20)
    return marshal.loads(content), files


# ---- the process ----


def become(executable: str, files: list[int], arguments: list[str], folder: str, environment: dict, numbers, blocked):
    """Be the process that the caller would have been, and end."""
    import atexit
    import fcntl
    import multiprocessing
    import threading
    import traceback

    # Files: those of the caller, by their numbers there, and no other.
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    os.closerange(3, HIGH)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(HIGH, HIGH + len(files))

    # Surroundings.
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(environment)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = executable
    multiprocessing.set_executable(executable)

    # The program, and the end of it as Python ends.
    code = 1
    try:
        run(arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 255)


def run(arguments: list[str]) -> None:
    """Options of Python, then -c PROGRAM, -m MODULE, a script or "-", and its own arguments."""
    import runpy
    from types import ModuleType

    while arguments[0] in ("-u", "-B"):  # as pytest and torchrun are started, and what multiprocessing passes on
        if arguments.pop(0) == "-u":
            sys.stdout.reconfigure(write_through=True)
    kind, *rest = arguments
    sys.modules["__main__"] = main = ModuleType("__main__")
    if kind == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind in ("-c", "-"):
        if kind == "-":
            rest.insert(0, sys.stdin.read())
            main.__file__ = "<stdin>"
        program, *rest = rest
        sys.argv, sys.path[0] = [kind, *rest], ""
        exec(compile(program, "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    call(sys.argv[1], sys.argv[2:])

"""The warden: a tiny process between us and every command we start, so that its whole tree can be proven gone.

    python -I -S _warden.py PARENT GRACE_S NOTE -- COMMAND...

It is a *child subreaper*: every descendant that loses its parent (double fork, `setsid`) becomes its child, so
`waitpid` saying "no children" is the kernel's own proof that nothing is left. It ends the tree when the command ends,
when it gets SIGTERM, SIGINT or SIGHUP (TERM to all, GRACE_S seconds later KILL), and when its parent dies (KILL at
once). If the warden itself is killed with -9, the command dies with it (PR_SET_PDEATHSIG); `_process_tree` finds the
rest.

PARENT is a pid, 0 for a service that outlives its starter, or `env:NAME` for a pid in the environment. NOTE is 1 if the
end of the command is to be written to stderr. The exit status is the command's own. Standard library only, started
with `-I -S`: it costs about 10 MB and 20 ms. Linux only, as PR_SET_CHILD_SUBREAPER is.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PARENT_DIED = signal.SIGUSR1
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_POLL_S = 0.02
_STRAGGLER_GRACE_S = 1.0


class _Tree:
    """All descendants of this process; `status` is the command's wait status once it ended."""

    def __init__(self, command_pid: int) -> None:
        self._command_pid = command_pid
        self.status: int | None = None
        self.is_gone = False

    def reap(self) -> None:
        """Collect everything that has ended; afterwards `is_gone` tells whether nothing is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.is_gone = True
                return
            if pid == 0:
                return
            if pid == self._command_pid:
                self.status = status

    def signal_all(self, number: signal.Signals) -> None:
        """Signal every living descendant. Safe against pid reuse for our own children: only we can reap them."""
        for pid in _descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue


def main(arguments: Sequence[str]) -> int:
    """Run the command under guard and return its exit code; dies of the command's signal if it died of one."""
    parent_text, grace_text, note, _, *command = arguments
    parent = _parent_pid(parent_text)
    handled = {*_STOP_SIGNALS, _PARENT_DIED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if parent:
        _prctl(_PR_SET_PDEATHSIG, _PARENT_DIED)
        if os.getppid() != parent:  # it died before the line above
            return 128 + signal.SIGKILL
    tree = _Tree(_spawn(command))
    _let_go_of_pipes()
    _guard(tree, parent=parent, grace_s=float(grace_text), handled=handled)
    if note == "1":
        _note_end(tree.status)
    return _leave(tree.status)


def _guard(tree: _Tree, *, parent: int, grace_s: float, handled: set[signal.Signals]) -> None:
    """Wait for the end of the command or for an order to stop, then until no descendant is left."""
    kill_at: float | None = None
    while True:
        tree.reap()
        if tree.is_gone:
            return
        if tree.status is not None and kill_at is None:
            tree.signal_all(signal.SIGTERM)
            kill_at = time.monotonic() + min(grace_s, _STRAGGLER_GRACE_S)
        if kill_at is None:
            received: int | None = signal.sigwaitinfo(handled).si_signo
        else:
            if time.monotonic() >= kill_at:
                tree.signal_all(signal.SIGKILL)
            info = signal.sigtimedwait(handled, _POLL_S)
            received = info.si_signo if info else None
        if received == _PARENT_DIED and os.getppid() != parent:  # else: only the thread that started us ended
            kill_at = time.monotonic()
        elif received in _STOP_SIGNALS and kill_at is None:
            tree.signal_all(signal.SIGTERM)
            tree.signal_all(signal.SIGCONT)  # a stopped process would not see the TERM
            kill_at = time.monotonic() + grace_s


def _spawn(command: Sequence[str]) -> int:
    warden = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == warden:
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            os.execvp(command[0], list(command))
    except OSError as exc:
        sys.stderr.write(f"cannot start `{command[0]}`: {os.strerror(exc.errno or 0)}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)
    raise AssertionError("unreachable")


def _let_go_of_pipes() -> None:
    """Leave standard input and output to the command, so that their ends are seen when it closes them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    if nothing > 1:
        os.close(nothing)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  # every 20 ms while stopping; pathlib is three times slower
        if entry.isdecimal():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:
                continue
            parent = int(stat.rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent_pid(text: str) -> int:
    return int(os.environ[text[4:]] if text.startswith("env:") else text)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _note_end(status: int | None) -> None:
    code = os.waitstatus_to_exitcode(status or 0)
    reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    sys.stderr.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] the process ended with {reason}\n")


def _leave(status: int | None) -> int:
    code = os.waitstatus_to_exitcode(status or 0)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has left its core; ours says nothing
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

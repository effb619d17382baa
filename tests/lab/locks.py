"""A program that locks files of the volume, for locks.sh. KIND is flock, posix or ofd.

  count KIND FILE TIMES    so many times: lock, read the number in FILE, write it plus one, unlock
  hold KIND FILE           locks, says "held", and keeps it until a line comes
  try KIND FILE            exit 0 if the lock is free, 1 if it is not
  wait KIND FILE           says "waits", then "got" once it has the lock
  interrupted KIND FILE    says "interrupted" when a timer ends its waiting, and how late that was
  cross KIND A B FIRST SECOND    locks A, makes the file FIRST, waits for the file SECOND, then locks B
  keep DATABASE NODE TIMES       so many transactions of SQLite
"""
import errno
import fcntl
import os
import signal
import sqlite3
import struct
import sys
import time

OFD_SETLK, OFD_SETLKW = 37, 38


def lock(kind, fd, wait=True, unlock=False):
    if kind == "flock":
        fcntl.flock(fd, fcntl.LOCK_UN if unlock else fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    what = struct.pack("hhqqi4x", fcntl.F_UNLCK if unlock else fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    if kind == "posix":
        fcntl.fcntl(fd, fcntl.F_SETLKW if wait else fcntl.F_SETLK, what)
    else:
        fcntl.fcntl(fd, OFD_SETLKW if wait else OFD_SETLK, what)


def opened(path):
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def say(*words):
    print(*words, flush=True)


def count(kind, path, times):
    fd = opened(path)
    for _ in range(int(times)):
        lock(kind, fd)
        number = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%d\n" % (number + 1), 0)
        lock(kind, fd, unlock=True)


def hold(kind, path):
    fd = opened(path)
    lock(kind, fd)
    say("held")
    sys.stdin.readline()


def try_it(kind, path):
    try:
        lock(kind, opened(path), wait=False)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        sys.exit(1)


def wait(kind, path):
    fd = opened(path)
    say("waits")
    lock(kind, fd)
    say("got")


class Timer(Exception):
    pass


def interrupted(kind, path):
    def ring(*_):
        raise Timer

    fd = opened(path)
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1)
    began = time.monotonic()
    try:
        lock(kind, fd)
    except Timer:
        say("interrupted after %.3f s" % (time.monotonic() - began))
        return
    sys.exit("it got the lock")


def cross(kind, first, second, mine, theirs):
    a, b = opened(first), opened(second)
    lock(kind, a)
    open(mine, "w").close()
    while not os.path.exists(theirs):
        time.sleep(0.05)
    try:
        lock(kind, b)
    except OSError as error:
        if error.errno != errno.EDEADLK:
            raise
        say("EDEADLK")
        return
    say("got both")


def keep(path, node, times):
    for number in range(int(times)):
        base = sqlite3.connect(path, timeout=120, isolation_level=None)
        base.execute("begin immediate")
        base.execute("insert into entries values (?, ?)", (node, number))
        base.execute("update total set n = n + 1")
        base.execute("commit")
        base.close()


{"count": count, "hold": hold, "try": try_it, "wait": wait, "interrupted": interrupted,
 "cross": cross, "keep": keep}[sys.argv[1]](*sys.argv[2:])

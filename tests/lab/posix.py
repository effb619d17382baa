#!/usr/bin/env python3
"""What POSIX and the Linux manual pages say of a file system, one claim a check.

    posix.py FOLDER [--reference] [--only WORD] [--many COUNT]

FOLDER is an empty directory of the file system to be judged; run as root, since much of it is about who may do what
(children take other identities). With --reference FOLDER is on a local file system of Linux, which shows that the
claims are true; claims that only some of them keep are left out there.
"""
import argparse
import contextlib
import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
checks = []
# uid, gid, other groups
ANN, BOB = (61001, 61001, [61100]), (61002, 61002, [61200])


def check(text, reference=True, shared=None):
    """`reference`: a local file system keeps it, too; `shared`: only where mappings are shared, or only where they are not."""
    def add(body):
        checks.append((text, body, reference, shared))
        return body
    return add


def call(name, *args):
    result = getattr(libc, name)(*args)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(args))
    return result


def renameat2(old, new, flags):
    return call("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def linkat(old, new, flags):
    return call("linkat", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def fallocate(fd, mode, offset, length):
    return call("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


@contextlib.contextmanager
def fails(*numbers):
    try:
        yield
    except OSError as error:
        assert error.errno in numbers, f"{errno.errorcode.get(error.errno)} instead of {[errno.errorcode[n] for n in numbers]}"
    else:
        raise AssertionError(f"succeeded instead of {[errno.errorcode[n] for n in numbers]}")


def become(who):
    uid, gid, groups = who
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def child(body):
    """Runs body in a process of its own; its failure is ours."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException:
            os.write(into, traceback.format_exc().encode()[-3000:])
            os._exit(1)
    os.close(into)
    with os.fdopen(out, "rb") as words:
        said = words.read().decode()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"status {status}: {said}"


def as_user(who, body):
    def run():
        become(who)
        body()
    child(run)


def put(path, content=b"content", mode=0o644, user=None):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    if content:
        assert os.write(fd, content) == len(content)
    if user:
        os.fchown(fd, user[0], user[1])
    os.fchmod(fd, mode)
    os.close(fd)
    return path


def get(path):
    with open(path, "rb") as file:
        return file.read()


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def times(path):
    seen = os.lstat(path)
    return seen.st_atime_ns, seen.st_mtime_ns, seen.st_ctime_ns


def pause():
    time.sleep(0.02)


class Changed:
    """Which of a path's times move while the block runs."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.before = times(self.path)
        pause()
        return self

    def __exit__(self, *_):
        after = times(self.path)
        self.what = "".join(c for c, old, new in zip("amc", self.before, after) if old != new)
        assert all(new >= old for old, new in zip(self.before[1:], after[1:])), "a time went back"


def attribute(path, name, value=None, flags=0):
    if value is None:
        return os.getxattr(path, name, follow_symlinks=False)
    os.setxattr(path, name, value, flags, follow_symlinks=False)


# --- Files and their names ---------------------------------------------------------------------

@check("a new file has the caller's owner and group, mode & ~umask, size 0, one link, and now as all times")
def _():
    def body():
        os.umask(0o027)
        start = time.time() - 2
        os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o666))
        seen = os.stat("d/f")
        assert (seen.st_uid, seen.st_gid) == ANN[:2]
        assert stat.S_IMODE(seen.st_mode) == 0o640 and seen.st_size == 0 and seen.st_nlink == 1
        assert seen.st_mtime == seen.st_ctime and abs(seen.st_mtime - time.time()) < 60 and seen.st_mtime >= start - 60
    os.mkdir("d")
    os.chmod("d", 0o777)
    as_user(ANN, body)


@check("umask applies to mkdir, mknod and files, not to symlinks")
def _():
    os.umask(0o077)
    os.mkdir("d", 0o777)
    os.mknod("p", stat.S_IFIFO | 0o666)
    os.symlink("x", "l")
    os.umask(0o022)
    assert mode_of("d") == 0o700 and mode_of("p") == 0o600 and mode_of("l") == 0o777


@check("O_EXCL refuses what exists, also a dangling symlink; O_CREAT through one makes its target")
def _():
    os.symlink("target", "l")
    with fails(errno.EEXIST):
        os.open("l", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open("l", os.O_CREAT | os.O_WRONLY))
    assert stat.S_ISREG(os.lstat("target").st_mode)


@check("O_NOFOLLOW on a symlink is ELOOP, O_DIRECTORY on a file ENOTDIR, writing a directory EISDIR")
def _():
    put("f")
    os.symlink("f", "l")
    with fails(errno.ELOOP):
        os.open("l", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.ENOTDIR):
        os.open("f", os.O_RDONLY | os.O_DIRECTORY)
    os.mkdir("d")
    with fails(errno.EISDIR):
        os.open("d", os.O_RDWR)
    with fails(errno.EISDIR):
        os.open("d", os.O_RDONLY | os.O_CREAT)
    with fails(errno.ENOTDIR):
        os.stat("f/x")
    with fails(errno.ENOENT):
        os.stat("nothing/x")


@check("a loop of symlinks is ELOOP")
def _():
    os.symlink("b", "a")
    os.symlink("a", "b")
    with fails(errno.ELOOP):
        os.open("a", os.O_RDONLY)


@check("O_TRUNC empties, O_APPEND writes at the end whatever was sought, also from two handles in turn")
def _():
    put("f", b"12345")
    one = os.open("f", os.O_WRONLY | os.O_APPEND)
    two = os.open("f", os.O_WRONLY | os.O_APPEND)
    for fd, text in ((one, b"a"), (two, b"b"), (one, b"c")):
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, text)
    assert get("f") == b"12345abc"
    os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    assert get("f") == b""
    os.write(one, b"z")
    assert get("f") == b"z"
    os.close(one)
    os.close(two)


@check("O_TMPFILE makes a nameless file; linkat through /proc/self/fd names it; with O_EXCL it cannot be named")
def _():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b"nameless")
    assert os.listdir(".") == []
    linkat(f"/proc/self/fd/{fd}", "named", AT_SYMLINK_FOLLOW)
    assert os.fstat(fd).st_nlink == 1 and get("named") == b"nameless" and mode_of("named") == 0o640
    with fails(errno.EEXIST):
        linkat(f"/proc/self/fd/{fd}", "named", AT_SYMLINK_FOLLOW)
    os.close(fd)
    assert get("named") == b"nameless"
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
    with fails(errno.ENOENT):
        linkat(f"/proc/self/fd/{fd}", "never", AT_SYMLINK_FOLLOW)
    os.close(fd)
    os.mkdir("d")
    os.chmod("d", 0o555)
    def no_right():
        with fails(errno.EACCES):
            os.open("d", os.O_TMPFILE | os.O_RDWR)
    as_user(ANN, no_right)


@check("mknod makes fifos, sockets and devices of the right numbers; only root makes devices; a fifo carries bytes")
def _():
    os.mknod("p", stat.S_IFIFO | 0o600)
    os.mknod("s", stat.S_IFSOCK | 0o600)
    os.mknod("c", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("b", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.mknod("r", stat.S_IFREG | 0o600)
    assert stat.S_ISFIFO(os.stat("p").st_mode) and stat.S_ISSOCK(os.stat("s").st_mode) and stat.S_ISREG(os.stat("r").st_mode)
    assert stat.S_ISCHR(os.stat("c").st_mode) and os.stat("c").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.stat("b").st_mode) and os.stat("b").st_rdev == os.makedev(259, 70000)
    pid = os.fork()
    if pid == 0:
        fd = os.open("p", os.O_WRONLY)
        os.write(fd, b"through")
        os._exit(0)
    assert get("p") == b"through"
    os.waitpid(pid, 0)
    os.mkdir("d")
    os.chmod("d", 0o777)
    def device():
        with fails(errno.EPERM):
            os.mknod("d/c", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    as_user(ANN, device)


@check("a UNIX socket is bound and connected to; bind to an existing name is EADDRINUSE")
def _():
    here = socket.socket(socket.AF_UNIX)
    here.bind("sock")
    here.listen()
    there = socket.socket(socket.AF_UNIX)
    there.connect("sock")
    there.send(b"x")
    assert here.accept()[0].recv(1) == b"x"
    with fails(errno.EADDRINUSE):
        socket.socket(socket.AF_UNIX).bind("sock")


@check("symlinks: targets of 1 and 4095 bytes, an empty one is ENOENT, one of 4096 ENAMETOOLONG; size is the length")
def _():
    os.symlink("x" * 4095, "long")
    assert os.readlink("long") == "x" * 4095 and os.lstat("long").st_size == 4095
    with fails(errno.ENOENT):
        os.symlink("", "empty")
    with fails(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, "over")
    with fails(errno.EINVAL):
        os.readlink(put("f"))
    os.symlink(b"\xff\x01 \n", "bytes")
    assert os.readlink(b"bytes") == b"\xff\x01 \n"


@check("names of any bytes but / and NUL, up to 255; 256 is ENAMETOOLONG in every call")
def _():
    every = bytes(b for b in range(1, 256) if b != ord("/"))
    names = [every[:127], every[127:], b"n" * 255, b"\xff" * 255, b"-", b" ", b".x", b"..."]
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(b".")) == sorted(names)
    long = "n" * 256
    for step in (lambda: os.open(long, os.O_CREAT), lambda: os.mkdir(long), lambda: os.stat(long), lambda: os.symlink("x", long),
                 lambda: os.link(b"-", long), lambda: os.rename(b"-", long), lambda: os.unlink(long), lambda: os.mknod(long)):
        with fails(errno.ENAMETOOLONG):
            step()


@check("a path of 4095 bytes works, a longer one is ENAMETOOLONG, and deeper paths are reached step by step")
def _():
    start = os.getcwd()
    part = "d" * 200
    for _ in range(25):
        os.mkdir(part)
        os.chdir(part)
    put("f", b"deep")
    os.chdir(start)
    path = "/".join([part] * 20)
    path = path + "/" + "./" * ((4095 - len(path) - 1) // 2)
    assert 4093 <= len(path) <= 4095
    os.stat(path)
    with fails(errno.ENAMETOOLONG):
        os.stat("/".join([part] * 21))
    for _ in range(25):
        os.chdir(part)
    assert get("f") == b"deep"
    os.chdir(start)


@check("hard links share everything; nlink follows; of a directory EPERM; over a name EEXIST; to a symlink links the symlink")
def _():
    put("f")
    os.link("f", "g")
    assert os.stat("f").st_ino == os.stat("g").st_ino and os.stat("f").st_nlink == 2
    put("g", b"new")
    assert get("f") == b"new"
    os.unlink("f")
    assert os.stat("g").st_nlink == 1
    os.mkdir("d")
    with fails(errno.EPERM):
        os.link("d", "e")
    with fails(errno.EEXIST):
        os.link("g", "d")
    os.symlink("g", "l")
    os.link("l", "m", follow_symlinks=False)
    assert os.lstat("m").st_ino == os.lstat("l").st_ino


@check("the most links a file may have end with EMLINK", reference=False)
def _():
    put("f")
    made = 1
    try:
        while made < 70000:
            os.link("f", f"l{made}")
            made += 1
    except OSError as error:
        assert error.errno == errno.EMLINK
    assert os.stat("f").st_nlink == made == 65000


@check("a removed file lives on in its handles, with nlink 0, and can be read, written, stated and truncated")
def _():
    put("f", b"alive")
    fd = os.open("f", os.O_RDWR)
    os.unlink("f")
    assert os.fstat(fd).st_nlink == 0 and os.read(fd, 9) == b"alive"
    os.pwrite(fd, b"more", 100)
    os.ftruncate(fd, 50)
    os.fchmod(fd, 0o600)
    assert os.fstat(fd).st_size == 50 and os.pread(fd, 9, 48) == b"\0\0"
    with fails(errno.ENOENT):
        os.stat("f")
    fd2 = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(fd2, 5) == b"alive"
    os.close(fd2)
    os.close(fd)


@check("rename over an open file leaves the old content in its handles")
def _():
    put("a", b"A")
    put("b", b"B")
    fd = os.open("b", os.O_RDONLY)
    os.rename("a", "b")
    assert os.read(fd, 1) == b"A" if False else os.pread(fd, 1, 0) == b"B"
    assert os.fstat(fd).st_nlink == 0 and get("b") == b"A"
    os.close(fd)


@check("an O_PATH handle of what was removed, and a working directory, can still be stated; nothing is made in it")
def _():
    put("f")
    fd = os.open("f", os.O_PATH)
    os.unlink("f")
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    os.mkdir("d")
    def body():
        os.chdir("d")
        os.rmdir("../d")
        assert os.stat(".").st_nlink == 0
        with fails(errno.ENOENT):
            os.open("x", os.O_CREAT | os.O_WRONLY)
        with fails(errno.ENOENT):
            os.mkdir("x")
        with fails(errno.ENOENT):
            os.getcwd()
    child(body)


@check("mkdir and rmdir: nlink of the parent, EEXIST, ENOTEMPTY, ENOTDIR, EINVAL of ., and unlink of a directory EISDIR")
def _():
    before = os.stat(".").st_nlink
    os.mkdir("d")
    assert os.stat(".").st_nlink in (before + 1, 1)
    with fails(errno.EEXIST):
        os.mkdir("d")
    put("d/f")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir("d")
    with fails(errno.ENOTDIR):
        os.rmdir("d/f")
    with fails(errno.EINVAL):
        os.rmdir("d/.")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir("d/..")
    with fails(errno.EISDIR, errno.EPERM):
        os.unlink("d")
    os.unlink("d/f")
    os.rmdir("d")
    assert os.stat(".").st_nlink == before


# --- rename ------------------------------------------------------------------------------------

@check("rename replaces a file; file over directory EISDIR, directory over file ENOTDIR, over non-empty ENOTEMPTY, over empty works")
def _():
    put("a", b"A")
    put("b", b"B")
    os.rename("a", "b")
    assert get("b") == b"A" and os.listdir(".") == ["b"]
    os.mkdir("d")
    os.mkdir("e")
    with fails(errno.EISDIR):
        os.rename("b", "d")
    with fails(errno.ENOTDIR):
        os.rename("d", "b")
    put("e/f")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename("d", "e")
    os.rename("e", "d")
    assert sorted(os.listdir(".")) == ["b", "d"] and os.listdir("d") == ["f"]


@check("a directory into itself is EINVAL, over one above itself ENOTEMPTY; what is not there ENOENT; . and .. EBUSY")
def _():
    os.makedirs("a/b/c")
    with fails(errno.EINVAL):
        os.rename("a", "a/x")
    with fails(errno.EINVAL):
        os.rename("a", "a/b/c/x")
    with fails(errno.ENOTEMPTY):
        os.rename("a/b/c", "a")
    with fails(errno.ENOENT):
        os.rename("x", "y")
    with fails(errno.EBUSY, errno.EINVAL):
        os.rename("a/.", "y")
    with fails(errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY):
        os.rename("a/b", "a/b/..")


@check("rename of a name onto another link of the same file changes nothing")
def _():
    put("a")
    os.link("a", "b")
    os.rename("a", "b")
    assert sorted(os.listdir(".")) == ["a", "b"] and os.stat("a").st_nlink == 2


@check("RENAME_NOREPLACE, RENAME_EXCHANGE (of kinds that differ, across directories), and what may not be combined")
def _():
    put("a", b"A")
    put("b", b"B")
    with fails(errno.EEXIST):
        renameat2("a", "b", NOREPLACE)
    renameat2("a", "c", NOREPLACE)
    renameat2("b", "c", EXCHANGE)
    assert get("b") == b"A" and get("c") == b"B"
    os.makedirs("d/e")
    renameat2("b", "d/e", EXCHANGE)
    assert os.path.isdir("b") and get("d/e") == b"A"
    with fails(errno.ENOENT):
        renameat2("b", "nothing", EXCHANGE)
    with fails(errno.EINVAL):
        renameat2("b", "c", NOREPLACE | EXCHANGE)
    os.makedirs("m/n")
    with fails(errno.EINVAL):
        renameat2("m", "m/n", EXCHANGE)


@check("a moved directory's .. is its new parent at once, and both parents' nlink follow")
def _():
    os.makedirs("a/d")
    os.mkdir("b")
    one, two = os.stat("a").st_nlink, os.stat("b").st_nlink
    os.rename("a/d", "b/d")
    assert os.stat("b/d/..").st_ino == os.stat("b").st_ino
    if one > 1:
        assert os.stat("a").st_nlink == one - 1 and os.stat("b").st_nlink == two + 1
    fd = os.open("b/d", os.O_RDONLY | os.O_DIRECTORY)
    assert os.stat("..", dir_fd=fd).st_ino == os.stat("b").st_ino
    os.rename("b/d", "a/e")
    assert os.stat("..", dir_fd=fd).st_ino == os.stat("a").st_ino
    os.close(fd)


# --- Directories -------------------------------------------------------------------------------

class Dir:
    """readdir with telldir and seekdir, through the C library."""

    class Entry(ctypes.Structure):
        _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte),
                    ("name", ctypes.c_char * 256)]

    def __init__(self, path):
        libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
        libc.telldir.restype = ctypes.c_long
        self.at = libc.opendir(os.fsencode(path))
        assert self.at

    def read(self):
        entry = libc.readdir(ctypes.c_void_p(self.at))
        return ctypes.cast(entry, ctypes.POINTER(Dir.Entry)).contents.name if entry else None

    def rest(self):
        found = []
        while (name := self.read()) is not None:
            found.append(name)
        return found

    def tell(self):
        return libc.telldir(ctypes.c_void_p(self.at))

    def seek(self, position):
        libc.seekdir(ctypes.c_void_p(self.at), ctypes.c_long(position))

    def rewind(self):
        libc.rewinddir(ctypes.c_void_p(self.at))

    def close(self):
        libc.closedir(ctypes.c_void_p(self.at))


@check("a listing shows what stays exactly once, whatever is made and removed meanwhile; seekdir returns to what telldir said")
def _():
    os.mkdir("d")
    for i in range(1500):
        os.close(os.open(f"d/{i:05}", os.O_CREAT | os.O_WRONLY))
    listing = Dir("d")
    seen = [listing.read() for _ in range(500)]
    position = listing.tell()
    following = listing.read()
    for i in range(0, 1500, 3):
        os.unlink(f"d/{i:05}")
    for i in range(500):
        os.close(os.open(f"d/new{i}", os.O_CREAT | os.O_WRONLY))
    seen += [following] + listing.rest()
    stayed = [b"%05d" % i for i in range(1500) if i % 3]
    assert [seen.count(name) for name in stayed[::50]] == [1] * len(stayed[::50])
    assert set(stayed) <= set(seen)
    listing.seek(position)
    again = listing.rest()
    assert len(set(again)) == len(again)
    assert set(name for name in again if name in set(stayed)) >= set(n for n in seen[501:] if n in set(stayed))
    listing.rewind()
    assert sorted(listing.rest()) == sorted([b".", b".."] + stayed + [b"new%d" % i for i in range(500)])
    listing.close()


@check("a directory whose entries are removed while it is read becomes empty (rm -r)")
def _():
    os.mkdir("d")
    for i in range(1200):
        os.close(os.open(f"d/{i}", os.O_CREAT | os.O_WRONLY))
    listing = Dir("d")
    while (name := listing.read()) is not None:
        if name not in (b".", b".."):
            os.unlink(b"d/" + name)
    listing.close()
    os.rmdir("d")


@check("d_type and d_ino of a listing are those of stat, also of . and ..")
def _():
    os.mkdir("d")
    put("d/f")
    os.symlink("f", "d/l")
    os.mkdir("d/e")
    os.mknod("d/p", stat.S_IFIFO)
    for entry in os.scandir("d"):
        seen = os.lstat(entry.path)
        assert entry.inode() == seen.st_ino
        assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(seen.st_mode) and entry.is_symlink() == stat.S_ISLNK(seen.st_mode)


# --- Sizes, holes, allocation ------------------------------------------------------------------

@check("truncate down and up: what was cut reads as zeros; a negative size is EINVAL; a directory EISDIR; no write right EACCES")
def _():
    put("f", b"x" * 10000)
    os.truncate("f", 5001)
    os.truncate("f", 20000)
    assert get("f") == b"x" * 5001 + b"\0" * 14999
    with fails(errno.EINVAL):
        call("truncate", b"f", ctypes.c_long(-1))
    os.mkdir("d")
    with fails(errno.EISDIR):
        os.truncate("d", 0)
    put("ro", b"x", 0o444)
    def denied():
        with fails(errno.EACCES):
            os.truncate("ro", 0)
    as_user(ANN, denied)
    fd = os.open("f", os.O_RDONLY)
    with fails(errno.EINVAL, errno.EBADF):
        os.ftruncate(fd, 0)
    os.close(fd)


@check("sparse files: a byte at 8 TiB, almost no space, zeros before it, and lseek finds it")
def _():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    far = 8 << 40
    os.pwrite(fd, b"far", far)
    assert os.fstat(fd).st_size == far + 3 and os.fstat(fd).st_blocks < 4096
    assert os.pread(fd, 100, far - 50) == b"\0" * 50 + b"far"
    assert os.lseek(fd, 0, os.SEEK_DATA) in range(far - (1 << 20), far + 1)
    os.close(fd)


@check("files up to 16 TiB, EFBIG beyond, and a write across the limit is cut at it", reference=False)
def _():
    limit = 16 << 40
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, limit)
    with fails(errno.EFBIG):
        os.ftruncate(fd, limit + 1)
    with fails(errno.EFBIG):
        os.pwrite(fd, b"x", limit)
    assert os.pwrite(fd, b"x" * 8192, limit - 4096) == 4096
    with fails(errno.EFBIG):
        fallocate(fd, 0, limit, 4096)
    os.close(fd)
    os.unlink("f")


@check("RLIMIT_FSIZE: SIGXFSZ and EFBIG at the limit, a write across it is cut")
def _():
    def body():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        assert os.pwrite(fd, b"x" * 8000, 5000) == 5000
        with fails(errno.EFBIG):
            os.pwrite(fd, b"x", 10000)
        with fails(errno.EFBIG):
            os.ftruncate(fd, 10001)
    child(body)


@check("SEEK_HOLE and SEEK_DATA: data, hole, data, the hole at the end, ENXIO behind it")
def _():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"a" * 65536, 0)
    os.pwrite(fd, b"b" * 65536, 1 << 20)
    os.fsync(fd)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 65536
    assert os.lseek(fd, 65536, os.SEEK_DATA) == 1 << 20
    assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 65536
    with fails(errno.ENXIO):
        os.lseek(fd, (1 << 20) + 65536, os.SEEK_DATA)
    with fails(errno.ENXIO):
        os.lseek(fd, 5 << 20, os.SEEK_HOLE)
    os.close(fd)


@check("fallocate: default grows the file, KEEP_SIZE does not, space is there, content reads as zeros and old content stays")
def _():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"old")
    fallocate(fd, 0, 0, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20 and os.fstat(fd).st_blocks >= 2048
    assert os.pread(fd, 10, 0) == b"old" + b"\0" * 7
    fallocate(fd, KEEP, 1 << 20, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20 and os.fstat(fd).st_blocks >= 4096
    for offset, length in ((0, 0), (-1, 10), (0, -1)):
        with fails(errno.EINVAL):
            fallocate(fd, 0, offset, length)
    os.close(fd)


@check("PUNCH_HOLE and ZERO_RANGE of odd ranges: zeros there, the rest stays, space of whole blocks goes (or stays)")
def _():
    data = bytes(range(256)) * 4096
    for mode in (PUNCH | KEEP, ZERO, ZERO | KEEP):
        fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(fd, data)
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        fallocate(fd, mode, 12345, 500001)
        assert os.pread(fd, len(data), 0) == data[:12345] + b"\0" * 500001 + data[512346:]
        if mode & PUNCH:
            assert os.fstat(fd).st_blocks < before - 900
        fallocate(fd, mode, len(data) - 10, 1000)
        assert os.fstat(fd).st_size == len(data) + (0 if mode & KEEP else 990)
        os.close(fd)
    with fails(errno.EOPNOTSUPP, errno.EINVAL):
        fd = os.open("f", os.O_RDWR)
        fallocate(fd, PUNCH, 0, 4096)


@check("COLLAPSE, INSERT and UNSHARE are refused cleanly", reference=False)
def _():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 16384)
    for mode in (COLLAPSE, INSERT, UNSHARE):
        with fails(errno.EOPNOTSUPP):
            fallocate(fd, mode, 4096, 4096)
    assert os.pread(fd, 16384, 0) == b"x" * 16384
    os.close(fd)


@check("random writes of odd sizes, truncations, holes and reads agree with a copy in memory, by pwrite and by O_DIRECT", reference=True)
def _():
    import random
    dice = random.Random(7)
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    model = bytearray()
    for _ in range(400):
        kind, offset, length = dice.randrange(10), dice.randrange(300000), dice.randrange(1, 50000)
        if kind < 6:
            data = dice.randbytes(length)
            os.pwrite(fd, data, offset)
            if len(model) < offset + length:
                model.extend(b"\0" * (offset + length - len(model)))
            model[offset:offset + length] = data
        elif kind == 6:
            os.ftruncate(fd, offset)
            del model[offset:]
            model.extend(b"\0" * (offset - len(model)))
        elif kind == 7:
            fallocate(fd, PUNCH | KEEP, offset, length)
            end = min(len(model), offset + length)
            if offset < end:
                model[offset:end] = b"\0" * (end - offset)
        else:
            assert os.pread(fd, length, offset) == model[offset:offset + length]
    os.close(fd)
    assert get("f") == model


@check("O_DIRECT with odd offsets, lengths and buffers works", reference=False)
def _():
    put("f", b"0" * 20000)
    fd = os.open("f", os.O_RDWR | os.O_DIRECT)
    room = mmap.mmap(-1, 65536)
    view = memoryview(room)
    view[3:5003] = b"x" * 5000
    assert os.pwritev(fd, [view[3:5003]], 777) == 5000
    assert os.preadv(fd, [view[11:9011]], 101) == 9000
    assert bytes(view[11:9011]) == b"0" * 676 + b"x" * 5000 + b"0" * (9000 - 5676)
    assert os.preadv(fd, [view[1:8193]], 16384) == 20000 - 16384
    os.close(fd)


@check("aligned O_DIRECT works, and sees what was written otherwise")
def _():
    room = mmap.mmap(-1, 65536)
    put("f", b"a" * 65536)
    fd = os.open("f", os.O_RDWR | os.O_DIRECT)
    assert os.preadv(fd, [room], 0) == 65536 and room[:] == b"a" * 65536
    room[:] = b"b" * 65536
    assert os.pwritev(fd, [room], 65536) == 65536
    os.close(fd)
    assert get("f") == b"a" * 65536 + b"b" * 65536


@check("statfs tells a type of name up to 255, space that shrinks and grows with use")
def _():
    seen = os.statvfs(".")
    assert seen.f_namemax == 255 and seen.f_bsize >= 512 and 0 < seen.f_bavail <= seen.f_blocks and seen.f_ffree > 0
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    fallocate(fd, 0, 0, 8 << 20)
    os.fsync(fd)
    assert os.statvfs(".").f_bfree * seen.f_frsize <= seen.f_bfree * seen.f_frsize - (7 << 20)
    os.close(fd)


# --- Times -------------------------------------------------------------------------------------

CHANGES = [  # what is done, to which path's times it counts, which of them
    ("write", lambda: put_at("f", b"y"), {"f": "mc"}),
    ("truncate up", lambda: os.truncate("f", 5000), {"f": "mc"}),
    ("truncate down", lambda: os.truncate("f", 1), {"f": "mc"}),
    ("chmod", lambda: os.chmod("f", 0o600), {"f": "c"}),
    ("chown", lambda: os.chown("f", 5, 5), {"f": "c"}),
    ("link", lambda: os.link("f", "g"), {"f": "c", ".": "mc"}),
    ("rename", lambda: os.rename("f", "h"), {".": "mc"}),
    ("unlink", lambda: os.unlink("k"), {".": "mc", "k2": "c"}),
    ("mkdir", lambda: os.mkdir("d"), {".": "mc"}),
    ("rmdir", lambda: os.rmdir("e"), {".": "mc"}),
    ("symlink", lambda: os.symlink("x", "y"), {".": "mc"}),
    ("setxattr", lambda: os.setxattr("f", "user.x", b"1"), {"f": "c"}),
    ("utimensat", lambda: os.utime("f", ns=(1, 2)), {"f": "amc"}),
]


def put_at(path, content):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, content)
    os.close(fd)


for change in CHANGES:
    def body(change=change):
        _, action, expected = change
        put("f")
        put("k")
        os.link("k", "k2")
        os.mkdir("e")
        watched = {path: times(path) for path in expected}
        pause()
        action()
        for path, which in expected.items():
            after = times(path)
            for letter, old, new in zip("amc", watched[path], after):
                if letter in which:
                    assert new > old or (letter != "c" and change[0] == "utimensat"), f"{letter}time of {path} did not move"
                elif letter != "a":
                    assert new == old, f"{letter}time of {path} moved"
    check(f"{change[0]} moves the times that it should and no others")(body)


@check("utimensat: nanoseconds, before 1970, 2100 and 2200 are kept; UTIME_OMIT and UTIME_NOW do as they say")
def _():
    put("f")
    for atime, mtime in ((1, 2), (-1_000_000_001, -5), (4102444800_123456789, 7258118400_987654321), (1700000000_000000001, 0)):
        os.utime("f", ns=(atime, mtime))
        assert times("f")[:2] == (atime, mtime), (times("f"), atime, mtime)
    class Spec(ctypes.Structure):
        _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]
    now, omit = (1 << 30) - 1, (1 << 30) - 2
    both = (Spec * 2)(Spec(0, omit), Spec(123, 456))
    call("utimensat", AT_FDCWD, b"f", both, 0)
    assert times("f")[:2] == (1700000000_000000001, 123_000000456)
    both = (Spec * 2)(Spec(0, now), Spec(0, omit))
    call("utimensat", AT_FDCWD, b"f", both, 0)
    assert abs(times("f")[0] / 1e9 - time.time()) < 60 and times("f")[1] == 123_000000456
    with fails(errno.EINVAL):
        call("utimensat", AT_FDCWD, b"f", (Spec * 2)(Spec(0, 1_000_000_000), Spec(0, 0)), 0)
    os.symlink("f", "l")
    os.utime("l", ns=(5, 6), follow_symlinks=False)
    assert times("l")[:2] == (5, 6) and times("f")[1] == 123_000000456


@check("who may set times: the owner and root any, who may write the file only now, others nothing")
def _():
    put("f", user=ANN, mode=0o666)
    put("g", user=ANN, mode=0o644)
    as_user(ANN, lambda: os.utime("f", ns=(1, 2)))
    def other():
        os.utime("f")
        with fails(errno.EPERM):
            os.utime("f", ns=(1, 2))
        with fails(errno.EACCES):
            os.utime("g")
    as_user(BOB, other)


@check("relatime: a read after a change moves atime, another one does not; O_NOATIME moves nothing")
def _():
    put("f")
    pause()
    os.utime("f", ns=(10, 20))
    fd = os.open("f", os.O_RDONLY | os.O_NOATIME)
    os.read(fd, 3)
    os.close(fd)
    assert times("f")[0] == 10
    fd = os.open("f", os.O_RDONLY)
    os.read(fd, 3)
    first = os.fstat(fd).st_atime_ns
    assert abs(first / 1e9 - time.time()) < 60
    pause()
    os.read(fd, 3)
    os.close(fd)
    assert times("f")[0] == first
    os.mkdir("d")
    put("d/x")
    os.utime("d", ns=(10, 20))
    os.listdir("d")
    deadline = time.time() + 5
    while times("d")[0] == 10 and time.time() < deadline:
        time.sleep(0.05)
    assert times("d")[0] != 10


@check("statx tells the birth time, which does not move")
def _():
    class Time(ctypes.Structure):
        _fields_ = [("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("pad", ctypes.c_int32)]
    class Statx(ctypes.Structure):
        _fields_ = [("mask", ctypes.c_uint32), ("blksize", ctypes.c_uint32), ("attributes", ctypes.c_uint64), ("nlink", ctypes.c_uint32),
                    ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32), ("mode", ctypes.c_uint16), ("pad", ctypes.c_uint16),
                    ("ino", ctypes.c_uint64), ("size", ctypes.c_uint64), ("blocks", ctypes.c_uint64), ("am", ctypes.c_uint64),
                    ("atime", Time), ("btime", Time), ("ctime", Time), ("mtime", Time), ("rest", ctypes.c_char * 128)]
    def birth(path):
        out = Statx()
        call("statx", AT_FDCWD, os.fsencode(path), 0x100, 0xfff, ctypes.byref(out))
        assert out.mask & 0x800 and out.size == os.lstat(path).st_size and out.ino == os.lstat(path).st_ino
        assert out.mtime.sec * 10**9 + out.mtime.nsec == os.lstat(path).st_mtime_ns
        return out.btime.sec, out.btime.nsec
    put("f")
    before = birth("f")
    assert abs(before[0] - time.time()) < 60
    pause()
    put_at("f", b"more")
    os.chmod("f", 0o600)
    assert birth("f") == before


# --- Permissions -------------------------------------------------------------------------------

@check("owner, group (supplementary too) and others get what the mode says, root everything but execution without any x")
def _():
    put("f", b"x", 0o640, (0, ANN[2][0]))
    as_user(ANN, lambda: get("f"))
    def denied():
        with fails(errno.EACCES):
            get("f")
        assert not os.access("f", os.R_OK)
    as_user(BOB, denied)
    put("g", b"#!/bin/sh\n", 0o000, ANN)
    def owner():
        with fails(errno.EACCES):
            get("g")
    as_user(ANN, owner)
    assert get("g") == b"#!/bin/sh\n"
    with fails(errno.EACCES):
        os.execv("g", ["g"])
    os.mkdir("d", 0o700)
    put("d/f")
    def search():
        with fails(errno.EACCES):
            os.stat("d/f")
        with fails(errno.EACCES):
            os.listdir("d")
    as_user(BOB, search)
    os.chmod("d", 0o711)
    as_user(BOB, lambda: os.stat("d/f"))


@check("a directory without w admits no change of names, one without r no listing")
def _():
    os.mkdir("d")
    put("d/f")
    def body():
        for step in (lambda: os.unlink("d/f"), lambda: os.rename("d/f", "d/g"), lambda: os.mkdir("d/x"), lambda: os.link("d/f", "d/l"),
                     lambda: os.symlink("x", "d/s"), lambda: os.open("d/n", os.O_CREAT)):
            with fails(errno.EACCES, errno.EPERM):
                step()
    as_user(ANN, body)


@check("in a sticky directory only the owners of file or directory, and root, may remove and rename")
def _():
    os.mkdir("d")
    os.chmod("d", 0o1777)
    put("d/ann", user=ANN, mode=0o666)
    put("d/bob", user=BOB, mode=0o666)
    def body():
        with fails(errno.EPERM, errno.EACCES):
            os.unlink("d/ann")
        with fails(errno.EPERM, errno.EACCES):
            os.rename("d/ann", "d/x")
        with fails(errno.EPERM, errno.EACCES):
            os.rename("d/bob", "d/ann")
        os.rename("d/bob", "d/bob2")
        os.unlink("d/bob2")
    as_user(BOB, body)
    os.unlink("d/ann")


@check("chmod and chown: only the owner may, the group only to one of his; giving away is root's; symlinks with lchown")
def _():
    put("f", user=ANN)
    def owner():
        os.chmod("f", 0o600)
        os.chown("f", -1, ANN[2][0])
        os.chown("f", ANN[0], ANN[1])
        with fails(errno.EPERM):
            os.chown("f", BOB[0], -1)
        with fails(errno.EPERM):
            os.chown("f", -1, BOB[1])
    as_user(ANN, owner)
    def other():
        with fails(errno.EPERM):
            os.chmod("f", 0o666)
        with fails(errno.EPERM):
            os.chown("f", -1, BOB[1])
    as_user(BOB, other)
    os.symlink("f", "l")
    os.lchown("l", 7, 8)
    assert (os.lstat("l").st_uid, os.lstat("l").st_gid, os.stat("f").st_uid) == (7, 8, ANN[0])
    os.chown("f", -1, 12)
    assert (os.stat("f").st_uid, os.stat("f").st_gid) == (ANN[0], 12)


def set_id_file(mode=0o6777):
    put("f", b"x" * 10, 0o777, (0, 0))
    os.chmod("f", mode)


@check("a write, truncation or allocation by a user takes set-user-ID and, with group x, set-group-ID away; by root it does not")
def _():
    def allocate(fd):
        fallocate(fd, 0, 0, 100000)
    steps = {"write": lambda: put_at("f", b"y"), "truncate": lambda: os.truncate("f", 3), "ftruncate": lambda: os.ftruncate(os.open("f", os.O_RDWR), 2),
             "O_TRUNC": lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)), "append": lambda: os.write(os.open("f", os.O_WRONLY | os.O_APPEND), b"a"),
             "fallocate": lambda: allocate(os.open("f", os.O_RDWR)), "large write": lambda: put_at("f", b"z" * (1 << 20))}
    for name, step in steps.items():
        set_id_file()
        as_user(ANN, step)
        assert mode_of("f") == 0o777, name
    set_id_file(0o2767)
    as_user(ANN, steps["write"])
    assert mode_of("f") == 0o2767 or mode_of("f") == 0o767
    set_id_file()
    steps["write"]()
    assert mode_of("f") == 0o6777


@check("bits that are set while a file is open for writing are taken away by its next write")
def _():
    put("f", b"x" * 8192, 0o755, ANN)
    def body():
        fd = os.open("f", os.O_RDWR)
        os.pwrite(fd, b"y" * 4096, 0)
        os.chmod("f", 0o4755)
        assert mode_of("f") == 0o4755
        os.pwrite(fd, b"z" * 4096, 0)
        assert mode_of("f") == 0o755
    as_user(ANN, body)


@check("chown takes the set-ID bits of a file away, also root's, but not those of a directory")
def _():
    set_id_file()
    os.chown("f", 5, -1)
    assert mode_of("f") == 0o777
    put("g", user=ANN)
    os.chmod("g", 0o6755)
    as_user(ANN, lambda: os.chown("g", -1, ANN[2][0]))
    assert mode_of("g") == 0o755
    os.mkdir("d")
    os.chmod("d", 0o2777)
    os.chown("d", 5, 5)
    assert mode_of("d") == 0o2777


@check("security.capability goes with a write, also root's, and with chown")
def _():
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    for step in (lambda: put_at("f", b"y"), lambda: os.truncate("f", 1), lambda: os.chown("f", 5, 5)):
        put("f", b"x" * 10, 0o755)
        attribute("f", "security.capability", capability)
        assert attribute("f", "security.capability") == capability
        step()
        with fails(errno.ENODATA):
            attribute("f", "security.capability")


@check("chmod by who is not in the file's group drops set-group-ID; a member keeps it")
def _():
    put("f", user=(ANN[0], BOB[1]))
    as_user(ANN, lambda: os.chmod("f", 0o2755))
    assert mode_of("f") == 0o755
    os.chown("f", ANN[0], ANN[2][0])
    as_user(ANN, lambda: os.chmod("f", 0o2755))
    assert mode_of("f") == 0o2755


@check("a set-group-ID directory gives its group to what is made in it, and its bit to directories; foreign set-group-ID is dropped")
def _():
    os.mkdir("d")
    os.chown("d", 0, 4242)
    os.chmod("d", 0o2777)
    def body():
        put("d/f")
        os.mkdir("d/e", 0o755)
        os.symlink("x", "d/l")
        os.mknod("d/p", stat.S_IFIFO)
        fd = os.open("d/g", os.O_CREAT | os.O_WRONLY, 0o2775)
        os.close(fd)
    as_user(ANN, body)
    assert all(os.lstat(f"d/{name}").st_gid == 4242 for name in "felpg")
    assert mode_of("d/e") == 0o2755 and not mode_of("d/f") & stat.S_ISGID
    assert not mode_of("d/g") & stat.S_ISGID
    assert os.stat("d/f").st_uid == ANN[0]


@check("a program runs with the owner's identity by its set-user-ID bit")
def _():
    source = "import os,sys"
    del source
    subprocess.run(["cp", "/usr/bin/id", "idcopy"], check=True)
    os.chown("idcopy", ANN[0], 0)
    os.chmod("idcopy", 0o4755)
    seen = []
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        become(BOB)
        os.dup2(into, 1)
        os.execv("./idcopy", ["id", "-u"])
    os.close(into)
    said = os.read(out, 100).decode().strip()
    os.waitpid(pid, 0)
    nosuid = os.statvfs(".").f_flag & os.ST_NOSUID
    assert said == str(BOB[0] if nosuid else ANN[0]), said


# --- Extended attributes -----------------------------------------------------------------------

@check("user attributes on files and directories: set, get, list, replace, remove, any bytes, empty")
def _():
    put("f")
    os.mkdir("d")
    for path in ("f", "d"):
        attribute(path, "user.a", b"\0\xff")
        attribute(path, "user.b", b"")
        attribute(path, "user.a", b"new")
        assert attribute(path, "user.a") == b"new" and attribute(path, "user.b") == b""
        assert sorted(n for n in os.listxattr(path) if n.startswith("user.")) == ["user.a", "user.b"]
        os.removexattr(path, "user.a")
        with fails(errno.ENODATA):
            attribute(path, "user.a")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.a")


@check("XATTR_CREATE and XATTR_REPLACE; ERANGE with too little room; the size is told for none")
def _():
    put("f")
    with fails(errno.ENODATA):
        attribute("f", "user.a", b"1", os.XATTR_REPLACE)
    attribute("f", "user.a", b"12345", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        attribute("f", "user.a", b"2", os.XATTR_CREATE)
    attribute("f", "user.a", b"54321", os.XATTR_REPLACE)
    room = ctypes.create_string_buffer(100)
    assert call("getxattr", b"f", b"user.a", room, 0) == 5
    with fails(errno.ERANGE):
        call("getxattr", b"f", b"user.a", room, 4)
    with fails(errno.ERANGE):
        call("listxattr", b"f", room, 3)


@check("limits: a name of 255 works and of 256 is ERANGE; a value over 64 KiB is E2BIG; a name without rest EINVAL; unknown kinds EOPNOTSUPP")
def _():
    put("f")
    attribute("f", "user." + "n" * 250, b"1")
    with fails(errno.ERANGE):
        attribute("f", "user." + "n" * 251, b"1")
    with fails(errno.E2BIG):
        attribute("f", "user.big", b"x" * 65537)
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        attribute("f", "user.", b"1")
    with fails(errno.EOPNOTSUPP):
        attribute("f", "nothing.x", b"1")
    with fails(errno.EOPNOTSUPP):
        attribute("f", "system.nothing", b"1")


@check("a value of 64 KiB is kept", reference=False)
def _():
    put("f")
    attribute("f", "user.big", b"x" * 65536)
    assert attribute("f", "user.big") == b"x" * 65536


@check("user attributes on symlinks and special files are EPERM, trusted ones there work for root")
def _():
    os.symlink("x", "l")
    os.mknod("p", stat.S_IFIFO | 0o666)
    for path in ("l", "p"):
        with fails(errno.EPERM):
            attribute(path, "user.a", b"1")
        attribute(path, "trusted.a", b"1")
        assert attribute(path, "trusted.a") == b"1"


@check("trusted attributes are root's: others may neither read, write nor see them")
def _():
    put("f", user=ANN, mode=0o666)
    attribute("f", "trusted.a", b"1")
    attribute("f", "user.b", b"1")
    def body():
        with fails(errno.ENODATA, errno.EPERM):
            attribute("f", "trusted.a")
        with fails(errno.EPERM):
            attribute("f", "trusted.a", b"2")
        with fails(errno.EPERM):
            attribute("f", "security.foo", b"2")
        names = os.listxattr("f")
        assert "trusted.a" not in names and "user.b" in names
    as_user(ANN, body)
    assert "trusted.a" in os.listxattr("f")


@check("user attributes need the file's permissions; in a sticky directory of another only its owner")
def _():
    put("f", user=ANN, mode=0o600)
    def denied():
        with fails(errno.EACCES):
            attribute("f", "user.a", b"1")
        with fails(errno.EACCES):
            attribute("f", "user.a")
    as_user(BOB, denied)
    os.mkdir("d")
    os.chmod("d", 0o1777)
    def sticky():
        with fails(errno.EPERM):
            attribute("d", "user.a", b"1")
    as_user(BOB, sticky)


# --- Access control lists ----------------------------------------------------------------------

def setfacl(*words):
    subprocess.run(["setfacl", *words], check=True)


def getfacl(path):
    out = subprocess.run(["getfacl", "-cnpE", path], check=True, capture_output=True, text=True).stdout
    return [line for line in out.splitlines() if line]


@check("an ACL entry gives a user rights that the mode does not, as far as the mask goes; chmod changes the mask")
def _():
    put("f", b"x", 0o600)
    setfacl("-m", f"u:{ANN[0]}:rw", "f")
    assert mode_of("f") == 0o660
    assert f"user:{ANN[0]}:rw-" in getfacl("f") and "mask::rw-" in getfacl("f") and "group::---" in getfacl("f")
    as_user(ANN, lambda: put_at("f", b"y"))
    def denied():
        with fails(errno.EACCES):
            get("f")
    as_user(BOB, denied)
    os.chmod("f", 0o640)
    assert "mask::r--" in getfacl("f")
    def read_only():
        get("f")
        with fails(errno.EACCES):
            put_at("f", b"y")
    as_user(ANN, read_only)
    os.chmod("f", 0o600)
    as_user(ANN, denied)
    assert f"user:{ANN[0]}:rw-" in getfacl("f")
    setfacl("-b", "f")
    assert mode_of("f") == 0o600 and "system.posix_acl_access" not in os.listxattr("f")


@check("group entries count for supplementary groups; a named user's entry goes before them")
def _():
    put("f", b"x", 0o600)
    setfacl("-m", f"g:{ANN[2][0]}:r,u:{BOB[0]}:-", "f")
    as_user(ANN, lambda: get("f"))
    setfacl("-m", f"u:{ANN[0]}:-", "f")
    def denied():
        with fails(errno.EACCES):
            get("f")
    as_user(ANN, denied)


@check("a default ACL is inherited by files (without it), directories (with it) and fifos, instead of the umask; not by symlinks")
def _():
    os.mkdir("d", 0o755)
    setfacl("-d", "-m", f"u:{ANN[0]}:rwx,g::r-x,o::-", "d")
    os.umask(0o077)
    os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir("d/e", 0o777)
    os.mknod("d/p", stat.S_IFIFO | 0o666)
    os.symlink("x", "d/l")
    fd = os.open("d", os.O_TMPFILE | os.O_WRONLY, 0o666)
    linkat(f"/proc/self/fd/{fd}", "d/t", AT_SYMLINK_FOLLOW)
    os.close(fd)
    os.umask(0o022)
    for name in "fpt":
        assert mode_of(f"d/{name}") == 0o660, (name, oct(mode_of(f"d/{name}")))
        assert f"user:{ANN[0]}:rwx" in getfacl(f"d/{name}") and "mask::rw-" in getfacl(f"d/{name}"), getfacl(f"d/{name}")
        assert not any(line.startswith("default:") for line in getfacl(f"d/{name}"))
    assert mode_of("d/e") == 0o770 and f"default:user:{ANN[0]}:rwx" in getfacl("d/e") and "mask::rwx" in getfacl("d/e")
    assert os.listxattr("d/l", follow_symlinks=False) == [] or "system.posix_acl_access" not in os.listxattr("d/l", follow_symlinks=False)
    as_user(ANN, lambda: put_at("d/f", b"x"))
    setfacl("-k", "d")
    assert not any(line.startswith("default:") for line in getfacl("d"))
    put("d/g")
    assert mode_of("d/g") == 0o644


@check("a minimal default ACL gives the mode and no access ACL; a mode given to open limits it")
def _():
    os.mkdir("d")
    setfacl("-d", "-m", "u::rwx,g::rwx,o::rx", "d")
    os.umask(0o077)
    os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.close(os.open("d/g", os.O_CREAT | os.O_WRONLY, 0o600))
    os.umask(0o022)
    assert mode_of("d/f") == 0o664 and "system.posix_acl_access" not in os.listxattr("d/f")
    assert mode_of("d/g") == 0o600


@check("only the owner sets an ACL; a default one on a file is EACCES; a wrong one EINVAL")
def _():
    put("f", user=ANN)
    acl = struct.pack("<I" + "HHI" * 3, 2, 1, 6, 0xffffffff, 4, 4, 0xffffffff, 0x20, 4, 0xffffffff)
    def other():
        with fails(errno.EPERM):
            attribute("f", "system.posix_acl_access", acl)
    as_user(BOB, other)
    as_user(ANN, lambda: attribute("f", "system.posix_acl_access", acl))
    assert mode_of("f") == 0o644
    with fails(errno.EACCES):
        attribute("f", "system.posix_acl_default", acl)
    with fails(errno.EINVAL):
        attribute("f", "system.posix_acl_access", acl[:-8])
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        attribute("f", "system.posix_acl_access", b"\1\0\0\0")


@check("setting an ACL as owner outside of the file's group drops set-group-ID")
def _():
    put("f", user=(ANN[0], BOB[1]))
    os.chmod("f", 0o2755)
    acl = struct.pack("<I" + "HHI" * 3, 2, 1, 7, 0xffffffff, 4, 5, 0xffffffff, 0x20, 5, 0xffffffff)
    as_user(ANN, lambda: attribute("f", "system.posix_acl_access", acl))
    assert mode_of("f") == 0o755


# --- Mappings ----------------------------------------------------------------------------------

@check("MAP_PRIVATE reads the file and keeps its changes to itself")
def _():
    put("f", b"a" * 10000)
    fd = os.open("f", os.O_RDWR)
    with mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE) as area:
        assert area[:] == b"a" * 10000
        area[5:8] = b"xyz"
    os.close(fd)
    assert get("f") == b"a" * 10000


@check("MAP_SHARED: what is written through it is read by read() at once, and the other way round; msync; the tail stays zeros", shared=True)
def _():
    put("f", b"a" * 10000)
    fd = os.open("f", os.O_RDWR)
    area = mmap.mmap(fd, 10000)
    area[100:103] = b"xyz"
    assert os.pread(fd, 5, 99) == b"axyza"
    other = os.open("f", os.O_RDWR)
    os.pwrite(other, b"W" * 50, 5000)
    assert area[4999:5051] == b"a" + b"W" * 50 + b"a"
    area[9990:10000] = b"t" * 10
    area.flush()
    assert get("f")[9985:] == b"a" * 5 + b"t" * 10 and os.fstat(fd).st_size == 10000
    area.close()
    os.close(fd)
    os.close(other)
    assert get("f")[100:103] == b"xyz"


@check("two processes share a mapping; what one left unsynced is there after both have ended", shared=True)
def _():
    put("f", b"\0" * 8192)
    def one():
        fd = os.open("f", os.O_RDWR)
        area = mmap.mmap(fd, 8192)
        area[0:5] = b"hello"
        deadline = time.time() + 20
        while area[4096:4101] != b"there" and time.time() < deadline:
            time.sleep(0.01)
        assert area[4096:4101] == b"there"
    pid = os.fork()
    if pid == 0:
        fd = os.open("f", os.O_RDWR)
        area = mmap.mmap(fd, 8192)
        deadline = time.time() + 20
        while area[0:5] != b"hello" and time.time() < deadline:
            time.sleep(0.01)
        area[4096:4101] = b"there"
        os._exit(0)
    child(one)
    os.waitpid(pid, 0)
    assert get("f")[:5] == b"hello" and get("f")[4096:4101] == b"there"


@check("MAP_SHARED for writing needs a handle for reading and writing; a read-only one maps to read", shared=True)
def _():
    put("f", b"a" * 4096)
    fd = os.open("f", os.O_RDONLY)
    assert mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)[:3] == b"aaa"
    with fails(errno.EACCES):
        mmap.mmap(fd, 4096)
    os.close(fd)


@check("where mappings are not shared, MAP_SHARED is refused, and the file is none the worse for it", reference=False, shared=False)
def _():
    put("f", b"a" * 4096)
    fd = os.open("f", os.O_RDWR)
    for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
        with fails(errno.ENODEV):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, protection)
    os.pwrite(fd, b"b", 0)
    os.close(fd)
    assert get("f") == b"b" + b"a" * 4095


@check("a mapping grows with a file that is extended, and a shrunk file's pages are SIGBUS", shared=True)
def _():
    put("f", b"a" * 4096)
    fd = os.open("f", os.O_RDWR)
    def body():
        libc.mmap.restype = ctypes.c_void_p
        at = libc.mmap(None, ctypes.c_size_t(16384), 3, 1, fd, ctypes.c_long(0))
        os.ftruncate(fd, 12288)
        ctypes.memset(at + 8192, 0x62, 10)
        assert os.pread(fd, 3, 8192) == b"bbb"
        os.ftruncate(fd, 4096)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.memset(at + 8192, 0x62, 1)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS
    child(body)
    os.close(fd)
    assert os.stat("f").st_size == 4096


# --- The rest ----------------------------------------------------------------------------------

@check("fsync and fdatasync of files and directories succeed; of a pipe EINVAL")
def _():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    call("syncfs", os.open(".", os.O_RDONLY))


@check("an unknown ioctl is ENOTTY")
def _():
    import fcntl
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    with fails(errno.ENOTTY):
        fcntl.ioctl(fd, 0x12345678, b"\0" * 8)
    os.close(fd)


@check("file handles: name_to_handle_at and open_by_handle_at find a file again, a removed one is ESTALE")
def _():
    class Handle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
    put("f", b"by handle")
    handle, mount_id = Handle(128), ctypes.c_int()
    call("name_to_handle_at", AT_FDCWD, b"f", ctypes.byref(handle), ctypes.byref(mount_id), 0)
    here = os.open(".", os.O_RDONLY)
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write("2")
    fd = call("open_by_handle_at", here, ctypes.byref(handle), os.O_RDONLY)
    assert os.read(fd, 20) == b"by handle"
    os.close(fd)
    os.rename("f", "g")
    fd = call("open_by_handle_at", here, ctypes.byref(handle), os.O_RDONLY)
    os.close(fd)
    os.unlink("g")
    with fails(errno.ESTALE):
        call("open_by_handle_at", here, ctypes.byref(handle), os.O_RDONLY)
    os.close(here)


@check("append from four threads loses nothing and tears no record")
def _():
    fd = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def body(letter):
        for _ in range(100):
            os.write(fd, letter * 777)
    threads = [threading.Thread(target=body, args=(bytes([65 + i]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    content = get("f")
    records = [content[i:i + 777] for i in range(0, len(content), 777)]
    assert len(records) == 400 and all(len(set(record)) == 1 for record in records)


@check("exclusive creation has one winner of many threads; so has mkdir, and rename keeps one name")
def _():
    wins = []
    def body():
        for i in range(50):
            try:
                os.close(os.open(f"x{i}", os.O_CREAT | os.O_EXCL))
                wins.append(i)
            except FileExistsError:
                pass
    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(50))


def many(count):
    """A directory of `count` entries: made, listed, found, removed; the times it takes."""
    os.mkdir("many")
    marks = [time.time()]
    for i in range(count):
        os.close(os.open(f"many/{i:07}", os.O_CREAT | os.O_WRONLY))
    marks.append(time.time())
    names = os.listdir("many")
    assert len(names) == count and len(set(names)) == count
    marks.append(time.time())
    for i in range(0, count, max(1, count // 1000)):
        os.stat(f"many/{i:07}")
    with fails(errno.ENOENT):
        os.stat("many/nothing")
    marks.append(time.time())
    for name in names:
        os.unlink(f"many/{name}")
    os.rmdir("many")
    marks.append(time.time())
    spans = [b - a for a, b in zip(marks, marks[1:])]
    print(f"{count} entries: made in {spans[0]:.1f} s, listed in {spans[1]:.1f} s, 1000 found in {spans[2]:.2f} s, removed in {spans[3]:.1f} s", flush=True)


def clear(path):
    subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)


def main():
    words = argparse.ArgumentParser()
    words.add_argument("folder")
    words.add_argument("--reference", action="store_true")
    words.add_argument("--only", default="")
    words.add_argument("--many", type=int, default=0)
    words.add_argument("--not-shared", action="store_true", help="mappings are private ones only")
    words.add_argument("--skip", action="append", default=[], help="claims with this word in them")
    asked = words.parse_args()
    os.umask(0o022)
    os.chdir(asked.folder)
    top = os.getcwd()
    failed = run = 0
    for text, body, reference, shared in checks:
        if asked.only not in text or (asked.reference and not reference) or any(word in text for word in asked.skip):
            continue
        if shared is not None and shared == asked.not_shared:
            continue
        run += 1
        os.mkdir("check")
        os.chmod("check", 0o755)
        os.chdir("check")
        try:
            body()
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)
            lines = ", ".join(str(frame.lineno) for frame in where if frame.filename == __file__)
            print(f"NOT TRUE: {text}\n    line {lines}: {type(error).__name__}: {error}", flush=True)
        finally:
            os.umask(0o022)
            os.chdir(top)
            clear("check")
    if asked.many:
        many(asked.many)
    print(f"{run} claims, {failed} not true", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares two trees of files: every byte, owner, mode, time (nanoseconds), link and extended attribute.

usage: compare_trees.py EXPECTED ACTUAL [--only FILE] [--progress SECONDS] [--label TEXT]
With --only, compares just the entries that FILE names, one path a line, with all that is below them.
Exit code 0 if they are equal, 1 if not (each difference is named, up to a limit), 2 if it could not be found out.
"""

import argparse
import os
import stat
import sys
import time

PIECE = 1 << 20
SHOWN = 20


class Comparison:
    def __init__(self, expected, actual, progress, label):
        self.expected, self.actual = os.fsencode(expected), os.fsencode(actual)
        self.progress, self.label = progress, label
        self.differences = 0
        self.entries = self.bytes = 0
        self.links = {}  # inode of `expected` -> inode of `actual`, for files with several names
        self.spoke = time.monotonic()

    def differ(self, path, what):
        self.differences += 1
        if self.differences <= SHOWN:
            print(f"{self.label}differs: {os.fsdecode(path) or '.'!r}: {what}", flush=True)

    def speak(self):
        if self.progress and time.monotonic() - self.spoke >= self.progress:
            self.spoke = time.monotonic()
            print(f"{self.label}compared {self.entries} entries, {self.bytes >> 20} MiB", flush=True)

    def directory(self, path):
        """Compares what is in a directory; its own attributes are its parent's business."""
        here, there = (os.path.join(top, path) for top in (self.expected, self.actual))
        mine, theirs = set(os.listdir(here)), set(os.listdir(there))
        for name in sorted(mine - theirs):
            self.differ(os.path.join(path, name), "is missing")
        for name in sorted(theirs - mine):
            self.differ(os.path.join(path, name), "is too much")
        for name in sorted(mine & theirs):
            self.entry(os.path.join(path, name))

    def entry(self, path):
        self.entries += 1
        self.speak()
        here, there = os.path.join(self.expected, path), os.path.join(self.actual, path)
        a, b = os.lstat(here), os.lstat(there)
        if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
            return self.differ(path, f"type {stat.filemode(a.st_mode)} became {stat.filemode(b.st_mode)}")
        for what, want, got in (
            ("mode", oct(a.st_mode), oct(b.st_mode)),
            ("owner", f"{a.st_uid}:{a.st_gid}", f"{b.st_uid}:{b.st_gid}"),
            ("mtime", a.st_mtime_ns, b.st_mtime_ns),
        ):
            if want != got:
                self.differ(path, f"{what} {want} became {got}")
        self.xattrs(path, here, there)
        if stat.S_ISDIR(a.st_mode):
            return self.directory(path)
        if a.st_nlink > 1 and self.links.setdefault(a.st_ino, b.st_ino) != b.st_ino:
            self.differ(path, "is no longer a hard link to its other names")
        if a.st_nlink == 1 and b.st_nlink != 1:
            self.differ(path, f"has {b.st_nlink} links instead of one")
        if stat.S_ISLNK(a.st_mode):
            want, got = os.readlink(here), os.readlink(there)
            if want != got:
                self.differ(path, f"target {want!r} became {got!r}")
        elif stat.S_ISBLK(a.st_mode) or stat.S_ISCHR(a.st_mode):
            if a.st_rdev != b.st_rdev:
                self.differ(path, f"device {a.st_rdev} became {b.st_rdev}")
        elif stat.S_ISREG(a.st_mode):
            self.content(path, here, there, a.st_size, b.st_size)

    def xattrs(self, path, here, there):
        want, got = (
            {name: os.getxattr(each, name, follow_symlinks=False) for name in os.listxattr(each, follow_symlinks=False)}
            for each in (here, there)
        )
        if want != got:
            self.differ(path, f"extended attributes {want} became {got}")

    def content(self, path, here, there, size, other):
        if size != other:
            return self.differ(path, f"size {size} became {other}")
        at = 0
        with open(here, "rb", buffering=0) as a, open(there, "rb", buffering=0) as b:
            while True:
                want, got = self.piece(a), self.piece(b)
                if want != got:
                    length = min(len(want), len(got))
                    at += next((i for i in range(length) if want[i] != got[i]), length)
                    return self.differ(path, f"content differs at byte {at} of {size}")
                if not want:
                    break
                at += len(want)
                self.bytes += len(want)
                self.speak()
        if at != size:
            self.differ(path, f"has {size} bytes but only {at} could be read")

    @staticmethod
    def piece(file):
        data = file.read(PIECE)
        while data and len(data) < PIECE:
            more = file.read(PIECE - len(data))
            if not more:
                break
            data += more
        return data


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("expected")
    parser.add_argument("actual")
    parser.add_argument("--only")
    parser.add_argument("--progress", type=float, default=0)
    parser.add_argument("--label", default="")
    given = parser.parse_args()
    sys.setrecursionlimit(100000)
    comparison = Comparison(given.expected, given.actual, given.progress, given.label)
    try:
        if given.only:
            with open(given.only, "rb") as names:
                for name in names.read().splitlines():
                    comparison.entry(name)
        else:
            comparison.directory(b"")
    except OSError as error:
        print(f"{given.label}cannot compare: {error}", flush=True)
        return 2
    words = "all equal" if comparison.differences == 0 else f"{comparison.differences} DIFFERENCES"
    print(f"{given.label}compared {comparison.entries} entries, {comparison.bytes >> 20} MiB: {words}", flush=True)
    return 0 if comparison.differences == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

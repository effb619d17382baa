"""Programs that fill a volume to its last block, or its catalog to the last page, on several nodes at once: nothing that was acknowledged is lost,
nobody is told that there is no space for what has space already, and what is deleted can be used again.

usage: full.py fill FOLDER STATE NODES ROUNDS   so many times, each with this node's share of NODES: fills, meets the others at the full volume, looks at
                                                all it has done, deletes half of it. STATE is a folder that all nodes share beside the
                                                volume; while there is STATE/pause nobody deletes
       full.py names FOLDER STATE NODES         the same with names and extended attributes, once
       full.py verify FOLDER STATE NODE         reads what another node has kept
       full.py writes FOLDER MIB                that much fits, and stays what it is
"""

import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

from checked import Wrong, this_node

BLOCK = 4096
POLL = 0.02


def fails_for_space(deed):
    """Whether it does. Any other error is one."""
    try:
        deed()
        return False
    except OSError as why:
        if why.errno != errno.ENOSPC:
            raise
        return True


def must_be(path, wanted, at_least=None):
    """The file has this content; or, of a write that was not answered well, a beginning of it, of this length at least."""
    with open(path, "rb") as file:
        found = file.read()
    least = len(wanted) if at_least is None else at_least
    if not least <= len(found) <= len(wanted):
        raise Wrong(f"{path} has {len(found)} bytes, not {least} to {len(wanted)}")
    if found != wanted[:len(found)]:
        at = next(at for at, (one, two) in enumerate(zip(found, wanted)) if one != two)
        raise Wrong(f"{path} has other content from {at} on")


def stream(seed, length):
    return random.Random(seed).randbytes(length)


class Program:
    """Makes files in a folder of its own until there is no space. `kept`: what each has for content; `least`: how much of it there is at
    least, where that is not all."""

    def __init__(self, node, folder, others_fill):
        self.name = type(self).__name__.lower()
        self.folder, self.others_fill = f"{folder}/{self.name}-{node}", others_fill
        self.chance = random.Random(f"{self.name} {node}")
        self.kept, self.least, self.count = {}, {}, 0
        self.wrong, self.full = None, False

    def run(self):
        try:
            os.makedirs(self.folder, exist_ok=True)
            self.fill()
        except BaseException as why:
            self.wrong = f"{self.name}: {why!r}"
        self.full = True

    def path(self, name):
        return f"{self.folder}/{name}"

    def next(self):
        self.count += 1
        return f"f{self.count}"

    def verify(self):
        for name, content in self.kept.items():
            must_be(self.path(name), content, self.least.get(name))

    def delete(self, share):
        for name in [name for name in self.kept if self.chance.random() < share]:
            os.unlink(self.path(name))
            del self.kept[name]
            self.least.pop(name, None)

    def said(self):
        return {name: [hashlib.sha256(content[:size]).hexdigest(), size]
                for name, content in self.kept.items() for size in [self.least.get(name, len(content))]}


class Dd(Program):
    """Large files, by the program dd, which syncs them."""

    def fill(self):
        while True:
            name = self.next()
            content = stream(name, self.chance.randrange(1 << 20, 6 << 20))
            done = subprocess.run(["dd", f"of={self.path(name)}", f"bs={self.chance.choice(['64k', '1M', '5000'])}", "iflag=fullblock", "conv=fsync"],
                                  input=content, capture_output=True, env={**os.environ, "LC_ALL": "C"})
            said = done.stderr.decode()
            if os.path.exists(self.path(name)):
                self.kept[name] = content
            if done.returncode == 0:
                continue
            if "No space left on device" not in said:
                raise Wrong(f"dd: {said}")
            # What it says it has copied was answered; a last write may have been answered in part.
            if name in self.kept:
                self.least[name] = int(said.splitlines()[-1].split()[0])
            return


class Cp(Program):
    """Small files, by the program cp."""

    def fill(self):
        source = f"/run/source-{self.name}"  # a folder of this node alone
        while True:
            name = self.next()
            content = stream(name, self.chance.randrange(1, 120000))
            with open(source, "wb") as file:
                file.write(content)
            done = subprocess.run(["cp", source, self.path(name)], capture_output=True, env={**os.environ, "LC_ALL": "C"})
            if os.path.exists(self.path(name)):
                self.kept[name] = content
            if done.returncode == 0:
                continue
            if b"No space left on device" not in done.stderr:
                raise Wrong(f"cp: {done.stderr}")
            if name in self.kept:
                self.least[name] = 0
            return


class Append(Program):
    """Records at the end of a file, each synced: a write that is answered in part has that part."""

    def fill(self):
        name = self.next()
        handle = None

        def open_it():
            nonlocal handle
            handle = os.open(self.path(name), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

        if fails_for_space(open_it):
            return
        self.kept[name] = b""
        wrote = 0

        def append():
            nonlocal wrote
            wrote = os.write(handle, record)

        most = 30000
        while most > BLOCK // 2:
            record = stream(f"{name} {len(self.kept[name])}", self.chance.randrange(1, most))
            if fails_for_space(append):
                most //= 2
                continue
            self.kept[name] += record[:wrote]
            os.fsync(handle)  # there is nothing to fail for: what was answered has its space
        os.close(handle)


class Sqlite(Program):
    """Transactions of SQLite: what was committed is there, what could not be is not."""

    rows = 0

    def fill(self):
        database = None
        try:
            database = sqlite3.connect(self.path("database"), isolation_level=None, timeout=60)
            database.execute("PRAGMA synchronous = FULL")
            database.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, content BLOB)")
            while True:
                database.execute("INSERT INTO rows VALUES (?, ?)", (self.rows, stream(f"row {self.rows}", 20000)))
                self.rows += 1
        except sqlite3.OperationalError as why:
            # It calls the failed creation of its journal so; that it was for want of space only the system call says.
            if str(why) not in ("database or disk is full", "unable to open database file"):
                raise
        finally:
            if database:
                database.close()

    def verify(self):
        if not os.path.exists(self.path("database")):
            if self.rows:
                raise Wrong(f"{self.path('database')} is gone")
            return
        database = sqlite3.connect(f"file:{self.path('database')}?immutable=0", uri=True, timeout=60)
        try:
            if (found := database.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                raise Wrong(f"{self.path('database')}: {found}")
            if self.rows and (found := database.execute("SELECT number, content FROM rows ORDER BY number").fetchall()) != \
                    [(number, stream(f"row {number}", 20000)) for number in range(self.rows)]:
                raise Wrong(f"{self.path('database')} has {len(found)} rows, not the {self.rows} that were committed")
        finally:
            database.close()

    def delete(self, share):
        if self.chance.random() < share:
            os.unlink(self.path("database"))
            self.rows = 0

    def said(self):
        return {}


class InPlace(Program):
    """Writes over what is written, and into what is preallocated: that has its space, however full the volume is."""

    SIZE = 1 << 20

    def prepare(self):
        os.makedirs(self.folder, exist_ok=True)
        self.written = bytearray(stream("written", self.SIZE))
        with open(self.path("written"), "wb") as file:
            file.write(self.written)
        self.preallocate()

    def preallocate(self):
        handle = os.open(self.path("preallocated"), os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
        try:
            os.posix_fallocate(handle, 0, self.SIZE)
        finally:
            os.close(handle)
        self.laid = bytearray(self.SIZE)

    def fill(self):
        buffer = mmap.mmap(-1, BLOCK)
        direct = os.open(self.path("written"), os.O_RDWR | os.O_DIRECT)
        laid = os.open(self.path("preallocated"), os.O_RDWR)
        number = 0
        at_the_end = 20  # more, when all others have filled it
        while at_the_end:
            at_the_end -= not self.others_fill()
            number += 1
            place = self.chance.randrange(self.SIZE // BLOCK) * BLOCK
            buffer[:] = content = stream(f"place {self.count} {number}", BLOCK)
            os.pwrite(direct, buffer, place)
            self.written[place:place + BLOCK] = content
            place, length = self.chance.randrange(self.SIZE - 9000), self.chance.randrange(1, 9000)
            content = stream(f"laid {self.count} {number}", length)
            os.pwrite(laid, content, place)
            self.laid[place:place + length] = content
            os.fsync(laid)
            os.fsync(direct)
            time.sleep(POLL)
        os.close(direct)
        os.close(laid)

    def verify(self):
        must_be(self.path("written"), bytes(self.written))
        must_be(self.path("preallocated"), bytes(self.laid))

    def delete(self, share):
        self.count += 1
        if self.chance.random() < share:
            os.unlink(self.path("preallocated"))
            self.preallocate()

    def said(self):
        return {name: [hashlib.sha256(content).hexdigest(), len(content)] for name, content in
                (("written", self.written), ("preallocated", self.laid))}


class Names(Program):
    """Names, while there is no space for content: the catalog has space of its own."""

    def fill(self):
        while self.others_fill():
            name = self.next()
            os.close(os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            self.kept[name] = b""
            old, new = self.chance.choice(sorted(self.kept)), self.next()
            os.rename(self.path(old), self.path(new))
            self.kept[new] = self.kept.pop(old)
            if self.chance.random() < 0.3:
                os.unlink(self.path(new))
                del self.kept[new]
            time.sleep(POLL)


FILLERS = (Dd, Cp, Append, Sqlite)


class Meeting:
    """Of all nodes, at one point."""

    def __init__(self, state, nodes):
        self.state, self.nodes = state, int(nodes)

    def at(self, what, seconds=120):
        open(f"{self.state}/{what}.{this_node()}", "w").close()
        until = time.monotonic() + seconds
        while sum(each.startswith(f"{what}.") for each in os.listdir(self.state)) < self.nodes:
            if time.monotonic() > until:
                raise Wrong(f"waited in vain for the others at {what}")
            time.sleep(POLL)


def told(state, programs):
    with open(f"{state}/kept-{this_node()}.json", "w") as out:
        json.dump({each.folder: each.said() for each in programs}, out)


def fill(folder, state, nodes, rounds):
    os.makedirs(folder, exist_ok=True)
    meeting, node = Meeting(state, nodes), this_node()
    programs = []
    programs += [kind(node, folder, lambda: not all(each.full for each in programs[:len(FILLERS)])) for kind in (*FILLERS, InPlace, Names)]
    programs[len(FILLERS)].prepare()
    for number in range(int(rounds)):
        for each in programs:
            each.full = False
        threads = [threading.Thread(target=each.run) for each in programs]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if wrong := [each.wrong for each in programs if each.wrong]:
            raise Wrong("; ".join(wrong))
        meeting.at(f"full-{number}")
        left = os.statvfs(folder)
        print(f"round {number}: {left.f_bfree} blocks left;", ", ".join(f"{each.name} {len(each.kept) or getattr(each, 'rows', 2)}" for each in programs))
        while os.path.exists(f"{state}/pause-{number}"):
            time.sleep(POLL)
        for each in programs:
            each.verify()
        told(state, programs)
        meeting.at(f"looked-{number}")
        while os.path.exists(f"{state}/look-{number}"):
            time.sleep(POLL)
        for each in programs:
            each.delete(0.5)
        meeting.at(f"deleted-{number}")


def verify(folder, state, node):
    with open(f"{state}/kept-{node.removeprefix('node')}.json") as file:
        kept = json.load(file)
    count = 0
    for path, files in kept.items():
        for name, (digest, least) in files.items():
            with open(f"{path}/{name}", "rb") as file:
                if hashlib.sha256(file.read(least)).hexdigest() != digest:
                    raise Wrong(f"{path}/{name} is another here")
            count += 1
        if odd := set(os.listdir(path)) - set(files) - {"database", "database-journal"}:
            raise Wrong(f"{path} has names that were never made, or were removed: {sorted(odd)[:5]}")
    print(f"{count} files")


def names(folder, state, nodes):
    """Long values until there is no space, then names."""
    folder = f"{folder}/catalog-{this_node()}"
    os.makedirs(folder)
    in_place = f"{folder}/in-place"
    with open(in_place, "wb") as file:
        file.write(bytes(16 * BLOCK))
    meeting = Meeting(state, nodes)
    values, made, count = {}, set(), 0
    meeting.at("names")
    while True:
        name = f"v{count}"
        deeds = [lambda: os.mkdir(f"{folder}/{name}")] + [
            lambda number=number: os.setxattr(f"{folder}/{name}", f"user.{number}", stream(f"{name} {number}", 50000)) for number in range(4)]
        if fails_for_space(deeds[0]):
            break
        values[name] = 0
        for deed in deeds[1:]:
            if fails_for_space(deed):
                break
            values[name] += 1
        if values[name] < 4:
            break
        count += 1
    # What is removed serves names.
    for name in list(values)[:2]:
        os.rmdir(f"{folder}/{name}")
        del values[name]
    turn = 0
    while True:
        turn += 1
        name = f"{turn}-".ljust(200, "n")
        if fails_for_space(lambda: os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY, 0o644))):
            break
        made.add(name)
    print(f"{sum(values.values())} values, {len(made)} names")
    for deed in (lambda: os.mkdir(f"{folder}/directory"), lambda: os.symlink("x" * 1000, f"{folder}/link"),
                 lambda: os.setxattr(folder, "user.more", stream("more", 50000))):
        fails_for_space(deed)
    made |= {each for each in ("directory", "link") if os.path.lexists(f"{folder}/{each}")}
    meeting.at("full-names")

    def look(into):
        found = set(os.listdir(folder))
        wanted = set(values) | made | {"in-place"}
        if found != wanted:
            raise Wrong(f"names that are missing: {sorted(wanted - found)[:5]}, that are too many: {sorted(found - wanted)[:5]}")
        for name, many in values.items() if into else ():
            for number in range(many):
                if os.getxattr(f"{folder}/{name}", f"user.{number}") != stream(f"{name} {number}", 50000):
                    raise Wrong(f"value {number} of {name} is another")
            if len(os.listxattr(f"{folder}/{name}")) != many:
                raise Wrong(f"{name} has {os.listxattr(f'{folder}/{name}')}; {many} values were set")

    look(False)
    # What needs no more of the catalog goes on.
    with open(in_place, "r+b", buffering=0) as file:
        for place in range(16):
            file.seek(place * BLOCK)
            file.write(stream(place, BLOCK))
        os.fsync(file)
    must_be(in_place, b"".join(stream(place, BLOCK) for place in range(16)))
    while os.path.exists(f"{state}/pause-names"):
        time.sleep(POLL)
    look(True)
    meeting.at("looked-names")
    shutil.rmtree(folder)
    os.mkdir(folder)
    os.setxattr(folder, "user.again", stream("again", 50000))
    os.close(os.open(f"{folder}/again", os.O_CREAT | os.O_WRONLY, 0o644))


def writes(folder, mib):
    content = stream("again", 1 << 20)
    for number in range(int(mib)):
        with open(f"{folder}/again-{number}", "wb", buffering=0) as file:
            file.write(content)
            os.fsync(file)
    for number in range(int(mib)):
        must_be(f"{folder}/again-{number}", content)
        os.unlink(f"{folder}/again-{number}")


def main():
    try:
        {"fill": fill, "names": names, "verify": verify, "writes": writes}[sys.argv[1]](*sys.argv[2:])
    except Wrong as why:
        sys.exit(str(why))


if __name__ == "__main__":
    main()

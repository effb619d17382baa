"""Programs on every node whose acknowledged work is checked, by the others too and while it goes on.

usage: checked.py work FOLDER STATE NODES         works in FOLDER of the volume, on so many nodes, until there is a file STATE/stop; STATE
                                                  is a folder that all nodes share beside the volume: what was begun, what was answered,
                                                  and what had to wait stands there
       checked.py judge STATE NODE goes-on FROM TO NAMES_MS DIRECT_MS LOCK_MS
                                                  fails if NODE had an error, or waited longer between these moments (s of CLOCK_BOOTTIME),
                                                  less what the machine itself was late by
       checked.py judge STATE NODE waits FROM TO [KIND...]    fails if anything (of these kinds) was answered on NODE between them
       checked.py judge STATE NODE errors         fails if a program ended, or had another error than EIO of a session that has ended
       checked.py progress STATE ROUNDS SECONDS NODE...    waits until each kind of work has made so many rounds more on each of the nodes
       checked.py verify FOLDER STATE             reads all that all nodes have done
       checked.py blocks FILE NUMBERS NODE        reads a file of blocks that NODE has written, with its numbers (voting.py)
       checked.py make FILE NUMBERS NUMBER        writes such a file anew, in other space than it had
       checked.py read FILE NUMBERS NODE STOP     reads it on and on until there is a file STOP; then how often it did, and how often it was
                                                  told of a session's end

The kinds of work of a node:

names    makes, syncs, renames and removes files of its own. What is acknowledged is what each name has for content, or that there is none.
blocks   writes numbered blocks into a file of its own, directly, and reads them again.
others   reads the blocks of the other nodes while they are written: never older ones than what was answered before, never newer ones
         than what was begun.
counter  counts in one file that all nodes count in, under a lock.
slept    only sleeps: how late the machine is by itself.
"""

import errno
import fcntl
import json
import mmap
import os
import random
import struct
import sys
import threading
import time

BLOCK = 4096
BLOCKS = 64
PAUSE = 0.1  # the machine is to have time for the cluster, too
MAGIC = int.from_bytes(b"numbered", "little")
RECORD = struct.Struct("<4Q")  # node, sequence, offset, MAGIC
SETTLED = 0.25  # s; a shorter wait is not noted


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def this_node():
    return int(os.uname().nodename.removeprefix("node"))


class Wrong(Exception):
    pass


def block_of(node, sequence, offset):
    return RECORD.pack(node, sequence, offset, MAGIC) * (BLOCK // RECORD.size)


def sequences_of(content, node, offset):
    """Of each record of a block: what its writes were numbered. More than one while it is being written."""
    found = set()
    for at, (by, sequence, meant, magic) in zip(range(0, BLOCK, RECORD.size), RECORD.iter_unpack(content)):
        if magic != MAGIC or by != node or meant != offset:
            raise Wrong(f"what stands at {offset + at} was never written there: node {by}, number {sequence}, offset {meant}")
        found.add(sequence)
    return found


class Numbers:
    """Of each place what was begun last, and what was answered last; in a file that all nodes map, so that it outlives its writer."""

    def __init__(self, path=None, count=BLOCKS):
        if path is None:  # for this process alone
            self.map = memoryview(mmap.mmap(-1, count * 16)).cast("Q")
            return
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(file).st_size < count * 16:
            os.ftruncate(file, count * 16)
        self.map = memoryview(mmap.mmap(file, count * 16)).cast("Q")
        os.close(file)

    def begin(self, place, number):
        self.map[2 * place] = number

    def answered(self, place, number):
        self.map[2 * place + 1] = number

    def begun_at(self, place):
        return self.map[2 * place]

    def answered_at(self, place):
        return self.map[2 * place + 1]


class Blocks:
    """A file of numbered blocks, written and read directly."""

    def __init__(self, path, node, numbers):
        self.path, self.node, self.numbers = path, node, numbers
        self.buffer = mmap.mmap(-1, BLOCK * BLOCKS)
        self.file = None

    def make(self, number=1):
        """All of it is written once, so that nobody need be asked to write there again."""
        self.file = os.open(self.path, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_DIRECT, 0o644)
        for place in range(BLOCKS):
            self.numbers.begin(place, number)
            self.buffer[place * BLOCK:(place + 1) * BLOCK] = block_of(self.node, number, place * BLOCK)
        os.pwrite(self.file, self.buffer, 0)
        os.fsync(self.file)
        for place in range(BLOCKS):
            self.numbers.answered(place, number)

    def open(self):
        self.close()
        self.file = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def close(self):
        if self.file is not None:
            os.close(self.file)
            self.file = None

    def write(self, place, number):
        self.buffer[0:BLOCK] = block_of(self.node, number, place * BLOCK)
        self.numbers.begin(place, number)
        with memoryview(self.buffer)[:BLOCK] as block:
            got = os.pwrite(self.file, block, place * BLOCK)
        if got != BLOCK:
            raise Wrong(f"{got} bytes of {BLOCK} were written at {place * BLOCK} of {self.path}")
        self.numbers.answered(place, number)

    def read(self, place):
        """Fails with what is wrong with what it reads. Tells the number."""
        least = self.numbers.answered_at(place)
        with memoryview(self.buffer)[:BLOCK] as block:
            got = os.preadv(self.file, [block], place * BLOCK)
            content = bytes(block)
        if got != BLOCK:
            raise Wrong(f"{got} bytes of {BLOCK} stand at {place * BLOCK} of {self.path}")
        most = self.numbers.begun_at(place)
        found = sequences_of(content, self.node, place * BLOCK)
        if not all(least <= each <= most for each in found):
            raise Wrong(f"{self.path} at {place * BLOCK} has {sorted(found)}, where {least} was answered and {most} begun")
        return found

    def read_all(self):
        for place in range(BLOCKS):
            self.read(place)

    def verify(self):
        """Nobody writes any more: every block is one write's, of those that it may be."""
        self.open()
        for place in range(BLOCKS):
            if len(found := self.read(place)) != 1:
                raise Wrong(f"{self.path} at {place * BLOCK} is torn: {sorted(found)}")
        self.close()


class Program(threading.Thread):
    """One kind of work. What a session that ended has told of with EIO may have been done or not; it goes on with a new handle."""

    def __init__(self, kind, folder, state, nodes):
        super().__init__(name=kind)
        self.kind, self.folder, self.state, self.nodes = kind, folder, state, nodes
        self.node = this_node()
        self.rounds, self.began, self.ended = 0, 0.0, 0.0
        self.waits, self.errors, self.wrong, self.gone = [], [], None, False
        self.numbers = Numbers(f"{state}/progress-{self.node}", len(KINDS))

    def goes_on(self):
        return not os.path.exists(f"{self.state}/stop")

    def run(self):
        self.began = now()
        try:
            self.work()
        except OSError as why:
            if why.errno in (errno.ENOTCONN, errno.ECONNABORTED):  # the mount was killed
                self.gone = True
            else:
                self.wrong = f"{self.kind}: {why!r}"
        except BaseException as why:
            self.wrong = f"{self.kind}: {why!r}"
        self.ended = now()

    def round(self, deed):
        """Tells whether it was answered well."""
        time.sleep(PAUSE)
        began = now()
        try:
            deed()
        except OSError as why:
            if why.errno != errno.EIO:
                raise
            self.errors.append([began, now(), str(why)])
            return False
        ended = now()
        if ended - began > SETTLED:
            self.waits.append([began, ended])
        self.rounds += 1
        self.ended = ended
        self.numbers.answered(KINDS.index(self.kind), self.rounds)
        return True

    def told(self):
        return {"rounds": self.rounds, "began": self.began, "ended": self.ended, "waits": self.waits, "errors": self.errors,
                "wrong": self.wrong, "gone": self.gone}


class Names(Program):
    """`may`: what each name may have for content; None: that there is none."""

    COUNT = 20

    def work(self):
        folder = f"{self.folder}/names-{self.node}"
        os.makedirs(folder, exist_ok=True)
        self.may = {f"f{number}": [None] for number in range(self.COUNT)}
        number = 0
        try:
            while self.goes_on():
                number += 1
                self.make(folder, f"f{number % self.COUNT}", number)
                if number % 3 == 0:
                    self.remove(folder, f"f{number * 7 % self.COUNT}")
        finally:
            with open(f"{self.state}/names-{self.node}.json", "w") as out:
                json.dump(self.may, out)

    def make(self, folder, name, number):
        content = f"{self.node} {name} {number}\n" * 100

        def deed():
            with open(f"{folder}/{name}.new", "w") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{folder}/{name}.new", f"{folder}/{name}")

        before, self.may[name] = self.may[name], self.may[name] + [content]
        if self.round(deed):
            self.may[name] = [content]
        elif content not in before:
            self.may[name] = before + [content]

    def remove(self, folder, name):
        def deed():
            try:
                os.unlink(f"{folder}/{name}")
            except FileNotFoundError:
                if None not in before:
                    raise Wrong(f"{folder}/{name} is not there, and was not removed")

        before, self.may[name] = self.may[name], self.may[name] + [None]
        if self.round(deed):
            self.may[name] = [None]

    @staticmethod
    def verify(folder, state, node):
        folder = f"{folder}/names-{node}"
        with open(f"{state}/names-{node}.json") as file:
            may = json.load(file)
        there = set(os.listdir(folder))
        for name, contents in may.items():
            content = None
            if name in there:
                with open(f"{folder}/{name}") as file:
                    content = file.read()
            if content not in contents:
                raise Wrong(f"{folder}/{name} has {content and content[:20]!r}, and may have {[each and each[:20] for each in contents]}")
        if odd := [each for each in there if each.removesuffix(".new") not in may]:
            raise Wrong(f"{folder} has names that were never made: {odd}")


class Direct(Program):
    def work(self):
        blocks = Blocks(f"{self.folder}/blocks-{self.node}", self.node, Numbers(f"{self.state}/blocks-{self.node}"))
        blocks.make()
        number, chance = 1, random.Random(self.node)
        while self.goes_on():
            number += 1
            if not self.round(lambda: blocks.write(number % BLOCKS, number)):
                self.open_again(blocks)
            elif number % 4 == 0 and not self.round(lambda: blocks.read(chance.randrange(BLOCKS))):
                self.open_again(blocks)
        blocks.close()

    def open_again(self, blocks):
        while not self.round(blocks.open):
            pass


class Others(Program):
    def work(self):
        chance = random.Random(self.node)
        files = {}
        # All of each is read once, so that nobody need be asked to read there again.
        while self.goes_on() and len(files) < self.nodes - 1:
            time.sleep(PAUSE)
            for each in os.listdir(self.state):
                kind, _, node = each.partition("-")
                numbers = Numbers(f"{self.state}/{each}") if kind == "blocks" and int(node) != self.node and each not in files else None
                if numbers and numbers.answered_at(BLOCKS - 1) > 0:  # it is made
                    files[each] = Blocks(f"{self.folder}/{each}", int(node), numbers)
                    files[each].open()
                    files[each].read_all()
        while self.goes_on():
            for blocks in files.values():
                if blocks.file is None and not self.round(blocks.open):
                    continue
                if not self.round(lambda: blocks.read(chance.randrange(BLOCKS))):
                    blocks.close()
            if not files:
                self.round(lambda: None)
        for blocks in files.values():
            blocks.close()


class Counter(Program):
    def work(self):
        numbers = Numbers(f"{self.state}/counter-{self.node}", 1)
        self.file = None

        def count():
            if self.file is None:
                self.file = os.open(f"{self.folder}/counter", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.lockf(self.file, fcntl.LOCK_EX)
            number = int(os.pread(self.file, 20, 0) or b"0")
            numbers.begin(0, numbers.begun_at(0) + 1)
            os.pwrite(self.file, b"%019d\n" % (number + 1), 0)
            os.fsync(self.file)
            numbers.answered(0, numbers.answered_at(0) + 1)
            fcntl.lockf(self.file, fcntl.LOCK_UN)

        while self.goes_on():
            if not self.round(count):
                os.close(self.file)
                self.file = None
            time.sleep(2 * PAUSE)  # the others are to have a turn

    @staticmethod
    def verify(folder, state):
        all_of_it = [Numbers(f"{state}/{each}", 1) for each in os.listdir(state) if each.startswith("counter-")]
        least, most = sum(each.answered_at(0) for each in all_of_it), sum(each.begun_at(0) for each in all_of_it)
        with open(f"{folder}/counter") as file:
            number = int(file.read())
        if not least <= number <= most:
            raise Wrong(f"{folder}/counter is {number}; {least} were answered, {most} begun")


class Slept(Program):
    def work(self):
        while self.goes_on():
            before = now()
            time.sleep(PAUSE)
            if (late := now() - before - PAUSE) > SETTLED / 5:
                self.waits.append([before + PAUSE, before + PAUSE + late])
            self.rounds += 1
            self.numbers.answered(KINDS.index(self.kind), self.rounds)


KINDS = ["names", "blocks", "others", "counter", "slept"]
PROGRAMS = {"names": Names, "blocks": Direct, "others": Others, "counter": Counter, "slept": Slept}


def work(folder, state, nodes):
    os.makedirs(folder, exist_ok=True)
    programs = [PROGRAMS[kind](kind, folder, state, int(nodes)) for kind in KINDS]
    for each in programs:
        each.start()
    for each in programs:
        each.join()
    with open(f"{state}/told-{this_node()}.json", "w") as out:
        json.dump({each.kind: each.told() for each in programs}, out)
    if wrong := [each.wrong for each in programs if each.wrong]:
        sys.exit("; ".join(wrong))


def judge(state, node, how, *given):
    with open(f"{state}/told-{node.removeprefix('node')}.json") as file:
        told = json.load(file)
    lags = told.pop("slept")["waits"]
    for kind, each in told.items():
        if each["wrong"]:
            sys.exit(f"{node}: {each['wrong']}")
        if each["rounds"] < 5:
            sys.exit(f"{node}: only {each['rounds']} rounds of {kind}")
    if how == "errors":
        print(" ".join(f"{kind} {len(each['errors'])}" for kind, each in told.items() if each["errors"]) or "none")
        return
    since, until = float(given[0]), float(given[1])
    if how == "waits":
        for kind, each in told.items():
            if given[2:] and kind not in given[2:]:
                continue
            # Whatever is answered ends a wait: so one goes through it all. It may have begun after a pause.
            if not any(began <= since + 1 and ended >= until for began, ended, *_ in each["waits"] + each["errors"]):
                sys.exit(f"{node}: {kind} did not wait from {since} to {until}: {each['waits'][-3:]} {each['errors'][-3:]}")
        return
    limits = {"names": float(given[2]), "counter": float(given[4]), "blocks": float(given[3]), "others": float(given[3])}
    said = []
    for kind, each in told.items():
        if each["errors"]:
            sys.exit(f"{node}: {kind} had errors: {each['errors'][:3]}")
        if each["began"] > since or each["ended"] < until:
            sys.exit(f"{node}: {kind} was at work from {each['began']} to {each['ended']}, not from {since} to {until}")
        worst = 0
        for began, ended in each["waits"]:
            if ended > since and began < until:
                late = sum(min(ended, to) - max(began, fro) for fro, to in lags if to > began and fro < ended)
                worst = max(worst, ended - began - late)
        said.append(f"{kind} {int(worst * 1000)}")
        if worst * 1000 > limits[kind]:
            sys.exit(f"{node}: {kind} waited {int(worst * 1000)} ms, more than {limits[kind]:.0f}")
    print(", ".join(said))


def progress(state, rounds, seconds, *nodes):
    until = now() + float(seconds)
    all_of_it = {node: Numbers(f"{state}/progress-{node.removeprefix('node')}", len(KINDS)) for node in nodes}
    before = {node: [each.answered_at(place) for place in range(len(KINDS))] for node, each in all_of_it.items()}
    while True:
        slow = {node: [kind for place, kind in enumerate(KINDS) if each.answered_at(place) < before[node][place] + int(rounds)]
                for node, each in all_of_it.items()}
        if not any(slow.values()):
            return
        if now() > until:
            raise Wrong(f"does not go on: {slow}")
        time.sleep(PAUSE)


def verify(folder, state):
    for each in sorted(os.listdir(state)):
        kind, _, node = each.removesuffix(".json").partition("-")
        if kind == "names":
            Names.verify(folder, state, node)
        elif kind == "blocks":
            Blocks(f"{folder}/{each}", int(node), Numbers(f"{state}/{each}")).verify()
    Counter.verify(folder, state)


def blocks(path, numbers, node):
    Blocks(path, int(node.removeprefix("node")), Numbers(numbers)).verify()


def make(path, numbers, number):
    Blocks(path, this_node(), Numbers(numbers)).make(int(number))


def read(path, numbers, node, stop):
    blocks = Blocks(path, int(node.removeprefix("node")), Numbers(numbers))
    blocks.open()
    count = told = 0
    while not os.path.exists(stop):
        try:
            blocks.read(count % BLOCKS)
            count += 1
        except OSError as why:
            if why.errno != errno.EIO:
                raise
            told += 1
            blocks.open()
    print(count, told)


def main():
    try:
        {"work": work, "judge": judge, "progress": progress, "verify": verify, "blocks": blocks, "make": make, "read": read}[sys.argv[1]](*sys.argv[2:])
    except Wrong as why:
        sys.exit(str(why))


if __name__ == "__main__":
    main()

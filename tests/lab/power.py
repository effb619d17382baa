"""Programs on every node while a target with a volatile write cache loses its power: what is durable stays, what is lost is told once.

usage: power.py work FOLDER STATE           works in FOLDER of the volume until there is a file STATE/stop; STATE is a folder that all
                                            nodes share beside the volume. While there is STATE/hold only that is written which
                                            nobody makes durable
       power.py progress STATE ROUNDS NODE...    waits until each kind of work has made so many rounds more on each of the nodes, or, while
                                            there is STATE/hold, the kind that goes on
       power.py verify FOLDER STATE         reads all that all nodes have done
       power.py judge STATE LOSSES          after so many losses: each handle was told once a loss at most, and something was lost

The kinds of work of a node. None of them is ever told of an error, but the first by fsync:

place    numbered blocks in written space, by two handles, made durable by fsync of one or the other. What an fsync that succeeded came
         after is there; what was lost makes the next one fail, once on each of the handles, and on none that is opened then.
dsync    the same with O_DSYNC: what was answered is there.
fresh    files that are written from the start, in space that other files had: what was answered is there, and nothing else.
tails    short files that are cut off, made longer, appended to: as they are told to be, whatever their last block held.
names    names made, renamed, removed, with short content; nothing of it is synced.
"""

import errno
import json
import os
import random
import sys
import threading
import time

from checked import BLOCK, BLOCKS, Blocks, Numbers, Wrong, block_of, now, sequences_of, this_node

PAUSE = 0.02
FRESH_BLOCKS = 48


class Program(threading.Thread):
    def __init__(self, kind, folder, state, rounds):
        super().__init__(name=kind)
        self.kind, self.folder, self.state, self.rounds = kind, folder, state, rounds
        self.node = this_node()
        self.chance = random.Random(f"{kind} {self.node}")
        self.wrong, self.tells = None, {}

    def holds(self):
        return os.path.exists(f"{self.state}/hold")

    def run(self):
        try:
            self.begin()
            number = 0
            while not os.path.exists(f"{self.state}/stop"):
                time.sleep(PAUSE)
                if self.holds() and not self.goes_on_held:
                    continue
                number += 1
                self.round(number)
                self.rounds.answered(KINDS.index(self.kind), number)
            self.end()
        except BaseException as why:
            self.wrong = f"{self.kind}: {why!r}"
            with open(f"{self.state}/wrong", "a") as out:
                print(f"node{self.node}: {self.wrong}", file=out)

    goes_on_held = False

    def begin(self):
        pass

    def end(self):
        pass


class Place(Program):
    """`floor`: of each block the number that it has at least, whatever is lost."""

    goes_on_held = True
    flags = 0

    def begin(self):
        self.path = f"{self.folder}/{self.kind}-{self.node}"
        self.numbers = Numbers(f"{self.state}/{self.kind}-{self.node}")
        self.floor = Numbers(f"{self.state}/floor-{self.kind}-{self.node}")
        self.blocks = Blocks(self.path, self.node, self.numbers)
        self.blocks.make()
        self.raise_floor()
        self.blocks.close()
        self.handles = [os.open(self.path, os.O_RDWR | os.O_DIRECT | self.flags) for _ in range(2)]
        self.number = 1
        self.tells = {"told": 0, "lost": 0}

    def raise_floor(self, to=None):
        for place in range(BLOCKS):
            self.floor.answered(place, self.numbers.answered_at(place) if to is None else to[place])

    def write(self, place):
        self.number += 1
        self.blocks.file = self.chance.choice(self.handles)
        self.blocks.write(place, self.number)

    def round(self, number):
        self.write(number % BLOCKS)
        if not self.holds() and number % 10 == 0:
            self.sync(self.chance.randrange(2))

    def sync(self, which):
        answered = [self.numbers.answered_at(place) for place in range(BLOCKS)]
        if not self.told(self.handles[which]):
            self.raise_floor(answered)
            return
        self.tells["told"] += 1
        # As many as there are: another loss meanwhile would be told again.
        losses = self.losses()
        if not self.told(self.handles[1 - which]):
            raise Wrong(f"of two handles of {self.path} one was told of a loss only")
        for each in [*self.handles, late := os.open(self.path, os.O_RDWR)]:
            if self.told(each) and losses == self.losses():
                raise Wrong(f"a handle of {self.path} was told {'twice' if each != late else 'of what others had been told before'}")
        os.close(late)
        self.tells["lost"] += sum(min(look(self.handles[0], self.node, place, self.floor, self.numbers)) < answered[place] for place in range(BLOCKS))
        # It is as safe as ever, once it is written again.
        for place in range(BLOCKS):
            self.write(place)

    def told(self, handle):
        try:
            os.fsync(handle)
            return False
        except OSError as why:
            if why.errno != errno.EIO:
                raise
            return True

    def losses(self):
        return sum(each.startswith("loss-") for each in os.listdir(self.state))

    def end(self):
        for _ in range(2):  # the second is well, whatever there was to be told
            self.sync(0)
        self.raise_floor()

    @classmethod
    def verify(cls, folder, state, node):
        handle = os.open(f"{folder}/{cls.__name__.lower()}-{node}", os.O_RDONLY)
        numbers, floor = (Numbers(f"{state}/{prefix}{cls.__name__.lower()}-{node}") for prefix in ("", "floor-"))
        for place in range(BLOCKS):
            look(handle, node, place, floor, numbers)
        os.close(handle)


class Dsync(Place):
    goes_on_held = False
    flags = os.O_DSYNC

    def round(self, number):
        look(self.handles[0], self.node, number % BLOCKS, self.floor, self.numbers)  # before it is written over
        self.write(number % BLOCKS)
        self.floor.answered(number % BLOCKS, self.number)

    def end(self):
        pass


def look(handle, node, place, floor, numbers):
    """The numbers of a block: between what is durable and what was begun; a loss may leave parts of writes."""
    least = floor.answered_at(place)
    content = os.pread(handle, BLOCK, place * BLOCK)
    most = numbers.begun_at(place)
    found = sequences_of(content, node, place * BLOCK)
    if not all(least <= each <= most for each in found):
        raise Wrong(f"block {place} of node{node} has {sorted(found)}, where {least} was made durable and {most} begun")
    return found


class Model(Program):
    """What each file has for content, as its program was told; None: that there is none. In the end it stands in STATE."""

    def begin(self):
        os.makedirs(f"{self.folder}/{self.kind}-{self.node}")
        self.files = {}

    def path(self, name):
        return f"{self.folder}/{self.kind}-{self.node}/{name}"

    def check(self, name):
        """As it is, unless it never was: also before it is written over."""
        if name in self.files:
            self.compare(self.path(name), self.files[name])

    @staticmethod
    def compare(path, wanted):
        try:
            with open(path, "rb") as file:
                found = file.read()
        except FileNotFoundError:
            found = None
        if found == wanted:
            return
        if found is None or wanted is None:
            raise Wrong(f"{path} is {'not ' if found is None else ''}there")
        at = next((at for at, (one, two) in enumerate(zip(found, wanted)) if one != two), min(len(found), len(wanted)))
        raise Wrong(f"{path} has {len(found)} bytes of {len(wanted)}, and from {at} on {found[at:at + 40]!r}, not {wanted[at:at + 40]!r}")

    def end(self):
        with open(f"{self.state}/{self.kind}-{self.node}.json", "w") as out:
            json.dump({name: content and content.hex() for name, content in self.files.items()}, out)

    @classmethod
    def verify(cls, folder, state, node):
        kind = cls.__name__.lower()
        with open(f"{state}/{kind}-{node}.json") as file:
            files = json.load(file)
        for name, content in files.items():
            cls.compare(f"{folder}/{kind}-{node}/{name}", content if content is None else bytes.fromhex(content))
        if odd := set(os.listdir(f"{folder}/{kind}-{node}")) - set(files):
            raise Wrong(f"{folder}/{kind}-{node} has names that were never made: {odd}")


class Fresh(Model):
    def round(self, number):
        name = f"f{number % 4}"
        self.check(name)
        content = b"".join(block_of(self.node, number, place * BLOCK) for place in range(self.chance.randrange(1, FRESH_BLOCKS)))
        handle = os.open(self.path(name), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        wrote = os.write(handle, content)
        os.close(handle)
        self.files[name] = content[:wrote]
        self.check(f"f{self.chance.randrange(4)}")


class Tails(Model):
    def round(self, number):
        name = f"f{number % 4}"
        self.check(name)
        content = self.files.get(name, b"")
        handle = os.open(self.path(name), os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        deed = self.chance.randrange(4)
        if deed == 0 or not content:
            more = (b"%d.%d " % (self.node, number)) * self.chance.randrange(1, 800)
            os.write(handle, more)
            content += more
        elif deed == 1:
            size = self.chance.randrange(len(content))
            os.ftruncate(handle, size)
            content = content[:size]
        elif deed == 2:
            size = len(content) + self.chance.randrange(1, 6000)
            os.ftruncate(handle, size)
            content = content.ljust(size, b"\0")
        else:  # in another block, or behind a gap in this one
            offset = len(content) + self.chance.randrange(1, 9000)
            with open(self.path(name), "r+b", buffering=0) as file:  # an O_APPEND handle takes no place
                file.seek(offset)
                file.write(b"behind a gap")
            content = content.ljust(offset, b"\0") + b"behind a gap"
        os.close(handle)
        self.files[name] = content
        self.check(name)
        if len(content) > 60000:
            os.truncate(self.path(name), 0)
            self.files[name] = b""


class Names(Model):
    def round(self, number):
        name, other = (f"f{self.chance.randrange(12)}" for _ in range(2))
        for each in name, other:
            self.check(each)
        deed = self.chance.randrange(3)
        if deed == 0 or self.files.get(name) is None:
            content = b"%d %d\n" % (self.node, number) * self.chance.randrange(1, 60)
            with open(self.path("new"), "wb", buffering=0) as file:
                file.write(content)
            os.rename(self.path("new"), self.path(name))
            self.files[name] = content
        elif deed == 1:
            os.unlink(self.path(name))
            self.files[name] = None
        elif name != other:
            os.rename(self.path(name), self.path(other))
            self.files[other], self.files[name] = self.files[name], None
        for each in name, other:
            self.check(each)


PROGRAMS = {each.__name__.lower(): each for each in (Place, Dsync, Fresh, Tails, Names)}
KINDS = list(PROGRAMS)


def work(folder, state):
    os.makedirs(folder, exist_ok=True)
    rounds = Numbers(f"{state}/rounds-{this_node()}", len(KINDS))
    programs = [PROGRAMS[kind](kind, folder, state, rounds) for kind in KINDS]
    for each in programs:
        each.start()
    for each in programs:
        each.join()
    if wrong := [each.wrong for each in programs if each.wrong]:
        sys.exit("; ".join(wrong))
    with open(f"{state}/told-{this_node()}.json", "w") as out:
        json.dump(programs[0].tells, out)


def progress(state, rounds, *nodes):
    until = now() + 60
    kinds = [place for place, kind in enumerate(KINDS) if PROGRAMS[kind].goes_on_held or not os.path.exists(f"{state}/hold")]
    all_of_it = {node: Numbers(f"{state}/rounds-{node.removeprefix('node')}", len(KINDS)) for node in nodes}
    wanted = {node: [each.answered_at(place) + int(rounds) for place in range(len(KINDS))] for node, each in all_of_it.items()}
    while slow := {f"{node}: {KINDS[place]}" for node, each in all_of_it.items() for place in kinds if each.answered_at(place) < wanted[node][place]}:
        if os.path.exists(f"{state}/wrong"):
            with open(f"{state}/wrong") as said:
                raise Wrong(said.read())
        if now() > until:
            raise Wrong(f"does not go on: {sorted(slow)}")
        time.sleep(PAUSE)


def verify(folder, state):
    for each in sorted(os.listdir(state)):
        kind, _, node = each.removesuffix(".json").partition("-")
        if kind in PROGRAMS:
            PROGRAMS[kind].verify(folder, state, int(node))


def judge(state, losses):
    tells = {}
    for each in os.listdir(state):
        if each.startswith("told-"):
            with open(f"{state}/{each}") as file:
                tells[each.removeprefix("told-").removesuffix(".json")] = json.load(file)
    for node, each in tells.items():
        if each["told"] > int(losses):
            raise Wrong(f"node{node} was told of {each['told']} losses; there were {losses}")
    if not sum(each["lost"] for each in tells.values()):
        raise Wrong("nothing that was answered was lost: nothing was shown")
    print(", ".join(f"node{node}: told {each['told']} times, {each['lost']} blocks lost" for node, each in sorted(tells.items())))


def main():
    try:
        {"work": work, "progress": progress, "verify": verify, "judge": judge}[sys.argv[1]](*sys.argv[2:])
    except Wrong as why:
        sys.exit(str(why))


if __name__ == "__main__":
    main()

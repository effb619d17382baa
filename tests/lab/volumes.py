"""Programs on every volume of a node at once: verified names, and direct writes into written blocks.

usage: volumes.py NAME FILE VOLUME...    until FILE.stop is there; then a line for each volume, with the longest wait for a
                                         name, for a direct write, and for the machine to let a program go on that only
                                         slept, in ms: VOLUME NAMES DIRECT LAG. FILE.NAME.works is made once all are at it;
                                         FILE.NAME.VOLUME has the numbers of the direct writes, for checked.py blocks
"""

import os
import sys
import threading
import time

from voting import direct, names, slept

PAUSE = 0.02  # the machine is to have time for the cluster, too
ROUNDS = 20  # a program has begun


class Program(threading.Thread):
    def __init__(self, volume, kind, work, path, stop, *more):
        super().__init__()
        self.volume, self.kind, self.work, self.path, self.stop, self.more = volume, kind, work, path, stop, more
        self.rounds, self.longest, self.wrong = 0, 0, None

    def goes_on(self):
        self.rounds += 1
        return not os.path.exists(self.stop)

    def run(self):
        try:
            self.longest, _ = self.work(self.path, self.goes_on, PAUSE, *self.more)
        except BaseException as wrong:  # also the SystemExit of a comparison
            self.wrong = f"{self.kind} at {self.path}: {wrong!r}"


def main(name, file, volumes):
    programs = []
    for volume in volumes:
        path = f"/clusterstorage/{volume}/{name}"
        programs.append(Program(volume, "names", names, path, file + ".stop"))
        programs.append(Program(volume, "direct", direct, path + ".direct", file + ".stop", f"{file}.{name}.{volume}"))
        programs.append(Program(volume, "sleep", slept, path, file + ".stop"))
    for each in programs:
        each.start()
    while all(each.is_alive() for each in programs) and min(each.rounds for each in programs) < ROUNDS:
        time.sleep(PAUSE)
    open(f"{file}.{name}.works", "w").close()
    for each in programs:
        each.join()
    for each in programs:
        if each.wrong or each.rounds < ROUNDS:
            sys.exit(each.wrong or f"only {each.rounds} rounds of {each.kind} at {each.path}")
    for volume in volumes:
        print(volume, *(int(each.longest * 1000) for each in programs if each.volume == volume))


main(sys.argv[1], sys.argv[2], sys.argv[3:])

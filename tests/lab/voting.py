"""What a program does while nodes fail: it makes and reads files, and writes into one directly.

usage: voting.py names FOLDER SECONDS     the longest wait for a name, in ms, on stdout; each file's content is looked at
       voting.py direct FILE SECONDS [NUMBERS]    the longest wait of an O_DIRECT write to written blocks, in ms. They are numbered, and
                                          read at the end: here, and with NUMBERS elsewhere, by checked.py blocks
       voting.py slept - SECONDS          how long the machine let a program wait that only slept, in ms
       voting.py touch FILE OTHER [WORD]  touches OTHER after each such write, which consists of WORD, until it is killed
"""

import mmap
import os
import sys
import time

from checked import BLOCKS, Blocks, Numbers, this_node


def until(moment):
    return lambda: time.monotonic() < moment


def names(folder, goes_on, pause=0):
    worst = number = 0
    os.makedirs(folder, exist_ok=True)
    kept = {}
    while goes_on():
        time.sleep(pause)
        began = time.monotonic()
        name = f"{folder}/f{number % 40}"
        content = b"%d " % number * 100
        with open(name + ".new", "wb") as file:
            file.write(content)
        os.rename(name + ".new", name)
        kept[name] = content
        worst = max(worst, time.monotonic() - began)
        number += 1
    for name, content in kept.items():
        with open(name, "rb") as file:
            if file.read() != content:
                sys.exit(f"{name} is not what was written")
    if sorted(kept) != sorted(f"{folder}/{each}" for each in os.listdir(folder)):
        sys.exit(f"{folder} lists other names than were made")
    return worst, number


def written(path, word=b"x"):
    """A file whose first MiB is written, so that nobody need be asked to write there again; and a block."""
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    content = mmap.mmap(-1, 1 << 20)
    content.write((word * (1 << 20))[:1 << 20])
    os.pwrite(file, content, 0)
    os.fsync(file)
    return file, memoryview(content)[:4096]


def touch(path, other, word="x"):
    file, block = written(path, word.encode())
    for number in range(sys.maxsize):
        os.pwrite(file, block, number % 256 * 4096)
        os.utime(other)


def direct(path, goes_on, pause=0, numbers=None):
    blocks = Blocks(path, this_node(), Numbers(numbers))
    blocks.make()
    worst, number = 0, 1
    while goes_on():
        time.sleep(pause)
        began = time.monotonic()
        number += 1
        blocks.write(number % BLOCKS, number)
        worst = max(worst, time.monotonic() - began)
    blocks.verify()
    return worst, number


def slept(_, goes_on, pause):
    longest = number = 0
    while goes_on():
        began = time.monotonic()
        time.sleep(pause)
        longest = max(longest, time.monotonic() - began - pause)
        number += 1
    return longest, number


def main():
    if sys.argv[1] == "touch":
        touch(*sys.argv[2:])
    work, goes_on = {"names": names, "direct": direct, "slept": slept}[sys.argv[1]], until(time.monotonic() + float(sys.argv[3]))
    longest, count = work(sys.argv[2], goes_on, 0.02 if work == slept else 0, *sys.argv[4:])
    if count < 20:
        sys.exit(f"only {count} rounds")
    print(int(longest * 1000))


if __name__ == "__main__":
    main()

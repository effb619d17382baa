"""Holds two files open across a fence, as a machine holds its disks.

usage: held.py KEPT TOUCHED STOP RESULT    writes into KEPT all the time, whatever happens, until there is a file STOP. Then KEPT must have
                                        all of it, through the descriptor from before, and TOUCHED answer EIO
"""

import errno
import os
import sys
import time

BLOCK = 4096
BLOCKS = 256


def block(number):
    return number.to_bytes(8, "little") * (BLOCK // 8)


def main(kept, touched, stop, result):
    files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in (kept, touched)]
    for file in files:
        os.pwrite(file, block(1) * BLOCKS, 0)
        os.fsync(file)
    with open(result, "w") as out:
        out.write("holds")
    last, number = {}, 1
    while not os.path.exists(stop):
        number += 1
        os.pwrite(files[0], block(number), number % BLOCKS * BLOCK)
        last[number % BLOCKS] = number
        if number % 50 == 0:
            os.fsync(files[0])
        time.sleep(0.01)  # as a machine that has little to do
    os.fsync(files[0])
    wrong = [at for at in range(BLOCKS) if os.pread(files[0], BLOCK, at * BLOCK) != block(last.get(at, 1))]
    try:
        os.pread(files[1], BLOCK, 0)
        other = "goes on"
    except OSError as why:
        other = errno.errorcode[why.errno]
    with open(result, "w") as out:
        out.write(f"{len(wrong)} wrong, other {other}, {number} written")


main(*sys.argv[1:])

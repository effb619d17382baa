"""That what checked.py judges is found out where it is wrong, on any file system.

usage: checked_test.py FOLDER     a folder that is made anew
"""

import contextlib
import io
import json
import os
import shutil
import sys

import checked
from checked import BLOCK, Blocks, Names, Numbers, Wrong, block_of


def must_be_wrong(what, judge, words, wrong=Wrong):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            judge()
    except wrong as why:
        if words not in str(why):
            sys.exit(f"{what}: found out, but for another reason: {why}")
        return
    sys.exit(f"{what}: not found out")


def blocks(folder):
    path, numbers = f"{folder}/blocks-1", Numbers(f"{folder}/state/blocks-1")
    it = Blocks(path, 1, numbers)
    it.make()
    it.write(3, 67)
    it.write(3, 131)
    it.verify()

    def write(content, at=3 * BLOCK):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(content)

    good = block_of(1, 131, 3 * BLOCK)
    for what, content, words in (("a lost write", block_of(1, 67, 3 * BLOCK), "where 131 was answered"),
                                 ("zeros", bytes(BLOCK), "never written there"),
                                 ("a misplaced block", block_of(1, 131, 4 * BLOCK), "never written there"),
                                 ("another node's block", block_of(2, 131, 3 * BLOCK), "never written there"),
                                 ("a write that was never begun", block_of(1, 195, 3 * BLOCK), "131 begun")):
        write(content)
        must_be_wrong(what, it.verify, words)
        write(good)
        it.verify()
    numbers.begin(3, 195)  # and its end is not known: it may be there or not, but not in parts
    it.verify()
    write(block_of(1, 195, 3 * BLOCK)[:BLOCK // 2])
    must_be_wrong("a torn block", it.verify, "torn")
    write(block_of(1, 195, 3 * BLOCK))
    it.verify()


def names(folder):
    def judge():
        Names.verify(folder, f"{folder}/state", 1)

    def put(name, content):
        with open(f"{folder}/names-1/{name}", "w") as file:
            file.write(content)

    os.makedirs(f"{folder}/names-1")
    with open(f"{folder}/state/names-1.json", "w") as file:
        json.dump({"f0": [None], "f1": ["one"], "f2": [None, "two"]}, file)
    put("f1", "one")
    judge()
    put("f2", "two")
    judge()
    put("f1", "older")
    must_be_wrong("another content", judge, "older")
    os.unlink(f"{folder}/names-1/f1")
    must_be_wrong("a lost file", judge, "None")
    put("f1", "one")
    put("f0", "removed")
    must_be_wrong("a file that was removed", judge, "removed")
    os.unlink(f"{folder}/names-1/f0")
    put("f9", "")
    must_be_wrong("a name that was never made", judge, "f9")


def counter(folder):
    numbers = Numbers(f"{folder}/state/counter-1", 1)
    numbers.begin(0, 5)
    numbers.answered(0, 4)
    for number, good in ((3, False), (4, True), (5, True), (6, False)):
        with open(f"{folder}/counter", "w") as file:
            file.write(f"{number:019d}\n")
        if good:
            checked.Counter.verify(folder, f"{folder}/state")
        else:
            must_be_wrong(f"a counter of {number}", lambda: checked.Counter.verify(folder, f"{folder}/state"), "answered")


def judges(folder):
    state = f"{folder}/state"

    def told(waits, errors=(), lags=()):
        work = {"rounds": 9, "began": 0, "ended": 100, "waits": waits, "errors": errors, "wrong": None, "gone": False}
        with open(f"{state}/told-1.json", "w") as file:
            json.dump({**{kind: work for kind in checked.KINDS}, "slept": {**work, "waits": lags}}, file)

    def goes_on():
        checked.judge(state, "node1", "goes-on", 10, 20, 3000, 3000, 3000)

    def waits():
        checked.judge(state, "node1", "waits", 10, 20)

    told([[11, 13]])
    with contextlib.redirect_stdout(io.StringIO()):
        goes_on()
    must_be_wrong("work that went on", waits, "did not wait", SystemExit)
    told([[9, 21]])
    waits()
    must_be_wrong("work that waited", goes_on, "waited 12000 ms", SystemExit)
    told([[9, 21]], lags=[[9.5, 20.5]])  # the machine stood still
    with contextlib.redirect_stdout(io.StringIO()):
        goes_on()
    told([[9, 15], [15.1, 21]])
    must_be_wrong("an answer in between", waits, "did not wait", SystemExit)
    told([], errors=[[11, 12, "EIO"]])
    must_be_wrong("an error", goes_on, "errors", SystemExit)


def main(folder):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(f"{folder}/state")
    checked.this_node = lambda: 1
    for each in (blocks, names, counter, judges):
        each(folder)
    shutil.rmtree(folder)


main(sys.argv[1])

"""A listing of a large folder that goes on while its volume's coordinator changes, and names come and go.

usage: listing.py names FIRST END              says the names FIRST to END
       listing.py make FOLDER FIRST END        makes the names FIRST to END
       listing.py look FOLDER FIRST END [STEP] looks each of them up, or every STEP-th, and one that is not there beside each thousandth
       listing.py gone FOLDER FIRST END        looks each of them up: none is there
       listing.py remove FOLDER FIRST END      removes them
       listing.py churn FOLDER STOP            makes, replaces, renames and removes other names until there is a file STOP
       listing.py list FOLDER COUNT STEPS GO   lists it, in pieces, COUNT names of `make`; after each part of STEPS parts says "part N"
                                               and waits for a line from GO. Each of the names stands there once, no other one twice; and
                                               what was listed from a place before comes again from there
"""

import ctypes
import os
import random
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
SYS_GETDENTS64 = 217  # of x86-64


def name_of(number):
    return f"stays-{number:07}" + "n" * (number * 37 % 120)


def is_there(path):
    """Whether it is; whatever else is said than that is no answer."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def entries(folder, buffer):
    """The next ones: pairs of a name and where to go on behind it."""
    got = libc.syscall(SYS_GETDENTS64, folder, buffer, len(buffer))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    found, at = [], 0
    while at < got:
        _, cookie, length, _ = struct.unpack_from("<QqHB", buffer, at)
        found.append((buffer.raw[at + 19:at + length].split(b"\0", 1)[0].decode(), cookie))
        at += length
    return found


def names(first, end):
    for number in range(int(first), int(end)):
        print(name_of(number))


def make(folder, first, end):
    for number in range(int(first), int(end)):
        os.close(os.open(f"{folder}/{name_of(number)}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def look(folder, first, end, step=1):
    for number in range(int(first), int(end), int(step)):
        os.stat(f"{folder}/{name_of(number)}")
        if number % 1000 == 0 and is_there(f"{folder}/{name_of(number)}-not"):
            sys.exit(f"{name_of(number)}-not is there")


def gone(folder, first, end):
    for number in range(int(first), int(end)):
        if is_there(f"{folder}/{name_of(number)}"):
            sys.exit(f"{name_of(number)} is there, and was removed")


def remove(folder, first, end):
    for number in range(int(first), int(end)):
        os.unlink(f"{folder}/{name_of(number)}")


def churn(folder, stop):
    chance, number, there = random.Random(1), 0, []
    while not os.path.exists(stop):
        number += 1
        there.append(f"comes-{number}")
        os.close(os.open(f"{folder}/{there[-1]}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        if number % 3 == 0:
            os.unlink(f"{folder}/{there.pop(chance.randrange(len(there)))}")
        if number % 5 == 0:
            which = chance.randrange(len(there))
            os.rename(f"{folder}/{there[which]}", f"{folder}/renamed-{number}")
            there[which] = f"renamed-{number}"
        # In the place of one that stays.
        if number % 7 == 0:
            os.rename(f"{folder}/{there.pop(chance.randrange(len(there)))}", f"{folder}/{name_of(chance.randrange(100))}")
    print(number)


def list_it(folder, count, steps, go):
    count, steps = int(count), int(steps)
    handle, buffer = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), ctypes.create_string_buffer(2000)
    # In one go it is read as programs do, in fewer messages.
    large = ctypes.create_string_buffer(32768) if steps == 1 else buffer
    seen, order, part = set(), [], 1
    with open(go) as line:
        while more := entries(handle, large):
            for name, cookie in more:
                if name in seen:
                    sys.exit(f"{name} is listed twice")
                seen.add(name)
                order.append((name, cookie))
            if part < steps and len(order) > part * count // steps:
                print(f"part {part}", flush=True)
                line.readline()
                part += 1
    if part < steps:
        sys.exit(f"the listing ended in part {part} of {steps}, after {len(order)} names")
    if missing := [name for name in map(name_of, range(count)) if name not in seen]:
        sys.exit(f"{len(missing)} names are missing that were there all the time, {missing[0]} among them")
    # From places that were told by former coordinators.
    for place in range(0, len(order) - 1, len(order) // 20):
        os.lseek(handle, order[place][1], os.SEEK_SET)
        found = [name for name, _ in entries(handle, buffer) if name.startswith("stays-")]
        wanted = [name for name, _ in order[place + 1:place + 200] if name.startswith("stays-")][:len(found)]
        if found != wanted:
            sys.exit(f"behind {order[place][0]} there is {found[:3]}, and was {wanted[:3]}")
    print(f"{len(order)} names")


{"names": names, "make": make, "look": look, "gone": gone, "remove": remove, "churn": churn, "list": list_it}[sys.argv[1]](*sys.argv[2:])

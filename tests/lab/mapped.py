#!/usr/bin/env python3
"""Programs that share a file, some by mapping it, some by reading and writing. Each checks at each step that nothing is lost.
Usage: mapped.py count FILE OFFSET ROUNDS      counts the 8 bytes there up, through a mapping
       mapped.py write FILE OFFSET ROUNDS      the same with pwrite, and reads it back
       mapped.py look FILE OFFSET...           what is there, by read and through a mapping
       mapped.py here FILE                     a mapping, read and write on one node
       mapped.py until FILE OFFSET VALUE       waits, looking through a mapping that only reads
"""
import mmap, os, struct, sys, time

def value(area, at):
    return struct.unpack_from("<Q", area, at)[0]

def count(path, at, rounds):
    fd = os.open(path, os.O_RDWR)
    area = mmap.mmap(fd, 4096)
    for i in range(rounds):
        seen = value(area, at)
        assert seen == i, f"round {i}: the counter says {seen}"
        struct.pack_into("<Q", area, at, i + 1)
        time.sleep(0.0005)  # so that others get the page between two rounds
    # No msync: it is there for everybody all the same.
    print(f"counted to {rounds} at {at}")

def write(path, at, rounds):
    fd = os.open(path, os.O_RDWR)
    for i in range(1, rounds + 1):
        assert os.pwrite(fd, struct.pack("<Q", i), at) == 8
        seen = value(os.pread(fd, 8, at), 0)
        assert seen == i, f"wrote {i}, read {seen}"
    print(f"wrote up to {rounds} at {at}")

def look(path, *at):
    fd = os.open(path, os.O_RDONLY)
    area = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
    for each in at:
        read, mapped = value(os.pread(fd, 8, each), 0), value(area, each)
        assert read == mapped, f"at {each} read says {read}, the mapping {mapped}"
        print(read)

def here(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, 3 * 4096 + 100)
    area = mmap.mmap(fd, 3 * 4096 + 100)
    for i in range(300):
        at = i * 37 % (3 * 4096)
        struct.pack_into("<Q", area, at, i)
        assert value(os.pread(fd, 8, at), 0) == i, "a store does not show in a read"
        os.pwrite(fd, struct.pack("<Q", i + 1), at + 8)
        assert value(area, at) == i and value(area, at + 8) == i + 1, "a write does not show in the mapping"
    area[3 * 4096 + 50:3 * 4096 + 54] = b"last"
    area.flush()
    assert os.fstat(fd).st_size == 3 * 4096 + 100, "pages made the file longer"
    os.ftruncate(fd, 5000)
    os.ftruncate(fd, 9000)
    assert os.pread(fd, 4000, 5000) == bytes(4000), "what was cut off came back"

def until(path, at, wanted):
    fd = os.open(path, os.O_RDONLY)
    area = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
    print("looking", flush=True)
    while value(area, at) != wanted:
        time.sleep(0.001)

command, path, *rest = sys.argv[1:]
{"count": count, "write": write, "look": look, "here": here, "until": until}[command](path, *map(int, rest))

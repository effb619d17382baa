#!/usr/bin/env python3
"""Programs that share a file, some by mapping it, some by reading and writing. Each checks at each step that nothing is lost.
Usage: mapped.py count FILE OFFSET ROUNDS      counts the 8 bytes there up, through a mapping
       mapped.py write FILE OFFSET ROUNDS      the same with pwrite, and reads it back
       mapped.py look FILE OFFSET...           what is there, by read and through a mapping
       mapped.py here FILE                     a mapping, read and write on one node
       mapped.py until FILE OFFSET VALUE       waits, looking through a mapping that only reads
       mapped.py beside FILE ROUNDS            mappings come and go while other threads write, large and partly from memory that is not there yet
"""
import mmap, os, struct, sys, threading, time

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

def beside(path, rounds):
    # A first mapping waits for parallel writes under way, with the process's memory locked, and these may need that to take what they write.
    # Only who writes with O_DIRECT does so in parallel, and has to see to it that its buffers are there.
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    size = 16 << 20
    os.posix_fallocate(fd, 0, size)
    done = threading.Event()
    written = [0, 0]
    def write(which):
        while not done.is_set():
            buffer = mmap.mmap(-1, 5 << 20)
            if which == 1:
                buffer.write(bytes(5 << 20))
            written[which] += os.pwrite([fd, direct][which], buffer, which * (8 << 20))
            buffer.close()
    threads = [threading.Thread(target=write, args=(which,)) for which in range(2)]
    for each in threads:
        each.start()
    try:
        for i in range(rounds):
            mapped = os.open(path, os.O_RDWR)
            area = mmap.mmap(mapped, size)
            at = 7 * (1 << 20) + i % 250 * 4096  # where nobody writes
            struct.pack_into("<Q", area, at, i + 1)
            assert value(os.pread(fd, 8, at), 0) == i + 1
            area.close()
            os.close(mapped)
    finally:
        done.set()
    for each in threads:
        each.join()
    print(f"mapped {rounds} times beside {sum(written) >> 20} MiB of writes")

command, path, *rest = sys.argv[1:]
{"count": count, "write": write, "look": look, "here": here, "until": until, "beside": beside}[command](path, *map(int, rest))

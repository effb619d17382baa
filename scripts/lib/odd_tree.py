"""Makes a small tree of everything that a plain copy of programs and headers seldom has.

usage: odd_tree.py FOLDER     (FOLDER must not exist)
"""

import os
import socket
import stat
import sys


def write(path, content=b"", **attributes):
    with open(path, "wb") as file:
        file.write(content)
    for name, value in attributes.items():
        os.setxattr(path, name.replace("_", "."), value)


def main():
    top = os.path.abspath(sys.argv[1])
    os.mkdir(top)
    os.chdir(top)

    os.mkdir("names")
    for name in ("with space", "line\nbreak", "umläut-漢字-🙂", "-dash", "*glob?", "\\backslash", "x" * 255, ".hidden"):
        write(os.path.join("names", name), name.encode())
    write(b"names/not-utf8-\xff\xfe", b"bytes")

    os.mkdir("sizes")
    for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 1048575, 1048576, 1048577, 5000001):
        write(f"sizes/{size}", (b"%d," % size * (size // 2 + 1))[:size])
    with open("sizes/sparse", "wb") as file:
        for at in (0, 1 << 20, (7 << 20) + 3):
            file.seek(at)
            file.write(b"content at %d" % at)
        file.truncate(9 << 20)
    with open("sizes/hole", "wb") as file:
        file.truncate(3 << 20)

    os.mkdir("links")
    write("links/one", b"several names")
    for name in ("two", "three"):
        os.link("links/one", f"links/{name}")
    os.mkdir("links/elsewhere")
    os.link("links/one", "links/elsewhere/four")
    os.symlink("one", "links/relative")
    os.symlink("/no/such/file", "links/dangling")
    os.symlink("t" * 1000, "links/long")
    os.symlink("short", "links/hard-linked symlink")
    os.link("links/hard-linked symlink", "links/its other name", follow_symlinks=False)

    os.mkdir("attributes")
    for mode in (0o000, 0o644, 0o4755, 0o2755, 0o6711, 0o1777):
        write(f"attributes/mode-{mode:04o}", b"x")
    os.mkdir("attributes/sticky")
    os.mkdir("attributes/setgid")
    write("attributes/owner", b"x")
    write("attributes/xattr", b"x", user_small=b"value", user_empty=b"", user_binary=bytes(range(256)), trusted_t=b"t")
    write("attributes/xattr-large", b"x", user_large=b"v" * 3000)
    write("attributes/capability", b"x", security_capability=bytes.fromhex("0100000202000000000000000000000000000000"))
    os.setxattr("attributes/sticky", "user.of-a-folder", b"value")
    os.chown("attributes/owner", 12345, 54321)
    if os.geteuid() == 0:
        os.mkfifo("attributes/fifo")
        os.mknod("attributes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod("attributes/block", stat.S_IFBLK | 0o600, os.makedev(250, 70000))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("attributes/socket")
    # Last, since changing an owner takes these bits away.
    for mode in (0o000, 0o644, 0o4755, 0o2755, 0o6711, 0o1777):
        os.chmod(f"attributes/mode-{mode:04o}", mode)
    os.chmod("attributes/sticky", 0o1777)
    os.chmod("attributes/setgid", 0o2775)

    deep = "deep"
    for level in range(40):
        deep = os.path.join(deep, f"level-{level}")
    os.makedirs(deep)
    write(os.path.join(deep, "bottom"), b"found")
    os.mkdir("many")
    for number in range(700):
        write(f"many/{number}", b"%d" % number)
    os.mkdir("empty")

    times = {"past": -1_234_567_890_123_456_789, "epoch": 0, "odd": 1_700_000_000_123_456_789, "future": 4_900_000_000_000_000_001}
    os.mkdir("times")
    for name, time in times.items():
        write(f"times/{name}", b"x")
        os.utime(f"times/{name}", ns=(time, time))
    os.symlink("odd", "times/symlink")
    os.utime("times/symlink", ns=(5, 1_600_000_000_000_000_007), follow_symlinks=False)
    os.utime("empty", ns=(1, 1_500_000_000_999_999_999))


if __name__ == "__main__":
    main()

"""Shows that what one node did is what the next operation on every other sees, with no time between.

usage: coherence.py LAB_SCRIPT LAB_NAME FOLDER [--rounds N] [--seed N] NODE...
FOLDER is made new, by the same path on all nodes. Exit code 0 if everything was seen at once.
"""

import argparse
import base64
import json
import random
import subprocess
import sys

# Runs on each node: carries out one line at a time, so that no start of a process lies between two nodes' operations.
AGENT = r"""
import base64, errno, json, mmap, os, sys
held = {}
def b(data): return base64.b64encode(data).decode()
def put(path, at, data, flags):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if flags == 'append' else 0), 0o644)
    try:
        data = base64.b64decode(data)
        while data:
            done = os.write(fd, data) if flags == 'append' else os.pwrite(fd, data, at)
            at, data = at + done, data[done:]
    finally: os.close(fd)
def put_direct(path, at, data):
    data = base64.b64decode(data)
    memory = mmap.mmap(-1, len(data)); memory.write(data)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
    try: assert os.pwrite(fd, memory, at) == len(data)
    finally: os.close(fd)
def everything(fd):
    parts, at = [], 0
    while True:
        part = os.pread(fd, 1 << 20, at)
        if not part: return b(b''.join(parts))
        parts.append(part); at += len(part)
def get(path):
    fd = os.open(path, os.O_RDONLY)
    try: return everything(fd)
    finally: os.close(fd)
def hold(path): held[path] = os.open(path, os.O_RDWR)
def get_held(path): return everything(held[path])
def size_held(path): return os.fstat(held[path]).st_size
def let_go(path): os.close(held.pop(path))
def status(path):
    s = os.lstat(path)
    return [s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_nlink, s.st_mtime_ns]
def names(path): return sorted(os.listdir(path))
def xattrs(path): return {n: b(os.getxattr(path, n)) for n in os.listxattr(path)}
def setx(path, name, value): os.setxattr(path, name, base64.b64decode(value))
def utime(path, ns): os.utime(path, ns=(ns, ns))
calls = dict(put=put, put_direct=put_direct, get=get, hold=hold, get_held=get_held, size_held=size_held, let_go=let_go,
             status=status, names=names, xattrs=xattrs, setx=setx, utime=utime, mkdir=os.mkdir, rmdir=os.rmdir,
             unlink=os.unlink, rename=os.rename, link=os.link, symlink=os.symlink, readlink=os.readlink,
             chmod=os.chmod, chown=os.chown, truncate=os.truncate, remove_xattr=os.removexattr)
for line in sys.stdin:
    name, arguments = json.loads(line)
    try: answer = ['ok', calls[name](*arguments)]
    except OSError as error: answer = ['error', errno.errorcode.get(error.errno, str(error.errno))]
    print(json.dumps(answer), flush=True)
"""


class Incoherent(Exception):
    pass


class Node:
    def __init__(self, lab, lab_name, name):
        self.name = name
        python = "[ -x /usr/bin/python3 ] && exec /usr/bin/python3 -c \"$0\" || exec python3 -c \"$0\""
        self.process = subprocess.Popen([lab, "--name", lab_name, "exec", name, "sh", "-c", python, AGENT],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, call, *arguments):
        self.process.stdin.write(json.dumps([call, arguments]) + "\n")
        self.process.stdin.flush()

    def end(self):
        line = self.process.stdout.readline()
        if not line:
            raise Incoherent(f"{self.name}: the agent ended")
        return json.loads(line)

    def ask(self, call, *arguments):
        self.begin(call, *arguments)
        return self.end()

    def must(self, call, *arguments):
        kind, answer = self.ask(call, *arguments)
        if kind != "ok":
            raise Incoherent(f"{self.name}: {call} {str(arguments)[:200]}: {answer}")
        return answer


def text(data):
    return base64.b64encode(data).decode()


class Check:
    def __init__(self, nodes, folder, random_numbers):
        self.nodes, self.folder, self.random, self.seen = nodes, folder, random_numbers, 0

    def others(self, node):
        return [each for each in self.nodes if each is not node]

    def expect(self, want, call, *arguments, by=None):
        """Every node (but `by`) asks, all at once."""
        asked = [each for each in self.nodes if each is not by]
        for each in asked:
            each.begin(call, *arguments)
        answers = [(each, each.end()) for each in asked]
        for each, answer in answers:
            self.seen += 1
            if answer != want:
                raise Incoherent(f"{each.name}: {call} {str(arguments)[:120]}: {describe(answer, want)}")

    def content(self, path, want, by=None):
        self.expect(["ok", text(bytes(want))], "get", path, by=by)
        self.expect(["ok", text(bytes(want))], "get_held", path, by=by)
        self.expect(["ok", len(want)], "size_held", path, by=by)

    def bytes(self, length):
        return self.random.randbytes(length)

    def contents(self, path):
        """Writes of every kind, by changing nodes, into one file that all hold open all the time."""
        model = bytearray()
        first = self.random.choice(self.nodes)
        first.must("put", path, 0, "", "")
        for each in self.nodes:
            each.must("hold", path)
        for _ in range(24):
            node = self.random.choice(self.nodes)
            kind = self.random.randrange(6)
            if kind == 0:  # a large aligned write, over what is there or beyond it
                at = self.random.randrange(0, 5) * 256 * 1024
                data = self.bytes(self.random.choice((256, 1024)) * 1024)
                node.must("put", path, at, text(data), "")
            elif kind == 1:  # aligned, O_DIRECT
                at, data = self.random.randrange(0, 300) * 4096, self.bytes(4096 * self.random.randrange(1, 5))
                node.must("put_direct", path, at, text(data))
            elif kind == 2:  # anywhere
                at, data = self.random.randrange(0, len(model) + 5000), self.bytes(self.random.randrange(1, 9000))
                node.must("put", path, at, text(data), "")
            elif kind == 3:
                at, data = len(model), self.bytes(self.random.randrange(1, 9000))
                node.must("put", path, 0, text(data), "append")
            elif kind == 4:
                length, at, data = self.random.randrange(0, len(model) + 20000), 0, b""
                node.must("truncate", path, length)
                del model[length:]
                model.extend(bytes(length - len(model)))
            else:  # a few bytes amid written ones
                at, data = self.random.randrange(0, max(1, len(model))), self.bytes(self.random.randrange(1, 100))
                node.must("put", path, at, text(data), "")
            if len(model) < at:
                model.extend(bytes(at - len(model)))
            model[at:at + len(data)] = data
            self.content(path, model)
        for each in self.nodes:
            each.must("let_go", path)

    def attributes(self, path):
        node = self.random.choice(self.nodes)
        node.must("put", path, 0, text(b"attributes"), "")
        for what in (("chmod", path, 0o4711), ("chown", path, 1234, 4321), ("utime", path, 1_600_000_000_123_456_789),
                     ("link", path, path + ".link"), ("chmod", path, 0o600), ("unlink", path + ".link")):
            node = self.random.choice(self.nodes)
            node.must(*what)
            self.expect(["ok", node.must("status", path)], "status", path, by=node)
        node.must("setx", path, "user.who", text(node.name.encode()))
        self.expect(["ok", {"user.who": text(node.name.encode())}], "xattrs", path)
        self.nodes[0].must("remove_xattr", path, "user.who")
        self.expect(["ok", {}], "xattrs", path)
        # The time of a write is seen by the next stat on every node, and does not go back.
        before = node.must("status", path)[5]
        for node in self.nodes:
            node.must("put", path, 0, text(self.bytes(4096)), "")
            now = node.must("status", path)
            self.expect(["ok", now], "status", path, by=node)
            if now[5] < before:
                raise Incoherent(f"the mtime of {path} went back from {before} to {now[5]}")
            before = now[5]
        self.nodes[-1].must("unlink", path)

    def names(self, path):
        node = self.random.choice(self.nodes)
        node.must("mkdir", path)
        self.expect(["error", "EEXIST"], "mkdir", path)
        here, there = self.random.sample(self.nodes, 2) if len(self.nodes) > 1 else (node, node)
        self.expect(["error", "ENOENT"], "status", path + "/a")
        here.must("put", path + "/a", 0, text(b"a"), "")
        self.expect(["ok", ["a"]], "names", path)
        there.must("rename", path + "/a", path + "/b")
        self.expect(["error", "ENOENT"], "get", path + "/a")
        self.expect(["ok", text(b"a")], "get", path + "/b")
        here.must("put", path + "/c", 0, text(b"c"), "")
        there.must("rename", path + "/c", path + "/b")
        self.expect(["ok", text(b"c")], "get", path + "/b")
        here.must("symlink", "b", path + "/s")
        self.expect(["ok", "b"], "readlink", path + "/s")
        self.expect(["ok", ["b", "s"]], "names", path)
        self.expect(["error", "ENOTEMPTY"], "rmdir", path)
        # A file that is unlinked on one node stays readable where it is open.
        here.must("hold", path + "/b")
        there.must("unlink", path + "/b")
        there.must("unlink", path + "/s")
        self.expect(["error", "ENOENT"], "get", path + "/b")
        if here.must("get_held", path + "/b") != text(b"c"):
            raise Incoherent(f"{here.name}: the content of an unlinked open file is gone")
        here.must("let_go", path + "/b")
        there.must("rmdir", path)
        self.expect(["error", "ENOENT"], "names", path)

    def appends(self, path):
        """All nodes append at the same time: every line arrives, whole and once."""
        lines = 40
        for number in range(lines):
            for each in self.nodes:
                each.begin("put", path, 0, text(f"{each.name} {number} {'x' * self.random.randrange(90)}\n".encode()), "append")
            for each in self.nodes:
                kind, answer = each.end()
                if kind != "ok":
                    raise Incoherent(f"{each.name}: append: {answer}")
        got = base64.b64decode(self.nodes[0].must("get", path)).decode()
        self.expect(["ok", text(got.encode())], "get", path)
        want = sorted((each.name, str(number)) for each in self.nodes for number in range(lines))
        if sorted(tuple(line.split(" ")[:2]) for line in got.splitlines()) != want:
            raise Incoherent(f"{path}: lines of simultaneous appends are lost, torn or doubled")
        self.nodes[0].must("unlink", path)


def describe(answer, want):
    def short(each):
        if each[0] == "ok" and isinstance(each[1], str) and len(each[1]) > 100:
            return f"{len(base64.b64decode(each[1]))} bytes"
        return str(each)[:200]
    words = f"{short(answer)} instead of {short(want)}"
    if answer[0] == want[0] == "ok" and isinstance(answer[1], str) and isinstance(want[1], str):
        a, b = base64.b64decode(answer[1]), base64.b64decode(want[1])
        at = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))
        words += f", differing from byte {at}"
    return words


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lab")
    parser.add_argument("lab_name")
    parser.add_argument("folder")
    parser.add_argument("nodes", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    nodes = [Node(given.lab, given.lab_name, name) for name in given.nodes]
    check = Check(nodes, given.folder, random.Random(given.seed))
    try:
        nodes[0].must("mkdir", given.folder)
        for number in range(given.rounds):
            check.contents(f"{given.folder}/content-{number}")
            check.attributes(f"{given.folder}/attributes-{number}")
            check.names(f"{given.folder}/names-{number}")
            check.appends(f"{given.folder}/appends-{number}")
    except Incoherent as error:
        print(f"NOT COHERENT (seed {given.seed}): {error}", flush=True)
        return 1
    finally:
        for each in nodes:
            each.process.stdin.close()
            each.process.wait()
    print(f"coherent: {check.seen} answers of {len(nodes)} nodes, each at once as the last change left it", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

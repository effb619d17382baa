"""Picks whole subtrees of a folder until they hold at least so many bytes and files; prints them, and what they hold.

usage: pick_trees.py ROOT BYTES FILES
Prints one path a line, relative to ROOT; says the sum on standard error. Exit code 1 if ROOT does not hold as much.
"""

import os
import stat
import sys


class Tree:
    def __init__(self, path):
        self.path, self.bytes, self.files, self.folders = path, 0, 0, []
        for entry in sorted(os.scandir(path), key=lambda each: each.name):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                below = Tree(entry.path)
                self.folders.append(below)
                self.bytes, self.files = self.bytes + below.bytes, self.files + below.files
            else:
                self.files += 1
                self.bytes += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0


class Choice:
    """Takes a subtree whole unless it is much more than what is wanted; then looks within."""

    def __init__(self, bytes_wanted, files_wanted):
        self.bytes_wanted, self.files_wanted = bytes_wanted, files_wanted
        self.bytes = self.files = 0
        self.taken = []

    def enough(self):
        return self.bytes >= self.bytes_wanted and self.files >= self.files_wanted

    def visit(self, tree, least_average):
        if self.enough() or not tree.files or tree.path in self.taken:
            return
        room = 1.4 * self.bytes_wanted - self.bytes, 1.4 * self.files_wanted - self.files
        # Once there is enough of the one, only little more of it while the other is still sought.
        broached = any(each.startswith(tree.path + "/") for each in self.taken)
        if not broached and tree.bytes <= max(room[0], self.bytes_wanted / 50) and tree.files <= max(room[1], self.files_wanted / 50):
            if self.files >= self.files_wanted and tree.bytes < least_average * tree.files:
                return
            self.taken.append(tree.path)
            self.bytes, self.files = self.bytes + tree.bytes, self.files + tree.files
            return
        for each in tree.folders:
            self.visit(each, least_average)


def main():
    root, bytes_wanted, files_wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    choice = Choice(bytes_wanted, files_wanted)
    top = Tree(root)
    for least_average in (256 << 10, 0):  # with enough files, first look for bytes in large ones
        choice.visit(top, least_average)
    for each in choice.taken:
        print(os.path.relpath(each, root))
    print(f"{choice.files} files, {choice.bytes >> 20} MiB", file=sys.stderr)
    return 0 if choice.enough() else 1


if __name__ == "__main__":
    sys.exit(main())

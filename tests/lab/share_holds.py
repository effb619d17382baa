#!/usr/bin/env python3
"""That no two nodes held the share witness at the same time: share_holds.py LOG..., each of one share_probe."""
import re
import sys

holds = []
for number, name in enumerate(sys.argv[1:]):
    for line in open(name, encoding="utf-8"):
        if said := re.match(r"(\d+) (took|holds) until=(\d+)$", line):
            if int(said[3]) > int(said[1]):  # one that came too late is none
                holds.append((int(said[1]), int(said[3]), number, said[2]))
holds.sort()
until: dict[int, int] = {}
taken = 0
for began, end, node, what in holds:
    taken += what == "took"
    for other, others_end in until.items():
        if other != node and began < others_end:
            sys.exit(f"{sys.argv[1 + node]} held it at {began}, and {sys.argv[1 + other]} until {others_end}")
    until[node] = max(end, until.get(node, 0))
print(f"    {len(holds)} holds, {taken} times taken, never by two")
if len(holds) < 30 or taken < 4 or len(until) < 2:
    sys.exit("too little happened")

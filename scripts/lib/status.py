"""Answers questions about the output of `csvctl status --json`.

usage: status.py coordinator VOLUME      < status    the number of the node that coordinates it; exit code 1 if none does
       status.py coordinators            < status    the same of every volume, a line each: VOLUME NUMBER, 0 if none does
       status.py mount VOLUME            < status    the counters of this node's mount, as JSON
       status.py compare BEFORE AFTER --bulk BYTES   two answers of `mount`, with BYTES written and as many read between:
                                                     exit code 1 if content went through the coordinator
"""

import argparse
import json
import sys


def volume_of(status, name):
    for each in status.get("volumes", []):
        if each["name"] == name:
            return each
    sys.exit(f"no volume {name} in the status")


def coordinator(name):
    node = volume_of(json.load(sys.stdin), name).get("coordinator_node") or 0
    if not node:
        return 1
    print(node)
    return 0


def coordinators():
    for each in json.load(sys.stdin).get("volumes", []):
        print(each["name"], each.get("coordinator_node") or 0)
    return 0


def mount(name):
    print(json.dumps(volume_of(json.load(sys.stdin), name)["mount"]["counters"]))
    return 0


def compare(before, after, bulk):
    delta = {name: after[name] - before[name] for name in after}
    print(", ".join(f"{name.replace('_bytes', '').replace('_', ' ')} {delta[name] >> 20} MiB" for name in
                    ("direct_write_bytes", "direct_read_bytes", "redirected_write_bytes", "redirected_read_bytes")))
    # A little may go round: what lies at an edge, or was being recalled.
    bound = max(bulk // 100, 1 << 20)
    for kind in ("write", "read"):
        if delta[f"redirected_{kind}_bytes"] > bound:
            print(f"MORE THAN {bound} BYTES WERE {kind.upper()} THROUGH THE COORDINATOR")
            return 1
        if delta[f"direct_{kind}_bytes"] < bulk - bound:
            print(f"LESS THAN {bulk} BYTES WERE {kind.upper()} DIRECTLY")
            return 1
    return 0


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("coordinator", "mount"):
        commands.add_parser(name).add_argument("volume")
    commands.add_parser("coordinators")
    both = commands.add_parser("compare")
    both.add_argument("before", type=json.loads)
    both.add_argument("after", type=json.loads)
    both.add_argument("--bulk", type=int, required=True)
    given = parser.parse_args()
    if given.command == "compare":
        return compare(given.before, given.after, given.bulk)
    try:
        if given.command == "coordinators":
            return coordinators()
        return {"coordinator": coordinator, "mount": mount}[given.command](given.volume)
    except json.JSONDecodeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())

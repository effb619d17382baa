#!/usr/bin/env python3
"""One command to a QEMU: qmp.py SOCKET COMMAND [ARGUMENTS]; or what it tells, a line each, until it ends: qmp.py SOCKET events"""
import json
import socket
import sys

path, command, *arguments = sys.argv[1:]
qemu = socket.socket(socket.AF_UNIX)
qemu.settimeout(10)
qemu.connect(path)
stream = qemu.makefile("rw")


def ask(what: dict) -> dict:
    stream.write(json.dumps(what) + "\n")
    stream.flush()
    while True:
        said = json.loads(stream.readline())
        if "return" in said or "error" in said:
            return said


stream.readline()
ask({"execute": "qmp_capabilities"})
if command == "events":
    qemu.settimeout(None)
    print("connected", flush=True)
    for line in stream:
        print(line, end="", flush=True)
    sys.exit()
answer = ask({"execute": command, "arguments": json.loads(arguments[0]) if arguments else {}})
if "error" in answer:
    sys.exit(f"{command}: {answer['error'].get('desc')}")

"""Ends a process at a line of a log, or makes it stand still there, or go on.

usage: at_line.py LOG FROM PATTERN DELAY_MS PID HIT KILL|STOP|CONT [NAME]
                     follows LOG from byte FROM on; once a line matches PATTERN, and DELAY_MS later, PID gets the signal, if
                     nobody else has made the file HIT by then; HIT.node says who it was: this machine's name, or NAME
"""

import os
import re
import signal
import sys
import time


def main(log, start, pattern, delay_ms, pid, hit, how, name=None):
    wanted = re.compile(pattern)
    rest = ""
    with open(log, errors="replace") as lines:
        lines.seek(int(start))
        while not os.path.exists(hit):
            rest += lines.read()
            *whole, rest = rest.split("\n")
            if not any(wanted.search(each) for each in whole):
                time.sleep(0.0002)  # as soon as it is there: this is no wait for something to be over
                continue
            time.sleep(float(delay_ms) / 1000)
            try:
                os.close(os.open(hit, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                return
            os.kill(int(pid), {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}[how])
            with open(hit + ".node", "w") as node:
                node.write(name or os.uname().nodename)


main(*sys.argv[1:])

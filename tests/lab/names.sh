#!/usr/bin/env bash
# Names and attributes that nodes know by heart: never older than what anybody was told, whoever hangs.
source "$(dirname "$0")/cluster.sh"

cluster_up 1G
on node1 mkdir "$volume/many" "$volume/few"

# requests NODE: of that node's mount, as node1 has answered them.
requests() {
  on node1 csvctl status --json | python -c '
import json, sys
sessions = json.load(sys.stdin)["volumes"][0]["service"]["sessions"]
print(next(each["requests"] for each in sessions if each["node"] == int(sys.argv[1])))' "$1"
}

say "ls -l of 2000 files on another node asks about the directory, not about each file"
on node1 sh -c 'for i in $(seq 2000); do echo "$i" >"$1/many/f$i"; done' - "$volume"
before=$(requests 2)
on node2 ls -l "$volume/many" >"$work/list"
[[ $(wc -l <"$work/list") == 2001 ]] || die "$(wc -l <"$work/list") lines of ls -l"
asked=$(($(requests 2) - before))
note "requests: $asked"
((asked < 200)) || die "ls -l of 2000 files took $asked requests"

cat >"$work/change.py" <<'END'
import os, sys
folder, turn = sys.argv[1], int(sys.argv[2])
old, new, mode = f"{folder}/f{turn - 1}", f"{folder}/f{turn}", 0o600 | turn % 64
os.chmod(old, mode)
os.setxattr(old, "user.turn", str(turn).encode())
os.utime(old, ns=(turn, turn * 1000))
os.rename(old, new)
END
cat >"$work/look.py" <<'END'
import errno, os, sys
folder, turn = sys.argv[1], int(sys.argv[2])
name, gone, coming = (f"{folder}/f{turn + i}" for i in (0, -1, 1))
for _ in range(4):  # more than once: what was asked for first is known by heart afterwards
    seen = os.stat(name)
    assert seen.st_mode & 0o7777 == 0o600 | turn % 64, f"mode {seen.st_mode:o}"
    assert seen.st_mtime_ns == turn * 1000, f"mtime {seen.st_mtime_ns}"
    assert os.getxattr(name, "user.turn") == str(turn).encode(), "extended attribute"
    for absent in gone, coming:
        try:
            os.stat(absent)
            raise AssertionError(f"{absent} is there")
        except FileNotFoundError:
            pass
    assert os.listdir(folder) == [f"f{turn}"], f"listing {os.listdir(folder)}"
END
change() { on "$1" python3 "$work/change.py" "$volume/few" "$2"; }
look() { on "$1" python3 "$work/look.py" "$volume/few" "$2" || die "$1 does not see change $2"; }

say "what one node changes, the others see at once"
on node1 touch "$volume/few/f0"
nodes=(node1 node2 node3)
for turn in $(seq 24); do
  change "${nodes[turn % 3]}" "$turn"
  for node in "${nodes[@]}"; do look "$node" "$turn"; done
done

cat >"$work/race.py" <<'END'
import collections, errno, os, sys, time
folder, user, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
os.setgroups([])
os.setgid(user)
os.setuid(user)
seen, until, turn = collections.Counter(), time.monotonic() + seconds, 0
while time.monotonic() < until:
    turn += 1
    name = f"{folder}/r{turn % 3}"
    try:
        fd = os.open(name, os.O_CREAT | os.O_RDWR | (os.O_TRUNC if turn % 2 else 0), 0o600)
        assert os.fstat(fd).st_uid == user, f"opened a file of {os.fstat(fd).st_uid}"
        os.close(fd)
        seen["opened"] += 1
    except OSError as error:
        seen[errno.errorcode[error.errno]] += 1
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass
print(*(f"{what}={times}" for what, times in sorted(seen.items())))
sys.exit(not set(seen) <= {"opened", *sys.argv[4:]})
END
say "two nodes that make and remove the same names: programs never notice, nobody opens another user's file"
on node1 mkdir -m 0777 "$volume/race"
# race USER1 USER2 ERROR...: the errors that programs may see.
race() {
  local one=race1-$2 two=race2-$2
  begin "$one" on node1 python3 "$work/race.py" "$volume/race" "$1" 4 "${@:3}"
  begin "$two" on node2 python3 "$work/race.py" "$volume/race" "$2" 4 "${@:3}"
  await "$one" 60
  await "$two" 60
  note "$(cat "$work/$one.log" "$work/$two.log" | tr '\n' ' ')"
}
race 4001 4001
race 4001 4002 EACCES

say "a mount that hangs keeps nobody waiting for longer than its lease, and shows nothing old when it wakes up"
for turn in 25 26 27; do
  lab freeze node2 csvfs
  began=$(date +%s%N)
  change node1 "$turn"
  took=$((($(date +%s%N) - began) / 1000000))
  note "the change took $took ms"
  ((took < 6000)) || die "a change waited for $took ms for a mount that hangs"
  look node3 "$turn"
  begin woken on node2 python3 "$work/look.py" "$volume/few" "$turn"
  sleep 0.3  # so that it asks while its mount stands still; nothing is judged by it
  lab thaw node2
  await woken 60
  look node2 "$turn"
done

say "a coordinator that is killed has told nodes nothing that its successor contradicts"
for turn in 28 29; do
  lab kill node1 csvd
  if ((turn == 29)); then on node3 csvctl volume start volume1; fi
  lab start node1 csvd
  change node2 "$turn"
  for node in "${nodes[@]}"; do look "$node" "$turn"; done
done

end_clean
say "nobody saw anything that was no more"

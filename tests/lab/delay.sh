#!/usr/bin/env bash
# The ways of two nodes to the coordinator and to the target are long, stand still for a while, and break with answers on them, while checked programs
# work on every node: they wait, nobody is told of an error, nothing is done twice.
source "$(dirname "$0")/cluster.sh"

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
state=$work/state
mkdir "$state"
checked() { python "$here/checked.py" "$@"; }
nodes=(node1 node2 node3)
far=(node2 node3)

# private|storage MS [MORE]: how long these ways take.
takes() { echo "$2 ${3:-0}" >"$work/$1.new" && mv "$work/$1.new" "$work/$1"; }
takes private 0
takes storage 0

lab up --nodes 3 --size 512M
lab format
lab mount node1
etc_of() { echo "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/$1/etc/csvd.toml"; }
# Every connection that a far node makes goes through relays of its own.
for each in "${far[@]}"; do
  begin "private-$each" on "$each" python3 "$here/relay.py" "$work/private" 127.0.0.1:7401 10.77.1.11:7400 127.0.0.1:7402 10.77.1.12:7400 127.0.0.1:7403 10.77.1.13:7400
  begin "storage-$each" on "$each" python3 "$here/relay.py" "$work/storage" 127.0.0.1:3260 10.77.0.1:3260
  for way in private storage; do wait_for 10 "the relay of $each" grep -q listens "$work/$way-$each.log"; done
  lab kill "$each" csvd
  sed -i '/^\[\[peer\]\]/,$ { s/^address = "10\.77\.1\.1\(.\):7400"/address = "127.0.0.1:740\1"/; s,iscsi://10\.77\.0\.1:,iscsi://127.0.0.1:, }' "$(etc_of "$each")"
  lab start "$each" csvd
done
lab mount "${far[@]}"
breaks() { local each; for each in "${far[@]}"; do on "$each" pkill -USR1 -f "relay.py $work/$1 "; done; }

# Besides, records at the end of one file: done twice they would stand there twice.
cat >"$work/append.py" <<'END'
import os, sys
file, stop, node, number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND), sys.argv[2], os.uname().nodename, 0
while not os.path.exists(stop):
    number += 1
    os.write(file, b"%s %d\n" % (node.encode(), number))
END
cat >"$work/appended.py" <<'END'
import sys
last = {}
for line in open(sys.argv[1]):
    node, number = line.split()
    if int(number) != last.get(node, 0) + 1:
        print(f"{node} has appended {number} after {last.get(node, 0)}")
        sys.exit(1)
    last[node] = int(number)
print(*(f"{node} {number}" for node, number in sorted(last.items())))
END
for each in "${nodes[@]}"; do begin "append-$each" on "$each" python3 "$work/append.py" "$volume/appended" "$state/stop"; done
for each in "${nodes[@]}"; do begin "work-$each" on "$each" python3 "$here/checked.py" work "$volume/work" "$state" 3; done
begun() { (($(ls "$state" | grep -c '^progress-') == ${#nodes[@]})); }
wait_for 30 "programs on all nodes" begun
goes_on() { checked progress "$state" "$1" 60 "${nodes[@]}"; }
goes_on 5

say "far from the coordinator, then from the target, then from both, and never as long as before"
takes private 30 40
goes_on 3
takes private 0
takes storage 15 30
goes_on 3
takes private 10 60
goes_on 3
say "everything stands still for 2 s"
takes private 2000
takes storage 2000
sleep 0.5  # what is sent meanwhile, and what follows it, arrives that late
takes private 10 20
takes storage 5 10
goes_on 3
say "the ways to the coordinator break, then those to the target, with answers on them"
takes private 40
for way in private storage private storage; do
  breaks $way
  goes_on 2
done
takes private 10 20
say "the coordinator is far from its LUN"
lab coordinator 2
breaks private
goes_on 3
takes private 0
takes storage 0
: >"$state/stop"
for each in "${nodes[@]}"; do
  await "work-$each" 60
  told=$(checked judge "$state" "$each" errors)
  [[ $told == none ]] || die "programs on $each were told of errors: $told"
done
for each in "${nodes[@]}"; do on "$each" python3 "$here/checked.py" verify "$volume/work" "$state" || die "$each does not find what was done"; done
for each in "${nodes[@]}"; do await "append-$each" 60; done
appended=$(on node2 python3 "$work/appended.py" "$volume/appended") || die "$appended"
note "appended, each once: $appended"
for way in private storage; do grep -hq '^breaks [1-9]' "$work/$way"-node?.log || die "no connection to break of $way: nothing was shown"; done
end_clean

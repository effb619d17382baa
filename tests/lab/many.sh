#!/usr/bin/env bash
# One folder of a million entries: made by two nodes, listed and looked up by a third, removed by two; the memory of csvd and csvfs stays bounded. How
# long it takes is only said.
# Usage: many.sh [COUNT]
source "$(dirname "$0")/cluster.sh"

program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/listing.py
count=${1:-1000000}
lab up --nodes 3 --size 4G
lab format
lab mount
on node1 mkdir "$volume/many"

# all WHAT NODE...: each of the nodes does its share of it, with four programs.
all() {
  local what=$1 began=$SECONDS part=0 parts=$((4 * ($# - 1))) each
  shift
  for each in "$@" "$@" "$@" "$@"; do
    begin "$what-$part" on "$each" python3 "$program" "$what" "$volume/many" $((part * count / parts)) $(((part + 1) * count / parts))
    part=$((part + 1))
  done
  for ((part = 0; part < parts; part++)); do await "$what-$part" 3000; done
  note "$what, on $*: $((SECONDS - began)) s"
}
# MiB that a program of a node had in memory at most.
peak() { on "$1" sh -c 'sed -n "s/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p" "/proc/$(pidof -s "$1")/status"' - "$2" | awk '{ print int($1 / 1024) }'; }

say "$count entries"
all make node1 node2
began=$SECONDS
on node3 python3 "$program" list "$volume/many" "$count" 1 /dev/null >"$work/list.log" 2>&1 || die "node3: $(<"$work/list.log")"
[[ $(<"$work/list.log") == "$((count + 2)) names" ]] || die "node3 lists $(<"$work/list.log")"  # with . and ..
note "listed by node3: $((SECONDS - began)) s"
all look node3
for each in node1 node2 node3; do
  note "$each: csvd had $(peak "$each" csvd) MiB, csvfs $(peak "$each" csvfs) MiB"
  (($(peak "$each" csvd) <= 500)) || die "csvd of $each had more than 500 MiB"
  (($(peak "$each" csvfs) <= 300)) || die "csvfs of $each had more than 300 MiB"
done
all remove node2 node1
on node3 rmdir "$volume/many"
end_clean

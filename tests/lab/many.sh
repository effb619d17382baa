#!/usr/bin/env bash
# One folder of a million entries, of which the last SHARE are made by two nodes at once: listed and looked up by a third, the share removed by
# two; the memory of csvd and csvfs stays bounded. How long it takes is only said. Through FUSE a million takes a long time on a small machine, so the others are
# put into the catalog before anybody serves it. `many.sh N N` makes all of them through FUSE; with a third number only so many of them, the last, are removed.
# Usage: many.sh [COUNT [SHARE [REMOVED]]]     a million, 20 000, and all that were made, without a word
source "$(dirname "$0")/cluster.sh"

program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/listing.py
count=${1:-1000000}
share=${2:-20000}
((share <= count)) || share=$count
before=$((count - share))
removed=${3:-$share}
((removed <= share)) || removed=$share
left=$((count - removed))
step=$(((count + 99999) / 100000))  # of those looked up: 100 000 at most
((before == 0)) || [[ -x $csvfs_build/tests/csv_catalog_bench ]] || die "no $csvfs_build/tests/csv_catalog_bench: build it first"

# all WHAT FIRST END STEP NODE...: each of the nodes does its share of it, with four programs.
all() {
  local what=$1 first=$2 end=$3 step=$4 began=$SECONDS part=0 each
  shift 4
  local parts=$((4 * $#)) from to steps=()
  ((step == 1)) || steps=("$step")
  for each in "$@" "$@" "$@" "$@"; do
    from=$((first + part * (end - first) / parts)) to=$((first + (part + 1) * (end - first) / parts))
    begin "$what-$part" on "$each" python3 "$program" "$what" "$volume/many" "$from" "$to" "${steps[@]}"
    part=$((part + 1))
  done
  for ((part = 0; part < parts; part++)); do await "$what-$part" 3000; done
  note "$what, $(((end - first + step - 1) / step)) on $*: $((SECONDS - began)) s"
}
# lists NODE COUNT: that many names of `make` are there, each once, and no others.
lists() {
  local began=$SECONDS
  on "$1" python3 "$program" list "$volume/many" "$2" 1 /dev/null >"$work/list.log" 2>&1 || die "$1: $(<"$work/list.log")"
  [[ $(<"$work/list.log") == "$(($2 + 2)) names" ]] || die "$1 lists $(<"$work/list.log")"  # with . and ..
  note "$2 listed by $1: $((SECONDS - began)) s"
}
# MiB that a program of a node had in memory at most.
peak() { on "$1" sh -c 'sed -n "s/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p" "/proc/$(pidof -s "$1")/status"' - "$2" | awk '{ print int($1 / 1024) }'; }
remember() {
  local each
  for each in node1 node2 node3; do
    note "$each: csvd had $(peak "$each" csvd) MiB, csvfs $(peak "$each" csvfs) MiB"
    (($(peak "$each" csvd) <= 500)) || die "csvd of $each had more than 500 MiB"
    (($(peak "$each" csvfs) <= 300)) || die "csvfs of $each had more than 300 MiB"
  done
}

lab up --nodes 3 --size 4G
lab format
say "$count entries, $share of them through FUSE"
if ((before > 0)); then
  began=$SECONDS
  python3 "$program" names 0 "$before" | "$csvfs_build/tests/csv_catalog_bench" --names "file:$(sed -n 1p "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/san/luns")" many
  note "$before put into the catalog: $((SECONDS - began)) s"
fi
lab mount
((before > 0)) || on node1 mkdir "$volume/many"
all make "$before" "$count" 1 node1 node2
lists node3 "$count"
all look 0 "$count" "$step" node3
remember
all remove "$left" "$count" 1 node2 node1
# node3 was told of each of them.
all gone "$left" "$count" 1 node3
if ((left > 0)); then
  lists node3 "$left"
else
  on node3 rmdir "$volume/many"
fi
remember
began=$SECONDS
end_clean
note "unmounted and checked: $((SECONDS - began)) s"

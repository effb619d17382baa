#!/usr/bin/env bash
# How long a takeover of a volume with many files takes, against one of an empty volume: in turn, each after a crash of its coordinator; the
# medians, which may differ by 200 ms. For a machine that has nothing else to do.
#
# Usage: many_files.sh [FILES [ROUNDS]]     a million, and 5, without a word
source "$(dirname "$0")/cluster.sh"

files=${1:-1000000}
rounds=${2:-5}
[[ -x $csvfs_build/tests/csv_catalog_bench ]] || die "no $csvfs_build/tests/csv_catalog_bench: build it first"
# volume1 has many, and is node1's; volume2 has none, and is node2's.
declare -A takes=()

coordinated() { grep -c "coordinating volume=$1 " "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/$2/csvd.log"; }
has_taken() { (($(coordinated "$1" "$2") > $3)); }
# takes_over VOLUME NODE
takes_over() {
  local before took
  # A log to be recovered, the same of both.
  on "$2" sh -c 'mkdir "$1" && for each in $(seq 300); do : >"$1/$each"; done && rm -r "$1"' - "/clusterstorage/$1/work"
  before=$(coordinated "$1" "$2")
  lab kill "$2" csvd >/dev/null
  lab start "$2" csvd
  wait_for 30 "$2 to take $1 over" has_taken "$1" "$2" "$before"
  took=$(grep "coordinating volume=$1 " "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/$2/csvd.log" | tail -n 1 | sed 's/.*takeover_ms=//')
  on "$2" timeout 20 ls "/clusterstorage/$1" >/dev/null
  note "$1: $took ms"
  takes[$1]+=" $took"
}

lab up --nodes 2 --size 4G --volumes 2
lab format
say "$files files are made"
"$csvfs_build/tests/csv_catalog_bench" --into "file:$(sed -n 1p "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/san/luns")" "$files"
lab mount
lab coordinator 2 volume2
note "volume1 has $(on node1 df --output=iused /clusterstorage/volume1 | tail -n 1 | xargs) files, volume2 $(on node2 df --output=iused /clusterstorage/volume2 | tail -n 1 | xargs)"
(($(on node1 df --output=iused /clusterstorage/volume1 | tail -n 1) > files)) || die "volume1 does not have them"
for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds"
  takes_over volume1 node1
  takes_over volume2 node2
done
end_clean
python - "${takes[volume1]}" "${takes[volume2]}" <<'PYTHON' || die "not reached on this machine"
import statistics
import sys

many, none = (statistics.median(map(int, each.split())) for each in sys.argv[1:])
print(f"takeover, median in ms: {many:.0f} with many files, {none:.0f} of an empty volume; they may differ by 200")
sys.exit(abs(many - none) > 200)
PYTHON

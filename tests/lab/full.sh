#!/usr/bin/env bash
# A volume that is filled to the last block by programs on two nodes at once, or its catalog to the last page: nothing that was acknowledged is lost,
# what is deleted can be used again, also where the coordinator dies in between.
# Usage: full.sh [catalog]
source "$(dirname "$0")/cluster.sh"

program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/full.py
state=$work/state
mkdir "$state"
free_blocks() { on node3 stat -f -c %f "$volume"; }

# The smallest there is: 64 MiB for files.
cluster_up 338M
met() { (($(ls "$state" | grep -c "^$1\.") == 2)) || has_ended "$2-node1" || has_ended "$2-node2"; }
# meet KIND WHAT: the programs of this kind come to it, on both nodes.
meet() {
  local each
  wait_for 120 "$1 to come to $2" met "$2" "$1" || die "it hangs"
  for each in node1 node2; do ! has_ended "$1-$each" || await "$1-$each" 1; done
}

fill() {
  local before each found
  on node1 mkdir "$volume/fill"
  before=$(free_blocks)
  note "$before blocks"
  : >"$state/pause-0"
  : >"$state/look-1"
  for each in node1 node2; do begin "fill-$each" on "$each" python3 "$program" fill "$volume/fill" "$state" 2 2; done
  say "two nodes fill it; when it is full the coordinator is killed"
  meet fill full-0
  lab kill node1 csvd
  lab start node1 csvd
  rm "$state/pause-0"
  meet fill looked-1
  for each in node1 node2; do
    found=$(on node3 python3 "$program" verify "$volume/fill" "$state" "$each") || die "node3 does not find what $each has kept"
    note "node3 finds what $each has kept: $found"
  done
  if on node3 sh -c 'head -c 1000000 /dev/zero >"$1"' - "$volume/more" 2>/dev/null; then die "the volume was not full"; fi
  rm "$state/look-1"
  for each in node1 node2; do await "fill-$each" 120; sed 's/^/    /' "$work/fill-$each.log"; done
  on node1 rm -r "$volume/fill"
  on node3 rm -f "$volume/more"
  all_free() { (($(free_blocks) == before)); }
  wait_for 20 "$before blocks to be free again" all_free || die "$(free_blocks) are"
  on node2 python3 "$program" writes "$volume" 50
}

fill_catalog() {
  local each
  say "two nodes fill its catalog"
  on node1 mkdir "$volume/names"
  # It does not grow into what files have, be it one block.
  on node1 sh -c 'echo >"$1"' - "$volume/one-block"
  : >"$state/pause-names"
  for each in node1 node2; do begin "names-$each" on "$each" python3 "$program" names "$volume/names" "$state" 2; done
  meet names full-names
  lab kill node1 csvd
  lab start node1 csvd
  rm "$state/pause-names"
  for each in node1 node2; do await "names-$each" 120; sed 's/^/    /' "$work/names-$each.log"; done
  on node2 python3 "$program" writes "$volume" 50
  on node2 rm -r "$volume/names"
}

"fill${1:+_$1}"
end_clean

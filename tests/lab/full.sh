#!/usr/bin/env bash
# A volume that is filled to the last block by programs on two nodes at once, or its catalog to the last page: nothing that was acknowledged is lost,
# what is deleted can be used again, also where the coordinator dies in between. Or (thin) the LUN has no space for it first: then programs wait.
# Usage: full.sh [catalog|thin]
source "$(dirname "$0")/cluster.sh"

program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/full.py
state=$work/state
mkdir "$state"
free_blocks() { on node3 stat -f -c %f "$volume"; }

# The smallest there is: 64 MiB for files.
if [[ ${1:-} == thin ]]; then cluster_up 338M --thin; else cluster_up 338M; fi
met() { (($(ls "$state" | grep -c "^$1\.") == 2)) || has_ended "$2-node1" || has_ended "$2-node2"; }
# meet KIND WHAT: the programs of this kind come to it, on both nodes.
meet() {
  local each
  wait_for 120 "$1 to come to $2" met "$2" "$1" || die "it hangs"
  for each in node1 node2; do ! has_ended "$1-$each" || await "$1-$each" 1; done
}

# The volume has 64 MiB for files, its LUN a third of that, until it is given more.
fill_thin() {
  lab san space 20M
  fill runs_out
}
waits_for_space() { on "$1" csvctl status --json 2>/dev/null | grep -q 'requests wait: the thin LUN has no space left'; }
served_without_space() { coordinated_by node3 node1 && waits_for_space node1 && waits_for_space node2; }
runs_out() {
  local each blocks
  for each in node1 node2; do wait_for 60 "$each to wait for space" waits_for_space "$each" || die "$each does not"; done
  blocks=$(free_blocks)
  note "the LUN is full: the volume has $blocks blocks left"
  # What needs no space goes on meanwhile, and nobody who needs some is told anything, or gets any.
  for each in 1 2 3 4 5; do
    sleep 1
    on node3 timeout 10 sh -c 'mkdir "$1" && ls "$2" && rmdir "$1"' - "$volume/meanwhile" "$volume/fill" >/dev/null || die "node3 does not make names"
    on node3 timeout 10 cat "$volume/fill/inplace-1/written" "$volume/fill/inplace-2/written" >/dev/null || die "node3 does not read"
  done
  for each in node1 node2; do
    ! has_ended "fill-$each" || { tail -n 5 "$work/fill-$each.log"; die "programs on $each did not wait"; }
    waits_for_space "$each" || die "$each waits for space no more"
  done
  (($(free_blocks) > 2000)) || die "the volume has been filled meanwhile"
  say "the coordinator is killed, and then the LUN has space again"
  lab kill node1 csvd
  lab start node1 csvd
  wait_for 30 "node1 to serve it without space" served_without_space || die "it does not"
  lab san space all
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
  ${1:-true}
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

# What the tests in the lab share. Sourced first by each: it makes a lab of the test's own, or says why there can be none.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/common.sh"
source "$csvfs_root/scripts/lib/lio.sh"

lib=$csvfs_root/scripts/lib
volume=/clusterstorage/volume1
test_name=$(basename "$0" .sh)
lab_name=test-${test_name//_/-}-$$
work=$(mktemp -d "/var/tmp/csvfs-$lab_name.XXXXXX")
background=()

lab() { "$csvfs_root/scripts/lab" --name "$lab_name" "$@"; }
on() { lab exec "$@"; }

finish() {
  local status=$? pid log
  # Those that still run: the number of one that has ended may be anybody's by now, of another lab beside this one, too.
  for pid in $(jobs -pr); do kill "$pid" 2>/dev/null || true; done
  if ((status != 0 && status != 77)); then
    lab status 2>&1 || true
    for log in "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name"/*/{,corosync/log/}*.log; do
      [[ -s $log ]] || continue
      echo "--- the end of $log"
      tail -n 40 "$log"
    done
  fi
  lab down >/dev/null 2>&1 || true
  if declare -F after_lab >/dev/null; then after_lab || true; fi  # what a test has to put away when its processes are gone
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT

# With CSVFS_LAB_TARGET=lio each of them runs against LIO.
obstacle() { lab_obstacle && { [[ ${CSVFS_LAB_TARGET:-tgt} == tgt ]] || lio_obstacle; }; }
if obstacle=$(obstacle); then :; else
  echo "skipped: the lab $obstacle"
  exit 77
fi

# Of tests with nodes that vote, first of all: a corosync on every node, or a word on why not.
with_corosync() {
  local obstacle
  if ! obstacle=$(lab_obstacle corosync); then
    echo "skipped: the lab $obstacle"
    exit 77
  fi
  export CSVFS_LAB_ENGINE=corosync
}
# All three are here, and know it.
is_whole() { local each; for each in node1 node2 node3; do [[ $(on "$each" csvctl cluster status --json 2>/dev/null | grep -c '"counts": 1') == 3 ]] || return 1; done; }
# is_direct NODE: its mount; coordinated_by NODE COORDINATOR: as NODE sees it.
is_direct() { [[ $(on "$1" csvctl status --json 2>/dev/null | grep -c '"mode": "direct"') == 1 ]]; }
coordinated_by() { on "$1" csvctl status --json 2>/dev/null | grep -q "\"coordinator_node\": *${2#node}\b"; }

# cluster_up [SIZE [OPTION...]]: three nodes that have mounted a new volume.
cluster_up() {
  lab up --nodes 3 --size "${1:-2G}" "${@:2}"
  lab format
  lab mount
}

# A small real tree at $work/tree; the same for all that is compared with it.
make_tree() {
  local chosen
  python "$lib/pick_trees.py" /usr $((${1:-24} << 20)) "${2:-800}" >"$work/chosen" 2>"$work/sum" || warn "a small /usr: $(<"$work/sum")"
  mapfile -t chosen <"$work/chosen"
  mkdir "$work/tree"
  (cd /usr && cp -a --parents -t "$work/tree" -- "${chosen[@]}")
  python "$lib/odd_tree.py" "$work/tree/odd"
  note "$(<"$work/sum")"
}

# compare NODE FOLDER: the tree as NODE reads it in FOLDER of the volume.
compare() {
  say "$1 compares"
  on "$1" bash -c 'source "$1/common.sh"; python "$1/compare_trees.py" "$2" "$3"' - "$lib" "$work/tree" "$volume/$2"
}

# begin NAME COMMAND...: in the background; its words and its end in files.
begin() {
  local name=$1
  shift
  (if "$@" </dev/null >"$work/$name.log" 2>&1; then echo 0; else echo 1; fi >"$work/rc.$name"; mv "$work/rc.$name" "$work/$name.rc") &
  background+=($!)
}
# has_ended NAME / await NAME SECONDS: that what was begun ends, and well.
has_ended() { [[ -f $work/$1.rc ]]; }
await() {
  wait_for "$2" "$1 to end" has_ended "$1" || { tail -n 20 "$work/$1.log"; die "$1 hangs"; }
  [[ $(<"$work/$1.rc") == 0 ]] || { tail -n 20 "$work/$1.log"; die "$1 failed"; }
}

# wait_for_entries NODE FOLDER COUNT: that there are so many entries below FOLDER.
has_entries() { (($(on "$1" find "$volume/$2" 2>/dev/null | wc -l) >= $3)); }
wait_for_entries() { wait_for 120 "$3 entries in $2" has_entries "$@"; }

# unmounts everywhere and checks; the volume has to be clean.
end_clean() {
  lab umount
  lab check
}

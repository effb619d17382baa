#!/usr/bin/env bash
# The target loses its power, and with it its volatile write cache: while three nodes work, once also the coordinator. What was made durable is there,
# what was lost is told once, names are as they were acknowledged. With `voting` nodes that vote: who has the volume next is theirs to decide.
# Usage: power_loss.sh [voting] [ROUNDS]
source "$(dirname "$0")/cluster.sh"

voting=''
if [[ ${1:-} == voting ]]; then
  voting=voting
  shift
  with_corosync
fi

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
state=$work/state
mkdir "$state"
programs() { python "$here/power.py" "$@"; }

lab up --nodes 3 --size 512M --volatile
lab format
lab mount
nodes=(node1 node2 node3)
for each in "${nodes[@]}"; do begin "work-$each" on "$each" python3 "$here/power.py" work "$volume/power" "$state"; done
begun() { (($(ls "$state" | grep -c '^rounds-') == ${#nodes[@]})); }
wait_for 30 "programs on all nodes" begun

losses=0
coordinator=node1
# coordinates: which node, as any of them sees it that sees one.
coordinates() {
  local each found
  for each in "${nodes[@]}"; do
    found=$(on "$each" csvctl status --json 2>/dev/null | python "$lib/status.py" coordinator volume1) && echo "node$found" && return
  done
  return 1
}
# loses hold|- [stays|moves|dies]: power, while nothing that is written is made durable, or in the midst of everything; with a second word the coordinator's
# csvd is killed in the meantime, and the same node, or another one, has the volume next; or whoever the cluster gives it to.
loses() {
  programs progress "$state" 15 "${nodes[@]}"
  if [[ $1 == hold ]]; then
    : >"$state/hold"
    programs progress "$state" 30 "${nodes[@]}"
  fi
  losses=$((losses + 1))
  : >"$state/loss-$losses"
  if [[ $voting ]]; then
    wait_for 60 "a coordinator" coordinates || die "nobody coordinates"
    coordinator=$(coordinates)
  fi
  lab san stop
  if [[ ${2:-} ]]; then lab kill $coordinator csvd; fi
  rm -f "$state/hold"
  lab san start
  case ${2:-} in
    stays | dies) lab start $coordinator csvd ;;
    moves)
      next=$([[ $coordinator == node1 ]] && echo node2 || echo node1)
      lab coordinator $next
      lab start $coordinator csvd
      coordinator=$next
      ;;
  esac
}

for ((round = 1; round <= ${1:-1}; round++)); do
  say "power is lost while nothing is made durable, and in the midst of everything"
  loses hold
  loses -
  say "and the coordinator dies, too"
  loses hold "$([[ $voting ]] && echo dies || echo stays)"
  loses - "$([[ $voting ]] && echo dies || echo moves)"
done
programs progress "$state" 15 "${nodes[@]}"
: >"$state/stop"
for each in "${nodes[@]}"; do await "work-$each" 60; done
for each in "${nodes[@]}"; do on "$each" python3 "$here/power.py" verify "$volume/power" "$state" || die "$each does not find what was acknowledged"; done
told=$(programs judge "$state" "$losses") || die "what was lost was not told as it should be"
note "$told"
end_clean

#!/usr/bin/env bash
# The target loses its power, and with it its volatile write cache: while three nodes work, once also the coordinator. What was made durable is there,
# what was lost is told once, names are as they were acknowledged.
# Usage: power_loss.sh [ROUNDS]
source "$(dirname "$0")/cluster.sh"

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
# loses hold|- [stays|moves]: power, while nothing that is written is made durable, or in the midst of everything; with a second word the coordinator's
# csvd is killed in the meantime, and the same node, or another one, has the volume next.
loses() {
  programs progress "$state" 15 "${nodes[@]}"
  if [[ $1 == hold ]]; then
    : >"$state/hold"
    programs progress "$state" 30 "${nodes[@]}"
  fi
  losses=$((losses + 1))
  : >"$state/loss-$losses"
  lab san stop
  if [[ ${2:-} ]]; then lab kill $coordinator csvd; fi
  rm -f "$state/hold"
  lab san start
  case ${2:-} in
    stays) lab start $coordinator csvd ;;
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
  loses hold stays
  loses - moves
done
programs progress "$state" 15 "${nodes[@]}"
: >"$state/stop"
for each in "${nodes[@]}"; do await "work-$each" 60; done
for each in "${nodes[@]}"; do on "$each" python3 "$here/power.py" verify "$volume/power" "$state" || die "$each does not find what was acknowledged"; done
told=$(programs judge "$state" "$losses") || die "what was lost was not told as it should be"
note "$told"
end_clean

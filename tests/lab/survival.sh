#!/usr/bin/env bash
# The table of docs/cluster.md, "What counts": clusters of two to five nodes, with a disk witness and without, that lose one node, then
# another, or two at once. Whoever is left goes on, or stops, as the table says; and never do two sides go on.
#
# Usage: survival.sh [NODES...]     each a number of nodes, with a w behind it if there is a witness; all without
source "$(dirname "$0")/cluster.sh"

with_corosync

status() { on "$1" csvctl cluster status --json 2>/dev/null; }
# ask NODE EXPRESSION: of what the node says of its cluster, s.
ask() { status "$1" | python3 -c "import json,sys; s=json.load(sys.stdin); print($2)"; }
goes_on() { [[ $(ask "$1" 's["state"], sum(n["member"] for n in s["nodes"])') == "formed $2" ]]; }
stands_still() { [[ $(ask "$1" 's["state"]') != formed ]]; }
voters() { ask "$1" '*["node%d" % n["id"] for n in s["nodes"] if n["counts"]]'; }
# Votes are those of whoever is here, and without a tie.
is_counted() {
  local here=$2
  [[ $(ask "$1" 's["state"], s["votes"], sum(n["member"] for n in s["nodes"]), s["votes_change"]') == \
    "formed $(odd "$here") $here False" ]]
}
odd() { if ((witness)); then echo $(($1 + 1 - $1 % 2)); else echo $(($1 - 1 + $1 % 2)); fi; }
writes() { on "$1" timeout 30 sh -c 'echo "$2" >"$1"' - "$volume/$2" "$2"; }

lose() {
  local each pids=() pid
  lost+=("$@")
  for each in "$@"; do
    (for network in storage private public; do lab cut "$each" "$network" >/dev/null; done) &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
}
left() { local each; for each in $(seq "$nodes"); do [[ " ${lost[*]} " == *" node$each "* ]] || echo "node$each"; done; }

# Those who are left must do so; who is lost must not go on beside them.
must_go_on() {
  local each here
  here=$(left | wc -l)
  for each in "${lost[@]}"; do wait_for 30 "$each, which is lost, to stop" stands_still "$each"; done
  for each in $(left); do wait_for 60 "$each to go on without ${lost[*]}" goes_on "$each" "$here"; done
  for each in $(left); do writes "$each" "by-$each-$((++written))" || die "$each does not write, without ${lost[*]}"; done
  for each in "${lost[@]}"; do stands_still "$each" || die "$each goes on, and so do $(left | xargs)"; done
  note "$(left | xargs) went on without ${lost[*]}"
}
must_stop() {
  local each
  for each in $(left); do wait_for 60 "$each to stop without ${lost[*]}" stands_still "$each"; done
  for _ in 1 2 3 4 5; do
    sleep 1  # it stays so
    for each in $(left); do stands_still "$each" || die "$each goes on without ${lost[*]}"; done
  done
  # A write waits, and is no error: it ends once the others are back.
  for each in $(left); do begin "waiting-$((++written))" on "$each" sh -c 'echo waited >"$1"' - "$volume/by-$each-$written"; waiting+=("waiting-$written"); done
  sleep 1
  for each in "${waiting[@]}"; do ! has_ended "$each" || die "something was written without ${lost[*]}"; done
  note "$(left | xargs) stopped without ${lost[*]}"
}
whole_again() {
  local each
  lab heal >/dev/null
  lost=()
  for each in $(left); do wait_for 90 "$each to be whole again" is_counted "$each" "$nodes"; done
  for each in "${waiting[@]}"; do await "$each" 90; done
  waiting=()
}

# row ONE ANOTHER TWO: what the table says.
row() {
  local one=$1 another=$2 two=$3 whom
  say "$nodes nodes, $( ((witness)) && echo "a disk witness" || echo "no witness"): one is lost"
  case $one in
    yes) lose node1; must_go_on ;;
    half)
      whom=$(without_vote) && lose "$whom" && must_go_on && whole_again
      whom=$(with_vote) && lose "$whom" && must_stop
      ;;
  esac
  if [[ $another != none ]]; then
    for whom in $(left); do wait_for 60 "$whom to count votes anew" is_counted "$whom" $((nodes - 1)); done
    say "then another one"
    case $another in
      yes) lose node2; must_go_on ;;
      half)
        whom=$(without_vote)
        lose "$whom"
        must_go_on
        whole_again
        lose node1
        for whom in $(left); do wait_for 60 "$whom to count votes anew" is_counted "$whom" $((nodes - 1)); done
        whom=$(with_vote)
        lose "$whom"
        must_stop
        ;;
    esac
  fi
  whole_again
  [[ $two != none ]] || return 0
  say "two at once"
  case $two in
    yes) lose node1 node2; must_go_on ;;
    no) lose node1 node2; must_stop ;;
    half)
      whom=$(without_vote)
      lose "$whom" "$(with_vote)"
      must_go_on
      whole_again
      # shellcheck disable=SC2046
      lose $(left | grep -vx "$(without_vote)" | head -n 2)
      must_stop
      ;;
  esac
  whole_again
}
with_vote() { voters "$(left | tail -n 1)" | tr ' ' '\n' | grep -Fxf <(left) | head -n 1; }
without_vote() { left | grep -vFxf <(voters "$(left | tail -n 1)" | tr ' ' '\n') | head -n 1; }

written=0
for shape in "${@:-2 2w 3 3w 4 4w 5 5w}"; do for shape in $shape; do
  nodes=${shape%w} witness=0 lost=() waiting=()
  [[ $shape == *w ]] && witness=1
  lab up --nodes "$nodes" --size 1G --scratch 8M
  lab format
  lab mount
  ((!witness)) || on node1 csvctl cluster witness disk:iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/2
  whole_again
  case $shape in
    2) row half none none ;;
    2w) row yes none none ;;
    3) row yes half no ;;
    3w) row yes yes no ;;
    4) row yes yes half ;;
    *) row yes yes yes ;;
  esac
  end_clean
  lab down
done; done

#!/usr/bin/env bash
# Four nodes that vote, with checked work on every one of them, while networks, storage, corosync and whole nodes fail. Who is said to go
# on does so without an error, who is said to wait answers nothing more; afterwards all is well by itself, and every node finds all that
# was acknowledged on any (checked.py).
#
# Usage: cuts.sh [ROW...]     the functions below whose names begin with row_; all without
source "$(dirname "$0")/cluster.sh"

with_corosync
program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/checked.py
# Lists of nodes are split where they are used.
# shellcheck disable=SC2046,SC2086,SC2154
nodes=(node1 node2 node3 node4)
logs=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name
# After the end of what its lease rests on a node may act no more; some time for who looks at it.
term=3.5
# A node without storage is still there, and so has the locks that its programs hold.
held=60000

moment() { local up; read -r up _ </proc/uptime; echo "$up"; }
later() { awk -v from="$1" -v by="$2" 'BEGIN { printf "%.2f", from + by }'; }
# ask NODE EXPRESSION: of what the node says of its cluster, s.
ask() { on "$1" csvctl cluster status --json 2>/dev/null | python -c "import json,sys; s=json.load(sys.stdin); print($2)"; }
goes_on() { [[ $(ask "$1" 's["state"]') == formed ]]; }
stands_still() { [[ $(ask "$1" 's["state"]') != formed ]]; }
voters() { ask "$1" '*["node%d" % n["id"] for n in s["nodes"] if n["counts"]]'; }
coordinator() { echo "node$(on "$1" csvctl status --json 2>/dev/null | python "$lib/status.py" coordinator volume1)"; }
# of_mount NODE EXPRESSION: of what its csvd knows of its mount, m.
of_mount() { on "$1" csvctl status --json 2>/dev/null | python -c "import json,sys; m=json.load(sys.stdin)['volumes'][0]['mount']; print($2)"; }
others() { printf '%s\n' "${nodes[@]}" | grep -vxF -f <(printf '%s\n' "$@") | xargs; }
# Every node finds so: a quorum, all four here, nothing to be said, and its mount direct. Asked once a second: the machine has work to do.
is_well() {
  on "$1" csvctl status --json 2>/dev/null | python -c '
import json, sys
status = json.load(sys.stdin)
voting, mount = status["voting"], status["volumes"][0]["mount"]
wrong = voting["state"] != "formed" or sum(each["member"] for each in voting["nodes"]) != 4 or voting["attention"] or mount["mode"] != "direct"
sys.exit(str([voting["state"], voting["reason"], voting["attention"], mount["mode"], mount["reason"]]) if wrong else 0)'
}
all_well() {
  local each deadline=$((SECONDS + 120))
  for each in "${nodes[@]}"; do
    until is_well "$each" >"$work/well" 2>&1; do
      ((SECONDS < deadline)) || die "$row: $each does not find all well: $(tail -n 1 "$work/well")"
      sleep 1
    done
  done
}
# at_once COMMAND... {}: for each node of $them, at the same time.
at_once() { local each pids=() pid; for each in $them; do "${@//\{\}/$each}" >/dev/null & pids+=($!); done; for pid in "${pids[@]}"; do wait "$pid"; done; }

# --- a row: work on every node, a fault, an end of it --------------------------------------------------------------------------------

# work_begins [COORDINATOR]: on every node, and each kind of it. (Once nodes have lost the storage it stays with whoever has the volume:
# who could not take it over is given it again only after a while, docs/cluster.md, "Several volumes".)
work_begins() {
  local each
  all_well
  [[ ! ${1:-} ]] || lab coordinator "${1#node}" >/dev/null
  state=$work/$row
  mkdir "$state"
  for each in "${nodes[@]}"; do begin "$row-$each" on "$each" python3 "$program" work "$volume/$row" "$state" 4; done
  progresses 10
}
# progresses ROUNDS: each kind of work makes so many from now on, on every node.
progresses() { python "$program" progress "$state" "$1" 120 "${nodes[@]}" || die "$row: the work does not go on"; }

# fault SECONDS COMMAND...: it is there for so long.
fault() {
  local seconds=$1
  shift
  from=$(moment)
  "$@"
  there=$(moment)
  sleep "$seconds"  # the length of the fault is what is tested
}
# fault_ends COMMAND...: and all of it goes on by itself.
fault_ends() {
  until=$(moment)
  "$@" >/dev/null
  all_well
  progresses 3
  work_ends
}
work_ends() {
  local each
  : >"$state/stop"
  for each in "${nodes[@]}"; do await "$row-$each" 60; done
  for each in "${nodes[@]}"; do on "$each" python3 "$program" verify "$volume/$row" "$state" || die "$row: $each does not find what was acknowledged"; done
}
# went_on NAMES_MS DIRECT_MS LOCK_MS NODE...: without an error, and none of its work waited longer.
went_on() {
  local each said
  for each in "${@:4}"; do
    said=$(python "$program" judge "$state" "$each" goes-on "$from" "$until" "$1" "$2" "$3") || die "$row: $each did not go on"
    note "$each went on, and waited, in ms: $said"
  done
}
# waited NODE...: from the end of the lease on nothing was answered there. waited_directly NODE...: none of its own reads and writes.
# (Names and small files are the coordinator's to write, until the mount has found out that its path is lost.)
waited() { were_kept_waiting '' "$@"; }
waited_directly() { were_kept_waiting 'blocks others' "$@"; }
were_kept_waiting() {
  local each
  for each in "${@:2}"; do
    python "$program" judge "$state" "$each" waits "$(later "$there" "$term")" "$until" $1 || die "$row: $each did not wait"
    note "$each waited; errors: $(python "$program" judge "$state" "$each" errors)"
  done
}
had_errors() { local each; for each in "$@"; do note "errors on $each: $(python "$program" judge "$state" "$each" errors)"; done; }
had_none() { local each errors; for each in "$@"; do errors=$(python "$program" judge "$state" "$each" errors) && [[ $errors == none ]] || die "$row: errors on $each: $errors"; done; }

cut_networks() { local node=$1 way=$2 each; shift 2; for each in "$@"; do lab cut "$node" "$each" ${way:+"$way"} >/dev/null; done; }

# --- the rows ------------------------------------------------------------------------------------------------------------------------

# Corosync goes on over the other network, so the node stays a member; but its csvd is heard by nobody, and has no lease.
row_private() {
  say "the coordinator's node loses its private network, and keeps the public one: what it coordinates goes elsewhere"
  work_begins node1
  fault 12 lab cut node1 private
  [[ $(coordinator node2) != node1 ]] || die "node1, which nobody can reach, still coordinates"
  fault_ends lab heal
  went_on 10000 1000 12000 $(others node1)
  waited node1
}

row_all_networks() {
  say "the coordinator's node loses all networks"
  work_begins node2
  fault 12 cut_networks node2 '' private public storage
  stands_still node2 || die "node2, which has nobody, goes on"
  fault_ends lab heal
  went_on 8000 1000 10000 $(others node2)
  waited node2
}

# Who hears nobody is left behind although the others hear it: a lease needs an answer.
row_deaf() {
  say "the coordinator's node hears nothing more, and is heard"
  work_begins node3
  fault 14 cut_networks node3 --in private public
  stands_still node3 || die "node3, which hears nobody, goes on"
  fault_ends lab heal
  went_on 10000 1000 12000 $(others node3)
  waited node3
}

# It hears the others go on, and must not take that for its own lease.
row_mute() {
  say "the coordinator's node hears, and is not heard"
  work_begins node4
  fault 14 cut_networks node4 --out private public
  stands_still node4 || die "node4, which nobody hears, goes on"
  fault_ends lab heal
  went_on 10000 1000 12000 $(others node4)
  waited node4
}

# Three votes count: one of the halves has two of them.
row_halves() {
  local voting without left right
  read -ra voting < <(voters node1)
  without=$(others "${voting[@]}")
  ((${#voting[@]} == 3)) || die "of four nodes ${voting[*]} have votes that count"
  left="${voting[0]} ${voting[1]}" right="${voting[2]} $without"
  say "two halves, no witness: $left go on, $right, which coordinate, wait"
  work_begins "${voting[2]}"
  fault 12 lab partition "${left/ /,}/${right/ /,}"
  for each in $right; do stands_still "$each" || die "$each goes on with one vote of three"; done
  fault_ends lab heal
  went_on 8000 1000 10000 $left
  waited $right
}

# A vote that was taken away by hand: with the votes as they were the rest would have had one of three.
row_vote() {
  local voting rest
  read -ra voting < <(voters node1)
  ((${#voting[@]} == 3)) || die "of four nodes ${voting[*]} have votes that count"
  rest=$(others "${voting[0]}" "${voting[1]}")
  say "${voting[0]} is given no vote, then it and ${voting[1]} are lost at once: $rest go on"
  on node1 csvctl node vote "${voting[0]}" 0 >/dev/null
  wait_for 30 "the vote to be gone" has_voters "${voting[1]} $rest"
  work_begins "${voting[1]}"
  them="${voting[0]} ${voting[1]}"
  fault 12 at_once cut_networks '{}' '' private public storage
  fault_ends lab heal
  went_on 8000 1000 10000 $rest
  waited "${voting[@]:0:2}"
  on node1 csvctl node vote "${voting[0]}" 1 >/dev/null
}
has_voters() { [[ $(voters node1 | tr ' ' '\n' | sort) == "$(tr ' ' '\n' <<<"$1" | sort)" ]]; }

set_witness() {
  on node1 csvctl cluster witness disk:iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/2
  wait_for 30 "the witness to count" has_votes 5
}
has_votes() { [[ $(ask node1 's["votes"]') == "$1" ]]; }

# Both halves have two of five votes, and the witness one.
row_halves_with_a_witness() {
  local left='node1 node2' right='node3 node4' each
  say "two halves, and a witness: one of them goes on, whichever gets it"
  set_witness
  work_begins
  fault 0 lab partition node1,node2/node3,node4
  wait_for 40 "one half to go on" one_half
  has_formed node1 || { left='node3 node4' right='node1 node2'; }
  for _ in 1 2 3 4 5 6 7 8; do
    for each in $left; do has_formed "$each" || die "$each, whose half had the witness, does not go on"; done
    for each in $right; do stands_still "$each" || die "$each goes on, and so do $left"; done
    sleep 1  # it stays so
  done
  fault_ends lab heal
  went_on 15000 1000 17000 $left
  waited $right
  on node1 csvctl cluster witness none >/dev/null
  wait_for 30 "the witness to be gone" has_votes 3
}
# As half of them, and not as it was before.
has_formed() { [[ $(ask "$1" 's["state"], sum(n["member"] for n in s["nodes"])') == 'formed 2' ]]; }
one_half() { has_formed node1 || has_formed node3; }

row_storage() {
  local who
  say "the coordinator's node loses the storage"
  work_begins
  who=$(coordinator node1)
  fault 14 lab cut "$who" storage
  [[ $(coordinator "$(others "$who" | cut -d" " -f1)") != "$who" ]] || die "$who, which has no storage, still coordinates"
  [[ $(of_mount "$who" 'm["mode"], m["reason"] != ""') == "paused True" ]] || die "the mount of $who does not say that it is paused, and why"
  fault_ends lab heal
  went_on 12000 1000 $held $(others "$who")
  waited_directly "$who"
}

row_storage_of_half() {
  local who rest
  say "two of four nodes lose the storage, the coordinator's among them"
  work_begins
  who=$(coordinator node1)
  them="$who $(others "$who" | cut -d' ' -f1)"
  rest=$(others $them)
  fault 14 at_once lab cut '{}' storage
  who=$(coordinator "${rest% *}")
  [[ " $rest " == *" $who "* ]] || die "$who coordinates, and not a node that has the storage"
  fault_ends lab heal
  went_on 12000 1000 $held $rest
  waited_directly $them
}

# What would happen to a node that is alone in having failed: its session ends, and its key is fenced. Not meant is that a path which was
# lost for longer than a command may take is replaced (docs/mount.md, "Admission and rotation"): the session has another key then, and
# the former one is removed. A key's role is in its bits 38 and 39, 0: a mount.
sessions() {
  on "$(coordinator node1)" csvctl status --json | python -c 'import json,sys
for each in sorted(json.load(sys.stdin)["volumes"][0]["service"]["sessions"], key=lambda one: one["node"]): print(each["node"], each["session"], *([each["key"]] if sys.argv[1] == "keys" else []))' "$1"
}
fences() { cat "$logs"/node*/csvd.log | { grep -oP '(?<= fence key=)[0-9a-f]{16}' || true; } | awk '{ if (substr($1, 7, 1) ~ /[0-3]/) print }' | sort; }
ends() { cat "$logs"/node*/csvd.log | grep -c ' session ends ' || true; }

row_storage_of_all() {
  local sessions_before fences_before ends_before keys_before fenced each
  say "all nodes lose the storage for 30 s: everybody waits and says why, nobody is fenced, all goes on"
  work_begins
  sessions_before=$(sessions ids) keys_before=$(sessions keys) fences_before=$(fences) ends_before=$(ends)
  them=${nodes[*]}
  fault 28 at_once lab cut '{}' storage
  for each in "${nodes[@]}"; do
    [[ $(of_mount "$each" 'm["mode"], m["reason"] != ""') == "paused True" ]] || die "the mount of $each says: $(of_mount "$each" 'm["mode"], m["reason"]')"
    goes_on "$each" || die "$each has no quorum, and its networks are whole"
    note "$each: $(of_mount "$each" 'm["reason"]')"
  done
  fault_ends lab heal
  waited "${nodes[@]}"
  had_none "${nodes[@]}"
  [[ $(sessions ids) == "$sessions_before" ]] || die "sessions before: $sessions_before; after: $(sessions ids)"
  fenced=$(comm -13 <(echo "$fences_before") <(fences))
  note "keys that were removed: $(xargs <<<"$fenced"); of before: $(xargs <<<"$keys_before")"
  for each in $fenced; do
    grep -q " $each\$" <<<"$keys_before" || die "key $each was fenced, of a mount that had been admitted since"
    ! sessions keys | grep -q " $each\$" || die "key $each was fenced, and its session has no other one"
  done
  [[ $(ends) == "$ends_before" ]] || die "sessions were ended"
}

# It forgets keys and reservation, so a loss of its cache has to be suspected: a fsync may say EIO, as docs/safety.md has it. A write in
# place is no fsync.
row_target() {
  local each errors
  say "the target is restarted"
  work_begins
  fault 2 lab san restart
  fault_ends true
  for each in "${nodes[@]}"; do
    errors=$(python "$program" judge "$state" "$each" errors)
    note "errors on $each: $errors"
    [[ ! $errors =~ blocks|others ]] || die "$row: $each: direct I/O had errors: $errors"
  done
}

row_corosync_killed() {
  local who
  say "corosync is killed under the csvd that coordinates"
  work_begins
  who=$(coordinator node1)
  fault 12 lab kill "$who" corosync
  [[ $(coordinator "$(others "$who" | cut -d" " -f1)") != "$who" ]] || die "$who, which is in no cluster, still coordinates"
  fault_ends lab start "$who" corosync
  went_on 8000 1000 10000 $(others "$who")
  had_errors "$who"
}

row_corosync_stopped() {
  local who
  say "corosync stands still for 15 s under the csvd that coordinates"
  work_begins
  who=$(coordinator node1)
  fault 15 lab freeze "$who" corosync
  [[ $(coordinator "$(others "$who" | cut -d" " -f1)") != "$who" ]] || die "$who, which is in no cluster, still coordinates"
  fault_ends lab thaw "$who"
  went_on 8000 1000 10000 $(others "$who")
  had_errors "$who"
}

# Everything that ran is gone; what was acknowledged is on the LUN.
row_cold_start() {
  local each
  say "all daemons of all nodes are killed at once, and started"
  work_begins
  them=${nodes[*]}
  at_once kill_all '{}'
  : >"$state/stop"  # for what only slept
  for each in "${nodes[@]}"; do await "$row-$each" 60; done
  at_once start_both '{}'
  lab mount >/dev/null
  all_well
  work_ends
  had_errors "${nodes[@]}"
}
kill_all() { on "$1" pkill -9 -x 'csvfs|csvd|corosync'; }
start_both() { lab start "$1" corosync; lab start "$1" csvd; }

rows=("$@")
((${#rows[@]})) || mapfile -t rows < <(grep -oP '^row_\K[a-z_]+(?=\(\))' "${BASH_SOURCE[0]}")
row=up
lab up --nodes 4 --size 1G --scratch 8M
lab format
lab mount
all_well
for row in "${rows[@]}"; do
  declare -F "row_$row" >/dev/null || die "no such row: $row"
  began=$SECONDS
  "row_$row"
  note "$row: $((SECONDS - began)) s"
done
row=end
all_well
end_clean

#!/usr/bin/env bash
# A node is fenced by command, as Pacemaker does it: what it still sends is refused by the target, and it comes back without a reboot.
source "$(dirname "$0")/cluster.sh"

with_corosync
agent=$csvfs_root/packaging/fence_csv
program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/voting.py

# fences ACTION NODE: on node1, as Pacemaker calls it; says how it ended.
fences() { local code=0; printf 'action=%s\nplug=%s\n' "$1" "$2" | on node1 python3 "$agent" >"$work/said" 2>&1 || code=$?; echo "$code"; }
is() { [[ $(fences "$2" "$3") == "$1" ]] || die "fence_csv $2 of $3 did not end with $1: $(<"$work/said")"; }
keys_of() { on node1 csvctl reservation show iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1 --json | grep -c "\"node\": *${1#node}\b"; }
says() { on "$1" csvctl status 2>/dev/null | grep -qF -- "$2"; }
writes() { # node3 writes directly, until it cannot
  touch -d @0 "$work/last"
  begin "$1" on node3 python3 "$program" touch "$volume/image" "$work/last"
  wait_for 20 "writes on node3" is_fresh
}
is_fresh() { (($(date +%s%3N) - $(date -r "$work/last" +%s%3N) < 1000)); }
stopped_before() { (($(date -r "$work/last" +%s%3N) <= $1)); }

cluster_up 1G

say "what the agent says of itself"
printf 'action=metadata\n' | on node1 python3 "$agent" | python3 -c 'import sys, xml.dom.minidom as x; x.parseString(sys.stdin.read())'
is 0 monitor node3
is 0 status node3
is 1 status node9
is 2 explode node3
lab coordinator 3

say "the node that coordinates is fenced while it writes"
mkdir "$work/bound" && touch "$work/bound/this"
on node3 sh -c 'mkdir -p "$1/outer/inner" && mount --bind "$2" "$1/outer/inner"' - "$volume" "$work/bound"
writes first
(($(keys_of node3) >= 2)) || die "the keys of node3, its coordinator's and its mount's, are not seen"
is 0 off node3
proven=$(date +%s%3N)
is 2 status node3
[[ $(keys_of node3) == 0 ]] || die "keys of node3 are left"
wait_for 20 "what wrote on node3 to fail" has_ended first
[[ $(<"$work/first.rc") != 0 ]] && grep -qF 'Input/output error' "$work/first.log" || die "what wrote on node3 was not told: $(<"$work/first.log")"
stopped_before "$proven" || die "node3 has written after it was proven to be fenced"
coordinated_by node1 node1 || coordinated_by node1 node2 || die "node3 coordinates still"
says node3 'fenced by command' || die "node3 does not say why it waits"
begin late on node3 python3 "$program" touch "$volume/image" "$work/last"
wait_for 10 "what is begun on a fenced node to fail" has_ended late
grep -qF 'Input/output error' "$work/late.log" || die "what was begun on a fenced node was not told: $(<"$work/late.log")"
[[ $(on node3 stat "$volume/outer" 2>&1) == *'Input/output error'* ]] || die "a directory can be looked at on a fenced node"
on node3 ls "$volume/outer/inner" >/dev/null 2>&1 || true  # the whole way is walked
on node1 csvctl cluster status | grep -F 'csvctl node unfence node3' || die "the way back is not shown"
[[ $(on node1 csvctl volume move volume1 --to node3 2>&1) == *'is fenced'* ]] || die "a fenced node was given a volume"

say "it comes back by itself, and is not given what it has lost"
is 0 on node3
wait_for 30 "the mount of node3" is_direct node3
is 0 status node3
on node3 sh -c 'test -e "$1/this" && umount "$1"' - "$volume/outer/inner" || die "what was mounted below the volume has been detached"
on node3 sh -c 'echo back >"$1"' - "$volume/back"
[[ $(on node1 cat "$volume/back") == back ]] || die "node1 does not see what node3 has written"

say "a node that hangs is fenced, too, and what it had begun does not arrive when it wakes up"
writes second
lab freeze node3 all
is 0 off node3
[[ $(keys_of node3) == 0 ]] || die "keys of node3 are left"
image=$(on node1 sha256sum "$volume/image")
lab thaw node3
sleep 3
[[ $(on node1 sha256sum "$volume/image") == "$image" ]] || die "node3 has written after it was fenced"
is 0 on node3
wait_for 60 "the mount of node3" is_direct node3

say "without a quorum nobody is fenced"
lab partition node1/node2,node3
has_no_quorum() { on node1 csvctl cluster status | grep -qF '1 of 3 votes here'; }
wait_for 20 "node1 to be without a quorum" has_no_quorum
is 1 monitor node3
is 1 off node3
lab heal
wait_for 60 "the mount of node1" is_direct node1
wait_for 60 "three votes" is_whole
is 0 on node3
wait_for 60 "the mount of node3" is_direct node3
end_clean

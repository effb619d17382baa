#!/usr/bin/env bash
# Cables are pulled while nodes write: a short cut costs only time, and a node that was cut off long comes back.
source "$(dirname "$0")/cluster.sh"

make_tree
total=$(find "$work/tree" | wc -l)
cluster_up

say "node2 loses the storage network for two seconds while it copies"
begin copy on node2 cp -a "$work/tree" "$volume/copy"
wait_for_entries node3 copy $((total / 4))
lab cut node2 storage
! has_ended copy || die "the copy ended before the cable was pulled: nothing was shown"
sleep 2  # the length of the cut is what is tested
lab heal
await copy 240
compare node1 copy

say "node3 loses the private network for longer than any lease; the others go on at once"
begin cut-off on node3 sh -c 'while [ ! -e /run/stop ]; do date +%s%N >"$1/ticks"; sleep 0.2; done' - "$volume"
has_ticks() { on node1 test -s "$volume/ticks"; }
wait_for 30 "node3 to write" has_ticks
lab cut node3 private
began=$SECONDS
on node1 sh -c 'for i in $(seq 30); do echo $i >"$1/during-$i"; done; rm "$1/ticks"' - "$volume"
note "30 files made and the file of node3 removed, $((SECONDS - began)) s after the cut"
((SECONDS - began < 30)) || die "node1 was held up too long"
sleep $((12 - (SECONDS - began) > 0 ? 12 - (SECONDS - began) : 0))  # past the lease and the grace
lab heal
# Its program may have got an error: its session ended. A new one works, and sees what happened meanwhile.
can_write() { timeout 20 "$csvfs_root/scripts/lab" --name "$lab_name" exec node3 sh -c 'echo back >"$1/back"' - "$volume"; }
wait_for 60 "node3 to work again" can_write
[[ $(on node3 sh -c "ls $volume | grep -c during-") == 30 ]] || die "node3 does not see what was made while it was cut off"
[[ $(on node2 cat "$volume/back") == back ]] || die "node2 does not see what node3 wrote after its return"
compare node3 copy
on node3 touch /run/stop
wait_for 30 "the cut-off program to end" has_ended cut-off
end_clean

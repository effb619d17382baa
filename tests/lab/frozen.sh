#!/usr/bin/env bash
# Nothing crashes here, but things stand still, and go on later believing what they believed before.
source "$(dirname "$0")/cluster.sh"

make_tree
total=$(find "$work/tree" | wc -l)
cluster_up

say "the coordinator's csvd stands still for 30 s while node2 and node3 copy: they wait, and go on"
begin copy2 on node2 cp -a "$work/tree" "$volume/two"
begin copy3 on node3 cp -a "$work/tree" "$volume/three"
wait_for_entries node2 two $((total / 5))
lab freeze node1 csvd
! has_ended copy2 || die "the copy ended before the coordinator was frozen: nothing was shown"
sleep 30  # the length of the standstill is what is tested
lab thaw node1
await copy2 240
await copy3 240
compare node3 two
compare node2 three

say "it stands still again, node2 takes over, and then it wakes up"
begin copy-again on node3 cp -a "$work/tree" "$volume/again"
wait_for_entries node2 again $((total / 5))
lab freeze node1 csvd
! has_ended copy-again || die "the copy ended before the coordinator was frozen: nothing was shown"
on node2 csvctl volume start volume1
lab thaw node1
await copy-again 240
compare node1 again
[[ $(on node3 csvctl status --json | python "$lib/status.py" coordinator volume1) == 2 ]] || die "node2 does not coordinate"

say "node3 stands still as a whole, for longer than its lease and the grace; the others go on and remove what it writes"
on node3 mkdir "$volume/frozen"
ticks='i=0; while [ ! -e /run/stop ]; do i=$((i + 1)); head -c 20000 /dev/urandom >"$1/$i" || echo failed; done'
begin ticks on node3 sh -c "$ticks" - "$volume/frozen"
wait_for_entries node1 frozen 5
lab freeze node3 all
began=$SECONDS
on node1 sh -c 'for i in $(seq 20); do echo $i >"$1/during-$i"; done; rm -r "$1/frozen"; mkdir "$1/frozen"' - "$volume"
note "20 files made and the folder of node3 replaced, $((SECONDS - began)) s after it stood still"
((SECONDS - began < 40)) || die "node1 was held up too long"
# In the blocks that were freed stands something else by now; nothing that node3 still has on its way may get there.
on node1 dd if=/dev/urandom of="$volume/during" bs=1M count=256 oflag=direct status=none
sum=$(on node1 sh -c "sha256sum <$volume/during")
sleep $((15 - (SECONDS - began) > 0 ? 15 - (SECONDS - began) : 0))  # past the lease and the grace
lab thaw node3
can_write() { timeout 20 "$csvfs_root/scripts/lab" --name "$lab_name" exec node3 sh -c 'echo back >"$1/back"' - "$volume"; }
wait_for 60 "node3 to work again" can_write
on node3 touch /run/stop
wait_for 60 "the frozen program to end" has_ended ticks
[[ $(on node2 cat "$volume/back") == back ]] || die "node2 does not see what node3 wrote after its return"
[[ $(on node3 sh -c "ls $volume | grep -c during-") == 20 ]] || die "node3 does not see what was made while it stood still"
for node in node2 node3; do
  [[ $(on "$node" sh -c "sha256sum <$volume/during") == "$sum" ]] || die "$node reads other content than node1 wrote"
done
end_clean

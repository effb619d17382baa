#!/usr/bin/env bash
# Cables are pulled while nodes write: a short cut costs only time, and a node that was cut off long comes back, with what it had open.
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
# As a machine that runs there: nobody else may need its disk, and then it must not notice.
begin holds on node3 python3 "$csvfs_root/tests/lab/held.py" "$volume/kept" "$volume/touched" /run/stop-holding /run/held
held() { on node3 cat /run/held 2>/dev/null; }
holds() { [[ $(held) == holds ]]; }
wait_for 30 "node3 to hold two files open" holds
lab cut node3 private
began=$SECONDS
on node1 sh -c 'for i in $(seq 30); do echo $i >"$1/during-$i"; done; rm "$1/ticks"' - "$volume"
note "30 files made and the file of node3 removed, $((SECONDS - began)) s after the cut"
((SECONDS - began < 30)) || die "node1 was held up too long"
session_of() { on node1 csvctl status --json | python3 -c 'import json, sys
print(next((each["session"] for each in json.load(sys.stdin)["volumes"][0]["service"]["sessions"] if each["node"] == int(sys.argv[1])), 0))' "$1"; }
has_no_session() { [[ $(session_of 3) == 0 ]]; }
wait_for 30 "the session of node3 to end" has_no_session
on node1 sh -c 'exec 3<>"$1/touched"' - "$volume"  # opened for writing, and nothing else
lab heal
# A program may have got an error, where others touched its file: its session ended. A new one works, and sees what happened meanwhile.
can_write() { timeout 20 "$csvfs_root/scripts/lab" --name "$lab_name" exec node3 sh -c 'echo back >"$1/back"' - "$volume"; }
wait_for 60 "node3 to work again" can_write
[[ $(on node3 sh -c "ls $volume | grep -c during-") == 30 ]] || die "node3 does not see what was made while it was cut off"
[[ $(on node2 cat "$volume/back") == back ]] || die "node2 does not see what node3 wrote after its return"
compare node3 copy
on node3 touch /run/stop /run/stop-holding
wait_for 30 "what node3 had open to go on" has_ended holds
note "node3 went on with what it had open: $(held)"
[[ $(held) == "0 wrong, other EIO, "* ]] || die "not as it should: $(held)"
wait_for 30 "the cut-off program to end" has_ended cut-off
end_clean

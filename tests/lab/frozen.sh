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

if ! obstacle=$(lab_obstacle corosync); then
  note "the rest, with nodes that vote, is left out: the lab $obstacle"
  exit 0
fi
lab down
with_corosync
program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/checked.py
boot_time() { local up; read -r up _ </proc/uptime; echo "$up"; }
has_read() { [[ $(on node1 cat /proc/"$reader"/io 2>/dev/null | awk '$1 == "syscr:" { print $2 }') -gt $1 ]]; }
is_fresh() { (($(date +%s%3N) - $(date -r "$work/last" +%s%3N) < 1000)); }
has_no_session() {
  local it
  it=$(on node2 csvctl status --json | python "$lib/status.py" coordinator volume1)
  [[ $it != 1 ]] && on "node$it" csvctl status --json |
    python -c 'import json, sys; sys.exit(any(each["node"] == 1 for each in json.load(sys.stdin)["volumes"][0]["service"]["sessions"]))'
}
is_back() { on node1 csvctl cluster status | grep -q 'All is well\.' && is_direct node1; }

say "nodes that vote: the one that coordinates stands still as a whole for 60 s, while it writes and reads directly"
cluster_up 1G
wait_for 30 "three votes" is_whole
lab coordinator 1
mkdir "$work/work"
for node in node1 node2 node3; do begin "work-$node" on "$node" python3 "$program" work "$volume/work" "$work/work" 3; done
on node2 python3 "$program" make "$volume/remade" "$work/remade.numbers" 1
begin reads on node1 python3 "$program" read "$volume/remade" "$work/remade.numbers" node2 "$work/stop-reading"
touch -d @0 "$work/last"
begin late on node1 python3 "${program%/*}/voting.py" touch "$volume/late" "$work/last"
python "$program" progress "$work/work" 10 120 node1 node2 node3 || die "the work does not begin"
wait_for 20 "direct writes on node1" is_fresh
wait_for 20 "direct reads on node1" on node1 pgrep -f "checked.py read"
reader=$(on node1 pgrep -of "python3 .*checked.py read")
wait_for 20 "direct reads on node1" has_read 100
from=$(boot_time)
lab freeze node1 all
began=$SECONDS
# What node1 writes to is removed, what it reads made anew, and something else is put into all the space that this freed.
on node2 rm "$volume/late"
on node2 python3 "$program" make "$volume/remade" "$work/remade.numbers" 2
wait_for 60 "the session of node1 to end" has_no_session
mib=$(($(on node2 df -BM --output=avail "$volume" | tail -n 1 | tr -dc 0-9) - 8))
on node2 sh -c 'tr "\000" "\125" </dev/zero | dd of="$1" bs=1M count="$2" iflag=fullblock oflag=direct status=none; sync -f "$1"' - "$volume/during" "$mib"
note "node2 wrote $mib MiB, $((SECONDS - began)) s after node1 stood still"
coordinated_by node2 node2 || coordinated_by node2 node3 || die "nobody has taken the volume over"
odd_in() { [[ $(on "$1" sh -c 'tr -d "\125" <"$1" | wc -c' - "$volume/during") != 0 ]]; }
! odd_in node3 || die "node3 finds in node2's file what node2 did not write"
sleep $((60 - (SECONDS - began) > 0 ? 60 - (SECONDS - began) : 0))  # the length of the standstill is what is tested
until=$(boot_time)
lab thaw node1
wait_for 90 "node1 to be back" is_back
python "$program" progress "$work/work" 5 60 node1 node2 node3 || die "the work does not go on"
wait_for 60 "what wrote on node1 to be told" has_ended late
[[ $(<"$work/late.rc") != 0 ]] && grep -qF 'Input/output error' "$work/late.log" || die "what wrote on node1 to a file that is no more was not told: $(<"$work/late.log")"
on node1 python3 "$program" blocks "$volume/remade" "$work/remade.numbers" node2 || die "node1 reads what is no more"
wait_for 60 "node1 to read on" has_read $(($(on node1 awk '$1 == "syscr:" { print $2 }' /proc/"$reader"/io) + 100))
: >"$work/stop-reading"
await reads 60
note "reads on node1, and how often its session had ended: $(<"$work/reads.log")"
for node in node1 node2 node3; do ! odd_in "$node" || die "$node finds in node2's file what node2 did not write"; done
: >"$work/work/stop"
for node in node1 node2 node3; do await "work-$node" 60; done
for node in node2 node3; do
  said=$(python "$program" judge "$work/work" "$node" goes-on "$from" "$until" 10000 3000 12000) || die "$node did not go on"
  note "$node went on, and waited, in ms: $said"
done
for node in node1 node2 node3; do on "$node" python3 "$program" verify "$volume/work" "$work/work" || die "$node does not find what was acknowledged"; done
end_clean

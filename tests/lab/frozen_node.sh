#!/usr/bin/env bash
# Of nodes that vote the one that coordinates stands still as a whole for 60 s, while it writes and reads directly. When it wakes up nothing
# of what it had begun lands, nothing that it reads is of before, and it comes back by itself.
source "$(dirname "$0")/cluster.sh"

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
is_pure() { [[ $(on "$1" bash -o pipefail -c 'dd if="$1" bs=1M status=none | tr -d "\125" | wc -c || echo unread' - "$volume/during") == 0 ]]; }
is_pure node3 || die "node3 finds in node2's file what node2 did not write"
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
for node in node1 node2 node3; do is_pure "$node" || die "$node finds in node2's file what node2 did not write"; done
: >"$work/work/stop"
for node in node1 node2 node3; do await "work-$node" 60; done
for node in node2 node3; do
  said=$(python "$program" judge "$work/work" "$node" goes-on "$from" "$until" 10000 3000 12000) || die "$node did not go on"
  note "$node went on, and waited, in ms: $said"
done
for node in node1 node2 node3; do on "$node" python3 "$program" verify "$volume/work" "$work/work" || die "$node does not find what was acknowledged"; done
end_clean

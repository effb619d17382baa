#!/usr/bin/env bash
# Two nodes and a disk witness: of two halves exactly one goes on, one node goes on alone, and none without what the other one decided.
source "$(dirname "$0")/cluster.sh"

with_corosync
witness=disk:iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/2

status() { on "$1" csvctl cluster status --json 2>/dev/null; }
is_quorate() { status "$1" | grep -q '"state": "formed"'; }
lacks_quorum() { status "$1" | grep -q '"state": "no quorum"'; }
counts_votes() { [[ $(status "$1" | sed -n 's/^  "votes": \([0-9]*\),*/\1/p') == "$2" ]]; }
writes() { on "$1" timeout 20 sh -c 'echo "$2" >"$1"' - "$volume/$2" "$2"; }
is_shown() { [[ $(on "$1" timeout 5 cat "$volume/$2" 2>/dev/null) == "$2" ]]; }

lab up --nodes 2 --size 1G --scratch 8M
lab format
lab mount

say "a witness is set, and counts once it is held"
code=0
on node1 csvctl cluster witness disk:iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1 >"$work/said" 2>&1 || code=$?
((code == 1)) || die "the volume's own LUN was taken for a witness: $(<"$work/said")"
on node1 csvctl cluster witness "$witness"
wait_for 30 "three votes" counts_votes node1 3
wait_for 30 "three votes" counts_votes node2 3

say "the two nodes do not hear each other: one goes on"
lab partition 1/2
wait_for 30 "node2 to lose its quorum" lacks_quorum node2
wait_for 30 "node1's quorum" is_quorate node1
writes node1 one-went-on || die "node1, which holds the witness, does not go on"
for _ in 1 2 3 4 5; do
  ! is_quorate node2 || die "both go on"
  sleep 1
done
lab heal
wait_for 60 "node2" is_quorate node2
wait_for 60 "what node1 has written" is_shown node2 one-went-on

say "the node that holds the witness vanishes: the other takes it, and goes on"
for each in private public storage; do lab cut node1 "$each"; done
wait_for 60 "node2's quorum" is_quorate node2
writes node2 two-went-on || die "node2 does not go on"
lacks_quorum node1 || die "node1, which has nobody, goes on"
lab heal
wait_for 60 "node1" is_quorate node1
wait_for 60 "what node2 has written" is_shown node1 two-went-on

say "a partition in time: what one node decided alone, the other must not go on without"
off() { for each in csvd corosync; do lab kill "$1" "$each"; done; }
back() { for each in corosync csvd; do lab start "$1" "$each"; done; }
off node2
wait_for 60 "node1 to count node2 no more" counts_votes node1 1
on node1 csvctl cluster policy hold=77
off node1
back node2
wait_for 30 "node2 to reach its corosync" lacks_quorum node2
begin in-time on node2 sh -c 'echo in-time >"$1"' - "$volume/in-time"
for _ in $(seq 20); do
  ! is_quorate node2 || die "node2 goes on, and knows nothing of what node1 has decided"
  sleep 1  # longer than a witness takes to change hands
done
! has_ended in-time || die "node2 has written, alone"
[[ $(status node2 | sed -n 's/^  "hold_s": \([0-9]*\),*/\1/p') != 77 ]] || die "node2 knows already of the change: nothing was shown"
back node1
wait_for 60 "node1" is_quorate node1
wait_for 60 "node2" is_quorate node2
await in-time 60
[[ $(status node2 | sed -n 's/^  "hold_s": \([0-9]*\),*/\1/p') == 77 ]] || die "node2 has not taken over what node1 decided"
[[ $(on node1 cat "$volume/in-time") == in-time ]] || die "node1 does not see what node2 has written"

say "without its witness the cluster goes on as one without"
on node1 csvctl cluster witness none
wait_for 30 "a vote less" counts_votes node1 1

say "disk only: nodes are not counted, whoever holds the disk goes on"
wait_for 30 "no change of votes to be left" on node1 csvctl cluster witness --only "$witness"
decides_alone() { on "$1" csvctl cluster status 2>/dev/null | grep -q 'it alone decides, this side holds it'; }
for node in node1 node2; do wait_for 30 "the disk to decide, as $node sees it" decides_alone "$node"; done
for each in private public storage; do lab cut node1 "$each"; done
wait_for 60 "node2's quorum" is_quorate node2
writes node2 by-the-disk || die "node2, which has the disk, does not go on"
wait_for 30 "node1 to lose its quorum" lacks_quorum node1
lab heal
wait_for 60 "node1" is_quorate node1
wait_for 60 "what node2 has written" is_shown node1 by-the-disk
# Nobody goes on without it, were all of them there.
for node in node1 node2; do lab cut "$node" storage; done
for node in node1 node2; do wait_for 60 "$node to lose its quorum" lacks_quorum "$node"; done
lab heal
for node in node1 node2; do wait_for 60 "$node" is_quorate "$node"; done

end_clean

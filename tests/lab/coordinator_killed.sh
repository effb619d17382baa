#!/usr/bin/env bash
# A copy goes on through kill -9 of the coordinator: once its node starts it again, once another node takes over.
source "$(dirname "$0")/cluster.sh"

make_tree
total=$(find "$work/tree" | wc -l)
cluster_up

say "killing the coordinator while node2 copies; its node starts it again"
begin copy on node2 cp -a "$work/tree" "$volume/first"
wait_for_entries node3 first $((total / 4))
lab kill node1 csvd
! has_ended copy || die "the copy ended before the coordinator was killed: nothing was shown"
lab start node1 csvd
# An emulated target takes minutes for it where the machine is busy.
await copy 600
compare node3 first

say "killing the coordinator while node3 copies; node2 takes over"
begin copy-again on node3 cp -a "$work/tree" "$volume/second"
wait_for_entries node2 second $((total / 4))
lab kill node1 csvd
! has_ended copy-again || die "the copy ended before the coordinator was killed: nothing was shown"
lab coordinator 2
await copy-again 600
lab start node1 csvd
compare node1 second
compare node2 first
end_clean

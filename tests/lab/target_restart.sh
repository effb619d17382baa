#!/usr/bin/env bash
# The target is killed and started again during a copy: registrations and reservation are gone, and nobody loses anything.
source "$(dirname "$0")/cluster.sh"

make_tree
total=$(find "$work/tree" | wc -l)
cluster_up
begin copy on node2 cp -a "$work/tree" "$volume/copy"
wait_for_entries node3 copy $((total / 4))
lab san restart
! has_ended copy || die "the copy ended before the target was killed: nothing was shown"
await copy 240
compare node1 copy
compare node3 copy
end_clean

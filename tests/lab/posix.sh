#!/usr/bin/env bash
# Every claim of posix.py, true of a local file system, is true of the mount.
source "$(dirname "$0")/cluster.sh"

claims=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/posix.py
say "a local file system keeps the claims"
mkdir "$work/local"
# A file system in memory cannot keep all of them.
if [[ $(stat -f -c %T "$work/local") == tmpfs ]]; then note "none here: left out"; else python "$claims" "$work/local" --reference; fi

cluster_up 3G
say "the mount keeps them"
on node1 mkdir "$volume/on-the-coordinator"
on node2 mkdir "$volume/beside-it"
on node1 bash -c 'source "$1/common.sh"; python "$2" "$3" --many 20000' - "$lib" "$claims" "$volume/on-the-coordinator"
on node2 bash -c 'source "$1/common.sh"; python "$2" "$3" --skip "most links"' - "$lib" "$claims" "$volume/beside-it"

say "mount options"
lab umount node3
end_clean

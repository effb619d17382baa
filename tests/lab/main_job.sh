#!/usr/bin/env bash
# The main job in small: three nodes at work at the same time, everything compared, checked, and compared again.
source "$(dirname "$0")/cluster.sh"

cluster_up 4G
"$csvfs_root/scripts/main-job" --lab "$lab_name" --small
end_clean

#!/usr/bin/env bash
# What a node does that has lost its quorum: it asks its isolation addresses, csvd begins anew once, then it stays stopped with
# its reason, answers csvctl, and serves again when there is a quorum. Nothing is rebooted: that is not configured here.
source "$(dirname "$0")/cluster.sh"

with_corosync

without() { on "$1" csvctl cluster status --json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["without_quorum"][sys.argv[1]])' "$2"; }
steps_to() { [[ $(without "$1" step) == "$2" ]]; }
life() { on "$1" csvctl status --json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["incarnation"])'; }
lives_anew() { local now; now=$(life node3) && [[ -n $now && $now != "$1" ]]; }

cluster_up 512M
wait_for 30 "three votes" is_whole
wait_for 30 "the mount of node3" is_direct node3
steps_to node3 serving || die "node3 is not serving: $(without node3 step)"
before=$(life node3)

say "node3 is cut off from the others"
for cable in private public; do lab cut node3 "$cable"; done
wait_for 30 "csvd of node3 to begin anew" lives_anew "$before"
wait_for 10 "node3 to say what it is at" steps_to node3 restarting
again=$(life node3)
on node3 csvctl cluster status
on node3 csvctl events | grep -q 'csvd restarts once' || die "node3 has not said that csvd begins anew"
wait_for 90 "node3 to stop" steps_to node3 stopped
note "$(without node3 reason)"
[[ $(life node3) == "$again" ]] || die "csvd of node3 began anew more than once"

say "the networks are whole: it serves again"
lab heal
wait_for 60 "three votes" is_whole
wait_for 10 "node3 to serve" steps_to node3 serving
wait_for 60 "the mount of node3" is_direct node3
on node3 sh -c 'echo back >"$1"' - "$volume/back"
[[ $(on node1 cat "$volume/back") == back ]] || die "node1 does not see what node3 has written"

say "cut off again: no second restart so soon"
again=$(life node3)
for cable in private public; do lab cut node3 "$cable"; done
wait_for 100 "node3 to stop" steps_to node3 stopped
[[ $(life node3) == "$again" ]] || die "csvd of node3 began anew once more"
lab heal
wait_for 60 "three votes" is_whole
wait_for 60 "the mount of node3" is_direct node3

end_clean

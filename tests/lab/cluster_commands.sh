#!/usr/bin/env bash
# The cluster's commands as an administrator gives them, right and wrong: what they do, what they say, and what they end with.
source "$(dirname "$0")/cluster.sh"

with_corosync

# ends CODE WORDS NODE COMMAND...: csvctl ends with CODE and says WORDS.
ends() {
  local code=0 wanted=$1 words=$2 node=$3
  shift 3
  on "$node" csvctl "$@" >"$work/said" 2>&1 || code=$?
  [[ $code == "$wanted" ]] || die "csvctl $* ended with $code, not $wanted: $(<"$work/said")"
  grep -qF -- "$words" "$work/said" || die "csvctl $* did not say '$words': $(<"$work/said")"
}
says() { on "$1" csvctl cluster status 2>/dev/null | grep -qF -- "$2"; }
coordinates() { on node2 csvctl status --json | grep -q "\"coordinator_node\": *${1#node}\b"; }

cluster_up 1G
ends 0 'All is well.' node1 cluster status
on node1 csvctl cluster status --json | python "$csvfs_root/tests/admin/json_fields.py" "$csvfs_root/docs/csvctl.md" 'cluster status'
on node1 csvctl status --json | python "$csvfs_root/tests/admin/json_fields.py" "$csvfs_root/docs/csvctl.md" status

say "wrong words change nothing"
on node1 csvctl cluster config export >"$work/before"
ends 2 '0 or 1' node1 node vote node2 7
ends 2 'hold=SECONDS' node1 cluster policy hold
ends 2 'disk:LUN' node1 cluster witness /srv
ends 2 '500 to 1272 ms' node1 cluster heartbeat --delay 300 --threshold 5
ends 2 'which' node1 cluster heartbeat
ends 1 'its nodes: node1, node2, node3' node1 node drain node9
ends 1 'its volumes: volume1' node1 volume move volume9 --to node2
ends 4 'takes part' node1 node evict node2
ends 4 '--yes forces it' node1 cluster start --force-quorum
ends 1 'already' node1 cluster create --name another
on node1 csvctl cluster config export | cmp - "$work/before" || die "something was changed"

say "a quorum that is there can be forced, too: a number grows, which volumes of a lost side may ask for"
ends 0 'This side goes on' node1 cluster start --force-quorum --yes
is_well() { on "$1" csvctl cluster status 2>/dev/null | grep -q 'All is well.'; }
for node in node1 node2 node3; do wait_for 30 "$node to find all well" is_well "$node"; done

say "volumes go where they are sent, and leave a node in maintenance"
ends 0 'The policy is set' node1 cluster policy hold=1
ends 0 '' node1 volume move volume1 --to node2
wait_for 20 "node2 to coordinate" coordinates node2
ends 0 '' node1 node drain node2
is_left() { coordinates node1 || coordinates node3; }
wait_for 20 "node2 to be left" is_left
ends 1 'csvctl node resume' node1 volume move volume1 --to node2
ends 0 'Needs attention (1):' node1 cluster status
ends 0 '' node1 node resume node2
wait_for 20 "node2 to coordinate again" coordinates node2

say "a volume is taken out of service, repaired, and put back; who uses it waits"
image=$(head -n 1 "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/san/luns")
lun=iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1
on node1 sh -c 'echo kept >"$1/kept"' - "$volume"
ends 4 'csvctl volume stop NAME' node1 volume check "$lun" --repair --yes
ends 1 'its volumes: volume1' node1 volume stop volume9
ends 0 'out of service, on all nodes' node3 volume stop volume1
ends 0 'out of service, on all nodes' node1 volume stop volume1
ends 0 'Needs attention (1):' node1 cluster status
ends 0 'volume1: is stopped by command' node1 cluster status
ends 1 'csvctl volume start volume1' node1 volume move volume1 --to node1
paused() { on "$1" csvctl status 2>/dev/null | grep -q 'paused: no coordinator: volume1 is stopped by command'; }
for node in node1 node2 node3; do wait_for 30 "the mount of $node to say why it waits" paused "$node"; done
begin waits on node2 sh -c 'echo waited >"$1/meanwhile"' - "$volume"
ends 0 'The volume is clean' node1 volume check "$lun"
ends 4 'node 3 has it mounted' node1 volume check "$lun" --repair --yes
ends 4 'node 3 has it mounted' node1 reservation clear "$lun" --yes
# Nobody takes it, whoever begins anew.
lab kill node1 csvd
wait_for 20 "node1 to be missed" says node2 'its csvd does not take part'
lab start node1 csvd
wait_for 30 "three votes" says node2 'here: 3 of 3'
ends 0 'volume1: is stopped by command' node1 cluster status
! has_ended waits || die "a program went on"
ends 0 'volume1 is in service' node3 volume start volume1
await waits 60
[[ $(on node3 timeout 20 cat "$volume/kept" "$volume/meanwhile") == $'kept\nwaited' ]] || die "files are missing"
ends 0 'out of service' node2 volume stop volume1
for node in node1 node2 node3; do on "$node" umount "$volume"; done
dd if=/dev/urandom of="$image" bs=4096 count=1 conv=notrunc status=none
ends 0 'superblock' node1 volume check "$lun" --repair --yes
ends 0 'The volume is clean' node1 volume check "$lun"
ends 0 'volume1 is in service' node1 volume start volume1
lab mount
[[ $(on node2 timeout 20 cat "$volume/kept" "$volume/meanwhile") == $'kept\nwaited' ]] || die "files are missing after the repair"
ends 0 '' node1 volume start volume1
wait_for 10 "node1, where it was started, to coordinate" coordinates node1
ends 0 '' node1 volume move volume1 --to node2
wait_for 20 "node2 to coordinate" coordinates node2
for what in 'volume volume1 is taken out of service' 'it is stopped by command' 'volume volume1 is put back into service'; do ends 0 "$what" node2 events; done

say "a volume grows with its LUN, and stays where it is"
lab san stop
truncate -s 1280M "$image"
lab san start
# A name is there once the coordinator has written it: so it is back.
on node1 timeout 60 sh -c 'touch "$1/back" && rm "$1/back"' - "$volume" || die "the volume is not back"
wait_for 60 "node2 to coordinate again" coordinates node2
ends 1 'does not coordinate volume volume1' node1 volume grow volume1
ends 0 '256 MiB more' node2 volume grow volume1
coordinates node2 || die "the volume is not where it was"
ends 1 'enlarge it at the target first' node2 volume grow volume1
on node1 timeout 10 touch "$volume/grown" || die "the volume that has grown is not served"

say "heartbeats change on all nodes, without a restart and for the next one"
token_is() { on "$1" corosync-cmapctl -g runtime.config.totem.token | grep -q "= $2\$"; }
ends 0 'The heartbeats are set' node2 cluster heartbeat --delay 60 --threshold 12
for node in node1 node2 node3; do
  wait_for 20 "the token of $node" token_is "$node" 720
  on "$node" grep -q '^  token: 720$' /etc/corosync/corosync.conf || die "$node's file has another token"
done
ends 1 '500 to 1272 ms' node2 cluster heartbeat --delay 128
lab kill node2 csvd
lab kill node2 corosync
wait_for 20 "node2 to be missed" says node1 'its csvd does not take part'
ends 0 'The heartbeats are set' node3 cluster heartbeat --preset lan
for node in node1 node3; do wait_for 20 "the token of $node" token_is "$node" 1000; done
lab start node2 corosync
on node2 grep -q '^  token: 720$' /etc/corosync/corosync.conf || die "node2's file was changed while it was away"
lab start node2 csvd
wait_for 30 "the token of node2, which was away" token_is node2 1000
wait_for 20 "its file" on node2 grep -q '^  token: 1000$' /etc/corosync/corosync.conf
wait_for 20 "three votes" says node1 'here: 3 of 3'

say "a configuration goes out and in"
on node1 csvctl cluster config export >"$work/cluster.toml"
ends 0 'nothing would change' node1 cluster config import "$work/cluster.toml"
sed -i 's/^hold_s = 1/hold_s = 30/' "$work/cluster.toml"
ends 0 'hold: 1 s becomes 30 s' node1 cluster config import "$work/cluster.toml" --dry-run
ends 4 'nothing was changed' node1 cluster config import "$work/cluster.toml"
ends 0 'The cluster is as the file says' node1 cluster config import "$work/cluster.toml" --yes
sed -i 's/^hold_s = 30/hold_s = -3/' "$work/cluster.toml"
ends 2 'cluster.toml:7:10:' node1 cluster config import "$work/cluster.toml" --yes
ends 0 'is as it has to be' node1 cluster prepare
ends 4 'there is a key already' node1 cluster prepare --new-key

say "a node leaves, by its own word, and is let in nowhere"
ends 4 'nothing was changed' node3 cluster leave
ends 1 'mounted on this node: volume1' node3 cluster leave --yes
ends 0 '' node1 volume move volume1 --to node3
wait_for 20 "node3 to coordinate" coordinates node3
lab umount node3 >/dev/null
ends 0 'belongs to the cluster no more' node3 cluster leave --yes
is_left() { coordinates node1 || coordinates node2; }
wait_for 20 "its volume to be served elsewhere" is_left
on node1 csvctl cluster config export | grep -q node3 && die "node3 is in the configuration still"
on node3 test ! -e /etc/corosync/authkey || die "node3 has the key still"
ends 0 'is left out' node1 cluster prepare --dry-run
grep -q 10.77.1.13 "$work/said" && die "corosync.conf of node1 has node3 still"
ends 1 'belongs to no cluster' node3 cluster leave --yes
on node3 mount -t csvfs -o timeout=3 volume1 "$volume" >"$work/said" 2>&1 && die "node3 has mounted volume1"

say "another machine of its name joins, by a token"
lab_folder=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name
lab kill node3 csvd
lab kill node3 corosync
for node in node1 node2; do ends 0 'Wrote' "$node" cluster prepare; done
on node1 corosync-cfgtool -R >/dev/null
on node3 rm -r /etc/csvfs/csvd.toml /etc/csvfs/tls "$lab_folder/node3/state"
as_node3=(--name node3 --address 10.77.1.13:7400 --links "10.77.1.13,10.77.2.13" --ca-dir "$lab_folder/ca")
ends 1 'has a node 2 already' node1 cluster token --node 2 "${as_node3[@]}"
on node1 csvctl cluster token --node 3 "${as_node3[@]}" >"$work/token" 2>"$work/waits" &
background+=($!)
wait_for 10 "the token" grep -q '^csvfs-join-' "$work/token"
token=$(<"$work/token")
ends 2 'not whole' node3 cluster join "${token%?}"
ends 0 'is a node of the cluster' node3 cluster join "$token"
wait "${background[-1]}" || die "csvctl cluster token: $(<"$work/waits")"
ends 1 'belongs to a cluster already' node3 cluster join "$token"
on node3 sed -i "/^listen/a state_dir = \"$lab_folder/node3/state\"" /etc/csvfs/csvd.toml
for node in node1 node2; do ends 0 'Wrote' "$node" cluster prepare; done
on node1 corosync-cfgtool -R >/dev/null
on node3 cmp /etc/corosync/corosync.conf "$lab_folder/node1/corosync/etc/corosync.conf" || die "node3 has another corosync.conf"
lab start node3 corosync
lab start node3 csvd
wait_for 30 "three votes" says node1 'here: 3 of 3'
ends 0 '' node1 volume move volume1 --to node3
wait_for 20 "node3 to coordinate" coordinates node3

say "a node that is taken out, and taken in again, has its vote"
lab kill node3 csvd
wait_for 20 "node3 to be missed" says node1 'its csvd does not take part'
ends 0 'no more' node1 node evict node3
lab start node3 csvd
wait_for 20 "node3 to hear of it" says node3 'belongs to the cluster no more'
on node1 csvctl cluster config export >"$work/cluster.toml"
printf '\n[[node]]\nid = 3\nname = "node3"\naddress = "10.77.1.13:7400"\n' >>"$work/cluster.toml"
ends 0 'node 3 (node3, 10.77.1.13:7400) is added' node1 cluster config import "$work/cluster.toml" --yes
wait_for 20 "three votes" says node1 'here: 3 of 3'

say "half a cluster says what it needs, and goes on by force only"
lab partition node1/node2,node3
wait_for 20 "node1 to be without a quorum" says node1 '1 of 3 votes here, 2 needed'
ends 1 'csvctl cluster status' node1 node drain node2
ends 0 'quorum' node1 status
lab kill node2 csvd
lab kill node3 csvd
ends 0 'This side goes on' node1 cluster start --force-quorum --yes
wait_for 20 "node1 to go on" says node1 'quorate (1 of 1 votes)'
ends 0 'a quorum was forced 2 times' node1 cluster status
ends 1 'Stop its csvd' node1 cluster start --prevent-quorum
# The others were told to wait for it, and it is away when they come.
for node in node2 node3; do
  ends 0 'brings no cluster about' "$node" cluster start --prevent-quorum
  ends 0 'counts as ever' "$node" cluster start
  ends 0 'brings no cluster about' "$node" cluster start --prevent-quorum
done
ends 0 'The policy is set' node1 cluster policy hold=7
lab kill node1 csvd
lab heal
lab start node2 csvd
lab start node3 csvd
waits_for_others() { says "$1" 'no quorum (this node was told to prevent a quorum'; }
for node in node2 node3; do wait_for 30 "$node to say that it waits" waits_for_others "$node"; done
ends 0 'node2 and node3 were told to prevent a quorum' node3 cluster status
lab kill node3 csvd
lab start node3 csvd
for _ in 1 2 3 4 5 6 7 8; do
  wait_for 20 "node3 to wait still" waits_for_others node3
  waits_for_others node2 || die "node2 went on without the side that was forced"
  sleep 1
done
lab start node1 csvd
wait_for 30 "all to be one again" says node3 'here: 3 of 3'
for node in node1 node2 node3; do
  on "$node" csvctl cluster config export | grep -q '^hold_s = 7 ' || die "$node has not what the forced side decided"
done
ends 0 'it has joined a cluster that has formed' node2 events
test ! -e "$lab_folder/node2/state/cluster/prevent-quorum" || die "node2 is told to prevent a quorum still"
for what in 'no quorum: what is coordinated' 'quorum is back' 'a quorum was forced' 'has left the cluster' 'has joined the cluster' \
  'node 2 (node2) is drained' 'the cluster gives it to' 'those that count'; do
  ends 0 "$what" node1 events
done
say "all as documented"

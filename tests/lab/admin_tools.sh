#!/usr/bin/env bash
# What an administrator looks at while things break: status, events and top say what happened, why and where; volumes are added
# to a running csvd; and what is written as JSON is as documented.
source "$(dirname "$0")/cluster.sh"

docs=$csvfs_root/docs/csvctl.md
fields() { python "$csvfs_root/tests/admin/json_fields.py" "$docs" "$@"; }
# says NODE PATTERN COMMAND...: what csvctl prints on NODE matches. comes: within 30 s.
matches() {
  local node=$1 pattern=$2
  shift 2
  words=$(on "$node" csvctl "$@" 2>&1) || true
  grep -qE -- "$pattern" <<<"$words"
}
says() { matches "$@" || { echo "$words"; die "$1: csvctl ${*:3} does not say '$2'"; }; }
comes() { wait_for 30 "$1: csvctl ${*:3} to say '$2'" matches "$@" || { echo "$words"; die "it does not"; }; }
event() { says "$1" "$2" events; }

cluster_up 1G
say "in health, and documented"
comes node1 'All is well' status
for node in node1 node2; do
  on "$node" csvctl status --json | fields status
  on "$node" csvctl events --json | fields events
  on "$node" csvctl volume list --json | fields 'volume list'
done
on node1 sh -c 'for i in $(seq 100); do echo "$i" >"$1/$i"; done; dd if=/dev/zero of="$1/big" bs=1M count=16 oflag=direct status=none' - "$volume"
begin writer on node2 bash -c 'while [[ ! -e /run/enough ]]; do dd if=/dev/zero of="$1/written" bs=1M count=4 conv=notrunc oflag=direct status=none; done' - "$volume"
wait_for_entries node2 written 1
on node2 csvctl top --once --interval 1 --json >"$work/top"
fields top <"$work/top"
python -c 'import json, sys; m = json.load(open(sys.argv[1]))["volumes"][0]["mount"]; assert m["writes_s"] > 0 and m["write_latency_ms"] > 0, m' "$work/top"
on node1 csvctl top --once --interval 1 --json | fields top
says node2 'volume1 +direct' top --once --interval 0.5
on node2 touch /run/enough
await writer 30
event node1 'volume1 coordinator: this node coordinates it, epoch'
event node2 'volume1 mount: mounted at'
event node2 'volume1 coordinator: node 1 coordinates it'

say "the coordinator is killed: node2 waits, says so, and says that it is over"
on node2 csvctl events --follow --json --since 60s >"$work/followed" &
background+=($!)
wait_for 30 "the follower to follow" test -s "$work/followed" || die "events --follow says nothing"
lab kill node1 csvd
comes node2 'volume1: the mount here is paused: .*says csvfs' status
comes node2 'node1: is silent.*says csvd of node2' status
event node2 'warning +csvfs +volume1 mount: paused: programs wait'
code=0; on node1 csvctl status >/dev/null 2>&1 || code=$?
[[ $code == 5 ]] || die "status without csvd ends with $code"
event node1 'this node coordinates it'  # read without csvd
lab start node1 csvd
comes node2 'All is well' status
event node2 'volume1 mount: direct: after [0-9.]+ s'
event node2 'node: node 1 \(node1\) is present'
grep -q '"text":"paused: programs wait"' "$work/followed" || die "events --follow did not follow: $(<"$work/followed")"

say "a mount is killed: the coordinator says whom it fenced and why"
lab kill node3 csvfs
comes node3 'csvfs was killed or crashed' status
lab mount node3
comes node1 'session of node 3 is ended, and its key fenced' events
event node1 'fence: key [0-9a-f]{16} of node 3 was removed'
[[ $(on node1 csvctl events --volume nonesuch | wc -l) == 0 ]] || die "events --volume does not choose"

say "a volume is added to a running csvd, and mounted"
lab umount
lab down
lab up --nodes 1 --size 1G --scratch 1G
lun2=iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/2
lab format
lab mount
on node1 csvctl volume format "$lun2" --name volume2 --cluster-id 4711 --yes >/dev/null 2>&1
before=$(on node1 cat /etc/csvfs/csvd.toml)
on node1 csvctl volume add volume2 "$lun2" | grep -q 'csvd has taken: volume2' || die "csvd did not take volume2"
[[ $(on node1 cat /etc/csvfs/csvd.toml) == "$before"* ]] || die "volume add changed what was there"
on node1 csvctl volume start volume2
on node1 mount -t csvfs volume2 /clusterstorage/volume2
on node1 sh -c 'echo here >/clusterstorage/volume2/file'
comes node1 'volume2 .*node1 +direct +/clusterstorage/volume2' volume list
comes node1 'All is well' status
on node1 sed -i 's/^sessions = 2/sessions = 3/' /etc/csvfs/csvd.toml
says node1 'only after csvd was restarted: volume volume1' reload
on node1 umount /clusterstorage/volume2
lab umount

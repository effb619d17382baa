#!/usr/bin/env bash
# A mount is killed while a program writes: what it had synced stays, the others go on, and it can come back.
source "$(dirname "$0")/cluster.sh"

cluster_up
on node1 mkdir "$volume/victim" "$volume/others"

# Each line says a file whose content was synced before the line was written.
victim='for i in $(seq 100000); do
  size=$((1 + i * 7919 % 300000))
  head -c $size /dev/urandom >/run/content || exit 1
  dd if=/run/content of="$1/$i" bs=1M conv=fsync status=none || exit 0
  echo "$i $(sha256sum </run/content)"
done'
begin victim on node2 bash -c "$victim" - "$volume/victim"
begin others on node3 bash -c 'for i in $(seq 300); do head -c 100000 /dev/urandom >"$1/$i" || exit 1; done' - "$volume/others"
has_lines() { (($(wc -l <"$work/victim.log") >= $1)); }
wait_for 60 "the victim to write" has_lines 25
lab kill node2 csvfs
# An emulated target takes minutes for it where the machine is busy.
await others 600
await victim 60

grep -E '^[0-9]+ [0-9a-f]{64}' "$work/victim.log" >"$work/synced"
say "node1 and node3 read the $(wc -l <"$work/synced") files that node2 had synced"
read_back='while read -r name sum rest; do
  [ "$(sha256sum <"$1/$name")" = "$sum  -" ] || { echo "$name is not what was synced"; exit 1; }
done'
for node in node1 node3; do on "$node" bash -c "$read_back" - "$volume/victim" <"$work/synced"; done

say "node2 mounts again, and writes"
lab mount node2
on node2 bash -c "$read_back" - "$volume/victim" <"$work/synced"
on node2 sh -c 'echo back >"$1"' - "$volume/victim/again"
[[ $(on node3 cat "$volume/victim/again") == back ]] || die "node3 does not see what node2 wrote after its return"
end_clean

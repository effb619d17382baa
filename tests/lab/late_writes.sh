#!/usr/bin/env bash
# A mount is killed with writes in flight to a target that stands still. When the target goes on it has them still before it; by
# then the space they go to may belong to another file. The mount's key is fenced before that, and so they hit nothing.
source "$(dirname "$0")/cluster.sh"

# The volume is filled and read again: less of it where the target is an emulated machine.
if [[ ${CSVFS_LAB_TARGET:-tgt} == tgt ]]; then cluster_up 1G; else cluster_up 384M; fi
on node1 mkdir "$volume/victim" "$volume/others"

for round in 1 2; do
  say "round $round: node2 is killed with writes in flight, and the target stands still"
  on node2 dd if=/dev/zero of="$volume/victim/image" bs=1M count=64 oflag=direct status=none
  begin "writes$round" on node2 fio --name=writes --filename="$volume/victim/image" --rw=randwrite --bs=64k --size=64M \
    --ioengine=libaio --iodepth=64 --direct=1 --time_based --runtime=60 --buffer_pattern=0xdeadbeef --fallocate=none
  # The image was zeros.
  is_written() { on node1 sh -c 'test "$(tr -d "\\000" <"$1" | head -c 1 | wc -c)" = 1' - "$volume/victim/image"; }
  wait_for 60 "writes to arrive" is_written
  lab san freeze
  sleep 0.3  # writes pile up in the target's sockets
  lab kill node2 csvfs
  # What is left, and what the image gives back.
  mib=$(($(on node1 df -BM --output=avail "$volume" | tail -n 1 | tr -dc 0-9) + 64 - 4))
  begin "reuse$round" on node1 sh -c 'rm "$1/victim/image" && dd if=/dev/zero bs=1M count="$2" 2>/dev/null | tr "\000" "\125" |
    dd of="$1/others/full" bs=1M iflag=fullblock oflag=direct status=none; sync -f "$1/others/full"' - "$volume" "$mib"
  sleep 2
  lab san thaw
  wait_for 20 "fio to hear of it" has_ended "writes$round"
  await "reuse$round" 180
  # All of it is what node1 wrote: on every node, and again after everything of node2 is over.
  lab mount node2
  for node in node3 node2; do
    on "$node" sh -c 'tr -d "\125" <"$1" | wc -c' - "$volume/others/full" >"$work/odd"
    [[ $(<"$work/odd") == 0 ]] || die "$node finds $(<"$work/odd") bytes in node1's file that node1 did not write"
  done
  on node1 rm "$volume/others/full"
done
end_clean

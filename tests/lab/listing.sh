#!/usr/bin/env bash
# Listings of a large folder go on while the volume is moved, and when its coordinator is killed: no name twice, none missing that was there all the
# time, though others come and go.
source "$(dirname "$0")/cluster.sh"

program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/listing.py
count=4500
cluster_up 512M
on node1 mkdir "$volume/many"
for each in 0 1 2 3; do
  begin "make-$each" on "node$((each % 3 + 1))" python3 "$program" make "$volume/many" $((each * count / 4)) $(((each + 1) * count / 4))
done
for each in 0 1 2 3; do await "make-$each" 120; done

begin churn on node3 python3 "$program" churn "$volume/many" "$work/stop"
for each in node2 node3; do
  mkfifo "$work/go-$each"
  begin "list-$each" on "$each" python3 "$program" list "$volume/many" $count 6 "$work/go-$each"
done
exec {two}<>"$work/go-node2" {three}<>"$work/go-node3"
both_said() { grep -qx "part $1" "$work/list-node2.log" && grep -qx "part $1" "$work/list-node3.log" || has_ended list-node2 || has_ended list-node3; }
# part N: both listings have come so far, and wait.
part() { wait_for 60 "part $1 of the listings" both_said "$1"; }
# Each begins its next part before, and meets the change in the middle of it.
goes_on() { echo >&"$two" && echo >&"$three"; }

say "the volume is moved, twice"
part 1
lab coordinator 2
goes_on
part 2
goes_on
lab coordinator 1
say "the coordinator is killed: it starts again, then another node takes over"
part 3
lab kill node1 csvd
goes_on
lab start node1 csvd
part 4
lab kill node1 csvd
lab coordinator 3
goes_on
lab start node1 csvd
part 5
goes_on
for each in node2 node3; do
  await "list-$each" 60
  note "$each: $(tail -n 1 "$work/list-$each.log")"
done
: >"$work/stop"
await churn 60
note "$(<"$work/churn.log") names came meanwhile"
end_clean

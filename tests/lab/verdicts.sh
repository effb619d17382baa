#!/usr/bin/env bash
# What nodes that vote think of each other, by network and storage; how soon a lost storage path moves a volume; and that a
# storage which all lose is nobody's fault.
source "$(dirname "$0")/cluster.sh"

with_corosync
program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/voting.py

coordinator() { on "$1" csvctl status --json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["volumes"][0]["coordinator_node"])'; }
# finding WHO ABOUT: as WHO sees node number ABOUT.
finding() { on "$1" csvctl cluster status --json 2>/dev/null | python3 -c 'import json, sys
for node in json.load(sys.stdin)["nodes"]:
    if node["id"] == int(sys.argv[1]): print((node["verdict"] or {"finding": "none"})["finding"])' "$2"; }
finds() { [[ $(finding "$1" "$2") == "$3" ]]; }
sessions_ended() { cat "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name"/node*/csvd.log | grep -c ' session ends ' || true; }
events_of() { on "$1" csvctl events --json 2>/dev/null | grep -c -- "$2" || true; }

cluster_up 1G
wait_for 30 "three votes" is_whole
for node in node1 node2 node3; do wait_for 30 "the mount of $node" is_direct "$node"; done
for about in 2 3; do wait_for 20 "node1 to think well of node $about" finds node1 "$about" healthy; done

say "the coordinator loses its way to the storage"
lab coordinator 1
for node in node2 node3; do begin "path-$node" on "$node" python3 "$program" names "$volume/path-$node" 14; done
for node in node2 node3; do wait_for_entries "$node" "path-$node" 10; done
lab cut node1 storage
for node in node2 node3; do
  await "path-$node" 60
  waited=$(<"$work/path-$node.log")
  note "a name on $node waited $waited ms at most"
  ((waited <= 8000)) || die "a name on $node waited $waited ms"
done
[[ $(coordinator node2) != 1 ]] || die "node1 still coordinates"
wait_for 20 "node2 to see that node1 has lost its path" finds node2 1 "storage path lost"
wait_for 20 "node3 to see that node1 has lost its path" finds node3 1 "storage path lost"
on node2 csvctl cluster status
lab heal
wait_for 60 "node1's mount" is_direct node1
wait_for 20 "node2 to think well of node1" finds node2 1 healthy
[[ $(events_of node2 'node 1 (node1): storage path lost') == 1 ]] || die "node2 has not said once that node1 had lost its path"

say "the storage stands still for all, for 20 s: everybody pauses, nobody is fenced, all goes on"
before=$(coordinator node2)
for node in node1 node2 node3; do on "$node" sh -c 'exec 3>"$1"; echo before >&3; sync -f "$1"; while [ ! -e "$2" ]; do sleep 0.2; done; echo after >&3' \
  - "$volume/kept-$node" "$work/go" & background+=($!); done
for node in node1 node2 node3; do wait_for_entries "$node" "kept-$node" 1; done
begin frozen on node3 python3 "$program" names "$volume/frozen" 40
wait_for_entries node3 frozen 10
ended=$(sessions_ended)
lab san freeze
sleep 20
for node in node1 node2 node3; do
  for about in 1 2 3; do
    case $(finding "$node" "$about") in healthy | none) ;; *) die "$node holds against node $about that nobody has storage: $(finding "$node" "$about")" ;; esac
  done
done
lab san thaw
await frozen 90
note "a name waited $(<"$work/frozen.log") ms at most while the storage stood still"
for node in node1 node2 node3; do wait_for 60 "the mount of $node" is_direct "$node"; done
touch "$work/go"
note "coordinated by node $before before, by node $(coordinator node2) after"
[[ $(sessions_ended) == "$ended" ]] || die "a session was ended for it"
# What was open before goes on: nobody's session has ended, so nobody was fenced as one that has failed.
for node in node1 node2 node3; do wait_for 30 "the file that $node had open" on "$node" grep -q after "$volume/kept-$node"; done

# One that does not coordinate. (It is not moved for that: who could not take it over while the storage stood still is given it again only
# after a while.)
victim=3
[[ $(coordinator node1) != 3 ]] || victim=2
say "a node is cut off from the network and goes on writing its slot: isolated, and then well again"
for cable in private public; do lab cut "node$victim" "$cable"; done
for node in 1 2 3; do ((node == victim)) || wait_for 30 "node$node to find node$victim isolated" finds "node$node" "$victim" isolated; done
on node1 csvctl cluster status
lab heal
wait_for 60 "node1 to think well of node$victim" finds node1 "$victim" healthy

say "a node vanishes: failed"
for cable in private public storage; do lab cut "node$victim" "$cable"; done
wait_for 30 "node1 to find that node$victim has failed" finds node1 "$victim" failed
lab heal
wait_for 60 "node1 to think well of node$victim" finds node1 "$victim" healthy
wait_for 60 "node$victim's mount" is_direct "node$victim"

end_clean

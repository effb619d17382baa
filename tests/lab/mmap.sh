#!/usr/bin/env bash
# Files that programs map, on one node and on several at once: nothing is lost, whoever else writes there.
source "$(dirname "$0")/cluster.sh"

mapped=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/mapped.py
rounds=${CSVFS_MMAP_ROUNDS:-2000}
export CSVFS_LAB_MOUNT_OPTIONS=shared_mmap
cluster_up 3G
map() { on "$1" python3 "$mapped" "${@:2}"; }

say "on one node a mapping, read and write show the same"
map node2 here "$volume/here"
map node1 here "$volume/here"

say "mappings come and go while others write the same file, large and direct"
begin beside map node2 beside "$volume/beside" $((rounds / 10))
await beside 300
note "$(cat "$work/beside.log")"

say "two nodes count in one page through mappings, the third writes there: $rounds rounds each"
on node1 sh -c 'head -c 4096 /dev/zero >"$1"' - "$volume/page"
began=$(date +%s%N)
begin first map node1 count "$volume/page" 0 "$rounds"
begin second map node2 count "$volume/page" 8 "$rounds"
begin third map node3 write "$volume/page" 16 "$rounds"
for each in first second third; do await "$each" 300; done
note "took $((($(date +%s%N) - began) / 1000000)) ms"
for node in node1 node2 node3; do
  [[ $(map "$node" look "$volume/page" 0 8 16 | tr '\n' ' ') == "$rounds $rounds $rounds " ]] || die "$node: something was lost"
done

say "a mapping that only reads shows what another node writes"
begin looking map node3 until "$volume/page" 24 5
is_looking() { grep -q looking "$work/looking.log"; }
wait_for 60 "the mapping" is_looking
map node1 write "$volume/page" 24 5
await looking 30

say "the same while the coordinator is killed, and the volume handed over"
on node1 sh -c 'head -c 4096 /dev/zero >"$1"' - "$volume/moving"
many=$((rounds * 10))
begin first-again map node2 count "$volume/moving" 0 "$many"
begin second-again map node3 count "$volume/moving" 8 "$many"
begin third-again map node2 write "$volume/moving" 16 "$many"
lab kill node1 csvd
lab start node1 csvd
wait_for 30 "the volume on node3" lab coordinator 3
wait_for 30 "the volume on node2" lab coordinator 2
! has_ended first-again || die "the counting ended too early: nothing was shown"
for each in first second third; do await "$each-again" 300; done
[[ $(map node1 look "$volume/moving" 0 8 16 | tr '\n' ' ') == "$many $many $many " ]] || die "something was lost"

say "a csvfs that is killed with pages in use ends, and keeps nobody waiting for longer than its lease"
on node1 sh -c 'head -c 4096 /dev/zero >"$1"' - "$volume/killed"
begin dying map node3 count "$volume/killed" 0 1000000
begin living map node2 count "$volume/killed" 8 "$many"
begin writing map node2 write "$volume/killed" 16 "$rounds"
has_counted() { (($(map node1 look "$volume/killed" 0 8 2>/dev/null | head -n 1) > 20)); }
wait_for 60 "both to count" has_counted
lab kill node3 csvfs
await living 300
await writing 300
no_csvfs() { ! on node3 pgrep -x csvfs; }
wait_for 20 "the end of the killed csvfs" no_csvfs
# It may go on storing into the page it has, which nobody can take away any more; but it can be ended.
on node3 pkill -9 -x python3 || true
wait_for 20 "the end of its program" has_ended dying
lab mount node3
[[ $(map node3 look "$volume/killed" 8 16 | tr '\n' ' ') == "$many $rounds " ]] || die "something was lost"

say "sqlite with a write-ahead log: four writers on one node"
on node2 sqlite3 "$volume/wal.db" 'PRAGMA journal_mode=wal; CREATE TABLE t(writer, number, PRIMARY KEY(writer, number));' >"$work/mode"
[[ $(<"$work/mode") == wal ]] || die "sqlite does not go into WAL mode: $(<"$work/mode")"
insert='for i in $(seq 100); do echo "INSERT INTO t VALUES($2, $i);"; done | sqlite3 -bail -cmd ".timeout 60000" "$1" >/dev/null'
for writer in 1 2 3 4; do begin "writer$writer" on node2 sh -c "$insert" - "$volume/wal.db" "$writer"; done
for writer in 1 2 3 4; do await "writer$writer" 300; done
[[ $(on node2 sqlite3 "$volume/wal.db" 'PRAGMA integrity_check; SELECT count(*) FROM t;' | tr '\n' ' ') == "ok 400 " ]] || die "the database is not whole"
[[ $(on node3 sqlite3 "$volume/wal.db" 'SELECT count(*) FROM t;') == 400 ]] || die "another node sees something else"

say "git, cp, rsync --inplace, cc"
on node1 bash -c '
  set -e
  cd "$1" && mkdir tools && cd tools
  export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
  for i in $(seq 60); do head -c $((i * 997)) /dev/urandom >"file$i"; done
  git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -q -m files
  git clone -q . ../clone && git -C ../clone gc -q --prune=now && git -C ../clone fsck --no-progress
  cp file60 copy && cmp file60 copy
  head -c 3000000 /dev/urandom >big && cp big bigger && echo tail >>big
  rsync --inplace --no-whole-file big bigger && cmp big bigger
  echo "int main(){return 7;}" >a.c
  ! command -v gcc >/dev/null || { gcc -o a a.c; code=0; ./a || code=$?; [[ $code == 7 ]]; }
' - "$volume"
on node3 sh -c 'cd "$1/tools" && cmp big bigger && cmp file60 copy && git -C ../clone fsck --no-progress' - "$volume"

end_clean

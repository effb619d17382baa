#!/usr/bin/env bash
# Locks hold over nodes: counters under all three kinds, holders, mounts and coordinators that are killed, signals, a
# deadlock, SQLite from two nodes.
source "$(dirname "$0")/cluster.sh"

program=$(cd "$(dirname "$0")" && pwd)/locks.py
kinds=(flock posix ofd)
locks() { local node=$1; shift; on "$node" /usr/bin/python3 "$program" "$@"; }
says() { grep -q "$2" "$work/$1.log"; }
# holder NAME NODE KIND FILE: has the lock until release NAME.
declare -A holding
holder() {
  mkfifo "$work/$1.in"
  exec {holding[$1]}<>"$work/$1.in"
  begin_with_input "$1" locks "$2" hold "$3" "$volume/$4"
  wait_for 30 "$1 to have the lock" says "$1" held
}
begin_with_input() {
  local name=$1
  shift
  # Its own end of the pipe must not keep it open.
  (exec {holding[$name]}>&-; if "$@" <"$work/$name.in" >"$work/$name.log" 2>&1; then echo 0; else echo 1; fi >"$work/rc.$name"
    mv "$work/rc.$name" "$work/$name.rc") &
  background+=($!)
}
# Other programs have inherited the pipe: its end would not come.
release() { echo >&"${holding[$1]}"; exec {holding[$1]}>&-; }
waiter() {
  begin "$1" locks "$2" wait "$3" "$volume/$4"
  wait_for 30 "$1 to wait" says "$1" waits
  sleep 0.3  # from the word to the call
  ! says "$1" got || die "$1 got a lock that another has"
}

# count_all KIND TIMES: two programs on each node.
count_all() {
  local node number
  for node in node1 node2 node3; do
    for number in 1 2; do begin "count-$1-$node-$number" locks "$node" count "$1" "$volume/counter-$1" "$2"; done
  done
}
sum_is() {
  local node number
  for node in node1 node2 node3; do
    for number in 1 2; do await "count-$1-$node-$number" 240; rm "$work/count-$1-$node-$number".*; done
  done
  [[ $(on node2 cat "$volume/counter-$1") == "$2" ]] || die "counter-$1 is $(on node2 cat "$volume/counter-$1"), not $2"
}

cluster_up
on node1 sh -c 'cd "$1"; for kind in flock posix ofd; do echo 0 >counter-$kind; : >file-$kind; done; : >other' - "$volume"

for kind in "${kinds[@]}"; do
  say "$kind: six programs on three nodes count together"
  count_all "$kind" 50
  sum_is "$kind" 300

  say "$kind: a holder is killed, a waiter is interrupted, nothing is left"
  holder "holder-$kind" node1 "$kind" "file-$kind"
  ! locks node2 try "$kind" "$volume/file-$kind" || die "node2 got what node1 has"
  ! locks node1 try "$kind" "$volume/file-$kind" || die "node1 got it twice"
  locks node3 interrupted "$kind" "$volume/file-$kind" | tee "$work/interrupted"
  awk '{ exit !($3 < 2.5) }' "$work/interrupted" || die "the signal took its time"
  waiter "waiter-$kind" node2 "$kind" "file-$kind"
  on node1 pkill -9 -f "hold $kind "
  await "waiter-$kind" 20
  locks node3 try "$kind" "$volume/file-$kind" || die "a lock is left"
  release "holder-$kind"
done

say "posix: two nodes that wait for each other"
begin cross-1 locks node1 cross posix "$volume/file-posix" "$volume/other" "$volume/mark-1" "$volume/mark-2"
begin cross-2 locks node2 cross posix "$volume/other" "$volume/file-posix" "$volume/mark-2" "$volume/mark-1"
await cross-1 30
await cross-2 30
[[ $(cat "$work"/cross-?.log | sort | xargs) == "EDEADLK got both" ]] || die "not one of them was refused"

say "the coordinator is killed while locks are held, waited for and fought over; its node starts it again"
holder kept node2 ofd file-ofd
waiter patient node3 ofd file-ofd
for kind in "${kinds[@]}"; do count_all "$kind" 60; done
sleep 1
lab kill node1 csvd
lab start node1 csvd
for kind in "${kinds[@]}"; do sum_is "$kind" 660; done
! says patient got || die "the coordinator gave a held lock away"
! locks node1 try ofd "$volume/file-ofd" || die "the coordinator does not know of the lock any more"

say "another node takes over"
lab kill node1 csvd
lab coordinator 2
! locks node3 try ofd "$volume/file-ofd" || die "the new coordinator does not know of the lock"
! says patient got || die "the new coordinator gave a held lock away"
release kept
await patient 20
lab start node1 csvd

say "a mount is killed while it has a lock"
holder lost node3 posix file-posix
waiter heir node1 posix file-posix
since=$SECONDS
lab kill node3 csvfs
await heir 30
note "the lock was free after $((SECONDS - since)) s"
release lost
lab mount node3
locks node3 try posix "$volume/file-posix" || die "a lock is left"

if command -v sqlite3 >/dev/null; then
  say "SQLite on two nodes at once"
  on node1 sqlite3 "$volume/base" 'create table entries (node, number); create table total (n); insert into total values (0)'
  begin keep-1 locks node1 keep "$volume/base" 1 40
  begin keep-3 locks node3 keep "$volume/base" 3 40
  await keep-1 240
  await keep-3 240
  [[ $(on node2 sqlite3 "$volume/base" 'pragma integrity_check; select n from total; select count(*) from entries' | xargs) == "ok 80 80" ]] ||
    die "the database is not what was put into it"
fi

if command -v qemu-io >/dev/null; then
  say "an image that one node has open cannot be opened on another"
  on node1 qemu-img create -q -f qcow2 "$volume/image" 64M
  mkfifo "$work/qemu"
  exec {qemu}<>"$work/qemu"
  begin qemu on node1 sh -c "qemu-io -f qcow2 '$volume/image' <'$work/qemu'"
  echo 'write 0 64k' >&"$qemu"
  wait_for 30 "node1 to write" says qemu wrote
  ! on node2 qemu-io -f qcow2 -c 'read 0 64k' "$volume/image" >"$work/qemu-2" 2>&1 || die "node2 opened it, too"
  grep -q 'lock' "$work/qemu-2" || die "node2: $(<"$work/qemu-2")"
  echo quit >&"$qemu"
  await qemu 30
  on node2 qemu-io -f qcow2 -c 'read 0 64k' "$volume/image" >/dev/null || die "node2 cannot open it afterwards"
fi
end_clean

#!/usr/bin/env bash
# A mount that reads in bulk stands still, and takes no answer any more, or its node loses its cable to the target. The others' fences and
# takeovers do not wait for it: on tgt a LUN RESET is answered only when everybody's answers have been sent (docs/targets.md).
#
# usage: stopped_reader.sh [stopped|cut|kept]...      kept: the target does not give up a node that has vanished
source "$(dirname "$0")/cluster.sh"

with_corosync
readers=24
ways=("$@")
((${#ways[@]})) || ways=(stopped)

coordinator() { on "$1" csvctl status --json | python "$lib/status.py" coordinator volume1; }
is_coordinated_by_other() { local now; now=$(coordinator "$1") && [[ $now != "$2" ]]; }
# How much lies in the sockets to or of the target: received and not taken, sent and not acknowledged.
queued() { on "$1" ss -Htn "$3" | awk -v column="$2" '{ sum += $column } END { print sum + 0 }'; }
not_taken() { queued node2 2 'dport = :3260'; }
not_sent() { queued san 3 "dst 10.77.0.12"; }
stands_still() { (($(not_taken) > 1 << 20)); }
all_is_sent() { (($(not_sent) == 0)); }
reads() { (($(on node2 csvctl status --json | python "$lib/status.py" mount volume1 | grep -o '"direct_read_bytes": [0-9]*' | grep -o '[0-9]*$') > $1)); }

# begin_reading: programs on node2, until they are told to stop.
round=0
begin_reading() {
  local each
  rm -f "$work/stop"
  round=$((round + 1))
  for ((each = 0; each < readers; each++)); do
    begin "read-$round-$each" on node2 bash -c 'while [[ ! -e $2 ]]; do dd if="$1" of=/dev/null iflag=direct bs=1M status=none || exit; done' - "$volume/bulk" "$work/stop"
  done
  wait_for 20 "node2 to read" reads $((256 << 20))
}

# gone WAY NODE: node2 reads and goes away so; then NODE's csvd is killed, and somebody else has to take over.
gone() {
  local began first other=node1 each
  first=$(coordinator node1)
  [[ $first != 1 ]] || other=node3
  begin_reading
  case $1 in
    stopped)
      lab freeze node2 csvfs
      wait_for 10 "answers that are not taken" stands_still || die "node2 had asked for nothing when it stopped: nothing was shown"
      wait_for 5 "all answers to be sent" all_is_sent || warn "node2 has asked for more than its connections take"
      ;;
    cut)
      lab cut node2 storage
      ! all_is_sent || die "node2 had asked for nothing when it was cut off: nothing was shown"
      ;;
  esac
  note "of what the target answered $(not_taken) bytes are not taken, $(not_sent) bytes not sent"
  began=$SECONDS
  lab kill "node$first" csvd
  wait_for "$2" "another node to coordinate" is_coordinated_by_other "$other" "$first" || die "nobody took it over within $2 s: a fence waits for who takes no answers"
  note "node$(coordinator "$other") coordinates $((SECONDS - began)) s later"
  case $1 in
    stopped) lab thaw node2 ;;
    cut) lab heal ;;
  esac
  lab start "node$first" csvd
  : >"$work/stop"
  for ((each = 0; each < readers; each++)); do wait_for 60 "the programs on node2 to end" has_ended "read-$round-$each"; done
  wait_for 60 "the mount of node2 to be direct" is_direct node2
}

# kept: no reset is answered as long as the target keeps the connections of node2, which has vanished. Who coordinates goes on.
says_why() { on "$1" csvctl events | grep -q 'does not answer a LUN RESET.*ss -K'; }
kept() {
  local first other=node1 each number=0 sent took longest=0 until
  first=$(coordinator node1)
  [[ $first != 2 ]] || { lab coordinator 1 && first=1; }
  [[ $first != 1 ]] || other=node3
  # More is asked for than the target's machine takes from it, for connections made from now on.
  on node2 sysctl -qw net.ipv4.tcp_rmem='4096 131072 33554432'
  on san sysctl -qw net.ipv4.tcp_retries2=15 net.ipv4.tcp_wmem='4096 16384 1048576'
  lab umount node2
  lab mount node2
  begin_reading
  for each in storage private public; do lab cut node2 "$each"; done
  ! all_is_sent || die "node2 had asked for nothing when it was cut off: nothing was shown"
  until=$((SECONDS + 30))
  while ((SECONDS < until)); do
    number=$((number + 1))
    sent=$(date +%s%3N)
    on "$other" sh -c 'echo there >"$1"' - "$volume/name-$number"
    took=$(($(date +%s%3N) - sent))
    ((took <= longest)) || longest=$took
  done
  note "$other has made $number files meanwhile, of which one took $longest ms"
  ((longest < 5000)) || die "a name waited $longest ms"
  [[ $(coordinator "$other") == "$first" ]] || die "node$first does not coordinate any more"
  says_why "node$first" || die "nobody says what is waited for, and what helps"
  on san ss -K 'dst 10.77.0.12' >/dev/null 2>&1
  lab heal
  : >"$work/stop"
  for ((each = 0; each < readers; each++)); do wait_for 60 "the programs on node2 to end" has_ended "read-$round-$each"; done
  wait_for 60 "the mount of node2 to be direct" is_direct node2
}

lab up --nodes 3 --size 1G
# As machines come: the lab's own may have more.
for node in node1 node2 node3; do on "$node" sysctl -qw net.ipv4.tcp_rmem='4096 131072 6291456'; done
lab format
lab mount
on node1 dd if=/dev/urandom of="$volume/bulk" bs=1M count=64 oflag=direct status=none
for way in "${ways[@]}"; do
  say "node2 reads in bulk, and is $way"
  if [[ $way == kept ]]; then kept; else gone "$way" 20; fi
done
end_clean

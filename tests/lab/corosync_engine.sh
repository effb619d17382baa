#!/usr/bin/env bash
# The engine that stands on Corosync, alone, on three nodes: whoever is in a view is in the same one and hears the same messages in
# the same order, through deaths, cuts and partitions; votes follow the members at once; and a corosync that hangs holds up nobody.
source "$(dirname "$0")/cluster.sh"

if obstacle=$(lab_obstacle corosync); then :; else
  echo "skipped: the lab $obstacle"
  exit 77
fi

probe_program=$csvfs_build/tests/lab/engine_probe
[[ -x $probe_program ]] || die "no $probe_program: build first"

now() { local up; read -r up _ </proc/uptime; echo $((${up/./} * 10)); }  # ms, on the probes' clock
probe() {
  echo "$(now) lost its former life" >>"$work/$1.out"
  on "node$1" "$probe_program" "$1" 3 /run/probe </dev/null >>"$work/$1.out" 2>>"$work/$1.log" &
  background+=($!)
  wait_for 10 "the probe of node$1" on "node$1" test -p /run/probe
}
tell() { on "node$1" sh -c 'echo "$1" >/run/probe' - "$2"; }

# The newest view of a probe, if nothing was lost since: "TIME view self=NODE:LIFE ring=R nodes=N,... members=NODE:LIFE,...".
view() { grep -E '^[0-9]+ (view|lost) ' "$work/$1.out" | tail -n 1 | grep ' view '; }
view_time() { view "$1" | cut -d' ' -f1; }
life() { view "$1" | grep -o 'self=[^ ]*' | cut -d: -f2; }
# sees NODE NODES MEMBERS: its view has these nodes, and a csvd each on these.
sees() {
  local line members
  line=$(view "$1") || return 1
  members=$(grep -o 'members=.*' <<<"$line" | grep -oE '[=,][0-9]+:' | tr -d '=:' | tr -d '\n' | sed 's/^,//')
  [[ $line == *" nodes=$2 "* && $members == "$3" ]]
}
# all_see SECONDS NODES NODE...: these nodes have one view of these nodes, all with a csvd.
all_see() {
  local seconds=$1 nodes=$2 node
  shift 2
  for node in "$@"; do
    wait_for "$seconds" "node$node to see $nodes" sees "$node" "$nodes" "$nodes" || die "node$node sees: $(view "$node")"
  done
  for node in "$@"; do
    [[ $(view "$node" | grep -o ' ring=.*') == "$(view "$1" | grep -o ' ring=.*')" ]] ||
      die "other views: $(view "$1") - $(view "$node")"
  done
}
quorate() { [[ $(on "node$1" corosync-quorumtool -s | awk '/^Quorate:/ { print $2 }') == "$2" ]]; }
messages() { grep -E '^[0-9]+ message ' "$work/$1.out" | cut -d' ' -f2-; }
has_messages() { (($(messages "$1" | wc -l) >= $2)); }
# The longest time between two beats of a probe's loop since TIME.
longest_pause() { awk -v since="$2" '$2 == "beat" && $1 >= since { if (last && $1 - last > most) most = $1 - last; last = $1 } END { print most + 0 }' "$work/$1.out"; }

# What the probes said, where it ends badly.
ends() {
  local status=$? node
  set +e
  if ((status != 0)); then
    for node in 1 2 3; do
      echo "--- node$node's probe"
      grep -vE ' beat$| message ' "$work/$node.out" | tail -n 8
      tail -n 8 "$work/$node.log"
    done
  fi
  (exit "$status")
  finish
}
trap ends EXIT

lab up --nodes 3 --size 256M --corosync

say "three probes come to one view, and all are quorate"
for node in 1 2 3; do probe $node; done
all_see 20 1,2,3 1 2 3
for node in 1 2 3; do wait_for 10 "node$node to be quorate" quorate $node Yes; done
on node1 corosync-quorumtool -s | grep -q 'Total votes: *5' || die "the device's votes do not count: $(on node1 corosync-quorumtool -s)"

say "a probe that takes its node for another is told so"
on node1 timeout -s KILL 3 "$probe_program" 2 3 /run/other </dev/null >"$work/other.out" 2>/dev/null || true
grep -q 'lost corosync.conf says that this is node 1' "$work/other.out" || die "it was not: $(cat "$work/other.out")"

say "900 messages of all three at once, and some as large as they may be"
tellers=()
for node in 1 2 3; do
  tell $node 'burst 300' &
  tellers+=($!)
done
wait "${tellers[@]}"
for node in 1 2 3; do wait_for 20 "node$node to hear 900 messages" has_messages $node 900; done
for node in 1 2; do tell $node 'large 524288'; done
for node in 1 2 3; do wait_for 20 "node$node to hear the large ones" has_messages $node 902; done
for node in 2 3; do [[ $(messages $node) == "$(messages 1)" ]] || die "node$node heard another order than node1"; done
(($(messages 1 | awk '{ print $2 }' | uniq | wc -l) > 3)) || die "the messages of the three did not mix: nothing was shown"

say "a probe is killed and comes back at once: another life"
before=$(life 2)
began=$(now)
on node2 pkill -9 -x engine_probe
wait_for 10 "node1 to see it go" sees 1 1,2,3 1,3
note "seen after $(($(view_time 1) - began)) ms"
probe 2
all_see 10 1,2,3 1 2 3
[[ $(life 2) != "$before" ]] || die "the same life again"

# cut_off WHAT: node3 has just been cut off since $began.
cut_off() {
  all_see 20 1,2 1 2
  all_see 20 3 3
  note "$1: views after $(($(view_time 1) - began)) ms and $(($(view_time 3) - began)) ms"
  (($(view_time 1) - began < 6000)) || die "that took too long"
  [[ $(view 1 | grep -o 'ring=[0-9]*') != "$(view 3 | grep -o 'ring=[0-9]*')" ]] || die "both halves have one ring"
  for node in 1 2; do wait_for 5 "node$node to be quorate" quorate $node Yes; done
  wait_for 5 "node3 not to be quorate" quorate 3 No
}
heals() {
  lab heal
  all_see 30 1,2,3 1 2 3
  for node in 1 2 3; do wait_for 5 "node$node to be quorate" quorate $node Yes; done
}

say "node3 loses one network of two: nothing happens"
sleep 12  # kronosnet is patient with a link that has just come up: it counts ten times its timeout, a second later nine, and so on
ring=$(view 1)
lab cut node3 private
sleep 4  # longer than it takes to lose a node
[[ $(view 1) == "$ring" ]] || die "it did: $(view 1)"
say "node3 loses the other too"
began=$(now)
lab cut node3 public
cut_off "cut"
tell 1 "say said in the majority"
tell 3 "say said in the minority"
heard() { messages "$1" | grep -q "$2"; }
wait_for 5 "node2 to hear the majority" heard 2 "said in the majority"
wait_for 5 "node3 to hear itself" heard 3 "said in the minority"
heals
if heard 1 "said in the minority" || heard 3 "said in the majority"; then die "they heard each other through the cut"; fi

say "node3 hears nothing, but is heard"
began=$(now)
lab cut node3 private --in
lab cut node3 public --in
lab status | grep -q 'node3 .*cut off: private(in) public(in)' || die "not in status"
cut_off "deaf"
heals
say "node3 hears, but is not heard"
began=$(now)
lab cut node3 private --out
lab cut node3 public --out
cut_off "mute"
heals

say "a partition; the smaller part is told to vote all the same, and to stop that"
began=$(now)
lab partition 1,2/3
cut_off "parted"
tell 3 'vote yes'
wait_for 2 "node3 to be quorate by its device's votes" quorate 3 Yes
tell 3 'vote majority'
wait_for 2 "node3 not to be quorate any more" quorate 3 No
say "what has an end is not voted for any longer, whether its loop hangs or it ends"
tell 3 'vote for 3000'
wait_for 2 "node3 to be quorate for a while" quorate 3 Yes
tell 3 'hang 7000'
wait_for 4 "node3 not to be quorate any more, while its loop hangs" quorate 3 No
sleep 5
tell 3 'vote for 20000'
wait_for 3 "node3 to be quorate for a while" quorate 3 Yes
tell 3 end
wait_for 3 "node3 not to be quorate any more, its engine gone" quorate 3 No
probe 3
all_see 20 3 3
heals

say "all send without end while node3 comes and goes: who goes from one view to the next together hears the same in between"
for node in 1 2 3; do
  on "node$node" sh -c 'while [ ! -e /run/stop ]; do echo "burst 40" >/run/probe; sleep 0.05; done' &
  background+=($!)
done
for round in 1 2 3; do
  lab partition 1,2/3
  all_see 20 1,2 1 2
  lab heal
  all_see 30 1,2,3 1 2 3
  on node2 pkill -9 -x engine_probe
  wait_for 10 "node1 to see node2's probe go" sees 1 1,2,3 1,3
  probe 2
  all_see 20 1,2,3 1 2 3
done
for node in 1 2 3; do on "node$node" touch /run/stop; done
python - "$work"/[123].out <<'PYTHON' || die "they did not hear the same"
import sys
between, compared, messages = {}, 0, 0
for path in sys.argv[1:]:
    view, heard = None, []
    for line in open(path):
        words = line.split(None, 2)
        if words[1] == "message":
            heard.append(words[2])
        elif words[1] == "lost":
            view = None
        elif words[1] == "view":
            now = words[2].split(" ", 1)[1]
            if view:
                if (view, now) in between:
                    compared += 1
                    messages += len(heard)
                    if between[view, now] != heard:
                        sys.exit(f"{path}: other messages between {view} and {now}")
                between[view, now] = heard
            view, heard = now, []
print(f"    {compared} times two probes went from one view to the next together, hearing {messages} messages")
sys.exit(compared < 12 or messages < 1000)
PYTHON

say "a probe stands still while node3 is cut off: the other goes on alone, and it comes back as another life"
before=$(life 2)
on node2 pkill -STOP -x engine_probe
began=$(now)
lab partition 1,2/3
wait_for 20 "node1 to go on alone" sees 1 1,2 1
note "seen after $(($(view_time 1) - began)) ms"
(($(view_time 1) - began < 9000)) || die "that took too long"
lab thaw node2
all_see 20 1,2 1 2
[[ $(life 2) != "$before" ]] || die "the same life again"
heals

say "corosync of node2 is killed, and started again"
before=$(life 2)
began=$(now)
lab kill node2 corosync
is_lost() { ! view 2 >/dev/null; }
wait_for 5 "node2 to say that corosync is lost" is_lost
note "$(grep ' lost ' "$work/2.out" | tail -n 1 | cut -d' ' -f2-)"
all_see 20 1,3 1 3
note "seen by the others after $(($(view_time 1) - began)) ms"
lab start node2 corosync
all_see 30 1,2,3 1 2 3
[[ $(life 2) != "$before" ]] || die "the same life again"

say "corosync of node2 stands still: the loop does not, and says so"
before=$(life 2)
began=$(now)
lab freeze node2 corosync
wait_for 8 "node2 to say that corosync is lost" is_lost
lost=$(grep ' lost ' "$work/2.out" | tail -n 1)
note "after $((${lost%% *} - began)) ms: ${lost#* lost }"
((${lost%% *} - began < 5000)) || die "that took too long"
all_see 20 1,3 1 3
(($(longest_pause 2 "$began") < 1000)) || die "the loop was held up for $(longest_pause 2 "$began") ms"
lab thaw node2
all_see 30 1,2,3 1 2 3
[[ $(life 2) != "$before" ]] || die "the same life again"

say "an engine ends while its corosync stands still"
lab freeze node2 corosync
sleep 1
began=$(now)
tell 2 end
has_ended_engine() { grep -q ' ended$' "$work/2.out"; }
wait_for 5 "the engine to end" has_ended_engine
ended=$(grep ' ended$' "$work/2.out")
note "after $((${ended%% *} - began)) ms"
lab thaw node2
probe 2
all_see 30 1,2,3 1 2 3

lab down
say "all is well"

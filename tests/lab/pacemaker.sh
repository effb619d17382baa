#!/usr/bin/env bash
# Pacemaker itself, with fence_csv as its fence device: it fences the node on which it has lost what it runs, starts that elsewhere, and
# lets the node in again.
source "$(dirname "$0")/cluster.sh"

with_corosync
for tool in pacemakerd stonith_admin crm_mon crm_resource cibadmin crm_attribute crm_verify; do
  command -v "$tool" >/dev/null || { echo "skipped: the test needs the program $tool (Debian 12 with the packages pacemaker and pacemaker-cli-utils)"; exit 77; }
done
lab_dir=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

# A resource as a VM is one: a process that writes into its image on the volume.
make_vm() {
  mkdir -p "$work/agents/csvfs"
  cat >"$work/agents/csvfs/vm" <<END
#!/bin/sh
me=\$(hostname)
runs() { kill -0 "\$(cat /run/vm 2>/dev/null)" 2>/dev/null; }
case \$1 in
  start)
    runs && exit 0
    touch -d @0 "$work/last-\$me"
    setsid python3 "$here/voting.py" touch "$volume/image" "$work/last-\$me" "\$me" </dev/null >"$work/vm-\$me.log" 2>&1 &
    echo "\$!" >/run/vm
    ;;
  stop)
    while runs; do kill -9 "\$(cat /run/vm)"; sleep 0.1; done
    ;;
  monitor) runs || exit 7 ;;
  meta-data)
    cat <<XML
<?xml version="1.0"?>
<resource-agent name="vm"><version>1.1</version><longdesc lang="en">vm</longdesc><shortdesc lang="en">vm</shortdesc><parameters/>
<actions><action name="start" timeout="20s"/><action name="stop" timeout="20s"/><action name="monitor" timeout="20s" interval="1s"/><action name="meta-data" timeout="5s"/></actions>
</resource-agent>
XML
    ;;
  *) exit 3 ;;
esac
END
  chmod 755 "$work/agents/csvfs/vm"
}

# start_pacemaker NODE: with folders of its own, as a machine has them.
start_pacemaker() {
  local node=$1 own=$lab_dir/$1/pacemaker
  if [[ ! -d $own ]]; then
    install -d -o hacluster -g haclient -m 750 "$own" "$own"/{lib,log} "$own"/lib/{cib,pengine,blackbox,cores}
    # shellcheck disable=SC2016  # for that shell
    on "$node" sh -ec '
      mount --bind "$1/lib" /var/lib/pacemaker; mount --bind "$1/log" /var/log/pacemaker; mount --bind "$2" /usr/lib/ocf/resource.d
      ln -s "$3" /usr/sbin/fence_csv' - "$own" "$work/agents" "$csvfs_root/packaging/fence_csv"
  fi
  lab start "$node" corosync
  begin "pacemaker-$node" on "$node" env PCMK_logfile="$lab_dir/$node/pacemaker.log" setsid pacemakerd
}
kill_pacemaker() { lab kill "$1" corosync && on "$1" pkill -9 '^pacemaker'; }
has_no() { ! on "$1" pgrep -r D,R,S,T,t "$2"; }

crm() { on node1 crm_mon -1 --output-as=xml --inactive 2>/dev/null; }
# Of a node; of all three.
is_online() { crm | grep -E "<node name=\"$1\" .*online=\"true\"" | grep 'unclean="false"'; }
are_online() { local each; for each in node1 node2 node3; do is_online "$each" || return 1; done; }
is_unclean() { crm | grep "<node name=\"$1\" " | grep 'unclean="true"'; }
# Where Pacemaker runs it, in one line.
runs_on() {
  crm | python -c '
import sys, xml.etree.ElementTree as xml
print(*(node.get("name") for each in xml.parse(sys.stdin).iter("resource") if each.get("id") == sys.argv[1] and each.get("active") == "true" for node in each.iter("node")))' "$1"
}
is_run() { [[ $(runs_on "$1") ]]; }
# vm_works NODE...: on one of these, and nowhere else.
vm_works() { local at; at=$(runs_on vm) && [[ $at && " $* " == *" $at "* ]] && is_fresh "$at"; }
is_fresh() { (($(date +%s%3N) - $(date -r "$work/last-$1" +%s%3N) < 1000)); }
keys_of() { on node1 csvctl reservation show iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1 --json | grep -c "\"node\": *${1#node}\b"; }
# has_node NAME FIELD: as csvfs's cluster sees it.
has_node() {
  on node1 csvctl cluster status --json | python -c '
import json, sys
sys.exit(not any(each[sys.argv[2]] for each in json.load(sys.stdin)["nodes"] if each["name"] == sys.argv[1]))' "$1" "$2"
}
# has_fenced NODE: as Pacemaker remembers it.
has_fenced() {
  on node1 stonith_admin --history '*' --verbose --output-as=xml >"$work/history" && grep "target=\"$1\"" "$work/history" | grep 'action="reboot"' | grep -q 'status="success"'
}

# node3 is fenced, and what ran there runs on another node, and writes there alone.
must_be_elsewhere() {
  local words
  wait_for 60 "the VM to run on another node" vm_works node1 node2
  has_node node3 off || die "the VM was started elsewhere, and node3 is not proven to be off"
  [[ $(keys_of node3) == 0 ]] || die "keys of node3 are left"
  words=$(on node1 head -c 1048576 "$volume/image" | grep -ao 'node[0-9]' | sort -u | xargs)
  [[ $words == "$(runs_on vm)" ]] || die "the image of the VM on $(runs_on vm) has in it what was written by: $words"
}
# By its command line: its name is Python's.
writes_no_more() { ! on node3 pgrep -r D,R,S,T,t -f voting.py >/dev/null; }
# What ran there, and what Pacemaker of node3 may have started in its place before it heard of the fence.
must_have_failed() {
  wait_for 20 "what wrote on node3 to fail" writes_no_more ||
    { on node3 ps -eo pid,stat,lstart,wchan:20,args; die "what wrote on node3 runs still: $(<"$work/vm-node3.log")"; }
  grep -qF 'Input/output error' "$work/vm-node3.log" || die "what wrote on node3 was not told: $(<"$work/vm-node3.log")"
}
must_come_back() {
  wait_for 90 "the VM to be back on node3" vm_works node3
  ! has_node node3 fenced || die "the VM is back on node3, which is fenced"
}

cluster_up 1G
make_vm
for node in node1 node2 node3; do start_pacemaker "$node"; done
wait_for 120 "Pacemaker to have its nodes" are_online

say "what Pacemaker's tools make of the agent"
on node1 stonith_admin --list-installed | grep -x ' *fence_csv' >/dev/null || die "the agent is not found"
on node1 stonith_admin --metadata --agent fence_csv | grep -q '<action name="on" on_target="0" automatic="1"' || die "its metadata is not understood"
on node1 crm_resource --show-metadata stonith:fence_csv | grep -q '<parameter name="plug"' || die "its metadata is not understood"
on node1 stonith_admin --validate --agent fence_csv || die "it does not validate"
! on node1 stonith_admin --validate --agent fence_csv --option csvctl=/nowhere >"$work/said" 2>&1 || die "it validates whatever it is given"
grep -qF 'fence_csv: /nowhere: No such file' "$work/said" || die "it was not said why: $(<"$work/said")"

say "a fence device of it, which knows its nodes by itself"
# As pcs stonith create csv fence_csv pcmk_off_timeout=90s meta provides=unfencing.
on node1 cibadmin --create --scope resources --xml-text '
  <primitive id="csv" class="stonith" type="fence_csv">
    <meta_attributes id="csv-meta"><nvpair id="csv-provides" name="provides" value="unfencing"/></meta_attributes>
    <instance_attributes id="csv-attributes"><nvpair id="csv-off" name="pcmk_off_timeout" value="90s"/></instance_attributes>
    <operations><op id="csv-monitor" name="monitor" interval="60s"/></operations>
  </primitive>'
wait_for 60 "the device to be started" is_run csv
[[ $(on node1 stonith_admin --list-targets csv | grep -v found | sort | xargs) == 'node1 node2 node3' ]] ||
  die "Pacemaker takes its nodes to be: $(on node1 stonith_admin --list-targets csv | xargs)"
on node1 cibadmin --create --scope resources --xml-text '
  <primitive id="vm" class="ocf" provider="csvfs" type="vm">
    <operations><op id="vm-monitor" name="monitor" interval="2s" timeout="20s"/></operations>
  </primitive>'
on node1 cibadmin --create --scope constraints --xml-text '<rsc_location id="vm-at" rsc="vm" node="node3" score="100"/>'
on node1 crm_verify --live-check || die "the configuration is not in order"
wait_for 60 "the VM to be on node3" vm_works node3

say "corosync and Pacemaker of node3 are killed, and csvfs and the VM go on there: it is fenced, and unfenced when they are back"
kill_pacemaker node3
must_be_elsewhere
must_have_failed
has_fenced node3 || die "Pacemaker does not remember it: $(<"$work/history")"
start_pacemaker node3
must_come_back

say "node3 is fenced by command while all is well: its Pacemaker and its corosync stop"
on node1 stonith_admin --fence node3
must_be_elsewhere
must_have_failed
wait_for 30 "Pacemaker of node3 to end" has_no node3 pacemaker
wait_for 30 "corosync of node3 to end" has_no node3 corosync
start_pacemaker node3
must_come_back

say "node3 hangs, and wakes up when it is fenced"
lab freeze node3 all
must_be_elsewhere
lab thaw node3
wait_for 60 "node3 to be back" are_online
# Pacemaker believes of a node whose Pacemaker has not been started anew that it is unfenced still (docs/cluster.md).
has_node node3 fenced || die "node3 is not fenced any more, and nobody has asked for that"
[[ $(keys_of node3) == 0 ]] || die "node3 has keys, and is fenced"
on node1 stonith_admin --unfence node3
must_come_back

say "the storage is away when node3 is lost: nothing is proven, and the VM is not started elsewhere"
lab san freeze
kill_pacemaker node3
wait_for 30 "Pacemaker to miss node3" is_unclean node3
is_told() { grep -qF 'nothing of it is left is not proven for every volume' "$lab_dir"/node[12]/pacemaker.log; }
wait_for 120 "Pacemaker to be told that the fence is not proven" is_told
is_unclean node3 || die "node3 counts as fenced"
[[ $(runs_on vm) == node3 ]] || die "the VM was started on $(runs_on vm), and what wrote on node3 may still do so"
lab san thaw
must_be_elsewhere
must_have_failed
start_pacemaker node3
must_come_back

say "Pacemaker is stopped in good order: nobody is fenced"
on node1 crm_attribute --name stop-all-resources --update true
is_stopped() { ! is_run vm; }
wait_for 60 "the VM to be stopped" is_stopped
for node in node3 node2 node1; do
  on "$node" pkill -TERM -x pacemakerd
  wait_for 60 "Pacemaker of $node to end" has_no "$node" pacemaker
done
for node in node1 node2 node3; do ! has_node "$node" fenced || die "$node is fenced"; done
end_clean

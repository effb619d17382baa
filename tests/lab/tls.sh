#!/usr/bin/env bash
# Strangers on the private network get nowhere while the nodes work on: without a certificate, with one of a foreign CA, with one
# that has expired, in plain text; nor does a node with another node's name. Certificates are renewed under way.
source "$(dirname "$0")/cluster.sh"

command -v openssl >/dev/null || { echo "skipped: the test needs the program openssl"; exit 77; }

cluster_up
labs=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name
csvctl=$csvfs_build/csvctl

say "node2 writes all the time"
begin work on node2 sh -c 'n=0; while [ ! -e "$1/stop" ]; do n=$((n + 1)); echo $n >"$1/count.new" && mv "$1/count.new" "$1/count" || exit 1; done' - "$volume"
count() { on node3 cat "$volume/count" 2>/dev/null || echo 0; }
goes_on() { local before; before=$(count); wait_for 20 "node2's work to go on" more_than "$before" || die "node2 does not get on"; }
more_than() { (($(count) > $1)); }
goes_on

# What node1's csvd says of a stranger: a line of its log with this reason in it. It says so once in ten seconds for an address.
said() { grep -q "connection_refused .*$1" "$labs/node1/csvd.log"; }
# stranger WHY OPTIONS...: openssl as a client, from node3's machine; the server must end it and say WHY.
stranger() {
  local why=$1 out
  shift
  sleep 10.1  # the log's own pause for an address
  out=$(on node3 timeout 10 openssl s_client -connect 10.77.1.11:7400 "$@" </dev/null 2>&1) || true
  wait_for 5 "node1 to refuse it ($why)" said "$why" || { echo "$out"; tail -n 5 "$labs/node1/csvd.log"; die "not refused as it should be"; }
  note "$(grep "connection_refused .*$why" "$labs/node1/csvd.log" | tail -n 1)"
  goes_on
}

say "strangers"
"$csvctl" cluster ca create --cluster-id 4711 --dir "$work/foreign" >/dev/null
"$csvctl" cluster ca issue --node 2 --name node2 --dir "$work/foreign" --out "$work/impostor" >/dev/null
"$csvctl" cluster ca issue --node 9 --name node9 --dir "$labs/ca" --out "$work/nine" >/dev/null
stranger 'no certificate' -tls1_3
stranger 'older TLS' -tls1_2
stranger 'is refused: ' -tls1_3 -cert "$work/impostor/node.crt" -key "$work/impostor/node.key"
stranger 'of node 9, which is not in' -tls1_3 -cert "$work/nine/node.crt" -key "$work/nine/node.key"
sleep 10.1
on node3 bash -c 'exec 3<>/dev/tcp/10.77.1.11/7400; printf CSVF0123456789012345678901234567 >&3; timeout 5 cat <&3 >/dev/null' || true
wait_for 5 "plain text to be refused" said 'plain text' || die "plain text was not refused"
goes_on

say "a flood of silent connections"
on node3 python3 - <<'PYTHON' &
import socket, time
held = []
end = time.time() + 8
while time.time() < end:
    try:
        held.append(socket.create_connection(("10.77.1.11", 7400), timeout=1))
    except OSError:
        time.sleep(0.01)
    if len(held) > 300:
        held.pop(0).close()
PYTHON
flood=$!
goes_on
on node1 csvctl status --json | python -c '
import json, sys
absent = [peer["name"] for peer in json.load(sys.stdin)["peers"] if not peer["present"]]
sys.exit(f"not present: {absent}" if absent else 0)' || die "the flood drove a node out"
wait "$flood"
goes_on

say "every node gets a new certificate while it works; then a new mount connects with it"
for node in node1 node2 node3; do
  "$csvctl" cluster ca issue --node "${node#node}" --name "$node" --dir "$labs/ca" --out "$labs/$node/etc/tls" --yes >/dev/null
done
lab umount node3
lab mount node3
goes_on
say "node3 restarts with node2's certificate"
lab umount node3
lab kill node3 csvd
mkdir "$work/own"
mv "$labs/node3/etc/tls/"* "$work/own/"
cp "$labs/node2/etc/tls/"* "$labs/node3/etc/tls/"
if on node3 timeout 20 csvd 2>"$work/stolen.log"; then die "csvd started with another node's certificate"; fi
grep -q 'is the certificate of csvfs://4711/node/2, and this is csvfs://4711/node/3' "$work/stolen.log" ||
  { cat "$work/stolen.log"; die "not said why"; }
note "$(tail -n 1 "$work/stolen.log")"
rm "$labs/node3/etc/tls/"*
if on node3 timeout 20 csvd 2>"$work/none.log"; then die "csvd started without certificates"; fi
grep -q 'csvctl cluster ca issue --node 3 --name node3' "$work/none.log" || { cat "$work/none.log"; die "not said what to do"; }
say "with an expired certificate node3 is cut off, says so, and comes back when it has a new one"
cp "$work/own/ca.crt" "$labs/node3/etc/tls/"
cp "$work/own/node.key" "$work/own.key"
openssl req -new -key "$work/own.key" -subj /O=csvfs/CN=node3 -out "$work/node3.csr"
printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:csvfs://4711/node/3\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always\n' >"$work/extensions"
openssl x509 -req -in "$work/node3.csr" -CA "$labs/ca/ca.crt" -CAkey "$labs/ca/ca.key" -days -1 -extfile "$work/extensions" \
  -out "$labs/node3/etc/tls/node.crt" 2>/dev/null || die "openssl did not make an expired certificate"
cp "$work/own.key" "$labs/node3/etc/tls/node.key"
chmod 600 "$labs/node3/etc/tls/node.key"
lab start node3 csvd
says_expired() { on node3 csvctl status | grep -q 'expired'; }
wait_for 10 "node3's status to say that its certificate has expired" says_expired
note "$(on node3 csvctl status | grep -m1 expired)"
cp "$work/own/"* "$labs/node3/etc/tls/"
lab mount node3
goes_on
on node1 touch "$volume/stop"
await work 60
end_clean

#!/usr/bin/env bash
# A node as its systemd sees it: what is installed, booted as a machine, used as its administrator would, and shut down. systemd is
# number 1 of namespaces, over an overlay of this machine's root; the target is beside it, so it outlives a boot, as a SAN does.
source "$(dirname "$0")/../../scripts/lib/common.sh"

volume=/clusterstorage/volume1
lun=iscsi://127.0.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1
log=/var/log/csvfs-test  # on the node: what its programs tell

# --- outside: the namespaces, and what remains of them ---------------------------------------------------------------

obstacle() {
  lab_obstacle || return 1
  local tool
  for tool in pivot_root setpriv cmake journalctl systemctl systemd-run; do
    command -v "$tool" >/dev/null || { echo "needs the program $tool"; return 1; }
  done
  [[ -x /lib/systemd/systemd ]] || { echo "needs systemd"; return 1; }
  # Everything that the inside is made of, tried at once.
  # shellcheck disable=SC2016  # for that shell
  unshare --mount --pid --cgroup --fork --mount-proc bash -c '
    set -e; mount -t tmpfs tmpfs /mnt; mkdir /mnt/{upper,work,root,cgroup}; mount -t cgroup2 none /mnt/cgroup; mkdir "/mnt/cgroup/$1"; rmdir "/mnt/cgroup/$1"
    mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root' - "csvfs-systemd-probe-$$" >/dev/null 2>&1 ||
    { echo "needs overlays of / and cgroup2"; return 1; }
}

# What tests have left whose process is gone, and those of the process that is named: cgroups, seen through a mount of our own, and empty folders.
# False while some of it cannot go yet.
remove_remains() {
  local each
  for each in /var/tmp/csvfs-systemd-*; do
    [[ ! -d $each || -d /proc/$(tr -dc 0-9 <<<"${each%.*}") ]] || rmdir "$each" 2>/dev/null || true
  done
  # shellcheck disable=SC2016  # for that shell
  unshare --mount bash -c '
    mount -t cgroup2 none /mnt && cd "/mnt$(sed -n "s/^0:://p" /proc/self/cgroup)" || exit 0
    for each in csvfs-systemd-*; do
      [[ -d $each ]] && [[ ${each##*-} == "$1" || ! -d /proc/${each##*-} ]] || continue
      find "$each" -depth -type d -exec rmdir {} \; 2>/dev/null
      [[ ! -d $each ]] || left=1
    done
    [[ ! ${left:-} ]]' - "${1:-}"
}

outside() {
  local why status=0
  if why=$(obstacle); then :; else
    echo "skipped: the test $why"
    exit 77
  fi
  work=$(mktemp -d "/var/tmp/csvfs-systemd-$$.XXXXXX")
  trap finish EXIT
  trap 'exit 130' INT TERM HUP
  remove_remains none || true
  # However this script ends, the kernel then ends all that is within.
  setpriv --pdeathsig KILL unshare --mount --net --pid --uts --ipc --fork --kill-child --mount-proc \
    bash "$0" --inside "$work" "$$" &
  inside=$!
  wait "$inside" || status=$?
  inside=
  exit "$status"
}

finish() {
  local status=$?
  if [[ ${inside:-} ]]; then
    kill -9 "$inside" 2>/dev/null || true
    wait "$inside" 2>/dev/null || true
  fi
  wait_for 10 "the cgroups to be empty" remove_remains "$$" || true
  rm -rf "$work"
  exit "$status"
}

# --- inside: the machine's parts that outlive its systemd ----------------------------------------------------------

build_machine() {
  mount --make-rprivate /
  mount -t tmpfs -o mode=755 tmpfs "$work"
  mkdir "$work"/{upper,work,root,cgroup,shm,run}
  root=$work/root
  mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
  # A process must leave its cgroup for one below before that can be a root of its own.
  mount -t cgroup2 none "$work/cgroup"
  cgroup=$work/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/csvfs-systemd-$outer
  mkdir -p "$cgroup/node"
  ip link set lo up
  hostname node1

  # Of this machine's services none: what is left is a Debian with nothing but csvfs.
  local unit
  rm -rf "$root"/etc/systemd/system/* "$root/etc/csvfs" "$root/var/lib/csvfs" "$root/clusterstorage" "$root/var/log/journal"
  for unit in systemd-logind systemd-udevd getty-static systemd-firstboot systemd-repart systemd-random-seed systemd-networkd systemd-resolved systemd-sysctl systemd-modules-load corosync; do
    ln -s /dev/null "$root/etc/systemd/system/$unit.service"
  done
  for unit in sys-kernel-config sys-kernel-debug sys-kernel-tracing dev-hugepages dev-mqueue; do
    ln -s /dev/null "$root/etc/systemd/system/$unit.mount"
  done
  ln -s /dev/null "$root/etc/systemd/system/proc-sys-fs-binfmt_misc.automount"
  ln -s /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/var/log/journal" "$root$log"
  ln -s /lib/systemd/system/remote-fs.target "$root/etc/systemd/system/multi-user.target.wants/"
  : >"$root/etc/fstab"
  echo node1 >"$root/etc/hostname"
  echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"

  # What `cmake --install` gives a machine, no more.
  DESTDIR=$root cmake --install "$csvfs_build" >"$work/install.log" || { tail "$work/install.log"; die "cmake --install failed"; }
}

target() { tgtadm --lld iscsi "$@"; }
start_target() {
  mount -t tmpfs tmpfs /run
  mkdir -p /run/tgtd
  truncate -s 1G "$work/lun.img"
  tgtd -f >"$work/tgtd.log" 2>&1 &
  wait_for 10 tgtd target --op show --mode sys
  target --op new --mode target --tid 1 -T iqn.2026-01.org.csvfs.lab:san
  target --op new --mode logicalunit --tid 1 --lun 1 -b "$work/lun.img"
  target --op update --mode logicalunit --tid 1 --lun 1 --params "scsi_sn=systemd-1,thin_provisioning=1"
  target --op bind --mode target --tid 1 -I ALL
}

# --- a boot, from power on to power off ----------------------------------------------------------------------------

# As what starts a container does it; then systemd is executed. Its /dev is its own, for it makes links there.
become_machine() {
  local each
  echo 0 >"$cgroup/node/cgroup.procs"
  unshare --mount --cgroup --pid --fork --kill-child bash -c '
    set -e; root=$1
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for each in null zero full random urandom tty fuse cpu_dma_latency; do
      [[ -e /dev/$each ]] || continue
      : >"$root/dev/$each"; mount --bind "/dev/$each" "$root/dev/$each"
    done
    mkdir "$root"/dev/{pts,shm,mqueue}
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"; ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount --bind "$root/proc/sys" "$root/proc/sys"; mount -o remount,bind,ro "$root/proc/sys"  # it is this machine'"'"'s kernel
    # A new one, as the kernel would have it: the journal tells boots apart by it.
    cat /proc/sys/kernel/random/uuid >"$root/run/boot_id"
    mount --bind "$root/run/boot_id" "$root/proc/sys/kernel/random/boot_id"
    cd "$root"; mkdir -p mnt/before; pivot_root . mnt/before; umount -l /mnt/before
    mount --make-rshared /  # as on every machine: what is unmounted goes in the namespaces of services, too
    exec env -i container=csvfs-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --show-status=0 --log-target=journal' - "$root"
}

in_machine() { local holder; holder=$(pgrep -P "$machine" -x unshare) && pgrep -P "$holder" -x systemd; }
# on COMMAND...: as root on the node; with the folders of a login of root in PATH.
on() { nsenter -t "$(in_machine)" -m -p -C -r -w -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }
is_up() { [[ $(on systemctl is-system-running) =~ ^(running|degraded)$ ]]; }
boot() {
  begun=$EPOCHREALTIME
  (become_machine) </dev/null >"$work/console.log" 2>&1 &
  machine=$!
  wait_for 20 "systemd to run (see $work/console.log)" in_machine
  wait_for 60 "the boot to end" is_up || { on systemctl list-jobs; die "the machine does not boot"; }
  note "booted in $(since "$begun") s: $(on systemctl is-system-running)"
}
since() { python -c 'import sys; print(f"{float(sys.argv[2]) - float(sys.argv[1]):.1f}")' "$1" "$EPOCHREALTIME"; }

# ends reboot|poweroff SECONDS: the machine goes down by itself, within that time.
ends() {
  local how=$1 within=$2 status=0 expected=130  # by SIGINT and SIGHUP the kernel tells one from the other
  [[ $how == poweroff ]] || expected=129
  begun=$EPOCHREALTIME
  on systemd-cat -t lab echo "it shall end"
  on systemctl "$how" --no-wall 2>/dev/null  # there is no logind to tell
  wait_for "$within" "the machine to end" eval '! kill -0 "$machine"' || { on systemctl list-jobs; die "$how does not end"; }
  wait "$machine" || status=$?
  [[ $status == "$expected" ]] || die "after $how the machine ended with $status, not $expected: $(tail "$work/console.log")"
  note "$how took $(since "$begun") s"
}

# The journal of the last boot, also of a machine that is off.
journal() { journalctl --directory "$root/var/log/journal" -b 0 --no-pager -o short-monotonic "$@" 2>/dev/null; }


# --- what is asked of it -------------------------------------------------------------------------------------------

# expect CODE PATTERN COMMAND...: on the node; the words (both streams) must match the pattern.
expect() {
  local code=$1 pattern=$2 got=0 words
  shift 2
  words=$(on "$@" 2>&1) || got=$?
  [[ $got == $code ]] || die "'$*' ended with $got, not $code: $words"
  [[ $words =~ $pattern ]] || die "'$*' said '$words', not '$pattern'"
  note "$* -> $code${words:+: $(head -n 1 <<<"$words")}"
}
as_user() { echo setpriv --reuid nobody --regid nogroup "$@"; }
is_mounted() { on mountpoint -q "$volume"; }
is_unmounted() { ! is_mounted; }
unit_is() { [[ $(on systemctl show -p ActiveState --value "$1") == "$2" ]]; }
written() { local count; count=$(on cat /run/writer) && echo "${count%% *}"; }
goes_on() { (($(written) > $1)); }
# writes_on WHAT: the writer is as well as before, and gets somewhere.
writes_on() {
  local before
  before=$(written)
  unit_is writer active && [[ $(on systemctl show -p MainPID --value writer) == "$writer" ]] || die "the writer was ended $1: $(journal -u writer | tail)"
  wait_for 20 "the writer to go on $1" goes_on "$((before + 5))" || die "it does not: $(journal | grep -E "csv|writer|python" | tail -n 90)"
  unit_is writer active || die "the writer failed $1: $(journal -u writer | tail)"
  note "$1 the longest wait of the writer so far was $(on cut -d ' ' -f 2 /run/writer) s"
}
# A program in the volume that no unit says anything of.
start_sitting() {
  on systemd-run --quiet --collect --unit sits sh -c "cd $volume && exec sleep infinity"
  wait_for 10 "somebody to sit there" on sh -c "readlink /proc/[0-9]*/cwd | grep -qx $volume"
}
# start_writer OPTION...: a service whose administrator said where its data is; it writes a last word when it is stopped.
start_writer() {
  on rm -f /run/writer
  on systemd-run --quiet --collect --unit writer "$@" python3 /usr/local/lib/writer.py "$volume"
  wait_for 10 "the writer to begin" on test -s /run/writer
  writer=$(on systemctl show -p MainPID --value writer)
}
write_writer() {
  cat >"$root/usr/local/lib/writer.py" <<'PYTHON'
import os, signal, sys, time
volume = sys.argv[1]
ending = False
def end(*_):
    global ending
    ending = True
signal.signal(signal.SIGTERM, end)
count, longest = 0, 0.0
log = os.open(volume + "/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
while not ending:
    began = time.monotonic()
    os.write(log, b"%07d\n" % count)
    os.fsync(log)
    with open(volume + "/new", "w") as file:
        file.write(str(count))
    with open(volume + "/new") as file:
        assert file.read() == str(count)
    os.rename(volume + "/new", volume + "/current")
    count += 1
    longest = max(longest, time.monotonic() - began)
    with open("/run/writer.new", "w") as file:
        file.write("%d %.2f" % (count, longest))
    os.rename("/run/writer.new", "/run/writer")
assert os.path.ismount(volume)
with open(volume + "/last-word", "w") as file:
    file.write(str(count))
os.remove(volume + "/current")
PYTHON
}
# The last word of a writer that was ended by a shutdown.
has_last_word() {
  [[ -n $(on cat "$volume/last-word") ]] && on test ! -e "$volume/current" || die "the writer was not let end"
  on rm "$volume/last-word"
}

the_end() { journal | sed '1,/it shall end/d'; }
# before ONE OTHER: that while the last boot ended the last line like ONE is before the last like OTHER.
before() {
  local text one other
  text=$(the_end)
  one=$(grep -nE -- "$1" <<<"$text" | tail -n 1 | cut -d: -f1)
  other=$(grep -nE -- "$2" <<<"$text" | tail -n 1 | cut -d: -f1)
  [[ $one && $other ]] && ((one < other)) || die "the journal has '$1' in line ${one:-none}, '$2' in ${other:-none}: $(grep -E 'csv|clusterstorage|writer' <<<"$text")"
}
# ended_well UNIT: everything in its order, and nothing that did not end by itself.
ended_well() {
  local wrong
  before "systemd.*(Unmounted|Stopped) $1" 'Stopping csvd.service'
  before 'session ends session=.* reason="it said goodbye"' 'csvd_closing'
  before csvd_closing csvd_closed
  before csvd_closed 'Stopped csvd.service'
  wrong=$(the_end | grep -E 'timed out|not in good order|Killing process|Failed unmounting|remains running|left-over|main process exited.*dumped' || true)
  [[ -z $wrong ]] || die "not everything ended by itself: $wrong, in $(the_end | grep -E 'csv|clusterstorage|writer|umount')"
}
# Whatever a filter of a unit, a missing capability or a read-only place kept our programs from.
nothing_denied() {
  local wrong
  wrong=$(journal | grep -E ' (csvd|csvfs|csvctl|u?mount[a-z.]*)\[[0-9]+\]: ' |
    grep -iE 'permi(tted|ssion)|denied|read-only file|not supported by protocol|not implemented|process without ' | grep -vE "$cannot_here" || true)
  [[ -z $wrong ]] || die "something was denied: $wrong"
}
# Where this machine lacks CAP_SYS_RESOURCE, a unit cannot have it.
cannot_here='^$'
((0x$(sed -n 's/^CapBnd:\s*//p' /proc/self/status) >> 24 & 1)) || cannot_here='without (oom_score_adj|PR_SET_IO_FLUSHER)'
# Nobody is left to be fenced: all have said goodbye, or there was none.
nobody_left() {
  [[ $(journal -u csvd | grep -E ' takeover .*epoch=' | head -n 1) == *' sessions=0 '* ]] ||
    die "a session was left: $(journal -u csvd; journal -b -1 | sed '1,/it shall end/d' | grep -E 'csv|clusterstorage|writer|umount')"
  ! grep -q 'lost power' <<<"$(journal -u csvd)" || die "a power loss is seen that was none"
}

configure() {
  say "installed as README has it"
  expect 0 '' systemd-tmpfiles --create
  expect 0 '' csvctl cluster ca create --cluster-id 1
  on sh -c 'cd /root && csvctl cluster ca issue --node 1 --name node1 && mkdir -p -m 700 /etc/csvfs/tls && cp -p node1/* /etc/csvfs/tls/ && rm -r node1' >/dev/null
  # What needs something of the machine: a group for the admin socket, a state_dir of one's own.
  cat >"$root/etc/csvfs/csvd.toml" <<'TOML'
[cluster]
id = 1
[node]
id = 1
name = "node1"
listen = "127.0.0.1:7400"
state_dir = "/srv/csvfs"
[admin]
status_group = "adm"
TOML
  mkdir -p "$root/srv/csvfs"
  expect 0 '' csvctl volume format "$lun" --name volume1 --cluster-id 1 --yes
  expect 0 '' systemctl enable --now csvd
  expect 0 '' csvctl volume add volume1 "$lun" --coordinate
  expect 0 '' csvctl volume start volume1
  expect 0 'All is well' csvctl status
  # shellcheck disable=SC2046
  expect 0 'All is well' $(as_user --groups adm) csvctl status
  # shellcheck disable=SC2046
  expect '[^0]' '[Pp]ermission|root' $(as_user --clear-groups) csvctl status
}

by_fstab() {
  say "a line of fstab"
  echo "volume1 $volume csvfs _netdev,nofail,x-systemd.after=csvd.service 0 0" >"$root/etc/fstab"
  on systemctl daemon-reload
  expect 0 '' mount "$volume"
  on install -d -m 1777 "$volume/public"
  # shellcheck disable=SC2046
  expect 0 '' $(as_user --clear-groups) sh -c "id -u >$volume/public/file"
  start_writer -p "RequiresMountsFor=$volume"

  say "csvd is restarted, reloaded and killed under a program"
  expect 0 '' systemctl restart csvd
  writes_on "after a restart"
  expect 0 '' systemctl reload csvd
  writes_on "after a reload"
  killed=$(on systemctl show -p MainPID --value csvd)
  on kill -9 "$killed"
  wait_for 20 "csvd to be back" eval '[[ $(on systemctl show -p MainPID --value csvd) != "$killed" ]] && unit_is csvd active'
  writes_on "after a kill"

  say "stopped while it is in use: who has said so is ended before, who has not is named, and it stays"
  start_sitting
  begun=$EPOCHREALTIME
  expect 1 '' systemctl stop clusterstorage-volume1.mount
  note "refused after $(since "$begun") s"
  unit_is writer inactive || die "the writer goes on"
  grep -q 'sleep (.*works in it' <<<"$(journal)" || die "who is in the way is not said: $(journal | tail -n 20)"
  is_mounted || die "it was unmounted under a program"
  on systemctl stop sits
  has_last_word
  start_writer -p "RequiresMountsFor=$volume"

  say "the machine is booted again"
  ends reboot 20
  ended_well clusterstorage-volume1.mount
  nothing_denied
  boot
  nobody_left
  is_mounted || die "it is not mounted: $(journal -u clusterstorage-volume1.mount -u csvd)"
  expect 0 '^65534$' cat "$volume/public/file"
  expect 0 '^20[0-9-]+T[0-9:.]+ csvfs' head -n 1 /run/csvfs/mount-volume1.log
  has_last_word

  say "csvfs is killed: mounted again by hand"
  on pkill -9 -xo csvfs
  expect 0 '' mount "$volume"
  expect 0 '^65534$' cat "$volume/public/file"
  expect 0 '' systemctl stop clusterstorage-volume1.mount
  is_unmounted || die "it is still mounted"
}

by_unit() {
  say "a unit"
  : >"$root/etc/fstab"
  on systemctl daemon-reload
  expect 0 '' systemctl enable --now csvfs@volume1
  expect 0 '^65534$' cat "$volume/public/file"
  say "unmounted by hand it stays so"
  expect 0 '' umount "$volume"
  wait_for 10 "the unit to end" unit_is csvfs@volume1 inactive
  expect 0 '' systemctl start csvfs@volume1

  say "csvfs is killed: the unit mounts again"
  killed=$(on systemctl show -p MainPID --value csvfs@volume1)
  on kill -9 "$killed"
  wait_for 20 "csvfs to be back" eval '[[ $(on systemctl show -p MainPID --value csvfs@volume1) != "$killed" ]] && unit_is csvfs@volume1 active'
  expect 0 '^65534$' cat "$volume/public/file"

  say "it is in use: said by whom, and taken from it"
  start_sitting
  begun=$EPOCHREALTIME
  expect 0 '' systemctl stop csvfs@volume1
  note "stopped after $(since "$begun") s"
  grep -q 'umount.csvfs.*sleep (.*works in it' <<<"$(journal)" || die "who is in the way is not said: $(journal -u csvfs@volume1 | tail -n 20)"
  is_unmounted || die "it is still mounted"
  on systemctl stop sits
  expect 0 '' systemctl start csvfs@volume1

  say "the machine is switched off"
  start_writer -p Requires=csvfs@volume1.service -p After=csvfs@volume1.service
  ends poweroff 20
  ended_well csvfs@volume1.service
  nothing_denied
  boot
  nobody_left
  is_mounted || die "it is not mounted: $(journal -u csvfs@volume1 -u csvd)"
  expect 0 '^65534$' cat "$volume/public/file"
  has_last_word
}

by_hand() {
  say "mounted by hand: unmounted in order, too"
  on systemctl disable --now csvfs@volume1 2>/dev/null
  expect 0 '' mount -t csvfs volume1 "$volume"
  ends poweroff 20
  ended_well clusterstorage-volume1.mount
  nothing_denied
}

# Only where this machine has it: a cluster of one that votes, beside Corosync's own unit.
by_votes() {
  say "with Corosync: its unit, its sockets, its files"
  rm -f "$root/etc/systemd/system/corosync.service"
  boot
  sed -i -e '/^\[cluster\]/a engine = "corosync"\nisolation_addresses = ["127.0.0.1"]' -e '/^\[node\]/a links = ["127.0.0.1"]' "$root/etc/csvfs/csvd.toml"
  expect 0 '' csvctl cluster prepare --new-key --yes
  expect 0 '' systemctl enable corosync csvd csvfs@volume1
  expect 0 '' systemctl restart corosync csvd
  expect 0 'founded' csvctl cluster create --name lab
  expect 0 '' systemctl start csvfs@volume1
  start_writer -p Requires=csvfs@volume1.service -p After=csvfs@volume1.service
  expect 0 'heartbeats are set' csvctl cluster heartbeat --delay 60 --threshold 12

  say "Corosync is gone: csvd pings, and begins again as the same process"
  killed=$(on systemctl show -p MainPID --value csvd)
  on systemctl kill -s KILL corosync
  wait_for 30 "csvd to begin again" eval 'grep -q "quorum_loss step=restarting .*isolation addresses answer" <<<"$(journal -u csvd)"'
  on systemctl start corosync
  writes_on "after a loss of the quorum"
  [[ $(on systemctl show -p MainPID --value csvd) == "$killed" ]] || die "csvd is another process"
  # Not sooner than 10 s after the first time.
  wait_for 20 "csvd to write corosync.conf" grep -q 'token: 720$' "$root/etc/corosync/corosync.conf" || die "it does not: $(journal -u csvd | grep heartbeats)"
  wait_for 10 "Corosync to hear of it" on sh -c 'corosync-cmapctl -g runtime.config.totem.token | grep -q "= 720$"'
  expect 0 'All is well' csvctl cluster status
  ends poweroff 20
  ended_well csvfs@volume1.service
  before 'Stopped csvd.service' 'Stopping corosync.service'
  nothing_denied
  boot
  nobody_left
  is_mounted || die "it is not mounted: $(journal -u csvfs@volume1 -u csvd)"
  has_last_word
  ends poweroff 20
}

inside() {
  build_machine
  start_target
  write_writer
  boot
  configure
  by_fstab
  by_unit
  by_hand
  if command -v corosync corosync-cmapctl >/dev/null; then by_votes; else note "without Corosync: it is not installed"; fi
  say "the volume is well"
  "$csvfs_build/csvctl" volume check "$lun"
}

if [[ ${1:-} == --inside ]]; then
  work=$2 outer=$3
  inside
else
  outside
fi

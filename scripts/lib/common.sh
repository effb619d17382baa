# What the scripts share: words to the user, where things are. Sourced, never run.
# shellcheck shell=bash

set -euo pipefail

csvfs_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# The folder with csvd, csvfs and csvctl.
csvfs_build=${CSVFS_BUILD:-$csvfs_root/build/release}

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

say() { printf '%s==>%s %s\n' "$bold" "$plain" "$*"; }
note() { printf '    %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds; fails with WHAT when the time is up.
wait_for() {
  local seconds=$1 what=$2 deadline
  shift 2
  deadline=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { warn "waited $seconds s in vain for $what"; return 1; }
    sleep 0.05
  done
}

# Python of the system, not of somebody's version switcher: it has to work in every namespace.
python() { if [[ -x /usr/bin/python3 ]]; then /usr/bin/python3 "$@"; else python3 "$@"; fi; }

# lab_obstacle [corosync]: names the first thing a lab (with corosync) needs and this machine does not give; silent and true if there is none.
lab_obstacle() {
  [[ $(id -u) == 0 ]] || { echo "needs root"; return 1; }
  [[ -c /dev/fuse ]] || { echo "needs /dev/fuse"; return 1; }
  { : <>/dev/fuse; } 2>/dev/null || { echo "may not open /dev/fuse"; return 1; }
  local tool
  for tool in ${1:+corosync corosync-cfgtool bridge} tgtd tgtadm ip nsenter unshare pgrep python3 setsid flock; do
    command -v "$tool" >/dev/null || { echo "needs the program $tool (scripts/install-dependencies)"; return 1; }
  done
  unshare --net --mount --pid --uts --ipc --fork --mount-proc \
    sh -c 'mount -t tmpfs tmpfs /run && ip link add bridge0 type bridge && ip link add end0 type veth peer name end1' \
    >/dev/null 2>&1 || { echo "needs mount, network, pid, uts and ipc namespaces, bridges and veth pairs"; return 1; }
}

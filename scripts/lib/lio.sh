# The lab's LIO, the kernel's target: a machine emulated by QEMU that boots straight into it. Sourced by scripts/lab and its tests.
# shellcheck shell=bash

# Made once of Debian's packages and kept beside the labs, by what it is made with: a change of these makes it anew.
lio_made_with=("$csvfs_root/scripts/lib/lio_image.py" "$csvfs_root/scripts/lib/lio_init")
lio_images=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/.lio
lio_image() { echo "$lio_images/$(cat "${lio_made_with[@]}" | cksum | tr ' ' -)"; }

# lio_obstacle: names the first thing that LIO needs and this machine does not give; silent and true if there is none.
lio_obstacle() {
  local tool
  for tool in qemu-system-x86_64 apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "needs the program $tool (Debian 12 with the package qemu-system-x86)"; return 1; }
  done
  [[ -c /dev/net/tun ]] || { echo "needs /dev/net/tun"; return 1; }
  [[ -f $(lio_image)/initrd ]] || lio_package >/dev/null || { echo "needs Debian's package linux-image-amd64 (apt-get update)"; return 1; }
}

# The package that linux-image-amd64 stands for.
lio_package() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | grep .; }

make_lio_image() {
  local image package made
  image=$(lio_image)
  [[ ! -f $image/initrd ]] || return 0
  package=$(lio_package)
  say "LIO's machine is made, once: $package and busybox-static are downloaded (70 MB), none is installed"
  rm -rf "$lio_images"
  mkdir -p "$lio_images"
  made=$(mktemp -d "$lio_images/making.XXXXXX")
  mkdir "$made/packages" "$made/image"
  (cd "$made" && timeout 300 apt-get -q -o APT::Sandbox::User=root download "$package" busybox-static >"$made/log" 2>&1) ||
    die "$package and busybox-static could not be downloaded: $(tail -n 1 "$made/log") (apt-get update may help)"
  for package in "$made"/*.deb; do dpkg-deb -x "$package" "$made/packages"; done
  python "${lio_made_with[0]}" "$made/packages" "${lio_made_with[1]}" "$made/image"
  mv "$made/image" "$image"
  rm -rf "$made"
}

has_lio() { [[ -d $dir/san/lio ]]; }

# The emulated machine takes the place of `san` in the storage network.
plug_lio() {
  mkdir -p "$dir/san/lio/pr"
  on san ip addr flush dev storage
  on san ip link add lio type bridge
  on san ip tuntap add dev guest mode tap
  on san sh -c 'for each in storage guest; do ip link set $each master lio up; done; ip link set lio up'
}

# emulation FOLDER SHARED: makes ${emulation[@]}, the command that runs a machine of this image: it sees the folder SHARED, and has its console and
# its QMP socket in FOLDER.
emulation() {
  local image
  image=$(lio_image)
  # KVM is not asked for: where it is nested it may not boot this kernel. The timer is not checked: on a busy machine an emulated
  # one would not pass.
  emulation=(qemu-system-x86_64 -M q35 -accel "tcg,tb-size=256" -cpu max -smp 1 -m 512
    -nodefaults -no-user-config -display none -no-reboot -serial "file:$1/console.log"
    -qmp "unix:$1/qmp,server=on,wait=off"
    -kernel "$image/vmlinux" -initrd "$image/initrd" -append 'console=ttyS0 quiet panic=-1 no_timer_check mitigations=off'
    -fsdev "local,id=shared,path=$2,security_model=none" -device "virtio-9p-pci,fsdev=shared,mount_tag=shared")
}

start_lio() {
  local number=0 words=() serials=() lun
  [[ -f $(lio_image)/initrd ]] || die "LIO's machine is not there, or was made by another version (scripts/lab down, then up)"
  while read -r lun; do
    number=$((number + 1))
    serials+=("$(printf '%s' "$lab-$number" | md5sum | cut -c -32)")
    words+=(-drive "if=none,id=lun$number,file=$lun,format=raw,cache=writeback,discard=unmap"
      -device "virtio-blk-pci,drive=lun$number")
  done <"$dir/san/luns"
  printf 'addresses="%s"\nname=%s\nserials="%s"\n' "$(volumes | while read -r each; do portal_of "$each"; done | xargs)" "$target" "${serials[*]}" >"$dir/san/lio/target"
  rm -f "$dir/san/console.log"
  emulation "$dir/san" "$dir/san/lio"
  launch san qemu.log "${emulation[@]}" "${words[@]}" \
    -netdev tap,id=net,ifname=guest,script=no,downscript=no \
    -device virtio-net-pci,netdev=net,romfile=
  wait_for 120 "LIO (see $dir/san/console.log and $dir/san/qemu.log)" grep -qE '^LIO (READY|FAILED)|Kernel panic' "$dir/san/console.log"
  ! grep -E '^LIO FAILED|Kernel panic' "$dir/san/console.log" >&2 || die "LIO did not come up (see $dir/san/console.log)"
}

# slow_lio BYTES|off: how much the LUNs' disks write in a second.
slow_lio() {
  local bytes=0 number=0 lun
  [[ $1 == off ]] || bytes=$(numfmt --from=iec "$1") || die "san slow: a number of bytes, or off, not $1"
  while read -r lun; do
    number=$((number + 1))
    python "$csvfs_root/scripts/lib/qmp.py" "$dir/san/qmp" block_set_io_throttle \
      "{\"device\": \"lun$number\", \"bps\": 0, \"bps_rd\": 0, \"bps_wr\": $bytes, \"iops\": 0, \"iops_rd\": 0, \"iops_wr\": 0}"
  done <"$dir/san/luns"
}

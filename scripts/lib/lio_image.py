#!/usr/bin/env python3
"""A kernel and an initramfs that are LIO, or what is asked of them, of what Debian's packages hold: lio_image.py PACKAGES INIT OUT

PACKAGES is a folder into which linux-image and busybox-static were unpacked, INIT the script that is to be process 1. Writes
OUT/vmlinux and OUT/initrd.
"""
import gzip
import lzma
import re
import stat
import struct
import sys
from pathlib import Path

WANTED = ["virtio_pci", "virtio_blk", "virtio_net", "9pnet_virtio", "9p", "configfs", "crc32c_generic", "crct10dif_generic",
          "target_core_mod", "target_core_iblock", "iscsi_target_mod"]
# Not loaded at the start: whoever uses the machine for something else does it, in the order of modules/NAME.
MORE = {
    "watchdog": ["i6300esb"],
    "nfs": ["veth", "nfsd", "nfsv4"],
    "smb": ["veth", "cifs", "nls_utf8", "cmac", "ctr", "ccm", "ghash_generic", "gcm", "ecb", "sha512_generic"],
    "mount": ["fuse"],
}


def kernel_of(image: bytes) -> bytes:
    """The ELF kernel within a bzImage: unpacked here it need not be unpacked by an emulated processor at each boot."""
    setup_sectors = image[0x1f1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start:start + length]
    if payload[:6] != b"\xfd7zXZ\x00":
        raise SystemExit("the kernel is not packed with xz: this packing is not known here")
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)


def name_of(module: Path) -> str:
    return module.name.split(".")[0].replace("-", "_")


def in_order(root: Path, wanted: list[str]) -> list[Path]:
    """The modules and all that they need, each after what it needs."""
    files = {name_of(each): each for each in root.rglob("*.ko")}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in order or name not in files:  # what has no file is part of the kernel
            return
        needs = re.search(rb"(?:^|\0)depends=([^\0]*)\0", files[name].read_bytes())
        for each in filter(None, needs.group(1).decode().split(",") if needs else []):
            add(each)
        order[name] = files[name]

    for each in wanted:
        add(each)
    return list(order.values())


class Archive:
    """cpio, in the form the kernel reads."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self.count += 1
        raw = name.encode() + b"\0"
        fields = [self.count, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0]
        head = b"070701" + b"".join(b"%08x" % each for each in fields) + raw
        for part in (head, content):
            self.parts.append(part + b"\0" * (-len(part) % 4))

    def bytes(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self.parts)


def main() -> None:
    packages, init, out = (Path(each) for each in sys.argv[1:])
    image = max((packages / "boot").glob("vmlinuz-*"))
    (out / "vmlinux").write_bytes(kernel_of(image.read_bytes()))

    archive = Archive()
    for folder in ("bin", "dev", "etc", "modules", "proc", "shared", "sys", "var", "var/target"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("init", stat.S_IFREG | 0o755, init.read_bytes())
    archive.add("bin/busybox", stat.S_IFREG | 0o755, (packages / "bin/busybox").read_bytes())
    at_start = in_order(packages / "lib/modules", WANTED)
    there: set[Path] = set()
    for name, wanted in {"order": WANTED, **MORE}.items():
        modules = in_order(packages / "lib/modules", wanted)
        for each in modules:
            if each not in there:
                archive.add(f"modules/{each.name}", stat.S_IFREG | 0o644, each.read_bytes())
        there.update(modules)
        loaded = modules if name == "order" else [each for each in modules if each not in at_start]
        archive.add(f"modules/{name}", stat.S_IFREG | 0o644, "".join(f"{each.name}\n" for each in loaded).encode())
    (out / "initrd").write_bytes(gzip.compress(archive.bytes(), 1))


main()

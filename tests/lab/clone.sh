#!/usr/bin/env bash
# A copy that shares its blocks: made at once, without space, and then two files like any others.
source "$(dirname "$0")/cluster.sh"

size=${CSVFS_CLONE_MIB:-256}
cluster_up $((2 * size / 1024 + 3))G
used() { on "$1" python3 -c 'import os, sys; s = os.statvfs(sys.argv[1]); print((s.f_blocks - s.f_bfree) * s.f_frsize >> 20)' "$volume"; }
cat >"$work/clone.py" <<'PY'
import errno, os, sys, time
source, target = sys.argv[1:3]
length = int(sys.argv[3]) if len(sys.argv) > 3 else os.stat(source).st_size
a, b = os.open(source, os.O_RDWR), os.open(target, os.O_RDWR | os.O_CREAT, 0o644)
began, done, calls = time.monotonic(), 0, 0
while done < length:
    got = os.copy_file_range(a, b, length - done, done, done)
    if got == 0:
        break
    done, calls = done + got, calls + 1
print(f"{done >> 20} MiB in {calls} calls and {time.monotonic() - began:.3f} s")
PY
cat >"$work/overwrite.py" <<'PY'
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
page.write(sys.argv[2].encode() * 4096)
first, step, count = (int(x) for x in sys.argv[3:6])
times = []
for i in range(count):
    began = time.monotonic()
    assert os.pwrite(fd, page, first + i * step) == 4096
    times.append(time.monotonic() - began)
times.sort()
print(f"{count} writes of 4 KiB: median {times[len(times) // 2] * 1000:.2f} ms, longest {times[-1] * 1000:.2f} ms")
PY

say "a copy takes no space and no time"
on node1 dd if=/dev/urandom of="$volume/image" bs=1M count="$((size < 512 ? size : 512))" status=none
# More of it is for measuring: its content matters little.
if ((size > 512)); then on node1 dd if=/dev/zero of="$volume/image" bs=1M seek=512 count="$((size - 512))" conv=notrunc status=none; fi
on node1 sync "$volume/image"
before=$(used node1)
note "$(on node1 python3 "$work/clone.py" "$volume/image" "$volume/copy")"
after=$(used node1)
((after - before <= 2)) || die "the copy took $((after - before)) MiB"
on node2 cmp "$volume/image" "$volume/copy" || die "the copy is another"
[[ $(on node2 stat -c %b "$volume/copy") == $(on node2 stat -c %b "$volume/image") ]] || die "the copy's blocks are not told"
on node3 cp --reflink=auto "$volume/image" "$volume/cp"
on node2 cmp "$volume/image" "$volume/cp" || die "what cp made is another"
(($(used node2) - after <= 2)) || die "what cp made takes space"

[[ $(on node1 csvctl volume dump volume1 --map /copy --json) == *'"shared_by": '* ]] || die "the dump does not say what is shared"

say "written on two nodes, each file has its own"
note "shared: $(on node2 python3 "$work/overwrite.py" "$volume/copy" C 0 1048576 100)"
note "private: $(on node2 python3 "$work/overwrite.py" "$volume/copy" C 0 1048576 100)"
on node3 python3 "$work/overwrite.py" "$volume/image" I 4096 1048576 100 >/dev/null
cat >"$work/expect.py" <<'PY'
import os, sys
volume, size = sys.argv[1], int(sys.argv[2])
files = [open(f"{volume}/{name}", "rb", buffering=0) for name in ("image", "copy", "cp")]
for at in range(size):
    image, copy, plain = (os.pread(f.fileno(), 1 << 20, at << 20) for f in files)
    if at < 100:
        assert copy[:4096] == b"C" * 4096 and image[4096:8192] == b"I" * 4096, at
        assert plain[:4096] == image[:4096] and plain[4096:8192] == copy[4096:8192], at
        image = copy = plain[:8192] + plain[8192:]
    assert image == copy == plain, at
PY
sed -i 's/        image = copy = .*/        image, copy, plain = image[8192:], copy[8192:], plain[8192:]/' "$work/expect.py"
for node in node1 node2 node3; do on "$node" python3 "$work/expect.py" "$volume" "$size" || die "$node reads what it should not"; done

say "what is unaligned, little, or onto itself; programs notice nothing"
on node1 python3 - "$volume" <<'PY'
import errno, os, sys
volume = sys.argv[1]
a = os.open(f"{volume}/image", os.O_RDWR)
b = os.open(f"{volume}/odd", os.O_RDWR | os.O_CREAT, 0o644)
for offset, into, length in [(1, 0, 300000), (0, 7, 300000), (0, 0, 10), (0, 0, 300001), (4096, 8192, 131072)]:
    os.ftruncate(b, 0)
    done = 0
    while done < length:
        got = os.copy_file_range(a, b, length - done, offset + done, into + done)
        assert got > 0
        done += got
    assert os.pread(b, length, into) == os.pread(a, length, offset), (offset, into, length)
    assert os.fstat(b).st_size == into + length
try:
    os.copy_file_range(b, b, 131072, 0, 4096)
    raise SystemExit("copied onto itself")
except OSError as error:
    assert error.errno == errno.EINVAL
PY

say "the coordinator dies, a node reads on; one file goes, the others stay"
lab kill node1 csvd
lab coordinator 2
on node2 python3 "$work/expect.py" "$volume" "$size" || die "after the takeover node2 reads what it should not"
on node2 rm "$volume/image"
on node3 python3 - "$volume" "$size" <<'PY'
import os, sys
volume, size = sys.argv[1], int(sys.argv[2])
copy, plain = (open(f"{volume}/{name}", "rb", buffering=0) for name in ("copy", "cp"))
for at in range(size):
    one, other = os.pread(copy.fileno(), 1 << 20, at << 20), os.pread(plain.fileno(), 1 << 20, at << 20)
    assert one[4096:] == other[4096:], at
PY
on node2 csvctl volume check volume1
lab start node1 csvd
end_clean

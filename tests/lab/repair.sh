#!/usr/bin/env bash
# An administrator and a volume that gets damaged: each time something is broken first, the check has to say so, the repair to put it
# right, and every file to be there with its content. While it is served: checked, copied, looked into, and grown.
source "$(dirname "$0")/cluster.sh"

lun=iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1
docs=$csvfs_root/docs/csvctl.md
fields() { python "$csvfs_root/tests/admin/json_fields.py" "$docs" "$@"; }
ctl() { on node1 csvctl "$@"; }
# says CODE PATTERN COMMAND...: what csvctl prints matches, and it ends with CODE.
says() {
  local expected=$1 pattern=$2 code=0
  shift 2
  words=$(ctl "$@" 2>&1) || code=$?
  grep -qE -- "$pattern" <<<"$words" || { echo "$words"; die "csvctl $* does not say '$pattern'"; }
  [[ $code == "$expected" ]] || { echo "$words"; die "csvctl $* ends with $code, not $expected"; }
}
comes() { wait_for 60 "node1: csvctl status to say '$1'" grep_status "$1" || { echo "$words"; die "it does not"; }; }
grep_status() {
  words=$(ctl status 2>&1) || true
  grep -qE -- "$1" <<<"$words"
}
check() { says "$1" "$2" volume check "$lun"; }
repair() { says "$1" "$2" volume check "$lun" --repair --work-dir "$work/repair" "${@:3}"; }
repaired() {
  repair 0 'was repaired and is clean' --yes "$@"
  check 0 'The volume is clean'
}

# spoil OFFSET [BYTES]: something else is there on the LUN, whose disk is a file.
spoil() {
  python - "$image" "$1" "${2:-512}" <<'END'
import os, sys
with open(sys.argv[1], "r+b") as lun:
    lun.seek(int(sys.argv[2]))
    lun.write(bytes((i * 37 + 11) % 256 for i in range(int(sys.argv[3]))))
    os.fsync(lun.fileno())
END
}
# fact NAME: a number of superblock A.
fact() { ctl volume dump "$lun" --superblock --json | python -c 'import json, sys; print(json.load(sys.stdin)["superblocks"]["A"][sys.argv[1]])' "$1"; }
chunk() { fact chunks | tr -d '[],' | cut -d' ' -f1; }
# content: one sum of all files, as node1 reads them.
content() { on node1 sh -c 'cd "$1" && find . -path ./lost+found -prune -o -type f -print | LC_ALL=C sort | xargs -d "\n" md5sum | md5sum' - "$volume"; }
same_content() {
  lab mount >/dev/null
  [[ $(content) == "$sum" ]] || die "the content of files is not what it was"
  [[ ! -e $volume/lost+found ]] || die "something is in lost+found"
  lab umount >/dev/null
}

lab up --nodes 2 --size 1G
image=$(head -n 1 "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/san/luns")
lab format
lab mount
on node1 sh -c 'mkdir -p "$1/a/b"; for i in $(seq 200); do echo "content $i" >"$1/a/f$i"; done
  dd if=/dev/urandom of="$1/big" bs=1M count=16 status=none; ln "$1/big" "$1/a/hard"; ln -s big "$1/a/soft"; sync' - "$volume"
sum=$(content)

say "while it is served"
says 0 'The volume is clean' volume check volume1
ctl volume check volume1 --json 2>/dev/null | fields 'volume check'
says 0 'and on the LUN' volume backup-catalog volume1
ctl volume backup-catalog volume1 --json | fields 'volume backup-catalog'
copy=$(ctl volume backup-catalog volume1 --json | python -c 'import json, sys; print(json.load(sys.stdin)["file"])')
repair 4 'node 1 may be coordinating it' --yes
repair 4 'node 2 has it mounted' --yes
repair 4 'csvctl volume stop NAME' --yes
says 4 'csvctl volume grow NAME' volume grow "$lun"
says 0 'name=f7 ' volume dump volume1 --path /a/f7
says 0 'state=written' volume dump volume1 --map /big
says 0 'inodes: 20[0-9]' volume dump volume1 --catalog
lab umount >/dev/null
says 5 'csvd does not run' volume check volume1

say "nothing is broken: nothing is repaired"
repair 0 'there is nothing to be repaired' --dry-run

say "superblock A"
spoil 0
check 3 'PROBLEM: superblock A'
repair 3 'superblock A is written anew' --dry-run
check 3 'PROBLEM: superblock A'
repaired
same_content

say "superblocks A and B"
spoil 0
spoil $((8 << 20))
check 3 'ADVICE: .*superblocks of volume volume1 anew, from superblock C'
repair 3 'all superblocks of volume volume1 are made from superblock C' --dry-run
repair 4 'node 1 may be coordinating it' --yes
repair 4 'all superblocks of volume volume1 are made' --fence
check 3 'no csvfs volume|neither superblock'
repaired --fence
same_content

say "a page of the catalog, and the header of a chunk"
spoil $(($(chunk) + 4096 * 20 + 1024))
check 3 'page 20 .*checksum is wrong'
repair 3 'checksum is wrong' --dry-run
repaired
same_content
spoil "$(chunk)"
check 3 'there is no chunk header'
repaired
same_content

say "the catalog says other blocks are free than are"
cp "$copy" "$work/repair-changed.db"
python - "$work/repair-changed.db" <<'END'
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1])
catalog.execute("UPDATE groups SET bitmap = zeroblob(length(bitmap)), free = 16384, longest_free = 16384 "
                "WHERE id = (SELECT max(id) FROM groups)")
catalog.execute("UPDATE kv SET value = value + 7 WHERE key = 'free'")
catalog.commit()
END
ctl volume check "$lun" --repair --work-dir "$work/repair" --from "$work/repair-changed.db" --dry-run --json >"$work/plan" || true
fields 'volume check --repair' <"$work/plan"
grep -qE 'bitmap|free' "$work/plan" || { cat "$work/plan"; die "the wrong bitmap was not found"; }
repaired --from "$work/repair-changed.db"
same_content

say "the log, in its middle: the volume stays closed, and what was answered is there after the repair"
lab mount >/dev/null
on node1 sh -c 'for i in $(seq 50); do echo "later $i" >"$1/a/later$i"; done; sync' - "$volume"
sum=$(content)
lab kill node1 csvd
spoil $(($(fact wal_offset) + 32 + 4120 * 9 + 2000)) 64
lab start node1 csvd
comes 'log is damaged: frame 10 '
lab umount >/dev/null 2>&1 || true
check 3 'log is damaged: frame 10 '
repair 3 'frames of committed changes lie behind it' --dry-run
repair 4 'node 1 ' --yes
repaired --fence
same_content

say "everything: no superblock, no catalog; from the copy on the LUN, and from csvd's"
for from in copy "$copy"; do
  note "from $from"
  place=$(chunk)
  tail=$(($(stat -c %s "$image") - 16384))
  for at in 0 $((8 << 20)) "$tail"; do spoil "$at" 16384; done
  spoil "$place" $((2 << 20))
  check 3 'ADVICE: .*--repair --from copy'
  # Something of the catalog may be left in the log, or nothing.
  words=$(ctl volume check "$lun" --repair --work-dir "$work/repair" --dry-run 2>&1) || true
  grep -q -- '--from copy' <<<"$words" || { echo "$words"; die "the copy is not spoken of"; }
  repaired --fence --from "$from"
  lab mount >/dev/null
  [[ $(on node1 cat "$volume/a/f7") == 'content 7' ]] || die "a file is not what it was in the copy"
  on node1 cmp "$volume/big" "$volume/a/hard"
  sum=$(content)
  lab umount >/dev/null
done

say "the LUN is enlarged: grown offline, and while it is served"
before=$(fact data_size)
lab san stop
truncate -s 1280M "$image"
lab san start
says 0 'more' volume grow "$lun"
(($(fact data_size) == before + (256 << 20))) || die "the volume has not grown by 256 MiB"
check 0 'The volume is clean'
lab mount >/dev/null
lab san stop
truncate -s 1536M "$image"
lab san start
# A name is there once the coordinator has written it: so it is back.
on node2 timeout 60 sh -c 'touch "$1/back" && rm "$1/back"' - "$volume" || die "the volume is not back"
says 0 '256 MiB more' volume grow volume1
says 1 'enlarge it at the target first' volume grow volume1
[[ $(content) == "$sum" ]] || die "the content of files is not what it was"
on node2 dd if=/dev/zero of="$volume/fills" bs=1M count=700 oflag=direct status=none || die "the new space cannot be written"
on node2 rm "$volume/fills"
says 0 'The volume is clean' volume check volume1
end_clean
say "whatever was broken was found and put right"

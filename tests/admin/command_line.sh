#!/usr/bin/env bash
# What csvctl can do, its manual, its page and its completion say the same; and what it prints as JSON is as documented.
# Needs no privileges: volumes are images. Usage: command_line.sh BUILD
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH=$build:$PATH
failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }
python() { if [[ -x /usr/bin/python3 ]]; then /usr/bin/python3 "$@"; else python3 "$@"; fi; }

# --- every command and option is in the manual, every command in docs/csvctl.md
manual=$(sed 's/\\f[A-Z]//g; s/\\-/-/g; s/[".]//g' "$root/packaging/man/csvctl.8")
while read -r line; do
  words=()
  for word in $line; do
    case $word in
      --*) grep -q -- "$word" <<<"$manual" || fail "csvctl.8 has no $word (of: $line)" ;;
      [A-Z]*) ;;
      *) words+=("$word") ;;
    esac
  done
  grep -q -- "csvctl ${words[*]}" <<<"$manual" || fail "csvctl.8 has no 'csvctl ${words[*]}'"
  grep -q -- "csvctl ${words[*]}" "$root/docs/csvctl.md" || fail "docs/csvctl.md has no 'csvctl ${words[*]}'"
  "$build/csvctl" "${words[@]}" --help >"$work/help" || fail "csvctl ${words[*]} --help"
  grep -q "${words[-1]}" "$work/help" || fail "csvctl ${words[*]} --help does not say what it is of"
done < <(csvctl completion --list)
(($(csvctl completion --list | wc -l) > 10)) || fail "csvctl completion --list lists next to nothing"
for option in $(csvfs --help | grep -oE -- '--[a-z-]+' | sort -u); do
  sed 's/\\-/-/g' "$root/packaging/man/csvfs.8" | grep -q -- "$option" || fail "csvfs.8 has no $option"
done

# --- completion
csvctl completion >"$work/completion" && bash -n "$work/completion" || fail "the completion is no bash"
completes() {  # completes EXPECTED WORD...: the last word is being typed
  local expected=$1 got
  shift
  got=$(bash -c 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _csvctl; echo "${COMPREPLY[*]}"' \
    - "$work/completion" "$@")
  [[ " $got " == *" $expected "* ]] || fail "'$*' completes to '$got', without '$expected'"
}
completes volume csvctl vol
completes format csvctl volume f
completes --cluster-id csvctl volume format --cl
completes --follow csvctl events --
completes clear csvctl --config /x reservation c
for line in $(csvfs --help | grep -oE -- '--[a-z-]+' | sort -u); do
  grep -q -- "$line" "$root/packaging/csvfs.bash-completion" || fail "the completion of csvfs has no $line"
done

# --- versions and wrong words
for program in csvctl csvd csvfs; do
  [[ $("$build/$program" --version) =~ ^$program\ [0-9]+\.[0-9]+ ]] || fail "$program --version"
done
code=0; csvctl volume frobnicate >/dev/null 2>&1 || code=$?
[[ $code == 2 ]] || fail "wrong words end with $code, not 2"

# --- what is installed, and where: below DESTDIR only; and systemd understands the units
DESTDIR=$work/root cmake --install "$build" >"$work/installed" || fail "cmake --install: $(tail -n 3 "$work/installed")"
for name in csvd.service csvfs@.service csvctl.8 csvd.8 csvfs.8 mount.csvfs.8 csvd.toml.5 csvfs.conf csvd.toml.example; do
  [[ $(find "$work/root" -name "$name" -type f | wc -l) == 1 ]] || fail "$name is not installed"
done
for helper in mount.csvfs mount.fuse.csvfs umount.csvfs umount.fuse.csvfs; do
  at=$(readlink "$work/root/usr/sbin/$helper") && [[ -x $work/root$at ]] || fail "$helper leads nowhere"
done
grep -rq '@[A-Z_]*@' "$work/root"/*/lib/systemd "$work/root"/*/*/lib/systemd 2>/dev/null && fail "a unit has a placeholder"
if command -v systemd-analyze >/dev/null; then
  mkdir "$work/units"
  for unit in csvd.service csvfs@.service; do
    sed "s|=\\(/[a-z/]*s\\?bin/[a-z.]* \\?\\)|=$work/root\\1|" "$(find "$work/root" -name "$unit")" >"$work/units/$unit"
  done
  mv "$work/units/csvfs@.service" "$work/units/csvfs@v.service"
  rm "$work/root/usr/sbin/umount.csvfs" && cp "$build/csvctl" "$work/root/usr/sbin/umount.csvfs"
  words=$(systemd-analyze verify --man=no "$work"/units/* 2>&1) && [[ -z $words ]] || fail "systemd-analyze verify: $words"
fi
for page in "$root"/packaging/man/*; do
  ! command -v man >/dev/null || words=$(LC_ALL=C.UTF-8 MANWIDTH=100 man --warnings -l "$page" 2>&1 >/dev/null) && [[ -z ${words:-} ]] ||
    fail "$page: $words"
done

# --- JSON, of what works on a bare LUN
json() { local command=$1; shift; csvctl "$@" --json >"$work/out" || fail "csvctl $*"
  python "$root/tests/admin/json_fields.py" "$root/docs/csvctl.md" "$command" <"$work/out" || fail "fields of $command"; }
truncate -s 1G "$work/volume.img"
lun=file:$work/volume.img
csvctl volume format "$lun" --name v --cluster-id 5 >/dev/null 2>&1 || fail "format"
json 'volume check' volume check "$lun"
json 'reservation show' reservation show "$lun"
echo content >"$work/file"
csvctl fs put "$work/file" / --lun "$lun" || fail "put"
csvctl fs ls --lun "$lun" --json | python -c 'import json, sys; print(json.dumps({"entries": json.load(sys.stdin)}))' |
  python "$root/tests/admin/json_fields.py" "$root/docs/csvctl.md" 'fs ls' || fail "fields of fs ls"
csvctl cluster ca create --cluster-id 5 --dir "$work/ca" >/dev/null &&
  csvctl cluster ca issue --node 1 --name n --dir "$work/ca" --out "$work/tls" >/dev/null || fail "cluster ca"
json 'cluster ca show' cluster ca show "$work/ca/ca.crt" "$work/tls/node.crt"

# --- files without a mount
fs() { local what=$1; shift; csvctl fs "$what" "$@" --lun "$lun" 2>"$work/words"; }
refuses() {  # refuses WORDS COMMAND...: ends with 1, says so
  local words=$1 code=0
  shift
  "$@" >/dev/null || code=$?
  [[ $code == 1 ]] && grep -q "$words" "$work/words" || fail "'$*' ended with $code and said: $(<"$work/words")"
}
names() { fs ls "$@" --json | python -c 'import json, sys; print(*sorted(e["name"] for e in json.load(sys.stdin)))'; }
head -c 300000 /dev/urandom >"$work/large"
fs mkdir /a || fail "mkdir: $(<"$work/words")"
fs mkdir -p /a /b/c/d || fail "mkdir -p: $(<"$work/words")"
refuses 'a' fs mkdir /a
fs put "$work/large" /b/c/d/large || fail "put below: $(<"$work/words")"
cmp <(fs cat /b/c/d/large /file) <(cat "$work/large" "$work/file") || fail "cat of two files"
refuses 'missing' fs cat /b/missing
mkdir "$work/got"
fs get /b /file "$work/got" || fail "get: $(<"$work/words")"
cmp "$work/got/b/c/d/large" "$work/large" && cmp "$work/got/file" "$work/file" || fail "get did not get it all"
refuses 'missing' fs get /missing "$work/got"
[[ $(names /) == "a b file" ]] || fail "the root has $(names /)"

# --- what lies on it
json 'volume dump' volume dump "$lun" --superblock --slots --catalog --table entries --inode 1 --path /b/c --map /b/c/d/large
python - "$work/out" <<'PYTHON' || fail "the dump is not of this volume"
import json, sys
out = json.load(open(sys.argv[1]))
assert out["superblocks"]["A"]["label"] == "v" and out["superblocks"]["A"]["cluster"] == 5, out["superblocks"]
assert {slot["role"] for slot in out["slots"]} >= {"coordinator", "mount"}, out["slots"]
assert out["table"]["name"] == "entries"
assert sorted(row["name"] for row in out["table"]["rows"]) == ["a", "b", "c", "d", "file", "large"], out["table"]
assert out["catalog"]["rows"]["entries"] == 6 and out["catalog"]["numbers"]["inodes"] == 7, out["catalog"]
assert out["inode"]["inode"]["id"] == 1 and out["path"]["names"][0]["name"] == "c", out
assert sum(piece["length"] for piece in out["map"] if piece["state"] == "written") == 74 * 4096, out["map"]
PYTHON
csvctl volume dump "$lun" --inode 99999 >/dev/null 2>"$work/words" && fail "an inode that is none was dumped"
grep -q 'no inode 99999' "$work/words" || fail "said: $(<"$work/words")"
csvctl volume dump "$lun" --table none >/dev/null 2>"$work/words" && fail "a table that is none was dumped"
grep -q 'no table none' "$work/words" || fail "said: $(<"$work/words")"

refuses 'b' fs rm /b
fs rm /file || fail "rm: $(<"$work/words")"
[[ $(names /) == "a b" ]] || fail "after rm the root has $(names /)"
fs rm -r /b /a || fail "rm -r: $(<"$work/words")"
[[ -z $(names /) ]] || fail "after rm -r the root has $(names /)"
refuses 'file' fs rm /file
csvctl volume check "$lun" >"$work/words" 2>&1 || fail "after all that: $(<"$work/words")"

# --- what formatting would destroy is asked for: of nobody that is no, and of people what they say
fs put "$work/file" /kept || fail "put: $(<"$work/words")"
format=(csvctl volume format "$lun" --name other --cluster-id 6)
answered() {  # answered WORD COMMAND...: with a terminal, on which WORD is typed at the question
  python - "$@" <<'PYTHON'
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
seen = b""
try:
    while chunk := os.read(terminal, 4096):
        asked = b"Type yes" in seen
        seen += chunk
        if not asked and b"Type yes" in seen:
            os.write(terminal, sys.argv[1].encode() + b"\n")
except OSError:
    pass  # the terminal's other end is closed
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
PYTHON
}
sum=$(sha256sum "$work/volume.img")
code=0; "${format[@]}" >"$work/words" 2>&1 </dev/null || code=$?
[[ $code == 4 ]] && grep -q 'volume' "$work/words" && grep -q -- '--yes formats it' "$work/words" ||
  fail "format over a volume ended with $code and said: $(<"$work/words")"
code=0; answered no "${format[@]}" >"$work/words" 2>&1 || code=$?
[[ $code == 4 ]] && grep -q 'Nothing was changed' "$work/words" || fail "format, answered no: $code, $(<"$work/words")"
[[ $(sha256sum "$work/volume.img") == "$sum" ]] || fail "a format that nobody confirmed changed the LUN"
answered yes "${format[@]}" >"$work/words" 2>&1 || fail "format, answered yes: $(<"$work/words")"
[[ -z $(names /) ]] || fail "after the format the root has $(names /)"
csvctl volume format "$lun" --name v --cluster-id 5 --yes >/dev/null 2>&1 || fail "format --yes"

# --- volume add: the file keeps its comments; what is wrong changes nothing
cat >"$work/csvd.toml" <<'TOML'
# what somebody wrote
[cluster]
id = 5
[node]
id = 1   # ours
name = "n"
listen = "127.0.0.1:7400"
TOML
cp "$work/csvd.toml" "$work/before"
chmod 640 "$work/csvd.toml"
ctl() { csvctl --config "$work/csvd.toml" --socket "$work/no-socket" "$@"; }
! ctl volume add other "$lun" >/dev/null 2>"$work/words" || fail "a volume by another name was added"
grep -q 'holds volume v, not other' "$work/words" || fail "said: $(<"$work/words")"
cmp -s "$work/before" "$work/csvd.toml" || fail "a failed add changed the file"
ctl volume add v "$lun" --coordinate >/dev/null 2>&1 || fail "volume add"
diff "$work/before" "$work/csvd.toml" | grep -q '^<' && fail "volume add took lines away"
[[ $(stat -c %a "$work/csvd.toml") == 640 ]] || fail "volume add changed the mode"
[[ $(ctl volume list --names) == v ]] || fail "volume list --names"
! ctl volume add v "$lun" >/dev/null 2>"$work/words" || fail "a volume was added twice"
grep -q 'already configured' "$work/words" || fail "said: $(<"$work/words")"
ctl volume list --json 2>/dev/null | python "$root/tests/admin/json_fields.py" "$root/docs/csvctl.md" 'volume list' ||
  fail "fields of volume list"
sed -i 's/^id = 5/id = 6/' "$work/before" && cp "$work/before" "$work/csvd.toml"
! ctl volume add v "$lun" >/dev/null 2>"$work/words" && grep -q 'belongs to cluster 5' "$work/words" ||
  fail "a volume of another cluster was added"
code=0; ctl status >/dev/null 2>&1 || code=$?
[[ $code == 5 ]] || fail "status without csvd ends with $code, not 5"

((failures == 0)) && echo "all as documented"
exit $((failures > 0))

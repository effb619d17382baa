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

#!/usr/bin/env bash
# What programs do on a mount: each kind works in a folder of its own and checks what it did.
# Usage: work.sh KIND FOLDER SOURCE SCALE     KIND: git, sqlite, tar, images; SCALE 1 is small, 10 is large
#        work.sh verify-KIND FOLDER SOURCE SCALE     later, and on any node: is all as KIND left it?
source "$(dirname "$0")/common.sh"

lib=$(dirname "${BASH_SOURCE[0]}")
kind=$1 folder=$(realpath -m "$2") source=$(realpath "$3") scale=$4

# Some real files below $source, as paths relative to it; the same ones in every run.
some_files() {
  local wanted=$1 all
  all=$(cd "$source" && find . -type f -size -256k -size +0 -print | LC_ALL=C sort)
  head -n "$wanted" <<<"$all"
}

git() {
  GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_PAGER='' \
    command git -c user.name=csvfs -c user.email=csvfs@localhost -c gc.auto=0 -C "$repository" "$@"
}

work_git() {
  local commit file
  mkdir -p "$repository"
  git init -q
  some_files $((300 * scale)) | (cd "$source" && copy_named "$repository")
  git add -A
  git commit -q -m "real files"
  for ((commit = 1; commit <= 5 * scale; commit++)); do
    while read -r file; do echo "change $commit" >>"$repository/$file"; done \
      < <(git ls-files | awk -v n="$commit" 'NR % 17 == n % 17')
    file=$(git ls-files | sed -n "$((commit * 3))p")
    git mv "$file" "$file.moved-$commit"
    git rm -q -f "$(git ls-files | sed -n "$((commit * 5))p")"
    git add -A
    git commit -q -m "change $commit"
    echo "commit $commit of $((5 * scale))"
  done
  git branch side HEAD~2
  git gc -q --prune=now
  verify_git
}
verify_git() {
  git fsck --full --strict
  [[ -z $(git status --porcelain) ]] || { git status --short | head; die "the working tree is not what was committed"; }
  [[ $(git rev-list --count HEAD) == $((5 * scale + 1)) ]] || die "commits are missing"
  # Every file read again, whatever the index believes about it.
  diff <(git ls-tree -r HEAD | awk '{ print $3 }') <(git ls-tree -r --name-only HEAD | git hash-object --stdin-paths) ||
    die "files differ from what was committed"
}
# The files named on standard input, with their folders.
copy_named() { tar -c -T - | tar -x --no-same-owner -C "$1"; }

work_sqlite() {
  local writer rows=$((200 * scale)) writers=() status=0
  mkdir -p "$folder"
  sqlite3 "$database" 'PRAGMA page_size=4096; CREATE TABLE t(writer, number, content, sum, PRIMARY KEY(writer, number));
                       CREATE INDEX by_content ON t(content);' >/dev/null
  for writer in 1 2 3; do
    for ((number = 1; number <= rows; number += 20)); do
      echo "BEGIN IMMEDIATE;"
      echo "WITH RECURSIVE n(i) AS (SELECT $number UNION ALL SELECT i + 1 FROM n WHERE i < $number + 19)
            INSERT INTO t SELECT $writer, i, hex(randomblob(150)), '' FROM n;"
      echo "UPDATE t SET sum = length(content) || substr(content, 1, 8) WHERE writer = $writer AND number >= $number;"
      echo "DELETE FROM t WHERE writer = $writer AND number % 10 = 7; COMMIT;"
    done | sqlite3 -bail -cmd '.timeout 120000' "$database" &
    writers+=($!)
  done
  for writer in "${writers[@]}"; do wait "$writer" || status=1; done
  ((status == 0)) || die "a writer failed"
  sqlite3 "$database" 'VACUUM;'
  verify_sqlite
}
verify_sqlite() {
  local rows
  [[ $(sqlite3 "$database" 'PRAGMA integrity_check;') == ok ]] || die "the integrity check failed"
  [[ $(sqlite3 "$database" "SELECT count(*) FROM t WHERE sum != length(content) || substr(content, 1, 8);") == 0 ]] ||
    die "rows do not match their sums"
  rows=$(sqlite3 "$database" 'SELECT count(*) FROM t;')
  [[ $rows == $((3 * 200 * scale * 9 / 10)) ]] || die "$rows rows instead of $((3 * 200 * scale * 9 / 10))"
  echo "$rows rows, all well"
}

work_tar() {
  mkdir -p "$folder/out"
  some_files $((400 * scale)) >"$folder/list"
  tar -c -C "$source" -T "$folder/list" -f "$folder/archive.tar"
  tar -x -p -C "$folder/out" -f "$folder/archive.tar"
  verify_tar
}
verify_tar() {
  tar -d -C "$folder/out" -f "$folder/archive.tar"
  tar -d -C "$source" -f "$folder/archive.tar"
  sed 's,^\./,,' "$folder/list" >"$folder/names"
  python "$lib/compare_trees.py" "$source" "$folder/out" --only "$folder/names"
}

work_images() {
  local size=$((32 * scale)) common
  mkdir -p "$folder"
  fallocate -l "${size}M" "$folder/preallocated"
  truncate -s "${size}M" "$folder/sparse"
  common=(--ioengine=libaio --direct=1 --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --group_reporting
    --size="${size}M" --fallocate=none --output-format=terse)
  fio --name=preallocated --filename="$folder/preallocated" --rw=randwrite --bs=4k "${common[@]}" >/dev/null
  echo "preallocated image: written at random and verified"
  fio --name=sparse --filename="$folder/sparse" --rw=randwrite --bsrange=4k-256k --io_size=$((size / 2))M \
    "${common[@]}" >/dev/null
  echo "sparse image: written at random and verified"
  fio --name=buffered --filename="$folder/buffered" --rw=write --bs=100k --ioengine=psync --verify=crc32c \
    --verify_fatal=1 --verify_state_save=0 --size="$((size / 2))M" --fallocate=none --output-format=terse >/dev/null
  [[ $(stat -c %s "$folder/sparse") == $((size << 20)) ]] || die "the sparse image changed its size"
  (cd "$folder" && sha256sum preallocated sparse buffered >sums)
}
verify_images() { (cd "$folder" && sha256sum --quiet --check sums && echo "3 images unchanged"); }

repository=$folder/repository
database=$folder/database
case $kind in
  git | sqlite | tar | images) "work_$kind" ;;
  verify-git | verify-sqlite | verify-tar | verify-images) "verify_${kind#verify-}" ;;
  *) die "no such kind of work: $kind" ;;
esac

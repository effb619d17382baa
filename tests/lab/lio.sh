#!/usr/bin/env bash
# What a Lun promises, and what is known of LIO, against LIO.
CSVFS_LAB_TARGET=lio
export CSVFS_LAB_TARGET
source "$(dirname "$0")/cluster.sh"

lab up --nodes 1 --size 64M
url=iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1
suite() { timeout 300 "$csvfs_root/scripts/lab" --name "$lab_name" exec node1 env CSV_LIO_URL="$url" "$csvfs_build/tests/iscsi_test" -m "$@"; }

say "the promises of a Lun"
suite --test-case='lio:*'
say "a disk that writes slowly"
lab san slow 128K
suite --test-case='slow lio:*'
lab san slow off

say "what the target kept of its registrations when its machine was lost"
suite --test-case='lio before its end:*'
lab san restart
suite --test-case='lio after its end:*'

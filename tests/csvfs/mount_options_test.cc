#include "csvfs/mount_options.h"

#include <doctest/doctest.h>
#include <sys/mount.h>

using namespace csv;

TEST_CASE("mount options: the known ones, the last of two that contradict, and no others") {
  CHECK(parse_mount_options({})->flags == 0);
  CHECK(parse_mount_options({"ro", "nosuid", "nodev", "noexec", "noatime"})->flags ==
        (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME));
  CHECK(parse_mount_options({"ro", "rw"})->flags == 0);
  CHECK_FALSE(parse_mount_options({"ro"})->shared_mappings);
  CHECK(parse_mount_options({"shared_mmap"})->shared_mappings);
  CHECK_FALSE(parse_mount_options({"allow_root"}));
}

TEST_CASE("mount options: a remount shows in the table of mounts") {
  const std::string table =
      "22 1 8:1 / / rw,relatime - ext4 /dev/x rw\n"
      "90 22 0:50 / /clusterstorage/a\\040b rw,noatime - fuse.csvfs v rw\n"
      "91 22 0:51 / /clusterstorage/c rw,relatime - fuse.csvfs w rw\n";
  CHECK_FALSE(keeps_access_times(table, "/clusterstorage/a b"));
  CHECK(keeps_access_times(table, "/clusterstorage/c"));
}

#include "csvfs/mount_options.h"

#include <doctest/doctest.h>
#include <sys/mount.h>

using namespace csv;

TEST_CASE("mount options: the known ones, the last of two that contradict, and no others") {
  MountFlags made;
  CHECK_FALSE(made.shared_mappings);
  for (const auto* option : {"ro", "nosuid", "nodev", "noexec", "noatime"})
    CHECK(apply_mount_option(made, option));
  CHECK(made.flags == (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME));
  CHECK(apply_mount_option(made, "rw"));
  CHECK(made.flags == (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME));
  CHECK(apply_mount_option(made, "shared_mmap"));
  CHECK(made.shared_mappings);
  CHECK(apply_mount_option(made, "noshared_mmap"));
  CHECK_FALSE(made.shared_mappings);
  CHECK_FALSE(apply_mount_option(made, "allow_root"));
}

TEST_CASE("mount options: a remount shows in the table of mounts") {
  const std::string table =
      "22 1 8:1 / / rw,relatime - ext4 /dev/x rw\n"
      "90 22 0:50 / /clusterstorage/a\\040b rw,noatime - fuse.csvfs v rw\n"
      "91 22 0:51 / /clusterstorage/c rw,relatime - fuse.csvfs w rw\n";
  CHECK_FALSE(keeps_access_times(table, "/clusterstorage/a b"));
  CHECK(keeps_access_times(table, "/clusterstorage/c"));
}

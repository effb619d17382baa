// How csvfs understands mount(8), umount(8) and the kernel's list of mounts.
#include "csvfs/mount_command.h"

#include <doctest/doctest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "csvfs/mount_lock.h"
#include "csvfs/mount_table.h"

using namespace csv;

namespace {

using Words = std::vector<std::string>;

struct Folder {
  std::string path;
  Folder() {
    std::string name = "/tmp/csvfs-lock-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("mount.csvfs: what mount(8) passes is understood") {
  auto asked = parse_mount_command(
      {"volume1", "/mnt/a b", "-sfnv", "-o", "ro,noexec,_netdev,x-systemd.requires=csvd.service"},
      true);
  REQUIRE(asked);
  CHECK(asked->volume == "volume1");
  CHECK(asked->mountpoint == "/mnt/a b");
  CHECK(asked->fake);
  CHECK(asked->verbose);
  CHECK_FALSE(asked->foreground);
  CHECK(asked->options.flags.flags == (MS_RDONLY | MS_NOEXEC));
}

TEST_CASE("mount.csvfs: the last word holds, also across several -o, -r and -w") {
  auto asked = parse_mount_command({"v", "/m", "-r", "-o", "nosuid,rw", "-o", "suid,nodev"}, true);
  REQUIRE(asked);
  CHECK(asked->options.flags.flags == MS_NODEV);
}

TEST_CASE("mount.csvfs: an option that csvfs does not have is refused by its name, unless -s") {
  for (const auto* option : {"usrquota", "rootcontext=x", "sync", "mand", "timeout=0", "timeout=x",
                             "timeout=99999", "config=", "roo"}) {
    CAPTURE(option);
    auto asked = parse_mount_command({"v", "/m", "-o", std::string{"ro,"} + option}, true);
    REQUIRE_FALSE(asked);
    CHECK(asked.error() == Errc::refused);
    auto name = std::string{option}.substr(0, std::string{option}.find('='));
    CHECK(asked.error().message().find(name) != std::string::npos);
  }
  CHECK(parse_mount_command({"v", "/m", "-s", "-o", "usrquota,sync"}, true));
}

TEST_CASE("mount.csvfs: what fstab, systemd and a remount say to themselves is passed over") {
  MountOptions to;
  CHECK(add_mount_options(to,
                          "defaults,nofail,auto,noauto,_netdev,x-systemd.automount,X-mount.mkdir,"
                          "comment=x,users,relatime,user_id=0,group_id=0,default_permissions,"
                          "allow_other,max_read=1048576,,dirsync"));
  CHECK(to.flags.flags == 0);
  CHECK(add_mount_options(to, "remount,timeout=7,config=/x,log=/y"));
  CHECK(to.remount);
  CHECK(to.ready_within == 7s);
  CHECK(to.config_file == "/x");
  CHECK(to.log_file == "/y");
}

TEST_CASE("csvfs: -f stays in the foreground, the place has a default, and paths are no volumes") {
  auto asked = parse_mount_command({"-f", "volume1"}, false);
  REQUIRE(asked);
  CHECK(asked->foreground);
  CHECK_FALSE(asked->fake);
  CHECK(asked->mountpoint == "/clusterstorage/volume1");
  CHECK(asked->options.log_file == "/run/csvfs/mount-volume1.log");
  for (const auto& words : {Words{}, Words{"a", "b", "c"}, Words{"../x"}, Words{"/dev/sdb", "/m"},
                            Words{"v", "-o"}, Words{"v", "--what"}, Words{"v", "-N", "ns"}})
    CHECK_FALSE(parse_mount_command(words, false));
}

TEST_CASE("umount.csvfs: what umount(8) passes is understood") {
  auto asked = parse_umount_command({"/m", "-lfr", "-v", "-t", "fuse.csvfs"});
  REQUIRE(asked);
  CHECK(asked->mountpoint == "/m");
  CHECK((asked->lazy && asked->force && asked->read_only && asked->verbose));
  CHECK_FALSE(asked->if_mounted);
  asked = parse_umount_command({"--if-mounted", "/m"});
  REQUIRE(asked);
  CHECK((asked->if_mounted && asked->mountpoint == "/m"));
  for (const auto& words : {Words{}, Words{"a", "b"}, Words{"a", "--what"}, Words{"a", "-t"}})
    CHECK_FALSE(parse_umount_command(words));
}

TEST_CASE("mount table: of several mounts at one place the last is seen; names are decoded") {
  auto table = parse_mount_table(
      "22 1 0:20 / /mnt/with\\040space rw - tmpfs tmpfs rw\n"
      "broken line\n"
      "36 22 0:51 / /mnt/with\\040space rw,relatime shared:7 master:1 - fuse.csvfs volume1 rw\n"
      "40 22 0:52 / /other rw - fuse.csvfs volume2 rw\n");
  REQUIRE(table.size() == 3);
  auto there = mounted_at(table, "/mnt/with space");
  REQUIRE(there);
  CHECK(there->id == 36);
  CHECK(there->source == "volume1");
  CHECK_FALSE(mounted_at(table, "/mnt"));
  CHECK(mounts_of(table, "volume2").size() == 1);
  CHECK(mounts_of(table, "tmpfs").empty());
}

TEST_CASE("mount table: a path is made absolute without looking at its last part") {
  Folder folder;
  std::filesystem::create_directory(folder.path + "/real");
  std::filesystem::create_symlink("real", folder.path + "/link");
  auto real = std::filesystem::canonical(folder.path).string() + "/real";
  CHECK(without_touching(folder.path + "/link/../link/volume1/") == real + "/volume1");
  CHECK(without_touching("/nowhere/at/all") == "/nowhere/at/all");
}

TEST_CASE("mount table: who has a file open is found by the mount, not by names") {
  // The file system under /proc/self: whatever is mounted last above the folder.
  Folder folder;
  auto file = folder.path + "/open";
  auto* stream = std::fopen(file.c_str(), "w");
  REQUIRE(stream != nullptr);
  std::optional<MountEntry> mount;
  for (const auto& each : mount_table())
    if (folder.path.starts_with(each.mountpoint) &&
        (!mount || each.mountpoint.size() >= mount->mountpoint.size()))
      mount = each;
  REQUIRE(mount);
  mount->mountpoint = "/somewhere else";  // so that only mnt_id tells
  bool found = false;
  for (const auto& user : users_of(*mount, true))
    if (user.pid == ::getpid()) found = user.how.starts_with("writes to /");
  CHECK(found);
  std::fclose(stream);
}

TEST_CASE("mount lock: one holder, whose words the others read, until its process has ended") {
  Folder folder;
  CHECK_FALSE(MountLock::holder("v", folder.path));
  auto lock = MountLock::take("v", folder.path);
  REQUIRE(lock);
  REQUIRE(*lock);
  auto child = ::fork();
  if (child == 0) {
    (*lock)->write({.pid = ::getpid(), .mountpoint = "/m", .end = {}});
    ::pause();
    ::_exit(0);
  }
  while (MountLock::read("v", folder.path).pid == 0) ::sched_yield();
  lock->reset();  // the child has inherited it
  auto second = MountLock::take("v", folder.path);
  REQUIRE(second);
  CHECK_FALSE(*second);
  auto holder = MountLock::holder("v", folder.path);
  REQUIRE(holder);
  CHECK(holder->pid == child);
  CHECK(holder->mountpoint == "/m");
  CHECK_FALSE(wait_for_end(child, 1ms));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(wait_for_end(child, 1s));
  CHECK_FALSE(MountLock::holder("v", folder.path));
  auto third = MountLock::take("v", folder.path);
  REQUIRE(third);
  REQUIRE(*third);
  (*third)->write({.pid = 1, .mountpoint = "/m", .end = MountLock::kGoodEnd});
  CHECK(MountLock::read("v", folder.path).end == MountLock::kGoodEnd);
}

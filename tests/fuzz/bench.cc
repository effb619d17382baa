#include "tests/fuzz/bench.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "coordinator/volume/acl.h"
#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/check.h"
#include "iscsi/blocking_lun.h"

namespace csv::fuzz {
namespace {

using volume::Catalog;

constexpr std::uint64_t kWalSize = 4ull << 20;
constexpr std::uint64_t kPart = 64ull << 10;

iscsi::RamDiskOptions disk_options() {
  iscsi::RamDiskOptions options;
  options.geometry.block_count = kLunSize / options.geometry.block_size;
  return options;
}

template <typename F>
void change(Catalog& catalog, F body) {
  Catalog::Change one;
  one.body = [&](Catalog& on) -> Expected<void> {
    body(on);
    return {};
  };
  CSV_CHECK(catalog.run({&one, 1}));
}

void fill(Catalog& on) {
  auto directory = *on.make(kRootInode, "folder", {.mode = S_IFDIR | 0755}, 1000);
  for (int i = 0; i < 30; ++i)
    (void)on.make(directory.inode, "file" + std::to_string(i), {.mode = S_IFREG | 0644}, 1000);
  auto file = *on.make(kRootInode, "file", {.mode = S_IFREG | 0644}, 1000);
  auto runs = *on.reserve_space(file.inode, 64, 0, 8);
  CSV_CHECK(on.place(file.inode, 0, runs, volume::BlockState::written, {}));
  CSV_CHECK(on.grow(file.inode, 64 * 4096, 1000));
  CSV_CHECK(on.fill(file.inode, 100, 16));
  CSV_CHECK(on.set_xattr(file.inode, "user.a", "value", 0, 1000));
  CSV_CHECK(on.link(file.inode, directory.inode, "link", 1000));
  CSV_CHECK(on.make(kRootInode, "symlink", {.mode = S_IFLNK | 0777, .target = "file"}, 1000));
  auto clone = *on.make(kRootInode, "clone", {.mode = S_IFREG | 0644}, 1000);
  CSV_CHECK(on.clone(file.inode, 8, 32, clone.inode, 0));
  CSV_CHECK(on.clone(file.inode, 16, 32, clone.inode, 40));
  CSV_CHECK(on.grow(clone.inode, 72 * 4096, 1000));
}

/// Rows that a coordinator finds when it takes over.
void hold(Catalog& on) {
  auto session = *on.new_session(NodeId{2}, 77);
  volume::AdmissionRow row;
  row.key = make_key({kCluster, NodeId{2}, KeyRole::mount, *on.new_key_number()});
  row.session = session.id;
  row.node = NodeId{2};
  row.incarnation = 77;
  row.state = volume::AdmissionState::admitted;
  CSV_CHECK(on.put_admission(row));
  CSV_CHECK(on.put_slot(session.id, 3, {.sequence = 1, .reply = "x"}));
  auto file = *on.lookup(kRootInode, "file");
  auto grant = *on.new_grant(session.id, file.inode);
  auto runs = *on.reserve_space(file.inode, 16, 0, 8);
  CSV_CHECK(on.place(file.inode, 200, runs, volume::BlockState::granted, grant));
  auto orphan = *on.make(kRootInode, "orphan", {.mode = S_IFREG | 0644}, 1000);
  CSV_CHECK(orphan.nlink == 1 && on.unlink(kRootInode, "orphan", 1000));
}

/// Rows of an administrator and of a node that was fenced.
void give_lists(Catalog& on) {
  using Tag = volume::Acl::Tag;
  auto entry = [](Tag tag, std::uint16_t permissions, std::uint32_t id = ~0u) {
    std::string out;
    for (std::uint32_t value :
         {std::uint32_t{static_cast<std::uint16_t>(tag)} | permissions << 16, id})
      for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(value >> shift);
    return out;
  };
  auto list = std::string{"\2\0\0\0", 4} + entry(Tag::owner, 6) + entry(Tag::user, 6, 1000) +
              entry(Tag::group, 4) + entry(Tag::mask, 4) + entry(Tag::others, 4);
  auto file = *on.lookup(kRootInode, "file"), folder = *on.lookup(kRootInode, "folder");
  CSV_CHECK(on.set_xattr(file.inode, std::string{volume::kAccessAcl}, list, 0, 1000));
  CSV_CHECK(on.set_xattr(folder.inode, std::string{volume::kDefaultAcl}, list, 0, 1000));
}
void suspend(Catalog& on) {
  volume::SuspendedRow row;
  row.node = NodeId{3};
  row.session = (*on.new_session(NodeId{3}, 78)).id;
  row.incarnation = 78;
  row.listed = true;
  row.files[on.lookup(kRootInode, "file")->inode] = {};
  CSV_CHECK(on.suspend(row));
}

/// Its groups are found by the catalog itself, as in a backup.
Image::Copy take_copy(volume::CatalogStore& store, Catalog& catalog, std::uint32_t slot,
                      std::vector<std::byte>& file) {
  volume::CatalogCopy target;
  target.slot = slot;
  target.sequence = slot + 1;
  target.taken_at = WallTime{1'700'000'000'000'000'000 + slot};
  change(catalog, [&](Catalog& on) {
    auto& space = volume::copy_space(on);
    target.places = *space.copy_places(slot, *space.pages() + 64);
  });
  CSV_CHECK(target.places.size() == 1);
  CSV_CHECK(catalog.checkpoint());
  auto taker = *volume::CopyTaker::begin(store, target);
  file.assign(taker->copy().pages * volume::disk::kPageSize, {});
  for (;;) {
    auto pieces = *taker->next();
    if (pieces.empty()) break;
    for (const auto& piece : pieces)
      std::copy_n(piece.content.data(), piece.content.size(),
                  file.data() + (piece.page - 1ull) * volume::disk::kPageSize);
  }
  CSV_CHECK(taker->finish());
  return {target.places.front(), taker->copy().pages};
}

Image make_image(bool copies) {
  fakes::ManualLoop loop;
  Turns turns{loop};
  auto disk = iscsi::RamDisk::create(disk_options(), &loop);
  auto lun = *disk->connect(loop, {});
  iscsi::BlockingLun io{*lun, turns};
  volume::FormatOptions how;
  how.label = "volume1";
  how.cluster = kCluster;
  how.wal_size = kWalSize;
  how.claim_space = false;
  Random random{7};
  Image image;
  auto made = volume::format(io, how, random, WallTime{1'700'000'000'000'000'000});
  CSV_CHECK(made);
  image.info = *made;
  {
    auto store = *volume::open_catalog_store(io, image.info, random);
    auto catalog = *Catalog::open(*store);
    change(*catalog, fill);
    if (copies) {
      change(*catalog, give_lists);
      for (std::uint32_t i = 0; i < volume::kCopySlots; ++i)
        image.copies.push_back(take_copy(*store, *catalog, i, image.file));
    }
    CSV_CHECK(catalog->checkpoint());
    // What follows stays in the log: recovery has something to do.
    change(*catalog, hold);
    if (copies) change(*catalog, suspend);
    image.info = store->info();
  }
  std::vector<std::byte> part(kPart);
  for (std::uint64_t at = 0; at < kLunSize; at += kPart) {
    disk->peek(at, part);
    if (std::any_of(part.begin(), part.end(), [](std::byte b) { return b != std::byte{}; }))
      image.parts.emplace_back(at, part);
  }
  return image;
}

}  // namespace

const Image& image() {
  static const Image made = make_image(false);
  return made;
}

const Image& image_with_copies() {
  static const Image made = make_image(true);
  return made;
}

std::shared_ptr<iscsi::RamDisk> disk_of(const Image& image, fakes::ManualLoop& loop) {
  auto disk = iscsi::RamDisk::create(disk_options(), &loop);
  for (const auto& [at, bytes] : image.parts) disk->poke(at, bytes);
  return disk;
}

}  // namespace csv::fuzz

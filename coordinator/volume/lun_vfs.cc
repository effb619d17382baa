#include "coordinator/volume/lun_vfs.h"

#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <string_view>
#include <vector>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/claim.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/check.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr const char* kPath = "catalog";
constexpr std::string_view kWalPath = "catalog-wal";
constexpr std::size_t kShmRegion = 32 * 1024;

class LunStore;

/// SQLite's locks on the database file, between the connections of this process.
struct FileLocks {
  int shared = 0;                ///< Connections at SHARED or above.
  const void* writer = nullptr;  ///< Who is at RESERVED, PENDING or EXCLUSIVE.
  bool pending = false;          ///< The writer waits for the readers: no new ones.
};

/// The WAL index: heap memory, because all connections live in this process. Zeroed anew when the
/// first one comes, which makes SQLite recover the log.
struct SharedIndex {
  std::vector<std::unique_ptr<std::byte[]>> regions;
  std::array<int, SQLITE_SHM_NLOCK> shared{};  ///< Holders of each lock.
  std::array<bool, SQLITE_SHM_NLOCK> exclusive{};
  int users = 0;
};

/// What SQLite takes for an open file. Made in memory that SQLite owns.
struct File : sqlite3_file {
  enum class Kind { database, wal, temporary } kind = Kind::temporary;
  LunStore* store = nullptr;
  int level = SQLITE_LOCK_NONE;  ///< On the database file.
  bool uses_index = false;
  unsigned index_shared = 0, index_exclusive = 0;  ///< Bits of the index locks held.
  std::vector<std::byte>* content = nullptr;       ///< Of a temporary file.
};

class LunStore final : public CatalogStore, public CatalogImages {
 public:
  LunStore(iscsi::BlockingLun& lun, VolumeInfo info, Random& random, StoreAccess access,
           Publication publication);
  ~LunStore() override;
  Expected<void> start();

  [[nodiscard]] const char* vfs() const override { return name_.c_str(); }
  [[nodiscard]] const char* path() const override { return kPath; }
  [[nodiscard]] std::uint32_t mapped_pages() const override {
    return static_cast<std::uint32_t>(info_.chunks.size() * disk::kPagesPerChunk);
  }
  Expected<void> claim_chunk(std::uint64_t at) override;
  Expected<void> add_chunk(std::uint64_t at) override;
  Expected<std::uint32_t> begin_image() override {
    CSV_TRY(health());
    return pages_->begin_image();
  }
  Expected<std::vector<ImagePage>> more_image(std::size_t limit) override {
    CSV_TRY(health());
    return pages_->more_image(limit);
  }
  void end_image() override { pages_->end_image(); }
  [[nodiscard]] const VolumeInfo& info() const override { return info_; }
  [[nodiscard]] Expected<void> health() const override { return health_; }
  iscsi::BlockingLun& lun() override { return *lun_; }

  // For the functions SQLite calls.
  [[nodiscard]] bool read_only() const { return access_ == StoreAccess::read_only; }
  Random& random() { return *random_; }
  WalRegion& wal() { return *wal_; }
  CatalogPages& pages() { return *pages_; }
  FileLocks& locks() { return locks_; }
  SharedIndex& index() { return index_; }
  int& open_files() { return open_files_; }
  /// `code`, having kept `why` as the reason for which everything fails from now on.
  int fail(int code, const Error& why);

 private:
  Expected<void> may_be_chunk(std::uint64_t at) const;

  iscsi::BlockingLun* lun_;
  VolumeInfo info_;
  Random* random_;
  StoreAccess access_;
  Publication publication_;
  std::string name_;
  std::optional<WalRegion> wal_;
  std::optional<CatalogPages> pages_;
  FileLocks locks_;
  SharedIndex index_;
  int open_files_ = 0;
  Expected<void> health_;
  sqlite3_vfs vfs_{};
  bool registered_ = false;
};

LunStore& store_of(sqlite3_vfs* vfs) { return *static_cast<LunStore*>(vfs->pAppData); }
File& of(sqlite3_file* file) { return *static_cast<File*>(file); }

std::span<std::byte> bytes_at(void* data, int size) {
  return {static_cast<std::byte*>(data), static_cast<std::size_t>(size)};
}
std::span<const std::byte> bytes_at(const void* data, int size) {
  return {static_cast<const std::byte*>(data), static_cast<std::size_t>(size)};
}

// ---------------------------------------------------------------- temporary files, in memory

int temporary_read(File& file, std::span<std::byte> out, std::uint64_t offset) {
  auto size = file.content->size();
  auto there = offset < size ? std::min<std::size_t>(out.size(), size - offset) : 0;
  if (there > 0) std::memcpy(out.data(), file.content->data() + offset, there);
  if (there == out.size()) return SQLITE_OK;
  std::memset(out.data() + there, 0, out.size() - there);
  return SQLITE_IOERR_SHORT_READ;
}

int temporary_write(File& file, std::span<const std::byte> data, std::uint64_t offset) {
  if (file.content->size() < offset + data.size()) file.content->resize(offset + data.size());
  std::memcpy(file.content->data() + offset, data.data(), data.size());
  return SQLITE_OK;
}

// ---------------------------------------------------------------- content of files

int x_read(sqlite3_file* handle, void* data, int size, sqlite3_int64 at) {
  auto& file = of(handle);
  auto out = bytes_at(data, size);
  auto offset = static_cast<std::uint64_t>(at);
  if (file.kind == File::Kind::temporary) return temporary_read(file, out, offset);
  auto& store = *file.store;
  if (!store.health()) return SQLITE_IOERR_READ;
  auto read = file.kind == File::Kind::wal ? store.wal().read(offset, out)
                                           : store.pages().read(offset, out);
  if (!read)
    return store.fail(read.error() == Errc::corrupt ? SQLITE_IOERR_CORRUPTFS : SQLITE_IOERR_READ,
                      read.error());
  return *read == out.size() ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

int x_write(sqlite3_file* handle, const void* data, int size, sqlite3_int64 at) {
  auto& file = of(handle);
  auto in = bytes_at(data, size);
  auto offset = static_cast<std::uint64_t>(at);
  if (file.kind == File::Kind::temporary) return temporary_write(file, in, offset);
  auto& store = *file.store;
  if (store.read_only()) return SQLITE_READONLY;
  if (!store.health()) return SQLITE_IOERR_WRITE;
  auto wrote = file.kind == File::Kind::wal ? store.wal().write(offset, in)
                                            : store.pages().write(offset, in);
  return wrote ? SQLITE_OK : store.fail(SQLITE_IOERR_WRITE, wrote.error());
}

int x_truncate(sqlite3_file* handle, sqlite3_int64 to) {
  auto& file = of(handle);
  auto size = static_cast<std::uint64_t>(to);
  if (file.kind == File::Kind::temporary) {
    file.content->resize(size);
    return SQLITE_OK;
  }
  auto& store = *file.store;
  if (store.read_only()) return SQLITE_READONLY;
  if (!store.health()) return SQLITE_IOERR_TRUNCATE;
  if (file.kind == File::Kind::wal)
    store.wal().truncate(size);
  else
    store.pages().truncate(size);
  return SQLITE_OK;
}

int x_sync(sqlite3_file* handle, int) {
  auto& file = of(handle);
  if (file.kind == File::Kind::temporary) return SQLITE_OK;
  auto& store = *file.store;
  if (store.read_only()) return SQLITE_READONLY;
  if (!store.health()) return SQLITE_IOERR_FSYNC;
  bool wal = file.kind == File::Kind::wal;
  auto synced = wal ? store.wal().sync() : store.pages().sync();
  if (synced) return SQLITE_OK;
  return store.fail(SQLITE_IOERR_FSYNC,
                    synced.error().within(wal ? "writing the log" : "writing catalog pages"));
}

int x_file_size(sqlite3_file* handle, sqlite3_int64* size) {
  auto& file = of(handle);
  switch (file.kind) {
    case File::Kind::temporary: *size = static_cast<sqlite3_int64>(file.content->size()); break;
    case File::Kind::wal: *size = static_cast<sqlite3_int64>(file.store->wal().size()); break;
    case File::Kind::database:
      *size = static_cast<sqlite3_int64>(file.store->pages().size());
      break;
  }
  return SQLITE_OK;
}

// ---------------------------------------------------------------- locks of the database file

int x_unlock(sqlite3_file* handle, int level) {
  auto& file = of(handle);
  if (file.kind != File::Kind::database || file.level <= level) return SQLITE_OK;
  auto& locks = file.store->locks();
  if (locks.writer == &file) {
    locks.writer = nullptr;
    locks.pending = false;
  }
  if (level == SQLITE_LOCK_NONE) --locks.shared;
  file.level = level;
  return SQLITE_OK;
}

int x_lock(sqlite3_file* handle, int level) {
  auto& file = of(handle);
  if (file.kind != File::Kind::database || file.level >= level) return SQLITE_OK;
  auto& locks = file.store->locks();
  if (file.level == SQLITE_LOCK_NONE) {
    if (locks.pending) return SQLITE_BUSY;
    ++locks.shared;
    file.level = SQLITE_LOCK_SHARED;
    if (level == SQLITE_LOCK_SHARED) return SQLITE_OK;
  }
  if (locks.writer != nullptr && locks.writer != &file) return SQLITE_BUSY;
  locks.writer = &file;
  if (level == SQLITE_LOCK_RESERVED) {
    file.level = level;
    return SQLITE_OK;
  }
  locks.pending = true;
  file.level = SQLITE_LOCK_PENDING;
  if (locks.shared > 1) return SQLITE_BUSY;
  file.level = SQLITE_LOCK_EXCLUSIVE;
  return SQLITE_OK;
}

int x_check_reserved(sqlite3_file* handle, int* reserved) {
  auto& file = of(handle);
  *reserved = file.kind == File::Kind::database && file.store->locks().writer != nullptr;
  return SQLITE_OK;
}

// ---------------------------------------------------------------- the WAL index

int x_shm_map(sqlite3_file* handle, int number, int size, int extend, void volatile** out) {
  auto& file = of(handle);
  auto& index = file.store->index();
  CSV_CHECK(size == static_cast<int>(kShmRegion));
  if (!file.uses_index) {
    file.uses_index = true;
    ++index.users;
  }
  auto wanted = static_cast<std::size_t>(number);
  while (extend != 0 && index.regions.size() <= wanted)
    index.regions.push_back(std::make_unique<std::byte[]>(kShmRegion));
  *out = wanted < index.regions.size() ? index.regions[wanted].get() : nullptr;
  return SQLITE_OK;
}

int x_shm_lock(sqlite3_file* handle, int first, int count, int flags) {
  auto& file = of(handle);
  auto& index = file.store->index();
  auto each = [&](auto&& act) {
    for (auto i = static_cast<unsigned>(first); i < static_cast<unsigned>(first + count); ++i)
      act(i, 1u << i);
  };
  if ((flags & SQLITE_SHM_UNLOCK) != 0) {
    each([&](unsigned i, unsigned bit) {
      if ((file.index_shared & bit) != 0) --index.shared[i];
      if ((file.index_exclusive & bit) != 0) index.exclusive[i] = false;
      file.index_shared &= ~bit;
      file.index_exclusive &= ~bit;
    });
    return SQLITE_OK;
  }
  bool exclusive = (flags & SQLITE_SHM_EXCLUSIVE) != 0;
  bool busy = false;
  each([&](unsigned i, unsigned bit) {
    bool mine_shared = (file.index_shared & bit) != 0, mine = (file.index_exclusive & bit) != 0;
    if (index.exclusive[i] && !mine) busy = true;
    if (exclusive && index.shared[i] > (mine_shared ? 1 : 0)) busy = true;
  });
  if (busy) return SQLITE_BUSY;
  each([&](unsigned i, unsigned bit) {
    if (exclusive) {
      index.exclusive[i] = true;
      file.index_exclusive |= bit;
    } else if ((file.index_shared & bit) == 0) {
      ++index.shared[i];
      file.index_shared |= bit;
    }
  });
  return SQLITE_OK;
}

void x_shm_barrier(sqlite3_file*) { std::atomic_thread_fence(std::memory_order_seq_cst); }

int x_shm_unmap(sqlite3_file* handle, int) {
  auto& file = of(handle);
  if (!file.uses_index) return SQLITE_OK;
  x_shm_lock(handle, 0, SQLITE_SHM_NLOCK, SQLITE_SHM_UNLOCK);
  file.uses_index = false;
  auto& index = file.store->index();
  if (--index.users == 0) index.regions.clear();
  return SQLITE_OK;
}

// ---------------------------------------------------------------- the rest of a file

int x_close(sqlite3_file* handle) {
  auto& file = of(handle);
  x_shm_unmap(handle, 0);
  x_unlock(handle, SQLITE_LOCK_NONE);
  delete file.content;
  --file.store->open_files();
  file.~File();
  return SQLITE_OK;
}

int x_file_control(sqlite3_file*, int, void*) { return SQLITE_NOTFOUND; }
int x_sector_size(sqlite3_file*) { return static_cast<int>(disk::kPageSize); }

int x_device_characteristics(sqlite3_file*) {
  // A block of the LUN is written whole or not at all, and a write changes no other block. Nothing
  // else is claimed: the order of writes between syncs is ours to change.
  return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

const sqlite3_io_methods* io_methods() {
  static const sqlite3_io_methods methods = [] {
    sqlite3_io_methods m{};
    m.iVersion = 2;  // With shared memory, without mapped pages.
    m.xClose = x_close;
    m.xRead = x_read;
    m.xWrite = x_write;
    m.xTruncate = x_truncate;
    m.xSync = x_sync;
    m.xFileSize = x_file_size;
    m.xLock = x_lock;
    m.xUnlock = x_unlock;
    m.xCheckReservedLock = x_check_reserved;
    m.xFileControl = x_file_control;
    m.xSectorSize = x_sector_size;
    m.xDeviceCharacteristics = x_device_characteristics;
    m.xShmMap = x_shm_map;
    m.xShmLock = x_shm_lock;
    m.xShmBarrier = x_shm_barrier;
    m.xShmUnmap = x_shm_unmap;
    return m;
  }();
  return &methods;
}

// ---------------------------------------------------------------- the VFS

/// Nothing, if a file of this name and purpose does not exist here.
std::optional<File::Kind> kind_of(LunStore& store, const char* name, int flags) {
  if ((flags & SQLITE_OPEN_MAIN_DB) != 0) {
    if (name == nullptr || name != std::string_view{kPath}) return {};
    return File::Kind::database;
  }
  if ((flags & SQLITE_OPEN_WAL) != 0) return File::Kind::wal;
  // A rollback journal means a change past the log. Only the switch to the log of a database that
  // has no page yet is such a one, and needs no protection: it is not a volume yet.
  if ((flags & SQLITE_OPEN_MAIN_JOURNAL) != 0 && store.pages().size() > 0) return {};
  return File::Kind::temporary;
}

int x_open(sqlite3_vfs* vfs, const char* name, sqlite3_file* handle, int flags, int* opened) {
  auto& store = store_of(vfs);
  handle->pMethods = nullptr;
  auto kind = kind_of(store, name, flags);
  if (!kind) return SQLITE_CANTOPEN;
  auto* file = new (handle) File{};
  file->pMethods = io_methods();
  file->kind = *kind;
  file->store = &store;
  if (*kind == File::Kind::temporary) file->content = new std::vector<std::byte>;
  ++store.open_files();
  if (opened != nullptr) {
    *opened = flags;
    if (store.read_only() && *kind != File::Kind::temporary)
      *opened = (flags & ~(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE)) | SQLITE_OPEN_READONLY;
  }
  return SQLITE_OK;
}

int x_delete(sqlite3_vfs* vfs, const char* name, int) {
  auto& store = store_of(vfs);
  if (name != kWalPath) return SQLITE_OK;  // A journal, which was memory only.
  if (store.read_only()) return SQLITE_READONLY;
  if (!store.health()) return SQLITE_IOERR_DELETE;
  auto removed = store.wal().remove();
  if (removed) return SQLITE_OK;
  return store.fail(SQLITE_IOERR_DELETE, removed.error().within("emptying the log"));
}

int x_access(sqlite3_vfs* vfs, const char* name, int, int* there) {
  auto& store = store_of(vfs);
  *there = name == std::string_view{kPath} || (name == kWalPath && store.wal().size() > 0);
  return SQLITE_OK;
}

int x_full_pathname(sqlite3_vfs*, const char* name, int size, char* out) {
  sqlite3_snprintf(size, out, "%s", name);
  return SQLITE_OK;
}

int x_randomness(sqlite3_vfs* vfs, int size, char* out) {
  auto& random = store_of(vfs).random();
  for (int i = 0; i < size; ++i) out[i] = static_cast<char>(random.next());
  return size;
}

/// The catalog takes its times from its callers: SQLite's clock stands still, at the year 2000.
constexpr sqlite3_int64 kJulianMilliseconds = 211813488000000;
int x_current_time(sqlite3_vfs*, double* days) {
  *days = static_cast<double>(kJulianMilliseconds) / 86400000.0;
  return SQLITE_OK;
}
int x_current_time64(sqlite3_vfs*, sqlite3_int64* milliseconds) {
  *milliseconds = kJulianMilliseconds;
  return SQLITE_OK;
}
/// Nobody to wait for: the connections share a thread.
int x_sleep(sqlite3_vfs*, int microseconds) { return microseconds; }
int x_last_error(sqlite3_vfs*, int, char*) { return 0; }

/// SQLite draws the log's salts from one generator a process, which it seeds from the default VFS.
/// So ours is the default one while it is made to seed itself again.
void seed_sqlite(sqlite3_vfs& vfs) {
  static std::mutex mutex;
  std::lock_guard lock{mutex};
  auto* usual = sqlite3_vfs_find(nullptr);
  CSV_CHECK(sqlite3_vfs_register(&vfs, 1) == SQLITE_OK);
  unsigned char drawn = 0;
  sqlite3_randomness(0, nullptr);
  sqlite3_randomness(1, &drawn);
  CSV_CHECK(sqlite3_vfs_register(usual, 1) == SQLITE_OK);
}

LunStore::LunStore(iscsi::BlockingLun& lun, VolumeInfo info, Random& random, StoreAccess access,
                   Publication publication)
    : lun_{&lun},
      info_{std::move(info)},
      random_{&random},
      access_{access},
      publication_{publication} {
  static std::atomic<std::uint64_t> stores{0};  // Names only need to differ.
  name_ = fmt::format("csvfs-{}", ++stores);
}

LunStore::~LunStore() {
  CSV_CHECK(open_files_ == 0);
  if (registered_) sqlite3_vfs_unregister(&vfs_);
}

Expected<void> LunStore::start() {
  if (info_.chunks.empty()) return Error{Errc::corrupt, "the superblock names no catalog chunk"};
  wal_.emplace(CSV_TRY(WalRegion::open(*lun_, info_)));
  // Before anybody is told anything that stands in it, or builds on it.
  if (!read_only())
    if (auto settled = wal_->settle(); !settled) return settled.error().within("writing the log");
  pages_.emplace(CSV_TRY(CatalogPages::open(*lun_, info_)));
  vfs_.iVersion = 2;
  vfs_.szOsFile = sizeof(File);
  vfs_.mxPathname = 64;
  vfs_.zName = name_.c_str();
  vfs_.pAppData = this;
  vfs_.xOpen = x_open;
  vfs_.xDelete = x_delete;
  vfs_.xAccess = x_access;
  vfs_.xFullPathname = x_full_pathname;
  vfs_.xRandomness = x_randomness;
  vfs_.xSleep = x_sleep;
  vfs_.xCurrentTime = x_current_time;
  vfs_.xGetLastError = x_last_error;
  vfs_.xCurrentTimeInt64 = x_current_time64;
  seed_sqlite(vfs_);
  registered_ = true;
  return {};
}

int LunStore::fail(int code, const Error& why) {
  if (health_) {
    health_ = why;
    log::error("catalog failed volume={} reason=\"{}\"", info_.label, why.message());
  }
  return code;
}

Expected<void> LunStore::may_be_chunk(std::uint64_t at) const {
  CSV_TRY(health());
  if (read_only() || publication_ == Publication::unpublished)
    return Error{Errc::refused, "the catalog cannot grow here"};
  if (info_.chunks.size() == kMaxChunks)
    return Error{std::errc::no_space_on_device, "the catalog has all the chunks a volume can have"};
  auto overlaps = [at](std::uint64_t other) {
    return at < other + kChunkSize && other < at + kChunkSize;
  };
  if (at % kRegionAlignment != 0 || at < info_.data_offset ||
      at + kChunkSize > info_.data_offset + info_.data_size ||
      std::any_of(info_.chunks.begin(), info_.chunks.end(), overlaps))
    return Error{Errc::refused, fmt::format("LUN offset {} is no place for a catalog chunk", at)};
  return {};
}

Expected<void> LunStore::claim_chunk(std::uint64_t at) {
  CSV_TRY(may_be_chunk(at));
  auto claimed = claim(*lun_, at, kChunkSize);
  // What it cannot write is no place for the catalog, and nothing of the catalog was in it.
  if (!claimed && !(claimed.error() == std::errc::no_space_on_device) &&
      !is_bad_block(claimed.error()))
    fail(SQLITE_IOERR_WRITE, claimed.error().within("claiming space for a catalog chunk"));
  return claimed;
}

Expected<void> LunStore::add_chunk(std::uint64_t at) {
  CSV_TRY(may_be_chunk(at));
  auto index = static_cast<std::uint32_t>(info_.chunks.size());
  auto header = encode_chunk_header(info_.id, index, at, info_.sequence + 1);
  auto added = lun_->write(at, header.span());
  if (added) added = lun_->flush();
  if (added) {
    info_.chunks.push_back(at);
    added = write_superblocks(*lun_, info_);
  }
  if (!added) {
    fail(SQLITE_IOERR_WRITE, added.error().within(fmt::format("adding catalog chunk {}", index)));
    return health_;
  }
  log::info("catalog grew volume={} chunks={} offset={}", info_.label, info_.chunks.size(), at);
  return {};
}

}  // namespace

CatalogImages* images_of(CatalogStore& store) { return dynamic_cast<LunStore*>(&store); }

Expected<std::unique_ptr<CatalogStore>> open_store(iscsi::BlockingLun& lun, VolumeInfo info,
                                                   Random& random, StoreAccess access,
                                                   Publication publication) {
  auto store = std::make_unique<LunStore>(lun, std::move(info), random, access, publication);
  CSV_TRY(store->start());
  return std::unique_ptr<CatalogStore>{std::move(store)};
}

Expected<std::unique_ptr<CatalogStore>> open_catalog_store(iscsi::BlockingLun& lun, VolumeInfo info,
                                                           Random& random, StoreAccess access) {
  return open_store(lun, std::move(info), random, access, Publication::published);
}

}  // namespace csv::volume

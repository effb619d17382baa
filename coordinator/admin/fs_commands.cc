#include "coordinator/admin/fs_commands.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "coordinator/admin/remote_files.h"
#include "coordinator/admin/text_table.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;
using Piece = RemoteFiles::Piece;

constexpr std::size_t kPiece = 1u << 20;
/// Files under way at once: their changes share the transactions of the catalog.
constexpr int kWorkers = 16;

InodeId id_of(const wire::Attr& attr) { return InodeId{attr.inode()}; }

std::string joined(const std::string& folder, const std::string& name) {
  return folder.empty() || folder.back() == '/' ? folder + name : folder + "/" + name;
}

/// The last name of a path, as `cp` takes it.
std::string last_name(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

class File {
 public:
  explicit File(int fd) : fd_{fd} {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

std::int64_t nanoseconds(const timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}
timespec to_timespec(std::int64_t ns) {
  auto seconds = ns >= 0 ? ns / 1'000'000'000 : -((-ns + 999'999'999) / 1'000'000'000);
  return {.tv_sec = seconds, .tv_nsec = ns - seconds * 1'000'000'000};
}

/// Runs pieces of work on some threads; after the first error the rest is dropped.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
  }
  ~Pool() { (void)finish(); }

  /// Waits while too much is queued. False once something has failed.
  bool add(std::function<Expected<void>()> work) {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return queue_.size() < kMostQueued || error_; });
    if (error_) return false;
    queue_.push_back(std::move(work));
    changed_.notify_all();
    return true;
  }
  Expected<void> finish() {
    {
      std::lock_guard lock{mutex_};
      ending_ = true;
      changed_.notify_all();
    }
    for (auto& thread : threads_) thread.join();
    threads_.clear();
    if (error_) return *error_;
    return {};
  }

 private:
  static constexpr std::size_t kMostQueued = 256;

  void run() {
    std::unique_lock lock{mutex_};
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || !queue_.empty(); });
      if (queue_.empty()) return;
      auto work = std::move(queue_.front());
      queue_.pop_front();
      changed_.notify_all();
      if (error_) continue;
      lock.unlock();
      auto result = work();
      lock.lock();
      if (!result && !error_) error_ = result.error();
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<Expected<void>()>> queue_;
  std::optional<Error> error_;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

/// What a copy has done so far, said while it runs and at its end.
struct Tally {
  std::atomic<std::uint64_t> entries{0}, bytes{0}, xattrs_left_out{0};

  [[nodiscard]] std::string text() const {
    return fmt::format("{} entries, {}", entries.load(), bytes_text(bytes.load()));
  }
  void report(const std::string& done, Terminal& terminal) const {
    terminal.progress("");
    terminal.note(done + " " + text());
    if (xattrs_left_out > 0)
      terminal.note(fmt::format("csvctl: {} extended attributes could not be copied",
                                xattrs_left_out.load()));
  }
};

/// One local tree going to the volume.
class Put {
 public:
  Put(RemoteFiles& files, Terminal& terminal) : files_{&files}, terminal_{&terminal} {}

  Expected<void> copy(const std::string& local, const std::string& remote) {
    auto into = files_->find(remote);
    if (into && S_ISDIR(into->mode())) return entry(local, id_of(*into), last_name(local));
    auto [parent, name] = CSV_TRY(files_->parent_of(remote));
    return entry(local, id_of(parent), name);
  }

  /// The second names of files with several, and the times of directories, which entries change.
  Expected<void> finish() {
    CSV_TRY(pool_.finish());
    for (const auto& [id, link] : links_) {
      if (!link.first) return errno_error(ENOENT, "the first name of a file with several");
      for (const auto& [parent, name] : link.others)
        CSV_TRY(files_->link(*link.first, parent, name));
    }
    // Deepest first, as they were entered last.
    for (auto each = directories_.rbegin(); each != directories_.rend(); ++each)
      CSV_TRY(files_->change(*each));
    return {};
  }
  [[nodiscard]] const Tally& tally() const { return tally_; }

 private:
  struct Link {
    std::optional<InodeId> first;
    std::vector<std::pair<InodeId, std::string>> others;
  };

  Expected<void> entry(const std::string& local, InodeId parent, const std::string& name) {
    struct stat status {};
    if (::lstat(local.c_str(), &status) != 0) return errno_error(errno, local);
    tally_.entries++;
    terminal_->progress("putting " + tally_.text());
    if (S_ISDIR(status.st_mode)) return directory(local, status, parent, name);
    std::optional<std::pair<dev_t, ino_t>> id;
    if (status.st_nlink > 1) {
      id = {status.st_dev, status.st_ino};
      std::lock_guard lock{mutex_};
      auto [found, is_new] = links_.try_emplace(*id);
      if (!is_new) {
        found->second.others.emplace_back(parent, name);
        return {};
      }
    }
    auto work = [this, local, status, parent, name, id]() -> Expected<void> {
      auto made = one(local, status, parent, name);
      if (!made) return made.error().within(local);
      if (!id) return {};
      std::lock_guard lock{mutex_};
      links_.at(*id).first = id_of(*made);
      return {};
    };
    if (!pool_.add(std::move(work))) return pool_.finish();
    return {};
  }

  static Caller owner_of(const struct stat& status) { return {status.st_uid, status.st_gid}; }

  static wire::SetAttr attributes(const struct stat& status, const wire::Attr& of) {
    wire::SetAttr out;
    out.set_inode(of.inode());
    if (!S_ISLNK(status.st_mode)) out.set_mode(status.st_mode & 07777);
    out.set_uid(status.st_uid);
    out.set_gid(status.st_gid);
    out.set_atime(nanoseconds(status.st_atim));
    out.set_mtime(nanoseconds(status.st_mtim));
    return out;
  }

  Expected<void> directory(const std::string& local, const struct stat& status, InodeId parent,
                           const std::string& name) {
    wire::Make what;
    what.set_parent(raw(parent));
    what.set_name(name);
    what.set_mode(S_IFDIR | 0700 | (status.st_mode & 07777));
    auto made = files_->make(owner_of(status), what);
    if (!made && made.error() == std::errc::file_exists) {
      made = files_->lookup(parent, name);
      if (made && !S_ISDIR(made->mode())) return errno_error(EEXIST, name + " on the volume");
    }
    if (!made) return made.error().within("making the directory for " + local);
    CSV_TRY(xattrs(local, id_of(*made)));
    directories_.push_back(attributes(status, *made));
    std::vector<std::string> names;
    {
      auto* open = ::opendir(local.c_str());
      if (open == nullptr) return errno_error(errno, local);
      for (errno = 0; auto* found = ::readdir(open);) {
        std::string each{found->d_name};
        if (each != "." && each != "..") names.push_back(std::move(each));
      }
      auto number = errno;
      ::closedir(open);
      if (number != 0) return errno_error(number, "reading " + local);
    }
    std::sort(names.begin(), names.end());
    for (const auto& each : names) CSV_TRY(entry(joined(local, each), id_of(*made), each));
    return {};
  }

  /// Anything but a directory, on one of the pool's threads.
  Expected<wire::Attr> one(const std::string& local, const struct stat& status, InodeId parent,
                           const std::string& name) {
    wire::Make what;
    what.set_parent(raw(parent));
    what.set_name(name);
    what.set_mode(status.st_mode);
    Expected<wire::Attr> made = Errc::refused;
    if (S_ISREG(status.st_mode)) {
      made = content(local, status, what);
    } else {
      if (S_ISLNK(status.st_mode)) {
        std::string target(static_cast<std::size_t>(status.st_size) + 1, '\0');
        auto n = ::readlink(local.c_str(), target.data(), target.size());
        if (n < 0) return errno_error(errno, "reading the link");
        target.resize(static_cast<std::size_t>(n));
        what.set_target(target);
        what.set_mode(S_IFLNK | 0777);
      } else if (S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode)) {
        what.set_rdev(status.st_rdev);
      }
      made = files_->make(owner_of(status), what);
    }
    if (!made) return made;
    CSV_TRY(xattrs(local, id_of(*made)));
    CSV_TRY(files_->change(attributes(status, *made)));
    return made;
  }

  Expected<wire::Attr> content(const std::string& local, const struct stat& status,
                               const wire::Make& what) {
    File file{::open(local.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)};
    if (file.get() < 0) return errno_error(errno, "opening it");
    std::vector<std::byte> buffer(
        std::clamp<std::size_t>(static_cast<std::size_t>(status.st_size), 1, kPiece));
    off_t at = 0, hole = 0;
    auto read = [&]() -> Expected<Piece> {
      if (at >= hole) {
        at = ::lseek(file.get(), at, SEEK_DATA);
        if (at < 0 && errno == ENXIO) return Piece{};
        if (at < 0) return errno_error(errno, "looking for holes");
        hole = ::lseek(file.get(), at, SEEK_HOLE);
        if (hole < 0) return errno_error(errno, "looking for holes");
      }
      auto length = std::min<std::size_t>(buffer.size(), static_cast<std::size_t>(hole - at));
      auto n = ::pread(file.get(), buffer.data(), length, at);
      if (n < 0) return errno_error(errno, "reading it");
      Piece piece{static_cast<std::uint64_t>(at), {buffer.data(), static_cast<std::size_t>(n)}};
      at += n;
      tally_.bytes += static_cast<std::uint64_t>(n);
      return piece;
    };
    return files_->write_file(owner_of(status), what, static_cast<std::uint64_t>(status.st_size),
                              read);
  }

  Expected<void> xattrs(const std::string& local, InodeId inode) {
    auto size = ::llistxattr(local.c_str(), nullptr, 0);
    if (size <= 0) return {};  // none, or a file system without them
    std::string names(static_cast<std::size_t>(size), '\0');
    size = ::llistxattr(local.c_str(), names.data(), names.size());
    if (size < 0) return errno_error(errno, "reading extended attributes");
    names.resize(static_cast<std::size_t>(size));
    for (std::size_t at = 0; at < names.size();) {
      std::string name{names.c_str() + at};
      at += name.size() + 1;
      std::string value(64 * 1024, '\0');
      auto n = ::lgetxattr(local.c_str(), name.c_str(), value.data(), value.size());
      if (n < 0) return errno_error(errno, "reading the extended attribute " + name);
      value.resize(static_cast<std::size_t>(n));
      if (auto set = files_->set_xattr(inode, name, value); !set) tally_.xattrs_left_out++;
    }
    return {};
  }

  RemoteFiles* files_;
  Terminal* terminal_;
  Tally tally_;
  std::mutex mutex_;
  std::map<std::pair<dev_t, ino_t>, Link> links_;  // under mutex_; the workers fill in `first`
  std::vector<wire::SetAttr> directories_;
  Pool pool_{kWorkers};
};

/// One tree of the volume going to a local file system.
class Get {
 public:
  Get(RemoteFiles& files, Terminal& terminal) : files_{&files}, terminal_{&terminal} {}

  Expected<void> copy(const std::string& remote, const std::string& local) {
    auto attr = CSV_TRY(files_->find(remote));
    struct stat status {};
    auto to = local;
    if (::stat(local.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
      auto name = last_name(remote);
      if (!name.empty()) to = joined(local, name);
    }
    return entry(attr, to);
  }

  Expected<void> finish() {
    CSV_TRY(pool_.finish());
    for (const auto& [inode, link] : links_)
      for (const auto& other : link.others)
        if (::link(link.first.c_str(), other.c_str()) != 0)
          return errno_error(errno, "linking " + other);
    for (auto each = directories_.rbegin(); each != directories_.rend(); ++each)
      CSV_TRY(attributes(each->first, each->second));
    return {};
  }
  [[nodiscard]] const Tally& tally() const { return tally_; }

 private:
  struct Link {
    std::string first;
    std::vector<std::string> others;
  };

  Expected<void> entry(const wire::Attr& attr, const std::string& local) {
    tally_.entries++;
    terminal_->progress("getting " + tally_.text());
    if (S_ISDIR(attr.mode())) return directory(attr, local);
    if (attr.nlink() > 1) {
      auto [found, is_new] = links_.try_emplace(attr.inode());
      if (!is_new) {
        found->second.others.push_back(local);
        return {};
      }
      found->second.first = local;
    }
    auto work = [this, attr, local]() -> Expected<void> {
      auto got = one(attr, local);
      if (!got) return got.error().within(local);
      return {};
    };
    if (!pool_.add(std::move(work))) return pool_.finish();
    return {};
  }

  Expected<void> directory(const wire::Attr& attr, const std::string& local) {
    if (::mkdir(local.c_str(), 0700) != 0 && errno != EEXIST)
      return errno_error(errno, "making the directory " + local);
    directories_.emplace_back(attr, local);
    for (const auto& each : CSV_TRY(files_->list(id_of(attr)))) {
      auto full = each.attr;
      CSV_TRY(entry(full, joined(local, each.name)));
    }
    return {};
  }

  Expected<void> one(const wire::Attr& attr, const std::string& local) {
    auto type = attr.mode() & S_IFMT;
    if (type == S_IFREG) {
      CSV_TRY(content(attr, local));
    } else if (type == S_IFLNK) {
      auto target = CSV_TRY(files_->read_link(id_of(attr)));
      if (::symlink(target.c_str(), local.c_str()) != 0)
        return errno_error(errno, "making the link");
    } else if (::mknod(local.c_str(), static_cast<mode_t>(type | 0600),
                       static_cast<dev_t>(attr.rdev())) != 0) {
      return errno_error(errno, "making the special file");
    }
    return attributes(attr, local);
  }

  Expected<void> content(const wire::Attr& attr, const std::string& local) {
    File file{::open(local.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)};
    if (file.get() < 0) return errno_error(errno, "making it");
    CSV_TRY(files_->read_file(id_of(attr), attr.size(), [&](Piece piece) -> Expected<void> {
      while (!piece.data.empty()) {
        auto n = ::pwrite(file.get(), piece.data.data(), piece.data.size(),
                          static_cast<off_t>(piece.offset));
        if (n < 0) return errno_error(errno, "writing it");
        piece.offset += static_cast<std::uint64_t>(n);
        piece.data = piece.data.subspan(static_cast<std::size_t>(n));
        tally_.bytes += static_cast<std::uint64_t>(n);
      }
      return {};
    }));
    if (::ftruncate(file.get(), static_cast<off_t>(attr.size())) != 0)
      return errno_error(errno, "setting its size");
    return {};
  }

  Expected<void> attributes(const wire::Attr& attr, const std::string& local) {
    bool is_link = (attr.mode() & S_IFMT) == S_IFLNK;
    if (::geteuid() == 0 && ::lchown(local.c_str(), attr.uid(), attr.gid()) != 0)
      return errno_error(errno, "setting its owner");
    if (!is_link && ::chmod(local.c_str(), attr.mode() & 07777) != 0)
      return errno_error(errno, "setting its mode");
    for (const auto& name : CSV_TRY(files_->list_xattrs(id_of(attr)))) {
      auto value = CSV_TRY(files_->xattr(id_of(attr), name));
      if (::lsetxattr(local.c_str(), name.c_str(), value.data(), value.size(), 0) != 0)
        tally_.xattrs_left_out++;
    }
    timespec times[2] = {to_timespec(attr.atime()), to_timespec(attr.mtime())};
    if (::utimensat(AT_FDCWD, local.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0)
      return errno_error(errno, "setting its times");
    return {};
  }

  RemoteFiles* files_;
  Terminal* terminal_;
  Tally tally_;
  std::map<std::uint64_t, Link> links_;
  std::vector<std::pair<wire::Attr, std::string>> directories_;
  Pool pool_{kWorkers};
};

std::string mode_text(std::uint32_t mode) {
  std::string out = "?rwxrwxrwx";
  switch (mode & S_IFMT) {
    case S_IFREG: out[0] = '-'; break;
    case S_IFDIR: out[0] = 'd'; break;
    case S_IFLNK: out[0] = 'l'; break;
    case S_IFCHR: out[0] = 'c'; break;
    case S_IFBLK: out[0] = 'b'; break;
    case S_IFIFO: out[0] = 'p'; break;
    case S_IFSOCK: out[0] = 's'; break;
  }
  for (std::size_t bit = 0; bit < 9; ++bit)
    if ((mode & (0400u >> bit)) == 0) out[bit + 1] = '-';
  auto special = [&](std::uint32_t flag, std::size_t at, char letter) {
    if (mode & flag) out[at] = out[at] == 'x' ? letter : static_cast<char>(letter - 'a' + 'A');
  };
  special(S_ISUID, 3, 's');
  special(S_ISGID, 6, 's');
  special(S_ISVTX, 9, 't');
  return out;
}

std::string time_text(std::int64_t ns) {
  auto seconds = to_timespec(ns).tv_sec;
  std::tm local{};
  if (::localtime_r(&seconds, &local) == nullptr) return "?";
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &local)};
}

/// A file's name for a terminal: no control characters.
std::string printable(const std::string& name) {
  std::string out;
  for (char c : name) out += static_cast<unsigned char>(c) < 32 || c == 127 ? '?' : c;
  return out;
}

Expected<void> list(RemoteFiles& files, const FsRequest& request, std::string& out) {
  TextTable table{{"mode", "links", "uid", "gid", "size", "changed", "name"}};
  auto json = Json::array();
  auto paths = request.paths;
  if (paths.empty()) paths.emplace_back("/");
  for (const auto& path : paths) {
    auto attr = CSV_TRY(files.find(path));
    std::vector<RemoteFiles::Entry> entries;
    if (S_ISDIR(attr.mode()))
      entries = CSV_TRY(files.list(id_of(attr)));
    else
      entries.push_back({last_name(path), attr});
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    for (const auto& [name, of] : entries) {
      std::string target;
      if (S_ISLNK(of.mode())) target = CSV_TRY(files.read_link(id_of(of)));
      if (request.json)
        json.push_back({{"name", name},
                        {"inode", of.inode()},
                        {"mode", of.mode()},
                        {"links", of.nlink()},
                        {"uid", of.uid()},
                        {"gid", of.gid()},
                        {"size", of.size()},
                        {"mtime_ns", of.mtime()},
                        {"target", target}});
      table.row({mode_text(of.mode()), std::to_string(of.nlink()), std::to_string(of.uid()),
                 std::to_string(of.gid()), std::to_string(of.size()), time_text(of.mtime()),
                 printable(target.empty() ? name : name + " -> " + target)});
    }
  }
  out = request.json    ? json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
        : table.empty() ? ""
                        : table.text();
  return {};
}

Expected<void> make_directory(RemoteFiles& files, const std::string& path, bool parents) {
  auto parts = CSV_TRY(split_path(path));
  std::string above;
  auto parent = CSV_TRY(files.find(""));
  if (parts.empty() && !parents) return errno_error(EEXIST, "the root of the volume");
  for (std::size_t i = 0; i < parts.size(); ++i) {
    above += "/" + parts[i];
    bool is_last = i + 1 == parts.size();
    if (!is_last || parents) {
      auto found = files.lookup(id_of(parent), parts[i]);
      if (found && !S_ISDIR(found->mode())) return errno_error(ENOTDIR, above);
      if (found) {
        parent = *found;
        continue;
      }
      if (!(found.error() == std::errc::no_such_file_or_directory) || !parents)
        return found.error().within(above);
    }
    wire::Make what;
    what.set_parent(parent.inode());
    what.set_name(parts[i]);
    what.set_mode(S_IFDIR | 0755);
    auto made = files.make({::getuid(), ::getgid()}, what);
    if (!made) return made.error().within(above);
    parent = *made;
  }
  return {};
}

Expected<void> remove_tree(RemoteFiles& files, InodeId parent, const std::string& name,
                           const wire::Attr& attr, bool recursive) {
  bool is_directory = S_ISDIR(attr.mode());
  if (is_directory && !recursive) return errno_error(EISDIR, name + " (-r removes directories)");
  if (is_directory)
    for (const auto& each : CSV_TRY(files.list(id_of(attr))))
      CSV_TRY(remove_tree(files, id_of(attr), each.name, each.attr, true));
  auto removed = files.unlink(parent, name, is_directory);
  if (!removed) return removed.error().within("removing " + name);
  return {};
}

/// Opens the volume, does it, and closes the volume in good order whatever came of it.
ExitCode with_volume(const FsRequest& request, Terminal& terminal,
                     const std::function<Expected<void>(RemoteFiles&)>& work) {
  auto volume = EmbeddedVolume::open(request.lun, request.options);
  if (!volume) {
    terminal.note("csvctl: " + volume.error().message());
    return volume.error() == Errc::refused ? ExitCode::not_confirmed : ExitCode::failed;
  }
  RemoteFiles files{**volume};
  auto result = work(files);
  terminal.progress("");
  auto closed = (*volume)->close();
  if (!result) terminal.note("csvctl: " + result.error().message());
  if (!closed) terminal.note("csvctl: " + closed.error().message());
  return result && closed ? ExitCode::done : ExitCode::failed;
}

}  // namespace

ExitCode fs_list(const FsRequest& request, Terminal& terminal) {
  std::string out;
  auto code =
      with_volume(request, terminal, [&](RemoteFiles& files) { return list(files, request, out); });
  // After the volume was closed: a reader that goes away must not leave it open.
  terminal.out(out);
  return code;
}

ExitCode fs_make_directories(const FsRequest& request, Terminal& terminal) {
  return with_volume(request, terminal, [&](RemoteFiles& files) -> Expected<void> {
    for (const auto& path : request.paths) CSV_TRY(make_directory(files, path, request.parents));
    return {};
  });
}

ExitCode fs_put(const FsRequest& request, Terminal& terminal) {
  return with_volume(request, terminal, [&](RemoteFiles& files) -> Expected<void> {
    Put put{files, terminal};
    for (std::size_t i = 0; i + 1 < request.paths.size(); ++i)
      CSV_TRY(put.copy(request.paths[i], request.paths.back()));
    CSV_TRY(put.finish());
    put.tally().report("Put", terminal);
    return {};
  });
}

ExitCode fs_get(const FsRequest& request, Terminal& terminal) {
  return with_volume(request, terminal, [&](RemoteFiles& files) -> Expected<void> {
    Get get{files, terminal};
    for (std::size_t i = 0; i + 1 < request.paths.size(); ++i)
      CSV_TRY(get.copy(request.paths[i], request.paths.back()));
    CSV_TRY(get.finish());
    get.tally().report("Got", terminal);
    return {};
  });
}

ExitCode fs_cat(const FsRequest& request, Terminal& terminal) {
  return with_volume(request, terminal, [&](RemoteFiles& files) -> Expected<void> {
    for (const auto& path : request.paths) {
      auto attr = CSV_TRY(files.find(path));
      if (!S_ISREG(attr.mode())) return errno_error(EINVAL, path + " is not a regular file");
      std::uint64_t at = 0;
      auto zeros_to = [&](std::uint64_t offset) {
        while (at < offset) {
          std::string zeros(std::min<std::uint64_t>(offset - at, kPiece), '\0');
          terminal.out(zeros);
          at += zeros.size();
        }
      };
      CSV_TRY(files.read_file(id_of(attr), attr.size(), [&](Piece piece) -> Expected<void> {
        zeros_to(piece.offset);
        terminal.out({reinterpret_cast<const char*>(piece.data.data()), piece.data.size()});
        at += piece.data.size();
        return {};
      }));
      zeros_to(attr.size());
    }
    return {};
  });
}

ExitCode fs_remove(const FsRequest& request, Terminal& terminal) {
  return with_volume(request, terminal, [&](RemoteFiles& files) -> Expected<void> {
    for (const auto& path : request.paths) {
      auto [parent, name] = CSV_TRY(files.parent_of(path));
      auto attr = files.lookup(id_of(parent), name);
      if (!attr) return attr.error().within(path);
      CSV_TRY(remove_tree(files, id_of(parent), name, *attr, request.recursive));
    }
    return {};
  });
}

}  // namespace csv::admin

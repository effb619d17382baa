#include "coordinator/service/catalog_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "csvfs/base/log.h"

namespace csv::service {
namespace {

class File final : public CatalogFile {
 public:
  File(int fd, std::string folder, std::string name, std::size_t keep)
      : fd_{fd}, folder_{std::move(folder)}, name_{std::move(name)}, keep_{keep} {}
  ~File() override {
    ::close(fd_);
    if (!finished_) ::unlink(part().c_str());
  }

  Expected<void> write(std::uint64_t offset, std::span<const std::byte> data) override {
    while (!data.empty()) {
      auto n = ::pwrite(fd_, data.data(), data.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno_error(errno, "writing " + part());
      offset += static_cast<std::uint64_t>(n);
      data = data.subspan(static_cast<std::size_t>(n));
    }
    return {};
  }

  Expected<std::string> finish() override {
    if (::fsync(fd_) != 0) return errno_error(errno, "writing " + part());
    auto path = folder_ + "/" + name_;
    if (::rename(part().c_str(), path.c_str()) != 0) return errno_error(errno, "naming " + path);
    finished_ = true;
    int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return errno_error(errno, "opening " + folder_);
    auto synced = ::fsync(folder);
    auto why = errno;
    ::close(folder);
    if (synced != 0) return errno_error(why, "naming " + path);
    drop_old();
    return path;
  }

 private:
  [[nodiscard]] std::string part() const { return folder_ + "/" + name_ + ".part"; }

  /// By name, which is by time: the number has as many digits for the next centuries.
  void drop_old() const {
    std::error_code error;
    std::vector<std::string> names;
    for (const auto& each : std::filesystem::directory_iterator{folder_, error}) {
      auto name = each.path().filename().string();
      if (name.starts_with("catalog-") && name.ends_with(".db")) names.push_back(name);
    }
    std::sort(names.rbegin(), names.rend());
    for (std::size_t i = keep_; i < names.size(); ++i)
      std::filesystem::remove(folder_ + "/" + names[i], error);
  }

  int fd_;
  std::string folder_, name_;
  std::size_t keep_;
  bool finished_ = false;
};

}  // namespace

Expected<std::unique_ptr<CatalogFile>> make_catalog_file(const std::string& folder, WallTime now,
                                                         std::size_t keep) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Error{error, "making " + folder + ": " + error.message()};
  auto name = fmt::format("catalog-{}.db", static_cast<std::int64_t>(now) / 1'000'000'000);
  auto part = folder + "/" + name + ".part";
  int fd = ::open(part.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return errno_error(errno, "making " + part);
  return std::unique_ptr<CatalogFile>{std::make_unique<File>(fd, folder, name, keep)};
}

}  // namespace csv::service

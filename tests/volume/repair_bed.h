#pragma once
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/check.h"
#include "coordinator/volume/database.h"
#include "coordinator/volume/repair.h"
#include "tests/volume/lun_bench.h"

namespace csv::volume {

/// A formatted volume on a LUN in memory with something of everything, to be damaged and repaired.
struct RepairBed {
  explicit RepairBed(std::uint64_t mib = 768, iscsi::RamDiskOptions options = {});
  ~RepairBed() { std::filesystem::remove_all(directory); }
  RepairBed(const RepairBed&) = delete;
  RepairBed& operator=(const RepairBed&) = delete;

  /// Runs `body` on the opened catalog; nothing is copied back from the log afterwards unless
  /// `checkpoint`.
  void use(const std::function<void(Catalog&)>& body, bool checkpoint = true);
  /// One change that must succeed.
  static void change(Catalog& catalog, const std::function<Expected<void>(Catalog&)>& body);
  /// Changes the database behind the catalog's back, and copies it back from the log.
  void sql(const std::string& statements);
  /// The one number that a query of the database answers.
  std::int64_t value(const char* query);
  /// Every path of the volume, and all that the catalog says of it but for places and times.
  std::map<std::string, std::string> files();
  /// What the check finds, each on a line.
  std::string problems();
  std::unique_ptr<Repair> prepare(RepairOptions options = {});
  /// Repairs, and requires that the volume is clean afterwards.
  std::unique_ptr<Repair> repair(RepairOptions options = {});
  std::string work_file() { return directory / ("work-" + std::to_string(++works) + ".db"); }
  [[nodiscard]] std::string id(const std::string& name) const {
    return std::to_string(raw(inodes.at(name)));
  }
  VolumeInfo info();
  /// Adds a chunk to the catalog's three.
  VolumeInfo grow_catalog();
  /// A log that was copied back and yet lies there would hide what happens to pages.
  void empty_log();

  LunBench bench;
  Random random{1};
  std::filesystem::path directory;
  std::map<std::string, InodeId> inodes;
  int works = 0;
};

}  // namespace csv::volume

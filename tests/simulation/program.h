#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csvfs/base/buffer.h"
#include "tests/simulation/workload.h"

namespace csv::sim {

/// A program on a node that works in one playground: it chooses by its own random numbers, and has
/// everything it sees judged.
class Program {
 public:
  Program(Workload& workload, Playground& ground, std::size_t node, Csvfs& csvfs,
          std::uint64_t seed);
  ~Program();

  Task<void> run();
  Task<void> look_at_everything();
  Task<void> remove_everything();

 private:
  class Call;
  struct Open {
    Mount::Handle handle{};
    Number inode = 0;
    SessionId session{};
    Duration since{};
  };

  Task<void> think(Duration most);
  Task<void> work_with_names();
  Task<void> work_with_what_is_rare();
  Task<void> work_with_images();
  Task<void> work_with_logs();

  Task<std::optional<Outcome>> lookup(Number parent, std::string name);
  Task<std::optional<Outcome>> attr(Number inode);
  Task<std::optional<Outcome>> list(Number directory);
  Task<void> list_in_pieces(Number directory);
  Task<void> make(Number parent, std::string name, Op::Kind kind);
  Task<void> make_special(Number parent, std::string name);
  Task<void> make_nameless(Number parent);
  Task<void> link(Number inode, Number parent, std::string name);
  Task<void> remove(Number parent, std::string name, bool directory);
  Task<void> rename();
  Task<void> chmod(Number inode);
  Task<void> chown(Number inode);
  Task<void> set_times(Number inode);
  Task<void> read_link(Number inode);
  Task<void> set_xattr(Number inode, std::string name, std::string value, std::uint32_t flags);
  Task<void> set_xattr(Number inode);
  Task<void> set_access_list(Number inode, const char* name);
  Task<void> look_at_xattr(Number inode, std::string name = "user.k");
  Task<void> remove_xattr(Number inode, std::string name = "user.k");
  Task<void> statistics();
  Task<void> truncate(Number inode, std::uint64_t size);
  Task<void> create(Number parent, std::string name);
  Task<void> open(Number inode);
  Task<void> close(std::size_t at);
  Task<void> write(std::size_t at, std::uint64_t offset, std::uint64_t length);
  Task<std::uint64_t> read(std::size_t at, std::uint64_t offset, std::uint32_t length);
  Task<void> allocate(std::size_t at, std::uint32_t mode, std::uint64_t offset,
                      std::uint64_t length);
  Task<void> clone(std::size_t at, std::size_t into);
  Task<void> seek(std::size_t at, std::uint64_t offset, bool data);
  Task<void> sync(std::size_t at);
  Task<void> look_at_mapping(std::size_t at, std::uint64_t offset, std::size_t length);
  Task<void> store_into_mapping(std::size_t at, std::uint64_t offset, std::size_t length);
  Task<void> append(std::size_t at, std::size_t length);
  Task<void> read_log(std::size_t at);

  /// Gives `outcome` to the judge; an EIO must be explained by the end of `session`.
  Task<void> finish(Call& call, Outcome outcome, SessionId session);
  /// From now on the mtime of that file may change by what is written here.
  void writes(Number inode) { ground_.writers[inode].insert(csvfs_.incarnation()); }
  Mount& mount() { return csvfs_.mount(); }
  SessionId session() { return csvfs_.mount().state().session; }
  Number any_directory();
  Number any_file();  ///< The playground itself if none is known.
  std::optional<Number> any_regular();
  std::string any_name();
  void learn(Number number, std::uint32_t mode);
  void look_at_ctime(const wire::Attr& attr, Duration began);
  std::optional<std::size_t> any_open();
  std::optional<std::size_t> handle_of(Number inode) const;
  bool is_open(Number inode);  ///< Under the session that lives.
  Open opened(std::size_t at);
  bool goes_on(const Open& open);
  /// Whether the EIO of a sync, or of a durable write, says that content was lost.
  bool tells_of_loss(const Open& open, const Call& call, bool durable_write);

  Workload& workload_;
  Playground& ground_;
  std::size_t node_;
  Csvfs& csvfs_;
  Random random_;
  std::string name_;
  std::vector<Number> directories_, files_;
  std::set<Number> not_regular_;  ///< Those among files_.
  std::vector<Open> open_;
};

}  // namespace csv::sim

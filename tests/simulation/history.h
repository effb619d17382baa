#pragma once
#include <bitset>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace csv::sim {

/// An inode number as the file system under test gave it.
using Number = std::uint64_t;

/// What a program asked of one playground (a directory and all below it).
struct Op {
  enum class Kind {
    lookup,
    attr,
    list,
    list_in_pieces,
    read_link,
    xattr,
    seek,
    read,  // look
    make_file,
    make_nameless,
    make_directory,
    make_symlink,
    make_special,
    link,
    unlink,
    rmdir,  // change
    rename,
    chmod,
    chown,
    set_times,
    truncate,
    write,
    append,
    set_xattr,
    remove_xattr,
  };
  Kind kind{};
  Number parent = 0, inode = 0, new_parent = 0;
  std::string name, new_name, text;  ///< text: target, value.
  std::uint32_t mode = 0, flags = 0;
  std::uint32_t uid = 0, gid = 0;
  std::uint64_t rdev = 0;
  std::uint64_t offset = 0, length = 0;
  std::optional<std::int64_t> atime, mtime;  ///< Below kClocks.
  bool open = false;                         ///< The program holds `inode` open: it cannot be gone.
  /// Of a look at the attributes: at the times, too. Of set_times: nothing that was written before
  /// can still be on its way into the mtime.
  bool times = false;
  [[nodiscard]] bool changes() const { return kind >= Kind::make_file; }
};
std::string describe(const Op& op);

/// What it was answered.
struct Outcome {
  int error = 0;
  Number inode = 0;
  std::uint32_t mode = 0;  ///< With the type.
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0, gid = 0;
  std::uint64_t rdev = 0;
  std::int64_t atime = 0, mtime = 0;
  std::uint64_t size = 0;    ///< Of a seek: where it led to.
  std::uint64_t length = 0;  ///< Of a read.
  std::string text;
  struct Entry {
    std::string name;
    Number inode = 0;
    std::uint32_t mode = 0;
    std::uint64_t size = 0;
  };
  std::vector<Entry> entries;
};
std::string describe(const Outcome& outcome);

/// Times that programs set are before this, and those of clocks, however wrong, after it.
inline constexpr std::int64_t kClocks = 1'000'000'000'000'000'000;

inline constexpr const char* kAccessList = "system.posix_acl_access";
inline constexpr const char* kDefaultList = "system.posix_acl_default";

/// An access control list with at most one user who is named, as the kernel passes it.
struct AccessList {
  std::uint32_t owner = 0, group = 0, others = 0;
  struct Named {
    std::uint32_t user = 0, mask = 0;
  };
  std::optional<Named> named;
  [[nodiscard]] std::string encode() const;
  static AccessList decode(std::string_view bytes);
  [[nodiscard]] std::uint32_t mode() const;
};

/// Decides whether what programs on several nodes saw of one playground can be explained by the
/// file system having done their operations one at a time, each at some moment between its call and
/// its answer (linearizability; a write that makes a file longer may do so in steps). Operations
/// of which no answer will come may have been done at any moment since, or never.
///
/// It keeps all explanations that are still possible: a state of the tree, and what was done early.
/// Content is judged elsewhere (content.h).
class History {
 public:
  using Id = std::uint64_t;
  explicit History(Number root);

  Id begin(Op op);
  /// False: nothing can explain this answer; why() says what was expected.
  bool end(Id id, const Outcome& outcome);
  /// It was refused for want of something that is not known here, and so did nothing. False as with
  /// end().
  bool refuse(Id id);
  /// It did only so much of what it began with. False as with end().
  bool shorten(Id id, std::uint64_t length);
  /// Nobody will hear the answer. It may still happen, until settle() says that it cannot.
  void abandon(Id id);
  /// Nothing more will come of it: it was done before now, or never will be.
  void settle(Id id);
  [[nodiscard]] const std::string& why() const { return why_; }
  /// So much was under way at once that there are too many explanations to keep: from here on
  /// nothing is judged.
  [[nodiscard]] bool gave_up() const { return gave_up_; }

  /// Sizes the file can have now, in any explanation.
  struct Sizes {
    std::uint64_t least = 0, most = 0;
  };
  [[nodiscard]] Sizes sizes(Number inode) const;
  [[nodiscard]] std::size_t explanations() const { return configs_.size(); }
  [[nodiscard]] std::size_t pending() const { return pending_.size(); }
  /// Forgets files without names which nobody in `open` uses. Only while nothing is pending.
  void forget_orphans(const std::set<Number>& open);

 private:
  using Node = std::uint64_t;  ///< Our own name of an inode: the operation that made it.
  /// Stands for a value wherever values are compared: equal ones have equal digests, and that two
  /// different ones have is less likely than that the machine fails.
  struct Digest {
    std::uint64_t one = 0x9e3779b97f4a7c15ull, two = 0xc2b2ae3d27d4eb4full;
    void add(std::uint64_t value);
    void add(std::string_view text);
    void add(const Digest& other) { add(other.one), add(other.two); }
    auto operator<=>(const Digest&) const = default;
  };
  /// As a program set it, or (0) of a clock. It is doubtful whether a write has replaced it.
  struct Time {
    std::int64_t set = 0;
    bool doubtful = false;
    void written() { doubtful = set != 0; }
    [[nodiscard]] bool shows_as(std::int64_t time) const {
      auto shown = time < kClocks ? time : 0;
      return shown == set || (doubtful && shown == 0);
    }
    bool operator==(const Time&) const = default;
  };
  struct Inode {
    char type = 'f';
    std::uint32_t mode = 0;
    std::uint64_t size = 0;
    std::uint32_t links = 0;
    std::uint32_t uid = 0, gid = 0;
    std::uint64_t rdev = 0;
    bool nameless = false;  ///< And may be given a name.
    Time atime, mtime;
    std::map<std::string, Node> entries;
    Node parent = 0;
    std::string target;
    std::map<std::string, std::string> xattrs;
    [[nodiscard]] Digest digest() const;
  };
  class Errnos {
   public:
    Errnos() = default;
    Errnos(std::initializer_list<int> errors) { insert(errors); }
    void insert(int error) { set_.set(static_cast<std::size_t>(error)); }
    void insert(std::initializer_list<int> errors) {
      for (auto error : errors) insert(error);
    }
    void merge(const Errnos& more) { set_ |= more.set_; }
    [[nodiscard]] bool contains(int error) const {
      return error >= 0 && error < kMost && set_.test(static_cast<std::size_t>(error));
    }
    [[nodiscard]] bool empty() const { return set_.none(); }
    [[nodiscard]] std::vector<int> all() const;

   private:
    static constexpr int kMost = 192;
    std::bitset<kMost> set_;
  };
  /// What an operation would be answered in one state.
  struct Expect {
    Errnos errors;  ///< 0: success is possible.
    Node node = 0;
    char type = 0;
    std::uint32_t mode = 0, links = 0, uid = 0, gid = 0;
    std::uint64_t rdev = 0;
    std::optional<std::pair<Time, Time>> times;  ///< Of access and modification, where asked for.
    std::uint64_t least = 0, most = 0;           ///< Size.
    bool any = false;  ///< Of what is gone, and may linger: whatever it says.
    std::string text;
    struct Entry {
      std::string name;
      Node node = 0;
      char type = 0;
      std::uint32_t mode = 0;
      std::uint64_t least = 0, most = 0;
    };
    std::vector<Entry> entries;
    [[nodiscard]] Digest digest() const;
  };
  /// Many explanations have it in common.
  struct SharedExpect {
    explicit SharedExpect(Expect first)
        : digest{first.digest()}, value{std::make_shared<const Expect>(std::move(first))} {}
    Digest digest;
    std::shared_ptr<const Expect> value;
    bool operator<(const SharedExpect& other) const { return digest < other.digest; }
  };
  /// What a pending look could have seen.
  class Seen {
   public:
    void insert(SharedExpect expect);
    void merge(const Seen& more);
    [[nodiscard]] bool includes(const Seen& less) const;
    [[nodiscard]] auto begin() const { return all_.begin(); }
    [[nodiscard]] auto end() const { return all_.end(); }
    [[nodiscard]] const Digest& digest() const { return digest_; }

   private:
    void weigh();
    std::vector<SharedExpect> all_;  ///< In order, each once.
    Digest digest_;
  };
  /// Copies share inodes until one is changed.
  class Tree {
   public:
    struct Place {
      Node node = 0;
      Number number = 0;  ///< 0: nobody has been told yet.
      struct Held {
        Inode inode;
        std::optional<Digest> digest;
      };
      std::shared_ptr<Held> held;
    };
    [[nodiscard]] const Inode& at(Node node) const { return find(node).held->inode; }
    Inode& at(Node node);
    void make(Node node, Inode inode);
    void erase(Node node);
    [[nodiscard]] Number number(Node node) const { return find(node).number; }
    void set_number(Node node, Number number);
    [[nodiscard]] std::optional<Node> node_of(Number number) const;
    [[nodiscard]] const std::vector<Place>& places() const { return places_; }
    [[nodiscard]] const Digest& digest() const;

   private:
    [[nodiscard]] const Place& find(Node node) const;
    std::vector<Place> places_;  ///< By node.
    mutable std::optional<Digest> digest_;
  };
  /// Copies share it until one is changed: most operations only look.
  class SharedTree {
   public:
    explicit SharedTree(Tree first) : tree_{std::make_shared<Tree>(std::move(first))} {}
    const Tree* operator->() const { return tree_.get(); }
    const Tree& operator*() const { return *tree_; }
    Tree& mine() {
      if (tree_.use_count() > 1) tree_ = std::make_shared<Tree>(*tree_);
      return *tree_;
    }

   private:
    std::shared_ptr<Tree> tree_;
  };
  struct Config {
    SharedTree tree;
    std::map<Id, SharedExpect> done;  ///< Changes made, and not answered yet.
    std::map<Id, Seen> seen;          ///< By pending looks.
  };
  struct Key {
    Digest tree, done, seen;
    auto operator<=>(const Key&) const = default;
  };
  static Key key_of(const Config& config);
  using Configs = std::map<Key, Config>;
  static void put(Configs& into, Config config);
  struct Pending {
    Op op;
    bool abandoned = false;
  };

  [[nodiscard]] std::optional<Node> node_of(const Config& config, Number number) const;
  [[nodiscard]] Expect look(const Config& config, const Op& op) const;
  Expect change(Config& config, Id id, const Op& op) const;
  Expect changed(Config& config, Id id, const Op& op) const;
  void do_early(Config& config, Id id, const Pending& pending) const;
  void keep(Configs configs);
  void give_up();
  void note_size(const Config& config, Node node, std::uint64_t& least, std::uint64_t& most) const;
  void see(Config& config) const;
  bool matches(Config& config, const Op& op, const Expect& expect, const Outcome& outcome) const;
  bool bind(Config& config, Node node, Number number) const;
  void note_times(Config& config, const Expect& expect, const Outcome& outcome) const;
  bool pieces_fit(const Config& config, const Seen& seen, const Outcome& outcome) const;
  /// No outcome: anything may have been the answer.
  /// False: gave up.
  bool explore(const Config& from, Id id, const Op& op, const Outcome* outcome, Configs& into,
               std::set<Key>& visited) const;
  static std::string describe(const Expect& expect);

  Configs configs_;
  std::map<Id, Pending> pending_;
  Id next_ = 2;  ///< 1 is the root's node.
  std::string why_;
  bool gave_up_ = false;
};

}  // namespace csv::sim

#include "csvfs/mount_command.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace csv {
namespace {

// What mount(8), fstab and systemd say to themselves; what is so anyhow (names are durable once
// they are answered: dirsync; access times are the coordinator's: relatime); and what a remount
// repeats from /proc/self/mountinfo.
constexpr auto kPassedOver = std::to_array<std::string_view>({
    "defaults",   "auto",        "noauto",
    "nofail",     "fail",        "_netdev",
    "user",       "nouser",      "users",
    "nousers",    "owner",       "noowner",
    "group",      "nogroup",     "dirsync",
    "async",      "relatime",    "norelatime",
    "nolazytime", "allow_other", "default_permissions",
});
constexpr auto kPassedOverWithValue = std::to_array<std::string_view>({
    "comment=",
    "x-",
    "X-",
    "user=",
    "user_id=",
    "group_id=",
    "max_read=",
    "blksize=",
    "fsname=",
    "subtype=",
    "rootmode=",
    "fd=",
});

template <typename List>
bool lists(const List& list, std::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

Expected<void> add_option(MountOptions& to, std::string_view word, bool sloppy) {
  auto value = [&](std::string_view key) { return std::string{word.substr(key.size())}; };
  if (apply_mount_option(to.flags, word)) return {};
  if (word == "remount") {
    to.remount = true;
  } else if (word.starts_with("config=") && word.size() > 7) {
    to.config_file = value("config=");
  } else if (word.starts_with("log=") && word.size() > 4) {
    to.log_file = value("log=");
  } else if (word.starts_with("timeout=")) {
    auto text = value("timeout=");
    int seconds = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error != std::errc{} || end != text.data() + text.size() || seconds < 1 || seconds > 3600)
      return Error{Errc::refused,
                   "timeout= wants whole seconds from 1 to 3600, not '" + text + "'"};
    to.ready_within = std::chrono::seconds{seconds};
  } else if (word == "sync" || word == "mand") {
    if (!sloppy)
      return Error{Errc::refused,
                   "csvfs cannot mount with '" + std::string{word} +
                       (word == "sync" ? "': programs that need it open files with O_SYNC"
                                       : "': there are no mandatory locks")};
  } else {
    bool passed = lists(kPassedOver, word) ||
                  std::any_of(kPassedOverWithValue.begin(), kPassedOverWithValue.end(),
                              [&](auto prefix) { return word.starts_with(prefix); });
    if (!passed && !sloppy)
      return Error{Errc::refused,
                   "csvfs does not know the mount option '" + std::string{word} +
                       "'; it has ro, rw, [no]exec, [no]suid, [no]dev, [no]atime, [no]diratime, "
                       "[no]shared_mmap, remount, timeout=SECONDS, config=FILE, log=FILE"};
  }
  return {};
}

/// The words of a command line, taken one after the other.
class Words {
 public:
  explicit Words(const std::vector<std::string>& words) : words_{words} {}
  bool next() { return ++at_ < words_.size(); }
  [[nodiscard]] const std::string& word() const { return words_[at_]; }
  Expected<std::string> value() {
    if (at_ + 1 >= words_.size()) return Error{Errc::refused, word() + " wants a value"};
    return words_[++at_];
  }
  /// Several short options in one word ("-sfnv") count as one each.
  static std::vector<std::string> apart(const std::vector<std::string>& words,
                                        std::string_view with_value) {
    std::vector<std::string> out;
    for (std::size_t i = 0; i < words.size(); ++i) {
      const auto& word = words[i];
      if (word.size() < 3 || word[0] != '-' || word[1] == '-') {
        out.push_back(word);
        // What belongs to an option is no option, whatever it looks like.
        if (word.size() == 2 && word[0] == '-' && with_value.find(word[1]) != with_value.npos &&
            i + 1 < words.size())
          out.push_back(words[++i]);
        continue;
      }
      for (std::size_t at = 1; at < word.size(); ++at) {
        out.push_back(std::string{"-"} + word[at]);
        if (with_value.find(word[at]) == with_value.npos) continue;
        if (at + 1 < word.size())
          out.push_back(word.substr(at + 1));
        else if (i + 1 < words.size())
          out.push_back(words[++i]);
        break;
      }
    }
    return out;
  }

 private:
  const std::vector<std::string>& words_;
  std::size_t at_ = static_cast<std::size_t>(-1);
};

Error other_namespace() {
  return Error{Errc::refused,
               "-N: csvfs cannot mount for another namespace; use nsenter(1) to go there"};
}

}  // namespace

std::string default_mountpoint(std::string_view volume) {
  return "/clusterstorage/" + std::string{volume};
}

Expected<void> add_mount_options(MountOptions& to, std::string_view words, bool sloppy) {
  while (!words.empty()) {
    auto end = std::min(words.find(','), words.size());
    if (end > 0) CSV_TRY(add_option(to, words.substr(0, end), sloppy));
    words.remove_prefix(std::min(end + 1, words.size()));
  }
  return {};
}

Expected<MountCommand> parse_mount_command(const std::vector<std::string>& words, bool as_helper) {
  MountCommand made;
  std::vector<std::string> places, options;
  bool sloppy = false;
  auto split = Words::apart(words, "otN");
  Words all{split};
  while (all.next()) {
    const auto& word = all.word();
    if (word == "-o" || word == "--options") {
      options.push_back(CSV_TRY(all.value()));
    } else if (word == "--config") {
      made.options.config_file = CSV_TRY(all.value());
    } else if (word == "--log") {
      made.options.log_file = CSV_TRY(all.value());
    } else if (word == "--timeout") {
      options.push_back("timeout=" + CSV_TRY(all.value()));
    } else if (word == "--foreground" || (word == "-f" && !as_helper)) {
      made.foreground = true;
    } else if (word == "--fake" || word == "-f") {
      made.fake = true;
    } else if (word == "--verbose" || word == "-v") {
      made.verbose = true;
    } else if (word == "-s") {
      sloppy = true;
    } else if (word == "-r" || word == "--read-only") {
      options.emplace_back("ro");
    } else if (word == "-w" || word == "--rw") {
      options.emplace_back("rw");
    } else if (word == "-n" || word == "-i") {
      // There is no mtab to write to, and no other helper.
    } else if (word == "-t") {
      CSV_TRY(all.value());  // The type mount(8) called us for.
    } else if (word == "-N") {
      return other_namespace();
    } else if (word == "--help" || word == "-h") {
      made.help = true;
    } else if (word == "--version" || word == "-V") {
      made.version = true;
    } else if (word.starts_with("-") && word.size() > 1) {
      return Error{Errc::refused, "unknown option " + word};
    } else {
      places.push_back(word);
    }
  }
  if (made.help || made.version) return made;
  if (places.empty() || places.size() > 2)
    return Error{Errc::refused, "a volume and a mount point are needed"};
  for (const auto& each : options) CSV_TRY(add_mount_options(made.options, each, sloppy));
  made.volume = places[0];
  made.mountpoint = places.size() == 2 ? places[1] : default_mountpoint(made.volume);
  // The volume's name becomes a part of paths.
  if (made.volume.empty() || made.volume.find('/') != std::string::npos)
    return Error{Errc::refused, "'" + made.volume +
                                    "' is no volume; csvfs mounts volumes by their names in " +
                                    made.options.config_file + " (csvctl volume list)"};
  if (made.options.log_file.empty())
    made.options.log_file = "/run/csvfs/mount-" + made.volume + ".log";
  return made;
}

Expected<UmountCommand> parse_umount_command(const std::vector<std::string>& words) {
  UmountCommand made;
  auto split = Words::apart(words, "tNO");
  Words all{split};
  while (all.next()) {
    const auto& word = all.word();
    if (word == "-l" || word == "--lazy") {
      made.lazy = true;
    } else if (word == "-f" || word == "--force") {
      made.force = true;
    } else if (word == "-r" || word == "--read-only") {
      made.read_only = true;
    } else if (word == "-v" || word == "--verbose") {
      made.verbose = true;
    } else if (word == "--fake") {
      made.fake = true;
    } else if (word == "--if-mounted") {
      made.if_mounted = true;
    } else if (word == "-n" || word == "-i" || word == "-s") {
      // No mtab, no other helper, nothing to be lenient with.
    } else if (word == "-t" || word == "-O") {
      CSV_TRY(all.value());
    } else if (word == "-N") {
      return other_namespace();
    } else if (word == "--help" || word == "-h") {
      made.help = true;
    } else if (word == "--version" || word == "-V") {
      made.version = true;
    } else if (word.starts_with("-") && word.size() > 1) {
      return Error{Errc::refused, "unknown option " + word};
    } else if (!made.mountpoint.empty()) {
      return Error{Errc::refused, "one mount point at a time"};
    } else {
      made.mountpoint = word;
    }
  }
  if (made.mountpoint.empty() && !made.help && !made.version)
    return Error{Errc::refused, "a mount point is needed"};
  return made;
}

}  // namespace csv

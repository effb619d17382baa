#pragma once
#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace csv::iscsi {

/// A tgtd of the test's own: on loopback at a port nobody uses, with its control socket and disk in
/// a directory of its own. It dies with the test, also if that crashes (parent death signal), and
/// the directory is removed by the next test that finds its owner gone.
class Tgt {
 public:
  static constexpr const char* kTarget = "iqn.2026-01.org.csvfs.test:san";
  struct Options {
    std::uint64_t size = 64 << 20;
    std::uint32_t block_size = 512;
    bool write_protected = false;
    bool thin = true;
    std::string chap_user, chap_secret;
  };
  /// Nothing, after a doctest message that says why, where it cannot run here.
  static std::unique_ptr<Tgt> start(const Options& options);
  ~Tgt();
  Tgt(const Tgt&) = delete;
  Tgt& operator=(const Tgt&) = delete;

  [[nodiscard]] std::string portal() const;
  [[nodiscard]] std::string url(int lun = 1) const;
  [[nodiscard]] const std::string& disk() const { return disk_; }

  void stop();     ///< SIGSTOP: it hears everything and says nothing.
  void go_on();    ///< SIGCONT
  void kill();     ///< SIGKILL, and waits for its end.
  void restart();  ///< After kill(): the same disk at the same port; reservations are forgotten.

 private:
  Tgt() = default;
  bool launch();
  bool admin(const std::vector<std::string>& arguments) const;

  Options options_;
  std::string directory_, disk_;
  int port_ = 0;
  pid_t pid_ = -1;
};

}  // namespace csv::iscsi

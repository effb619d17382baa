#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace csv::iscsi {

/// An iSCSI target in this process that does what a test wants of it, at any point: the answers no
/// good target gives. By itself it is a small disk without reservations that does everything right.
class ScriptedTarget {
 public:
  static constexpr const char* kTarget = "iqn.2026-01.org.csvfs.test:script";

  struct Command {
    std::array<std::uint8_t, 16> cdb{};
    std::vector<std::byte> out;  ///< As far as it had come when the script was asked.
    int connection = 0;          ///< Counts from 0 in the order of logins.
    std::uint64_t number = 0;    ///< Counts commands of this opcode, from 1.
    [[nodiscard]] std::uint8_t opcode() const { return cdb[0]; }
  };
  struct Answer {
    enum class Kind {
      normal,   ///< What a disk does.
      status,   ///< `status` with `sense`, if any.
      data,     ///< GOOD with `data`.
      nothing,  ///< Never, unless release() is called: then what a disk does.
      garbage,  ///< Bytes that are no PDU.
      hang_up,  ///< In the middle of a PDU.
    };
    Kind kind = Kind::normal;
    std::uint8_t status = 0;
    std::uint8_t sense_key = 0;
    std::uint16_t sense_code = 0;
    std::vector<std::byte> data;
    bool early = false;  ///< Before the rest of a write's data has come; that is read only later.
  };
  static Answer good() { return {}; }
  static Answer status(std::uint8_t value) {
    Answer answer;
    answer.kind = Answer::Kind::status;
    answer.status = value;
    return answer;
  }
  static Answer sense(std::uint8_t key, std::uint16_t code) {
    auto answer = status(2);
    answer.sense_key = key;
    answer.sense_code = code;
    return answer;
  }
  static Answer of(Answer::Kind kind) {
    Answer answer;
    answer.kind = kind;
    return answer;
  }
  static Answer with(std::vector<std::byte> data) {
    auto answer = of(Answer::Kind::data);
    answer.data = std::move(data);
    return answer;
  }

  struct Options {
    std::uint32_t block_size = 512;
    std::uint64_t blocks = 32768;
    bool write_cache = true, fua = true;
    std::uint32_t window = 64;     ///< Commands the target takes at a time.
    std::uint32_t segment = 8192;  ///< MaxRecvDataSegmentLength
    bool login_hangs = false;
    std::uint16_t login_status = 0;  ///< Class and detail; 0x0101 redirects to `redirect_to`.
    std::string redirect_to;
    int reset_response = 0;
    bool reset_hangs = false;  ///< Until release().
  };
  /// Called on a connection's thread, one at a time.
  using Script = std::function<Answer(const Command&)>;

  ScriptedTarget(Options options, Script script);
  ~ScriptedTarget();

  [[nodiscard]] std::string portal() const;
  [[nodiscard]] std::string url() const;
  /// How many commands with this opcode have come.
  [[nodiscard]] std::uint64_t count(std::uint8_t opcode) const;
  [[nodiscard]] std::uint64_t resets() const { return resets_; }
  [[nodiscard]] int connections() const { return open_; }
  [[nodiscard]] int logins() const { return logins_; }
  /// The initiators' names, in the order of their logins.
  [[nodiscard]] std::vector<std::string> initiators() const;
  /// Answers what was held back with Kind::nothing, and resets.
  void release();

 private:
  struct Connection;
  void accept_loop();

  Options options_;
  Script script_;
  int listener_ = -1, port_ = 0;
  std::atomic<bool> ending_{false};
  std::atomic<int> open_{0}, logins_{0};
  std::atomic<std::uint64_t> resets_{0};
  mutable std::mutex mutex_;  // guards all below, and the script
  std::vector<std::byte> disk_;
  std::map<std::uint8_t, std::uint64_t> counts_;
  std::vector<std::string> initiators_;
  std::list<std::unique_ptr<Connection>> all_;
  std::thread acceptor_;
};

}  // namespace csv::iscsi

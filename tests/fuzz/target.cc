// A target that says whatever it likes to everything that is asked when a LUN is opened. An input
// is its answers in order: a kind (1 byte: 0 good, else an error of ours), a length (1 byte),
// bytes.
#include <array>

#include "csvfs/base/check.h"
#include "iscsi/target_profile.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using namespace iscsi;

class Target final : public ScsiAsker {
 public:
  explicit Target(Input input) : input_{input} {}
  void ask(Question question, Function<void(Expected<std::size_t>)> done) override {
    CSV_CHECK(++asked_ < 100);
    auto kind = input_.take() % 8;
    auto content = input_.take(input_.take());
    static const std::array<Error, 8> errors = {Error{},
                                                Error{Errc::unsupported_by_target, "no"},
                                                Error{Errc::reservation_conflict, "no"},
                                                Error{Errc::lun_lost, "gone"},
                                                Error{std::errc::io_error, "no"},
                                                Error{Errc::unknown_outcome, "?"},
                                                Error{},
                                                Error{}};
    if (errors[kind].code()) return done(errors[kind]);
    auto there = std::min(content.size(), question.in.size());
    if (there > 0) std::memcpy(question.in.data(), content.data(), there);
    // Some say that more came than was asked for.
    done(kind == 7 ? question.in.size() + 1000 : there);
  }

 private:
  Input input_;
  int asked_ = 0;
};

Task<void> open(Target& target, bool& ended) {
  auto task = describe_lun(target);
  auto found = co_await task;
  if (found) {
    const auto& profile = found->profile;
    CSV_CHECK(profile.max_write_same % found->geometry.block_size == 0);
    CSV_CHECK(!profile.all_registrants || profile.preempt_and_abort || profile.name_is_nexus);
  }
  ended = true;
}

std::string answer(const std::string& bytes, char kind = 0) {
  return std::string(1, kind) + static_cast<char>(bytes.size()) + bytes;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Target target{Input{bytes}};
  bool ended = false;
  TaskScope tasks;
  tasks.spawn(open(target, ended));
  CSV_CHECK(ended);
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  auto inquiry = answer("\0\0\x05\x12\x1f\0\0\x02LIO-ORG disk            4.0 "s);
  auto capacity = answer("\0\0\0\0\0\x1f\xff\xff\0\0\x02\0\0\x03\xc0\0"s + std::string(16, '\0'));
  auto pages = answer("\0\0\0\x03\x83\xb0\xb2"s);
  auto identity = answer("\0\x83\0\x14\x01\x03\0\x10\x60\x01\x40\x5c\x5f\0\0\x01\0\0\0\0\0\0\0\0"s);
  auto limits = answer("\0\xb0\0\x3c\0\0\0\0\0\0\x08\0"s + std::string(8, '\0') +
                       "\xff\xff\xff\xff\0\0\0\x01"s + std::string(8, '\0') +
                       std::string(8, '\xff') + std::string(20, '\0'));
  auto provisioning = answer("\0\xb2\0\x04\0\x84\0\0"s);
  auto caching = answer("\0\x1a\0\x90\0\0\0\0\x08\x12\x04"s + std::string(17, '\0'));
  auto opcode = answer("\0\x03\0\x10"s);
  auto capabilities = answer("\0\x08\x1d\x80\xea\x01\0\0"s);
  auto status = answer(std::string(8, '\0'));
  auto all = inquiry + capacity + pages + identity + limits + provisioning + caching + opcode +
             capabilities + status;
  return {
      {"whole", all + answer("", 2)},
      {"guarded", all + answer("", 2) + answer("", 2) + answer("", 4) + answer("", 2)},
      {"no-preempt-and-abort", all + answer("", 1)},
      {"bare", inquiry + capacity + answer("", 1) + answer("", 1)},
      {"lost", inquiry + answer("", 3)},
      {"more-than-asked", answer("", 7) + answer("", 7) + answer("", 7)},
      {"tape", answer("\x01\0\x05\x12\x1f\0\0\x02LIO-ORG tape            4.0 "s)},
      {"empty", ""},
  };
}

}  // namespace csv::fuzz

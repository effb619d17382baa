// share_probe FILE NODE: a node's way to a share witness, alone. It takes the file where it can,
// and proves its hold over and over; prints what comes of it, one line each, with the time since
// boot in ms. All probes of a machine have one clock.
//
// share_probe FILE make: makes the file a witness. share_probe FILE show: what its slots say.
//
// CSV_PROBE_STOP names a file: once it is there, the helper that does the next exchange has
// written, renames it to NAME.written, and stands still before the write is made durable.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "coordinator/cluster/share_witness.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/log.h"

using namespace csv;
using namespace csv::cluster;

namespace {

constexpr std::uint16_t kCluster = 4711;
constexpr Duration kPause = 500ms;

char stop_file[256], written_file[256];

/// How long ago the machine was started, as all its processes see it.
long long in_ms(TimePoint at) { return static_cast<long long>(at.time_since_epoch() / 1ms); }

template <typename... Args>
void line(AsioLoop& loop, fmt::format_string<Args...> text, Args&&... args) {
  std::printf("%lld %s\n", in_ms(loop.now()),
              fmt::format(text, std::forward<Args>(args)...).c_str());
  std::fflush(stdout);
}

Task<void> contend(AsioLoop& loop, ShareWitness& witness) {
  for (std::uint64_t ring = 1, believes = 0;; ++ring) {
    auto call = believes != 0 ? witness.confirm(ring) : witness.challenge(ring);
    auto said = co_await call;
    if (said)
      line(loop, "{} until={}", believes != 0 ? "holds" : "took",
           in_ms(said->sent + LeaseTiming{}.term));
    else
      line(loop, "{} why=\"{}\"", said.error() == Errc::superseded ? "lost" : "failed",
           said.error().message());
    if (said)
      believes = 1;
    else if (said.error() == Errc::superseded)
      believes = 0;
    co_await sleep(loop, kPause);
  }
}

Task<void> make(AsioLoop& loop, TagFile& file, Random& random, int& code) {
  auto made = co_await prepare_share_witness(file, kCluster, random);
  line(loop, "{}", made ? fmt::format("made {}", *made) : made.error().message());
  code = made ? 0 : 1;
  loop.stop();
}

Task<void> show(AsioLoop& loop, TagFile& file, int& code) {
  auto content = co_await completion<Expected<TagFile::Content>>(
      [&file](auto done) { file.read(std::move(done)); });
  code = content ? 0 : 1;
  if (!content) line(loop, "{}", content.error().message());
  for (std::size_t i = 0; content && i < content->size(); ++i) {
    auto slot = decode_share_tag((*content)[i]);
    if (slot)
      line(loop, "slot={} sequence={} node={} life={:016x}", i, slot->sequence, raw(slot->node),
           slot->life);
    else
      line(loop, "slot={} why=\"{}\"", i, slot.error().message());
  }
  loop.stop();
}

}  // namespace

/// In place of the C library's, for the helper: between this and its fsync a network can be cut.
extern "C" ssize_t pwrite(int file, const void* bytes, size_t size, off_t at) {
  auto done = ::syscall(SYS_pwrite64, file, bytes, size, at);
  if (stop_file[0] != '\0' && std::rename(stop_file, written_file) == 0)
    for (;;) ::pause();
  return static_cast<ssize_t>(done);
}

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: share_probe FILE NODE|make|show\n");
    return 2;
  }
  log::set_up("share_probe", log::Level::warning);
  const std::string what = words[2];
  if (const char* given = std::getenv("CSV_PROBE_STOP")) {
    std::snprintf(stop_file, sizeof stop_file, "%s", given);
    std::snprintf(written_file, sizeof written_file, "%s.written", given);
  }
  AsioLoop loop;
  auto random = Random::from_system();
  SharedTagFile file{loop, {.path = words[1], .create = what == "make"}};
  ShareWitness::Surroundings around;
  around.loop = &loop;
  around.random = &random;
  around.file = &file;
  around.cluster = kCluster;
  around.node = NodeId{static_cast<std::uint8_t>(std::atoi(words[2]))};
  around.own_tag = [] { return ClusterTag{}; };
  ShareWitness witness{around};
  int code = 0;
  TaskScope scope;
  loop.post([&] {
    if (what == "make") return scope.spawn(make(loop, file, random, code));
    if (what == "show") return scope.spawn(show(loop, file, code));
    line(loop, "begins");
    scope.spawn(contend(loop, witness));
  });
  loop.run();
  return code;
}

#pragma once
#include <functional>
#include <memory>
#include <string>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/error.h"
#include "csvfs/base/function.h"

namespace csv::admin {

/// The UNIX socket behind csvctl. Requests and answers are JSON texts, each behind its length (4
/// bytes, little-endian); docs/protocol.md has them. The kernel says who connects: root, and the
/// user csvd runs as, may ask for anything, members of one group for what changes nothing, and all
/// others get a refusal for an answer. Half of the places are root's alone. One csvd a socket: a
/// lock file beside it is held for as long as the object lives, so a socket left by a crash is
/// replaced and a living one never. One loop.
class AdminServer {
 public:
  using Answer = Function<void(std::string)>;
  enum class Caller { reader, root };
  /// Called for each request; may answer at once or later, from the loop.
  using Handler = std::function<void(Caller caller, std::string request, Answer answer)>;
  /// `readers`: the group's name; empty: there are none. Errc::refused where there is no such
  /// group.
  static Expected<std::unique_ptr<AdminServer>> listen(AsioLoop& loop, const std::string& path,
                                                       const std::string& readers, Handler handler,
                                                       Duration idle = kIdle);
  /// How long a request, or the taking of its answer, may be in coming.
  static constexpr Duration kIdle = 30s;
  virtual ~AdminServer() = default;
};

inline constexpr std::size_t kMaxAdminRequest = 64 * 1024;
inline constexpr std::size_t kMaxAdminAnswer = 16 * 1024 * 1024;

/// One request to the csvd of this node, and its answer; waits. Errc::closed where no csvd answers.
/// `waiting` is told, twice a second, for how long no answer has come.
Expected<std::string> ask_csvd(const std::string& path, const std::string& request,
                               Duration timeout, const std::function<void(Duration)>& waiting = {});

}  // namespace csv::admin

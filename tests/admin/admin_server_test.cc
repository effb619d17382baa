#include "coordinator/admin/admin_server.h"

#include <doctest/doctest.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <vector>

using namespace csv;
using namespace csv::admin;

namespace {

constexpr unsigned kStranger = 65'533;

/// The socket in a folder that everybody may enter; what was asked is answered with who asked.
struct Desk {
  explicit Desk(const std::string& readers, Duration idle = AdminServer::kIdle) {
    std::string name = "/tmp/csvfs-admin-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
    REQUIRE(::chmod(folder.c_str(), 0755) == 0);
    loop.start("admin");
    run([&] {
      made = AdminServer::listen(
          loop, socket(), readers,
          [](AdminServer::Caller caller, std::string, AdminServer::Answer answer) {
            answer(caller == AdminServer::Caller::root ? "root" : "reader");
          },
          idle);
    });
  }
  ~Desk() {
    run([&] { made = Errc::closed; });
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  template <typename Work>
  void run(Work work) {
    std::atomic<bool> done{false};
    loop.post([&] {
      work();
      done = true;
      done.notify_all();
    });
    done.wait(false);
  }
  [[nodiscard]] std::string socket() const { return folder + "/csvd.sock"; }

  /// What a process of that user and those groups hears.
  std::string ask(unsigned user, unsigned group, const std::vector<gid_t>& more = {}) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    auto child = ::fork();
    if (child == 0) {
      bool became =
          ::setgroups(more.size(), more.data()) == 0 && ::setgid(group) == 0 && ::setuid(user) == 0;
      auto heard = ask_csvd(socket(), "{}", 5s);
      auto text = !became ? "setuid failed" : heard ? *heard : heard.error().message();
      (void)!::write(ends[1], text.data(), text.size());
      ::_exit(0);
    }
    ::close(ends[1]);
    std::string out;
    char bytes[256];
    for (ssize_t n = 0; (n = ::read(ends[0], bytes, sizeof bytes)) > 0;)
      out.append(bytes, static_cast<std::size_t>(n));
    ::close(ends[0]);
    ::waitpid(child, nullptr, 0);
    return out;
  }

  /// A process of that user and group connects `count` times, and asks nothing while it lives.
  struct Silent {
    pid_t child = -1;
    int go = -1;
    ~Silent() {
      ::close(go);
      ::waitpid(child, nullptr, 0);
    }
  };
  std::unique_ptr<Silent> silent(unsigned user, unsigned group, int count) {
    int there[2], go[2];
    REQUIRE(::pipe(there) == 0);
    REQUIRE(::pipe(go) == 0);
    auto child = ::fork();
    if (child == 0) {
      ::close(go[1]);
      sockaddr_un to{};
      to.sun_family = AF_UNIX;
      socket().copy(to.sun_path, sizeof to.sun_path - 1);
      char ok = ::setgroups(0, nullptr) == 0 && ::setgid(group) == 0 && ::setuid(user) == 0;
      for (int i = 0; i < count; ++i) {
        int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
        if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) ok = 0;
      }
      (void)!::write(there[1], &ok, 1);
      (void)!::read(go[0], &ok, 1);
      ::_exit(0);
    }
    char ok = 0;
    REQUIRE(::read(there[0], &ok, 1) == 1);
    REQUIRE(ok == 1);
    for (int end : {there[0], there[1], go[0]}) ::close(end);
    auto out = std::make_unique<Silent>();
    out->child = child;
    out->go = go[1];
    return out;
  }

  AsioLoop loop;
  std::string folder;
  Expected<std::unique_ptr<AdminServer>> made = Errc::closed;
};

}  // namespace

TEST_CASE("admin socket: who waits for an answer is told so until it comes") {
  if (::geteuid() != 0) return;  // only root may ask
  AsioLoop loop;
  loop.start("admin");
  std::string folder = "/tmp/csvfs-admin-XXXXXX";
  REQUIRE(::mkdtemp(folder.data()) != nullptr);
  auto socket = folder + "/csvd.sock";
  std::atomic<int> told{0};
  Expected<std::unique_ptr<AdminServer>> made = Errc::closed;
  auto run = [&](auto work) {
    std::atomic<bool> done{false};
    loop.post([&] {
      work();
      done = true;
      done.notify_all();
    });
    done.wait(false);
  };
  AdminServer::Answer later;
  run([&] {
    made = AdminServer::listen(loop, socket, "",
                               [&](AdminServer::Caller, std::string, AdminServer::Answer answer) {
                                 later = std::move(answer);
                               });
  });
  REQUIRE(made);
  // The second time that it is told, the answer is given.
  auto got = ask_csvd(socket, "slow", 60s, [&](Duration waited) {
    CHECK(waited == ++told * 500ms);
    if (told == 2) loop.post([&] { later("done"); });
  });
  REQUIRE_MESSAGE(got, got.error().message());
  CHECK(*got == "done");
  CHECK(told >= 2);
  auto never = ask_csvd(socket, "never", 1s, [](Duration) {});
  CHECK(never.error() == std::errc::timed_out);
  run([&] {
    later = {};
    made = Errc::closed;
  });
  std::filesystem::remove_all(folder);
}

TEST_CASE("admin socket: root may command, others not even connect, unless a group may look") {
  if (::geteuid() != 0) return;  // only root can be somebody else
  const auto* group = ::getgrnam("nogroup");
  REQUIRE(group != nullptr);
  auto readers = group->gr_gid;
  SUBCASE("no group") {
    Desk desk{""};
    REQUIRE(desk.made);
    CHECK(desk.ask(0, 0) == "root");
    CHECK(desk.ask(kStranger, readers).find("only root may") != std::string::npos);
  }
  SUBCASE("a group") {
    Desk desk{"nogroup"};
    REQUIRE(desk.made);
    CHECK(desk.ask(0, 0) == "root");
    CHECK(desk.ask(kStranger, readers) == "reader");
    CHECK(desk.ask(kStranger, kStranger, {readers}) == "reader");
    CHECK(desk.ask(kStranger, kStranger).find("only root may") != std::string::npos);
    // Whoever gets to it all the same, by a mode that somebody changed, is told why not.
    REQUIRE(::chmod(desk.socket().c_str(), 0666) == 0);
    CHECK(desk.ask(kStranger, kStranger).find("you are neither") != std::string::npos);
    CHECK(desk.ask(kStranger, readers) == "reader");
  }
  SUBCASE("a group that there is not") {
    Desk desk{"there-is-no-such-group"};
    REQUIRE_FALSE(desk.made);
    CHECK(desk.made.error().message().find("there is no group") != std::string::npos);
  }
}

TEST_CASE("admin socket: whoever keeps its places, root gets through") {
  if (::geteuid() != 0) return;
  constexpr gid_t kReaders = 65'532;
  auto* group = ::getgrgid(kReaders);
  auto* any = group != nullptr ? group : ::getgrent();
  REQUIRE(any != nullptr);
  std::string name = any->gr_name;
  auto id = any->gr_gid;
  ::endgrent();
  Desk desk{name};
  REQUIRE_MESSAGE(desk.made, desk.made.error().message());
  auto many = desk.silent(kStranger, id, 40);
  CHECK(desk.ask(0, 0) == "root");
}

TEST_CASE("admin socket: who asks nothing is not listened to for ever") {
  Desk desk{"", 200ms};
  REQUIRE(desk.made);
  auto fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  desk.socket().copy(to.sun_path, sizeof to.sun_path - 1);
  REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  timeval patience{10, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  char byte = 0;
  CHECK(::recv(fd, &byte, 1, 0) == 0);
  ::close(fd);
}

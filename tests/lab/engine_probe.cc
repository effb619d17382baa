// engine_probe NODE NODES FIFO: an engine alone, whose vote goes to a majority of NODES. Prints
// what it is told, one line each, with the time since boot in ms. From the fifo FIFO it takes
// commands, one a line: "say WORDS", "burst COUNT", "vote majority|yes|no", "vote for MS",
// "hang MS", "end".
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "coordinator/cluster/corosync_engine.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/log.h"

using namespace csv;
using namespace csv::cluster;

namespace {

AsioLoop* the_loop = nullptr;

template <typename... Args>
void line(fmt::format_string<Args...> text, Args&&... args) {
  auto now = the_loop->now().time_since_epoch() / 1ms;
  std::printf("%lld %s\n", static_cast<long long>(now),
              fmt::format(text, std::forward<Args>(args)...).c_str());
  std::fflush(stdout);
}

std::string text_of(const Member& member) {
  return fmt::format("{}:{:016x}", raw(member.node), member.life);
}

std::string text_of(const View& view) {
  std::string nodes, members;
  for (auto each : view.nodes) nodes += fmt::format("{}{}", nodes.empty() ? "" : ",", raw(each));
  for (const auto& each : view.members)
    members += fmt::format("{}{}", members.empty() ? "" : ",", text_of(each));
  return fmt::format("ring={} nodes={} members={}", view.ring, nodes, members);
}

Engine::Verdict majority_of(std::size_t all) {
  return [all](std::span<const NodeId> nodes) {
    return 2 * nodes.size() > all ? Engine::kForLong : Engine::kNever;
  };
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) {
    std::fprintf(stderr, "usage: engine_probe NODE NODES FIFO\n");
    return 2;
  }
  log::set_up("engine_probe", log::Level::info);
  AsioLoop loop;
  the_loop = &loop;
  auto all = static_cast<std::size_t>(std::atoi(words[2]));
  const std::string fifo = words[3];
  ::unlink(fifo.c_str());
  if (::mkfifo(fifo.c_str(), 0600) != 0) {
    std::perror(fifo.c_str());
    return 1;
  }

  auto engine = std::make_unique<CorosyncEngine>(CorosyncEngine::Surroundings{
      .loop = &loop, .node = NodeId{static_cast<std::uint8_t>(std::atoi(words[1]))}});
  engine->vote_by(majority_of(all));
  engine->start({
      .view =
          [&](const View& view) {
            line("view self={} {}", text_of(engine->self()), text_of(view));
          },
      .deliver =
          [](Member from, std::string message) {
            line("message from={} {}", text_of(from),
                 message.size() > 100 ? fmt::format("of {} bytes", message.size()) : message);
          },
      .lost = [](const Error& why) { line("lost {}", why.message()); },
  });

  std::function<void()> beat = [&] {
    line("beat");  // shows that the loop is not held up
    loop.after(200ms, [&] { beat(); });
  };
  loop.after(0ms, [&] { beat(); });

  auto obey = [&](const std::string& command) {
    if (command.rfind("say ", 0) == 0) engine->multicast(command.substr(4));
    if (command.rfind("burst ", 0) == 0)
      for (int i = 0, n = std::atoi(command.c_str() + 6); i < n; ++i)
        engine->multicast(fmt::format("burst {}", i));
    if (command.rfind("large ", 0) == 0)
      engine->multicast(std::string(std::strtoul(command.c_str() + 6, nullptr, 10), 'x'));
    if (command == "vote majority") engine->vote_by(majority_of(all));
    if (command == "vote yes") engine->vote_by([](auto) { return Engine::kForLong; });
    if (command.rfind("vote for ", 0) == 0) {
      auto until = loop.now() + std::atoi(command.c_str() + 9) * 1ms;
      engine->vote_by([until](auto) { return until; });
    }
    if (command.rfind("hang ", 0) == 0)
      std::this_thread::sleep_for(std::atoi(command.c_str() + 5) * 1ms);
    if (command == "vote no") engine->vote_by(nullptr);
    if (command == "end") {
      engine.reset();
      line("ended");
      loop.stop();
    }
  };
  std::thread{[&] {
    for (;;) {
      std::ifstream from{fifo};
      for (std::string command; std::getline(from, command);)
        loop.post([&obey, command] { obey(command); });
    }
  }}.detach();
  loop.run();
  std::_Exit(0);
}

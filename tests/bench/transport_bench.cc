// What encryption between nodes costs: the same messages over TCP and over TLS in turns, in one
// run, on the loopback address. A row is a median over the rounds; "ratio" is TLS to plain (above
// 1: faster for rates, slower for times).
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/protocol/tcp_transport.h"
#include "coordinator/protocol/tls_transport.h"
#include "csvfs/base/log.h"

using namespace csv;
using namespace csv::protocol;

namespace {

constexpr NodeId kServer{1}, kClient{2};

struct Files {
  Files() {
    std::string name = "/tmp/csvfs-bench-XXXXXX";
    CSV_CHECK(::mkdtemp(name.data()) != nullptr);
    folder = name;
  }
  ~Files() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  TlsFiles put(const std::string& name, const KeyPair& pair, const std::string& ca) const {
    TlsFiles out{folder + "/ca.crt", folder + "/" + name + ".crt", folder + "/" + name + ".key"};
    for (auto [path, text] :
         {std::pair{out.ca, ca}, {out.certificate, pair.certificate}, {out.key, pair.key}}) {
      std::ofstream{path} << text;
      ::chmod(path.c_str(), 0600);
    }
    return out;
  }
  std::string folder;
};

/// A coordinator and a mount, each with a loop and a thread: requests name how much comes back.
class Pair {
 public:
  explicit Pair(const Files* files, const KeyPair* authority) {
    if (files != nullptr) {
      auto now = static_cast<std::int64_t>(server_loop_.wall_now());
      Validity day{WallTime{now - 3'600'000'000'000}, WallTime{now + 86'400'000'000'000}};
      auto identity = [&](NodeId node, AsioLoop& loop) {
        auto name = "node" + std::to_string(raw(node));
        auto pair = issue_certificate(*authority, node, name, day);
        CSV_CHECK(bool(pair));
        auto loaded =
            TlsIdentity::load(loop, files->put(name, *pair, authority->certificate), {4711, node});
        CSV_CHECK(bool(loaded));
        return *std::move(loaded);
      };
      server_identity_ = identity(kServer, server_loop_);
      client_identity_ = identity(kClient, client_loop_);
      NodeSet both;
      both.set(raw(kServer)).set(raw(kClient));
      server_ = std::make_unique<TlsTransport>(server_loop_, *server_identity_, both);
      client_ = std::make_unique<TlsTransport>(client_loop_, *client_identity_, both);
    } else {
      server_ = std::make_unique<TcpTransport>(server_loop_);
      client_ = std::make_unique<TcpTransport>(client_loop_);
    }
    server_loop_.start("server");
    client_loop_.start("client");
    run(server_loop_, [this](auto done) {
      auto made = server_->listen("127.0.0.1:0", [this](std::unique_ptr<Connection> connection) {
        accepted_ = std::move(connection);
        accepted_->start([this](Message message) { serve(std::move(message)); }, [](Error) {});
      });
      CSV_CHECK(bool(made));
      listener_ = *std::move(made);
      done();
    });
    run(client_loop_, [this](auto done) {
      client_->connect(kServer, listener_->endpoint(), [this, done](auto connected) {
        CSV_CHECK(bool(connected));
        connection_ = *std::move(connected);
        connection_->start([this](Message message) { on_reply_(std::move(message)); },
                           [](Error) { std::abort(); });
        done();
      });
    });
  }
  ~Pair() {
    run(client_loop_, [this](auto done) {
      connection_.reset();
      done();
    });
    run(server_loop_, [this](auto done) {
      accepted_.reset();
      listener_.reset();
      done();
    });
  }

  struct Load {
    std::size_t up = 0, down = 0;  ///< Bulk bytes of a request, of a reply.
    int depth = 1, requests = 1;
  };
  /// Seconds it took.
  double take(const Load& load) {
    auto began = client_loop_.now();
    run(client_loop_, [this, load](auto done) {
      left_ = load.requests;
      flying_ = 0;
      on_reply_ = [this, load, done](Message) {
        --flying_;
        if (left_ > 0) return ask(load);
        if (flying_ == 0) done();
      };
      for (int i = 0; i < load.depth; ++i) ask(load);
    });
    return std::chrono::duration<double>(client_loop_.now() - began).count();
  }

 private:
  static void run(AsioLoop& loop, std::function<void(std::function<void()>)> work) {
    std::atomic<bool> over{false};
    loop.post([&] {
      work([&] {
        over = true;
        over.notify_all();
      });
    });
    over.wait(false);
  }
  void ask(const Load& load) {
    if (left_ == 0) return;
    --left_;
    ++flying_;
    Message message;
    message.frame.set_id(load.down);
    auto* request = message.frame.mutable_request();
    if (load.up > 0) {
      request->mutable_write()->set_inode(1);
      message.bulk = Buffer{load.up};
    } else {
      request->mutable_lookup()->set_parent(1);
      request->mutable_lookup()->set_name("a-name-of-some-length.txt");
    }
    connection_->send(std::move(message));
  }
  void serve(Message message) {
    Message reply;
    reply.frame.set_id(message.frame.id());
    reply.frame.mutable_reply();
    if (message.frame.id() > 0) reply.bulk = Buffer{message.frame.id()};
    accepted_->send(std::move(reply));
  }

  AsioLoop server_loop_, client_loop_;
  std::unique_ptr<TlsIdentity> server_identity_, client_identity_;
  std::unique_ptr<Transport> server_, client_;
  std::unique_ptr<Transport::Listener> listener_;
  std::unique_ptr<Connection> accepted_, connection_;
  Function<void(Message)> on_reply_;
  int left_ = 0, flying_ = 0;
};

/// Of all threads of this process, both sides together: what a loaded machine does not change.
double cpu_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 15;
  log::set_up("bench", log::Level::error);
  Files files;
  AsioLoop clock;
  auto now = static_cast<std::int64_t>(clock.wall_now());
  auto authority =
      make_authority(4711, {WallTime{now - 3'600'000'000'000}, WallTime{now + 86'400'000'000'000}});
  CSV_CHECK(bool(authority));
  Pair plain{nullptr, nullptr}, tls{&files, &*authority};
  struct Row {
    const char* name;
    Pair::Load load;
    bool time;  ///< Microseconds a request; else MiB/s.
  };
  const std::vector<Row> rows = {
      {"RPC, depth 1                 [us]", {0, 0, 1, 3000}, true},
      {"RPC, depth 32                [us]", {0, 0, 32, 20000}, true},
      {"4 KiB read, depth 1          [us]", {0, 4096, 1, 3000}, true},
      {"4 KiB write, depth 1         [us]", {4096, 0, 1, 3000}, true},
      {"4 KiB read, depth 32      [MiB/s]", {0, 4096, 32, 20000}, false},
      {"4 KiB write, depth 32     [MiB/s]", {4096, 0, 32, 20000}, false},
      {"1 MiB read, depth 4       [MiB/s]", {0, 1 << 20, 4, 400}, false},
      {"1 MiB write, depth 4      [MiB/s]", {1 << 20, 0, 4, 400}, false},
  };
  std::printf("%-36s %10s %10s %8s   %s\n", "median of rounds", "plain", "TLS", "ratio",
              "processor time a request [us]: plain, TLS, ratio");
  for (const auto& row : rows) {
    std::vector<double> of_plain, of_tls, ratios, cpu_plain, cpu_tls, cpu_ratios;
    auto measure = [&row](Pair& pair, std::vector<double>& cpu) {
      auto before = cpu_seconds();
      auto seconds = pair.take(row.load);
      cpu.push_back((cpu_seconds() - before) * 1e6 / row.load.requests);
      return seconds;
    };
    auto figure = [&row](double seconds) {
      auto bytes = static_cast<double>(row.load.up + row.load.down) * row.load.requests;
      return row.time ? seconds * 1e6 / row.load.requests : bytes / seconds / (1 << 20);
    };
    plain.take(row.load);
    tls.take(row.load);
    for (int round = 0; round < rounds; ++round) {
      of_plain.push_back(figure(measure(plain, cpu_plain)));
      of_tls.push_back(figure(measure(tls, cpu_tls)));
      ratios.push_back(of_tls.back() / of_plain.back());
      cpu_ratios.push_back(cpu_tls.back() / cpu_plain.back());
    }
    std::printf("%-36s %10.1f %10.1f %8.2f   %8.1f %8.1f %8.2f\n", row.name, median(of_plain),
                median(of_tls), median(ratios), median(cpu_plain), median(cpu_tls),
                median(cpu_ratios));
  }
  return 0;
}

#include "coordinator/protocol/memory_transport.h"

#include <cerrno>
#include <deque>
#include <optional>

#include "coordinator/protocol/frame.h"

namespace csv::protocol {
namespace {

struct Encoded {
  std::string head;
  Buffer bulk;
};

Expected<Message> decode(Encoded encoded) {
  auto bytes = std::as_bytes(std::span{encoded.head});
  auto header = CSV_TRY(decode_header(bytes));
  auto frame = CSV_TRY(decode_head(header, bytes.subspan(kHeaderSize)));
  return Message{std::move(frame), std::move(encoded.bulk)};
}

/// What one end has received. The connection owns it; its peer and what is on the way only watch.
struct End {
  std::string peer;
  std::weak_ptr<End> other;
  Function<void(Message)> on_message;
  Function<void(Error)> on_closed;
  std::deque<Encoded> inbox;   ///< Came before start().
  std::optional<Error> ended;  ///< Came before start().
  std::size_t underway = 0;    ///< Bytes sent and not delivered.
  bool started = false, closed = false;

  void end(Error why) {
    if (closed) return;
    closed = true;
    on_closed(std::move(why));
  }
  void receive(Encoded encoded) {
    if (closed) return;
    auto message = decode(std::move(encoded));
    if (!message) return end(message.error().within("from " + peer));
    on_message(*std::move(message));
  }
};

class MemoryConnection final : public Connection {
 public:
  MemoryConnection(Loop& loop, std::shared_ptr<End> end) : loop_{&loop}, end_{std::move(end)} {}
  ~MemoryConnection() override { close(); }

  void start(Function<void(Message)> on_message, Function<void(Error)> on_closed) override {
    end_->on_message = std::move(on_message);
    end_->on_closed = std::move(on_closed);
    loop_->post([weak = std::weak_ptr{end_}] {
      auto end = weak.lock();
      if (!end || end->closed) return;
      end->started = true;
      while (!end->inbox.empty() && !end->closed) {
        auto next = std::move(end->inbox.front());
        end->inbox.pop_front();
        end->receive(std::move(next));
      }
      if (end->ended) end->end(*end->ended);
    });
  }

  void send(Message message) override {
    if (end_->closed) return;
    auto head = encode_head(message.frame, message.bulk.size());
    auto size = head.size() + message.bulk.size();
    end_->underway += size;
    Encoded encoded{std::move(head), std::move(message.bulk)};
    loop_->post([from = std::weak_ptr{end_}, to = end_->other, size,
                 encoded = std::move(encoded)]() mutable {
      if (auto sender = from.lock()) sender->underway -= size;
      auto end = to.lock();
      if (!end || end->closed) return;
      if (end->started) return end->receive(std::move(encoded));
      end->inbox.push_back(std::move(encoded));
    });
  }

  void close() override {
    if (std::exchange(said_, true)) return;
    end_->closed = true;
    // Behind everything sent before: the peer gets that first.
    loop_->post([to = end_->other] {
      auto end = to.lock();
      if (!end || end->closed) return;
      Error why{Errc::closed, end->peer + " closed the connection"};
      if (end->started) return end->end(std::move(why));
      end->ended = std::move(why);
    });
  }

  [[nodiscard]] std::string peer() const override { return end_->peer; }
  [[nodiscard]] bool speaks_for(NodeId) const override { return true; }
  [[nodiscard]] std::size_t queued_bytes() const override { return end_->underway; }

 private:
  Loop* loop_;
  std::shared_ptr<End> end_;
  bool said_ = false;  ///< The peer has been told of the end.
};

}  // namespace

std::pair<std::unique_ptr<Connection>, std::unique_ptr<Connection>> connection_pair(
    Loop& loop, std::string first_name, std::string second_name) {
  auto first = std::make_shared<End>();
  auto second = std::make_shared<End>();
  first->peer = std::move(second_name);
  second->peer = std::move(first_name);
  first->other = second;
  second->other = first;
  return {std::make_unique<MemoryConnection>(loop, std::move(first)),
          std::make_unique<MemoryConnection>(loop, std::move(second))};
}

class MemoryTransport::Place final : public Transport::Listener {
 public:
  Place(std::shared_ptr<Listeners> all, std::string endpoint)
      : all_{std::move(all)}, endpoint_{std::move(endpoint)} {}
  ~Place() override { all_->erase(endpoint_); }
  [[nodiscard]] std::string endpoint() const override { return endpoint_; }

 private:
  std::shared_ptr<Listeners> all_;
  std::string endpoint_;
};

void MemoryTransport::connect(NodeId, const std::string& endpoint, Connected done) {
  loop_->post([loop = loop_, listeners = listeners_, endpoint, done = std::move(done)]() mutable {
    auto found = listeners->find(endpoint);
    if (found == listeners->end())
      return done(errno_error(ECONNREFUSED, "connecting to " + endpoint));
    auto [here, there] = connection_pair(*loop, "client", endpoint);
    auto accept = found->second;  // a copy: accepting may end the listening
    accept(std::move(there));
    done(std::move(here));
  });
}

Expected<std::unique_ptr<Transport::Listener>> MemoryTransport::listen(
    const std::string& endpoint, std::function<void(std::unique_ptr<Connection>)> accepted) {
  if (!listeners_->emplace(endpoint, std::move(accepted)).second)
    return errno_error(EADDRINUSE, "listening on " + endpoint);
  return std::unique_ptr<Listener>{std::make_unique<Place>(listeners_, endpoint)};
}

}  // namespace csv::protocol

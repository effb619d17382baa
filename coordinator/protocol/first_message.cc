#include "coordinator/protocol/first_message.h"

#include <deque>
#include <optional>

#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

/// A connection whose handlers can be set anew once: it owns the one that was started.
struct Relay : std::enable_shared_from_this<Relay> {
  explicit Relay(Loop& on, std::unique_ptr<Connection> connection)
      : loop{&on}, inner{std::move(connection)} {}

  void begin(Function<void(Message)> first, Function<void(Error)> gone) {
    on_message = std::move(first);
    on_closed = std::move(gone);
    inner->start(
        [weak = weak_from_this()](Message message) {
          if (auto self = weak.lock()) self->receive(std::move(message));
        },
        [weak = weak_from_this()](Error why) {
          if (auto self = weak.lock()) self->end(std::move(why));
        });
  }

  void receive(Message message) {
    if (closed) return;
    if (!on_message) return inbox.push_back(std::move(message));
    if (began) return on_message(std::move(message));
    began = true;
    // Moved out: what it calls sets the new ones.
    auto first = std::exchange(on_message, nullptr);
    on_closed = nullptr;
    first(std::move(message));
  }

  void end(Error why) {
    if (closed) return;
    if (!on_message) {
      ended = std::move(why);
      return;
    }
    closed = true;
    auto tell = std::move(on_closed);
    tell(std::move(why));
  }

  /// Delivers what was kept, from the loop: start() must not call a handler.
  void start(Function<void(Message)> message, Function<void(Error)> gone) {
    loop->post(
        [weak = weak_from_this(), message = std::move(message), gone = std::move(gone)]() mutable {
          auto self = weak.lock();
          if (!self || self->closed) return;
          self->on_message = std::move(message);
          self->on_closed = std::move(gone);
          while (!self->inbox.empty() && !self->closed) {
            auto next = std::move(self->inbox.front());
            self->inbox.pop_front();
            self->on_message(std::move(next));
          }
          if (self->ended) self->end(*std::exchange(self->ended, std::nullopt));
        });
  }

  Loop* loop;
  std::unique_ptr<Connection> inner;
  Function<void(Message)> on_message;
  Function<void(Error)> on_closed;
  std::deque<Message> inbox;
  std::optional<Error> ended;
  bool began = false;   ///< The first message has been handed over.
  bool closed = false;  ///< No handler is called any more.
};

class HandedOver final : public Connection {
 public:
  explicit HandedOver(std::shared_ptr<Relay> relay) : relay_{std::move(relay)} {}
  ~HandedOver() override { close(); }
  void start(Function<void(Message)> on_message, Function<void(Error)> on_closed) override {
    relay_->start(std::move(on_message), std::move(on_closed));
  }
  void send(Message message) override { relay_->inner->send(std::move(message)); }
  void close() override {
    relay_->closed = true;
    relay_->inner->close();
  }
  [[nodiscard]] std::string peer() const override { return relay_->inner->peer(); }
  [[nodiscard]] bool speaks_for(NodeId node) const override {
    return relay_->inner->speaks_for(node);
  }
  [[nodiscard]] std::size_t queued_bytes() const override { return relay_->inner->queued_bytes(); }

 private:
  std::shared_ptr<Relay> relay_;
};

}  // namespace

struct FirstMessages::Waiting {
  std::shared_ptr<Relay> relay;
  Loop::TimerId timer{};
};

FirstMessages::FirstMessages(Loop& loop, Duration patience, std::size_t most, Handler handler)
    : loop_{&loop}, patience_{patience}, most_{most}, handler_{std::move(handler)} {}

FirstMessages::~FirstMessages() {
  while (!waiting_.empty()) drop(waiting_.begin()->first);
}

void FirstMessages::add(std::unique_ptr<Connection> connection) {
  if (waiting_.size() >= most_) drop(waiting_.begin()->first);
  auto id = next_++;
  auto& waiting = *(waiting_[id] = std::make_unique<Waiting>());
  waiting.relay = std::make_shared<Relay>(*loop_, std::move(connection));
  waiting.timer = loop_->after(patience_, [this, id] {
    log::info("connection_dropped peer={} why=\"said nothing\"",
              waiting_.at(id)->relay->inner->peer());
    drop(id);
  });
  waiting.relay->begin(
      [this, id](Message message) {
        auto relay = waiting_.at(id)->relay;
        drop(id);
        handler_(std::make_unique<HandedOver>(std::move(relay)), std::move(message));
      },
      [this, id](Error why) {
        log::debug("connection_dropped peer={} why=\"{}\"", waiting_.at(id)->relay->inner->peer(),
                   why.message());
        drop(id);
      });
}

void FirstMessages::drop(std::uint64_t id) {
  auto found = waiting_.find(id);
  loop_->cancel(found->second->timer);
  waiting_.erase(found);
}

}  // namespace csv::protocol

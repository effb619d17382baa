#pragma once
// The door to Boost.Asio: include this, not its headers, and only in .cc files.

// clang-format off
#include <utility>  // first: Asio 1.74 uses std::exchange without including it
// clang-format on

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/write.hpp>

namespace csv {
namespace asio = boost::asio;
}

#pragma once
#include <memory>

#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/tls_identity.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/config.h"

namespace csv::protocol {

class TlsTransport;

/// How this node's processes speak with those of other nodes, and with one another: as its
/// configuration says, which is TLS unless it says "off". `loop` must outlive it.
struct HostTransport {
  std::unique_ptr<TlsIdentity> identity;  ///< Null: plain text, nobody is authenticated.
  std::unique_ptr<Transport> transport;
  TlsTransport* tls = nullptr;  ///< The transport, if it is one: for who is let in.
};

/// Fails where the certificates cannot be used; the sentence says what to do about it.
Expected<HostTransport> make_host_transport(AsioLoop& loop, const Config& config);

}  // namespace csv::protocol

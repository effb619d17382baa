#pragma once
#include <functional>
#include <memory>
#include <string>

#include "coordinator/protocol/doorkeeper.h"
#include "coordinator/protocol/tcp_transport.h"
#include "coordinator/protocol/tls_identity.h"
#include "coordinator/protocol/tls_session.h"

namespace csv::protocol {

/// The same messages over TLS 1.3, for which both sides must hold a certificate of the cluster's
/// CA: whom one connects to, the certificate of just that node; who is accepted, that of a node in
/// `peers`. All else gets nowhere: it is logged with its reason, seldom, and costs no more than
/// Options allow. After the handshake the accepting side says a word of welcome, and only then is a
/// connection handed over: in TLS 1.3 the connecting side has finished before its certificate was
/// looked at.
///
/// Certificates are looked at when a connection begins: one that expires later ends none. All on
/// the thread of `loop`, which must outlive the transport and everything it made, as must
/// `identity`.
class TlsTransport final : public Transport {
 public:
  struct Options {
    TcpTransport::Options tcp;       ///< connect_timeout is for the handshake, too.
    Duration handshake_within = 3s;  ///< Of who connects to us.
    Doorkeeper::Options door;
    /// Told of everybody who was not let in, and why; the log hears it only now and then.
    std::function<void(const std::string& address, const std::string& why)> refused;
  };

  TlsTransport(AsioLoop& loop, TlsIdentity& identity, NodeSet peers)
      : TlsTransport{loop, identity, peers, Options{}} {}
  TlsTransport(AsioLoop& loop, TlsIdentity& identity, NodeSet peers, Options options)
      : loop_{&loop},
        identity_{&identity},
        peers_{std::make_shared<NodeSet>(peers)},
        options_{options} {}

  /// Who is accepted from now on, by listeners that there are, too. Connections that stand stay.
  void let_in(const NodeSet& peers) { *peers_ = peers; }

  /// Errc::refused where the peer, or this node in the peer's eyes, is not who it should be.
  void connect(NodeId node, const std::string& endpoint, Connected done) override;
  Expected<std::unique_ptr<Listener>> listen(
      const std::string& endpoint,
      std::function<void(std::unique_ptr<Connection>)> accepted) override;

 private:
  AsioLoop* loop_;
  TlsIdentity* identity_;
  std::shared_ptr<NodeSet> peers_;
  Options options_;
};

}  // namespace csv::protocol

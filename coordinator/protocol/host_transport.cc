#include "coordinator/protocol/host_transport.h"

#include <cerrno>

#include "coordinator/protocol/tcp_transport.h"
#include "coordinator/protocol/tls_transport.h"
#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

std::string what_to_do(const Config& config) {
  auto node = std::to_string(raw(config.node));
  return fmt::format(
      "\n"
      "Nodes speak TLS with each other, and each needs a certificate of the cluster's own CA.\n"
      "Once for the cluster, on a machine you trust:\n"
      "  csvctl cluster ca create --cluster-id {}\n"
      "There, for this node:\n"
      "  csvctl cluster ca issue --node {} --name {} --out {}\n"
      "Then move ca.crt, node.crt and node.key from {} there to {}, {} and {} here.\n"
      "docs/configuration.md tells more, and how to do without TLS on a machine by itself.",
      config.cluster, node, config.node_name, config.node_name, config.node_name, config.tls.ca,
      config.tls.certificate, config.tls.key);
}

}  // namespace

Expected<HostTransport> make_host_transport(AsioLoop& loop, const Config& config) {
  HostTransport out;
  if (config.tls.off) {
    log::warning(
        "tls_off why=\"the configuration says so\" means=\"whoever reaches {} can read, change and "
        "destroy every volume\"",
        config.listen);
    out.transport = std::make_unique<TcpTransport>(loop);
    return out;
  }
  auto identity = TlsIdentity::load(loop, {config.tls.ca, config.tls.certificate, config.tls.key},
                                    {config.cluster, config.node});
  if (!identity) {
    auto why = identity.error().within("TLS");
    if (why == std::errc::no_such_file_or_directory)
      return Error{why.code(), why.message() + what_to_do(config)};
    return why;
  }
  out.identity = *std::move(identity);
  if (auto trouble = out.identity->trouble(); !trouble.empty())
    log::error("tls_unusable why=\"{}\"", trouble);
  NodeSet peers;
  peers.set(raw(config.node));  // its mounts
  for (const auto& peer : config.peers) peers.set(raw(peer.id));
  auto tls = std::make_unique<TlsTransport>(loop, *out.identity, peers);
  out.tls = tls.get();
  out.transport = std::move(tls);
  return out;
}

}  // namespace csv::protocol

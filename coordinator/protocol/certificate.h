#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::protocol {

/// A node of a cluster as its certificate names it, in the one subject alternative name of the form
/// "csvfs://CLUSTER/node/NODE". Everything else in a certificate is for people.
struct NodeName {
  std::uint16_t cluster = 0;
  NodeId node{};
  bool operator==(const NodeName&) const = default;
};
std::string to_uri(const NodeName& name);

struct Validity {
  WallTime from{}, until{};  ///< Whole seconds count.
};

/// A certificate and its private key, as PEM.
struct KeyPair {
  std::string certificate, key;
};

/// A cluster's own certificate authority: a fresh P-256 key, and a certificate that it signs
/// itself.
Expected<KeyPair> make_authority(std::uint16_t cluster, const Validity& validity);

/// A node's certificate, signed by `authority`, with a fresh P-256 key. The cluster is the
/// authority's. Errc::refused where `authority` is none, or its two parts do not belong together.
Expected<KeyPair> issue_certificate(const KeyPair& authority, NodeId node,
                                    const std::string& node_name, const Validity& validity);

struct CertificateInfo {
  std::string subject, issuer;  ///< As people read them; printable.
  bool is_authority = false;
  std::uint16_t cluster = 0;     ///< 0: it names none of ours.
  std::optional<NodeName> node;  ///< Where it is a node's.
  Validity validity;
  std::string fingerprint;  ///< SHA-256, as hexadecimal digits.
};
/// All certificates of a PEM text, none of which is checked for anything. Errc::refused where there
/// is none.
Expected<std::vector<CertificateInfo>> describe_certificates(std::string_view pem);

/// "2027-11-25 18:00:00 UTC".
std::string date_text(WallTime time);
/// Text from a stranger, fit for a log line: printable ASCII without quotes, at most 160 bytes.
std::string printable(std::string_view text);

}  // namespace csv::protocol

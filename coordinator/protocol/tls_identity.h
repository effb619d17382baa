#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/protocol/certificate.h"

struct ssl_ctx_st;

namespace csv::protocol {

struct TlsFiles {
  std::string ca, certificate, key;
};

/// What a process of a node shows of itself and whom it believes: the node's certificate and key,
/// and the certificates of the cluster's CA (several while one replaces another), from three files.
/// They are looked at before each use and read again when they have changed, so renewal needs no
/// restart; while what is there cannot be used (half of it may be written yet) the former stays in
/// force, and the log says so. Reading waits for the local disk. One thread.
class TlsIdentity {
 public:
  /// Errc::refused, or an errno, with file and reason: unreadable, open to others (the key may be
  /// read, and all three written, by their owner only), not of this node, not of this CA, or not of
  /// one another. A certificate that has expired, or is not valid yet, is none of these: it may be
  /// renewed; see trouble().
  static Expected<std::unique_ptr<TlsIdentity>> load(const Clock& clock, TlsFiles files,
                                                     NodeName name);
  ~TlsIdentity();

  [[nodiscard]] const NodeName& name() const { return name_; }
  /// What all dates of certificates are held against.
  [[nodiscard]] WallTime now() const { return clock_->wall_now(); }
  [[nodiscard]] const CertificateInfo& certificate() const { return certificate_; }
  /// When the first of what it needs ends: its own certificate, or the CA's that signed it.
  [[nodiscard]] WallTime valid_until() const { return valid_until_; }
  /// Errc::refused with the reason where no peer will accept it now: it has expired, or is not
  /// valid yet.
  [[nodiscard]] Expected<void> in_force() const;
  /// The same, or why the files' newest content is not in use; empty: all is well.
  [[nodiscard]] std::string trouble() const;
  /// Looks at the files; cheap where nothing changed.
  void refresh();
  /// OpenSSL's form of it, as it is now. For tls_session.cc.
  [[nodiscard]] std::shared_ptr<ssl_ctx_st> context() const { return context_; }

 private:
  struct Stamp {
    std::int64_t device = 0, inode = 0, size = 0, changed_ns = 0, written_ns = 0;
    bool operator==(const Stamp&) const = default;
  };
  using Stamps = std::array<Stamp, 3>;

  TlsIdentity(const Clock& clock, TlsFiles files, NodeName name)
      : clock_{&clock}, files_{std::move(files)}, name_{name} {}
  [[nodiscard]] Stamps stamps() const;
  Expected<void> read();

  const Clock* clock_;
  TlsFiles files_;
  NodeName name_;
  std::shared_ptr<ssl_ctx_st> context_;
  CertificateInfo certificate_;
  WallTime valid_until_{};
  Stamps seen_;
  std::string reload_trouble_;
};

}  // namespace csv::protocol

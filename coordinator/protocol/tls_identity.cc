#include "coordinator/protocol/tls_identity.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "coordinator/protocol/openssl.h"
#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

constexpr std::size_t kMostFile = 64 * 1024;
/// Read from the socket at once; its largest record is 16 KiB.
constexpr std::size_t kReadAhead = 128 * 1024;

/// A small file that only its owner, root or ourselves, may write; with `secret`, read either.
Expected<std::string> read_file(const std::string& path, bool secret) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return errno_error(errno, "opening " + path);
  struct Close {
    int fd;
    ~Close() { ::close(fd); }
  } close{fd};
  struct stat status {};
  if (::fstat(fd, &status) != 0) return errno_error(errno, "examining " + path);
  if (!S_ISREG(status.st_mode)) return Error{Errc::refused, path + " is not a regular file"};
  if (status.st_uid != 0 && status.st_uid != ::geteuid())
    return Error{Errc::refused, path + " belongs to another user: make it root's own (chown root)"};
  if (secret && (status.st_mode & 077) != 0)
    return Error{Errc::refused, "the private key " + path +
                                    " is open to others: make it its owner's alone (chmod 600)"};
  if ((status.st_mode & 022) != 0)
    return Error{Errc::refused, path + " may be written by others (chmod 644)"};
  std::string text(kMostFile + 1, '\0');
  std::size_t have = 0;
  while (have < text.size()) {
    auto n = ::read(fd, text.data() + have, text.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, "reading " + path);
    if (n == 0) break;
    have += static_cast<std::size_t>(n);
  }
  if (have > kMostFile) return Error{Errc::refused, path + " is too long for what it should be"};
  text.resize(have);
  return text;
}

Error failed(const std::string& doing) {
  return Error{Errc::refused, doing + ": " + openssl_reason()};
}

/// Nobody below TLS 1.3, nobody without a certificate, and nothing that outlives a connection: a
/// resumed session would not look at certificates again.
Expected<std::shared_ptr<SSL_CTX>> make_context() {
  std::shared_ptr<SSL_CTX> made{SSL_CTX_new(TLS_method()), &SSL_CTX_free};
  if (!made) return failed("setting TLS up");
  auto* context = made.get();
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_security_level(context, 2);
  SSL_CTX_set_verify_depth(context,
                           0);  // no intermediate CAs: a node's certificate makes no others
  SSL_CTX_set_max_cert_list(context, 16 * 1024);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_default_read_buffer_len(context, kReadAhead);
  X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(context), X509_V_FLAG_X509_STRICT);
  // AES-128 first: the fastest where the processor has it, and beyond what can be broken.
  bool good = SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
              SSL_CTX_set_num_tickets(context, 0) == 1 &&
              SSL_CTX_set_max_early_data(context, 0) == 1 &&
              SSL_CTX_set_ciphersuites(context,
                                       "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                                       "TLS_CHACHA20_POLY1305_SHA256") == 1 &&
              SSL_CTX_set1_groups_list(context, "X25519:P-256") == 1;
  if (!good) return failed("setting TLS up");
  return made;
}

/// Whether `certificate` hangs on one of `authorities`, whatever the time; and which.
Expected<X509*> issuer_of(X509& certificate, const std::vector<CertificatePtr>& authorities) {
  for (const auto& each : authorities)
    if (X509_check_issued(each.get(), &certificate) == X509_V_OK &&
        X509_verify(&certificate, X509_get0_pubkey(each.get())) == 1)
      return each.get();
  ERR_clear_error();
  return Error{Errc::refused, "no CA in it has signed the node's certificate"};
}

}  // namespace

Expected<std::unique_ptr<TlsIdentity>> TlsIdentity::load(const Clock& clock, TlsFiles files,
                                                         NodeName name) {
  std::unique_ptr<TlsIdentity> made{new TlsIdentity{clock, std::move(files), name}};
  made->seen_ = made->stamps();
  CSV_TRY(made->read());
  return made;
}

TlsIdentity::~TlsIdentity() = default;

TlsIdentity::Stamps TlsIdentity::stamps() const {
  Stamps out;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto* path = i == 0 ? &files_.ca : i == 1 ? &files_.certificate : &files_.key;
    struct stat status {};
    if (::stat(path->c_str(), &status) != 0) continue;
    auto ns = [](const timespec& time) {
      return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
    };
    out[i] = {.device = static_cast<std::int64_t>(status.st_dev),
              .inode = static_cast<std::int64_t>(status.st_ino),
              .size = status.st_size,
              .changed_ns = ns(status.st_ctim),
              .written_ns = ns(status.st_mtim)};
  }
  return out;
}

Expected<void> TlsIdentity::read() {
  auto ca = CSV_TRY(read_file(files_.ca, false));
  auto certificate_text = CSV_TRY(read_file(files_.certificate, false));
  auto key_text = CSV_TRY(read_file(files_.key, true));
  auto authorities = read_certificates(ca);
  auto certificates = read_certificates(certificate_text);
  auto key = read_private_key(key_text);
  OPENSSL_cleanse(key_text.data(), key_text.size());
  if (authorities.empty())
    return Error{Errc::refused, files_.ca + " holds no certificate that can be read"};
  if (certificates.size() != 1)
    return Error{Errc::refused, files_.certificate + " has to hold one certificate, and holds " +
                                    std::to_string(certificates.size()) + " that can be read"};
  if (!key)
    return Error{Errc::refused, files_.key + " holds no private key that can be read (" +
                                    openssl_reason("it is empty") + ")"};
  auto& certificate = *certificates.front();
  for (const auto& each : authorities)
    if (X509_check_ca(each.get()) == 0)
      return Error{Errc::refused,
                   files_.ca + ": \"" + subject_of(*each) + "\" is not the certificate of a CA"};
  auto names = node_of(certificate);
  if (!names || *names != name_)
    return Error{Errc::refused, files_.certificate + ": \"" + subject_of(certificate) +
                                    "\" is the certificate of " +
                                    (names ? to_uri(*names) : "no node") + ", and this is " +
                                    to_uri(name_)};
  auto issuer = issuer_of(certificate, authorities);
  if (!issuer) return issuer.error().within(files_.ca);
  if (X509_check_private_key(&certificate, key.get()) != 1) {
    ERR_clear_error();
    return Error{Errc::refused,
                 "the key " + files_.key + " is not that of the certificate " + files_.certificate};
  }
  auto context = CSV_TRY(make_context());
  auto* store = SSL_CTX_get_cert_store(context.get());
  for (const auto& each : authorities)
    if (X509_STORE_add_cert(store, each.get()) != 1) return failed(files_.ca);
  if (SSL_CTX_use_certificate(context.get(), &certificate) != 1) return failed(files_.certificate);
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) return failed(files_.key);
  context_ = std::move(context);
  certificate_ = CSV_TRY(describe_certificates(certificate_text)).front();
  valid_until_ = std::min(validity_of(certificate).until, validity_of(**issuer).until);
  return {};
}

void TlsIdentity::refresh() {
  auto now = stamps();
  if (now == seen_) return;
  seen_ = now;
  auto before = certificate_.fingerprint;
  auto result = read();
  reload_trouble_ = result ? "" : "the new files are not used: " + result.error().message();
  if (!result)
    log::warning("tls_files_refused why=\"{}\" in_force=\"{}\"", result.error().message(), before);
  else
    log::info("tls_files_read subject=\"{}\" until=\"{}\" fingerprint={}", certificate_.subject,
              date_text(valid_until_), certificate_.fingerprint);
}

Expected<void> TlsIdentity::in_force() const {
  auto now = clock_->wall_now();
  if (now >= valid_until_)
    return Error{Errc::refused, "this node's certificate, or its CA's, has expired on " +
                                    date_text(valid_until_) +
                                    ": put a new one there (csvctl cluster ca issue)"};
  if (now < certificate_.validity.from)
    return Error{Errc::refused, "this node's certificate is valid only from " +
                                    date_text(certificate_.validity.from) +
                                    " on (is the clock right?)"};
  return {};
}

std::string TlsIdentity::trouble() const {
  auto usable = in_force();
  return usable ? reload_trouble_ : usable.error().message();
}

}  // namespace csv::protocol

#include "coordinator/protocol/certificate.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>
#include <limits>

#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/openssl.h"
#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

constexpr std::string_view kScheme = "csvfs://";
constexpr std::int64_t kSecond = 1'000'000'000;

using ExtensionPtr = std::unique_ptr<X509_EXTENSION, FreeBy<&X509_EXTENSION_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, FreeBy<&GENERAL_NAMES_free>>;

Error failed(const std::string& doing) {
  return Error{Errc::refused, doing + ": " + openssl_reason()};
}

std::string authority_uri(std::uint16_t cluster) {
  return std::string{kScheme} + std::to_string(cluster) + "/ca";
}

/// The number `text` starts with, which it loses; nothing if it does not, or is written otherwise
/// than we would.
std::optional<std::uint32_t> take_number(std::string_view& text, std::uint32_t most) {
  std::uint32_t value = 0;
  auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || text.front() == '0' || value == 0 || value > most) return {};
  text.remove_prefix(static_cast<std::size_t>(stop - text.data()));
  return value;
}

struct OurName {
  std::uint16_t cluster = 0;
  std::optional<NodeId> node;  ///< Nothing: the authority.
};

std::optional<OurName> parse_uri(std::string_view uri) {
  if (!uri.starts_with(kScheme)) return {};
  uri.remove_prefix(kScheme.size());
  auto cluster = take_number(uri, 65535);
  if (!cluster) return {};
  OurName out{.cluster = static_cast<std::uint16_t>(*cluster), .node = {}};
  if (uri == "/ca") return out;
  constexpr std::string_view kNode = "/node/";
  if (!uri.starts_with(kNode)) return {};
  uri.remove_prefix(kNode.size());
  auto node = take_number(uri, kMaxNode);
  if (!node || !uri.empty()) return {};
  out.node = NodeId{static_cast<std::uint8_t>(*node)};
  return out;
}

/// The one name of ours in a certificate; two would leave open who its holder is.
std::optional<OurName> our_name(const X509& certificate) {
  NamesPtr names{static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr))};
  std::optional<OurName> found;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const auto* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const auto* uri = name->d.uniformResourceIdentifier;
    std::string_view text{reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                          static_cast<std::size_t>(ASN1_STRING_length(uri))};
    if (!text.starts_with(kScheme)) continue;
    if (found) return {};
    found = parse_uri(text);
    if (!found) return {};
  }
  return found;
}

WallTime to_wall(const ASN1_TIME* time) {
  std::tm broken{};
  if (ASN1_TIME_to_tm(time, &broken) != 1) return {};
  // Years beyond 2262 do not fit, and are as good as for ever.
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / kSecond;
  return WallTime{std::clamp<std::int64_t>(::timegm(&broken), -kMost, kMost) * kSecond};
}

std::string name_text(const X509_NAME* name) {
  BioPtr out{BIO_new(BIO_s_mem())};
  if (!out || X509_NAME_print_ex(out.get(), name, 0, XN_FLAG_ONELINE & ~ASN1_STRFLGS_ESC_QUOTE) < 0)
    return "?";
  char* text = nullptr;
  auto length = BIO_get_mem_data(out.get(), &text);
  return printable({text, static_cast<std::size_t>(length)});
}

template <typename Write>
Expected<std::string> to_pem(const Write& write) {
  BioPtr out{BIO_new(BIO_s_mem())};
  if (!out || write(out.get()) != 1) return failed("writing PEM");
  char* text = nullptr;
  auto length = BIO_get_mem_data(out.get(), &text);
  return std::string{text, static_cast<std::size_t>(length)};
}

struct Making {
  std::string common_name, uri, basic_constraints, key_usage, extended_key_usage;
  Validity validity;
};

Expected<void> add_extension(X509& to, X509& issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, &issuer, &to, nullptr, nullptr, 0);
  ExtensionPtr made{X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str())};
  if (!made || X509_add_ext(&to, made.get(), -1) != 1) return failed("adding " + value);
  return {};
}

/// `issuer` and `signer` null: it signs itself.
Expected<KeyPair> make(const Making& what, X509* issuer, EVP_PKEY* signer) {
  PrivateKeyPtr key{EVP_EC_gen("P-256")};
  CertificatePtr made{X509_new()};
  if (!key || !made) return failed("making a key");
  if (issuer == nullptr) {
    issuer = made.get();
    signer = key.get();
  }
  // 127 bits: positive, and nobody else's.
  std::array<unsigned char, 16> random{};
  if (RAND_bytes(random.data(), random.size()) != 1) return failed("drawing a serial number");
  random[0] = (random[0] & 0x3f) | 0x40;
  std::unique_ptr<BIGNUM, FreeBy<&BN_free>> serial{
      BN_bin2bn(random.data(), static_cast<int>(random.size()), nullptr)};
  auto* subject = X509_get_subject_name(made.get());
  auto add = [subject](const char* field, const std::string& text) {
    return X509_NAME_add_entry_by_txt(subject, field, MBSTRING_UTF8,
                                      reinterpret_cast<const unsigned char*>(text.data()),
                                      static_cast<int>(text.size()), -1, 0) == 1;
  };
  bool good = serial && BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(made.get())) &&
              X509_set_version(made.get(), X509_VERSION_3) == 1 && add("O", "csvfs") &&
              add("CN", what.common_name) &&
              X509_set_issuer_name(made.get(), X509_get_subject_name(issuer)) == 1 &&
              ASN1_TIME_set(X509_getm_notBefore(made.get()),
                            static_cast<std::int64_t>(what.validity.from) / kSecond) &&
              ASN1_TIME_set(X509_getm_notAfter(made.get()),
                            static_cast<std::int64_t>(what.validity.until) / kSecond) &&
              X509_set_pubkey(made.get(), key.get()) == 1;
  if (!good) return failed("filling a certificate in");
  CSV_TRY(add_extension(*made, *issuer, NID_basic_constraints, what.basic_constraints));
  CSV_TRY(add_extension(*made, *issuer, NID_key_usage, what.key_usage));
  if (!what.extended_key_usage.empty())
    CSV_TRY(add_extension(*made, *issuer, NID_ext_key_usage, what.extended_key_usage));
  CSV_TRY(add_extension(*made, *issuer, NID_subject_alt_name, "URI:" + what.uri));
  CSV_TRY(add_extension(*made, *issuer, NID_subject_key_identifier, "hash"));
  CSV_TRY(add_extension(*made, *issuer, NID_authority_key_identifier, "keyid:always"));
  if (X509_sign(made.get(), signer, EVP_sha256()) == 0) return failed("signing a certificate");
  KeyPair out;
  out.certificate = CSV_TRY(to_pem([&](BIO* to) { return PEM_write_bio_X509(to, made.get()); }));
  out.key = CSV_TRY(to_pem([&](BIO* to) {
    return PEM_write_bio_PrivateKey(to, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  }));
  return out;
}

}  // namespace

std::string to_uri(const NodeName& name) {
  return std::string{kScheme} + std::to_string(name.cluster) + "/node/" +
         std::to_string(raw(name.node));
}

Expected<KeyPair> make_authority(std::uint16_t cluster, const Validity& validity) {
  return make({.common_name = "cluster " + std::to_string(cluster) + " CA",
               .uri = authority_uri(cluster),
               .basic_constraints = "critical,CA:TRUE,pathlen:0",
               .key_usage = "critical,keyCertSign,cRLSign",
               .extended_key_usage = {},
               .validity = validity},
              nullptr, nullptr);
}

Expected<KeyPair> issue_certificate(const KeyPair& authority, NodeId node,
                                    const std::string& node_name, const Validity& validity) {
  auto issuers = read_certificates(authority.certificate);
  auto key = read_private_key(authority.key);
  if (issuers.empty() || !key) return failed("reading the CA's certificate and key");
  auto& issuer = *issuers.front();
  auto name = our_name(issuer);
  if (X509_check_ca(&issuer) == 0 || !name || name->node)
    return Error{Errc::refused,
                 "\"" + subject_of(issuer) + "\" is not the certificate of a cluster's CA"};
  if (X509_check_private_key(&issuer, key.get()) != 1)
    return failed("the CA's key does not belong to its certificate");
  return make({.common_name = node_name,
               .uri = to_uri({name->cluster, node}),
               .basic_constraints = "critical,CA:FALSE",
               .key_usage = "critical,digitalSignature",
               .extended_key_usage = "serverAuth,clientAuth",
               .validity = validity},
              &issuer, key.get());
}

Expected<std::vector<CertificateInfo>> describe_certificates(std::string_view pem) {
  std::vector<CertificateInfo> out;
  for (const auto& each : read_certificates(pem)) {
    CertificateInfo info;
    info.subject = subject_of(*each);
    info.issuer = name_text(X509_get_issuer_name(each.get()));
    info.is_authority = X509_check_ca(each.get()) != 0;
    if (auto name = our_name(*each)) info.cluster = name->cluster;
    info.node = node_of(*each);
    info.validity = validity_of(*each);
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned length = 0;
    if (X509_digest(each.get(), EVP_sha256(), digest.data(), &length) == 1)
      for (unsigned i = 0; i < length; ++i) info.fingerprint += fmt::format("{:02x}", digest[i]);
    out.push_back(std::move(info));
  }
  if (out.empty()) return Error{Errc::refused, "there is no certificate in it"};
  return out;
}

std::string date_text(WallTime time) {
  auto seconds = static_cast<std::time_t>(static_cast<std::int64_t>(time) / kSecond);
  std::tm broken{};
  ::gmtime_r(&seconds, &broken);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &broken);
  return text.data();
}

std::string printable(std::string_view text) {
  constexpr std::size_t kMost = 160;
  std::string out;
  for (char c : text.substr(0, kMost))
    out += c >= ' ' && c <= '~' && c != '"' && c != '\\' ? c : '?';
  return out;
}

// ---------------------------------------------------------------------------- openssl.h

std::string openssl_reason(const std::string& otherwise) {
  std::string reason = otherwise;
  // The last one is the outermost, and says most.
  while (auto code = ERR_get_error())
    if (const auto* text = ERR_reason_error_string(code)) reason = text;
  return reason;
}

std::vector<CertificatePtr> read_certificates(std::string_view pem) {
  std::vector<CertificatePtr> out;
  BioPtr in{BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))};
  while (in) {
    CertificatePtr one{PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr)};
    if (!one) {
      // Anything but the end of the text is a certificate that cannot be read: half is not enough.
      if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE) out.clear();
      break;
    }
    out.push_back(std::move(one));
  }
  ERR_clear_error();
  return out;
}

PrivateKeyPtr read_private_key(std::string_view pem) {
  BioPtr in{BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))};
  if (!in) return nullptr;
  auto nobody = [](char*, int, int, void*) { return -1; };
  return PrivateKeyPtr{PEM_read_bio_PrivateKey(in.get(), nullptr, nobody, nullptr)};
}

std::optional<NodeName> node_of(const X509& certificate) {
  auto name = our_name(certificate);
  if (!name || !name->node) return {};
  return NodeName{name->cluster, *name->node};
}

std::string subject_of(const X509& certificate) {
  return name_text(X509_get_subject_name(&certificate));
}

Validity validity_of(const X509& certificate) {
  return {to_wall(X509_get0_notBefore(&certificate)), to_wall(X509_get0_notAfter(&certificate))};
}

}  // namespace csv::protocol

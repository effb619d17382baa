#include "coordinator/protocol/tls_session.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "coordinator/protocol/openssl.h"
#include "csvfs/base/check.h"

namespace csv::protocol {
namespace {

class Session final : public TlsSession {
 public:
  explicit Session(const Setup& setup) : setup_{setup} {}

  Expected<void> begin() {
    ERR_clear_error();
    ssl_.reset(SSL_new(setup_.context.get()));
    BIO* bio = BIO_new(method());
    if (!ssl_ || bio == nullptr) {
      BIO_free(bio);
      return Error{Errc::refused, "setting TLS up: " + openssl_reason()};
    }
    BIO_set_data(bio, this);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);
    SSL_set_app_data(ssl_.get(), this);
    SSL_set_verify(ssl_.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, &verify);
    constexpr std::int64_t kSecond = 1'000'000'000;
    X509_VERIFY_PARAM_set_time(SSL_get0_param(ssl_.get()),
                               static_cast<std::int64_t>(setup_.now) / kSecond);
    if (setup_.side == Side::accepting)
      SSL_set_accept_state(ssl_.get());
    else
      SSL_set_connect_state(ssl_.get());
    return {};
  }

  Expected<Step> handshake() override {
    ERR_clear_error();
    auto result = SSL_do_handshake(ssl_.get());
    auto error = result == 1 ? Error{} : why(result, "the TLS handshake failed");
    // Also its alert, where it ends here.
    auto sent = send_now();
    if (error.code() && !wants_) return error;
    if (!sent) return sent.error();
    if (result != 1) return Step::wait;
    // Not by the callback's word alone that this is who it has to be.
    CertificatePtr certificate{SSL_get1_peer_certificate(ssl_.get())};
    auto name = certificate ? node_of(*certificate).value_or(NodeName{}) : NodeName{};
    if (SSL_get_verify_result(ssl_.get()) != X509_V_OK || !expected(name))
      return Error{Errc::refused, "the peer has shown no certificate that will do"};
    CSV_CHECK(SSL_version(ssl_.get()) == TLS1_3_VERSION);
    peer_ = name.node;
    proven_ = true;
    return Step::done;
  }

  [[nodiscard]] NodeId peer() const override { return peer_; }

  Expected<std::size_t> read(std::span<std::byte> into) override {
    ERR_clear_error();
    std::size_t got = 0;
    auto result = SSL_read_ex(ssl_.get(), into.data(), into.size(), &got);
    if (result == 1) return got;
    auto error = why(result, "its records cannot be decrypted");
    if (wants_) return std::size_t{0};
    return error;
  }

  Expected<void> seal(std::span<const std::byte> content) override {
    ERR_clear_error();
    std::size_t taken = 0;
    auto result = SSL_write_ex(ssl_.get(), content.data(), content.size(), &taken);
    if (result == 1 && taken == content.size()) return {};
    return Error{Errc::closed, "encrypting: " + openssl_reason("the conversation is over")};
  }

  std::string& sealed() override { return sealed_; }

  Expected<void> send_now() override {
    if (sealed_.empty()) return {};
    auto sent = ::send(setup_.socket, sealed_.data(), sealed_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    bool whole = sent == static_cast<ssize_t>(sealed_.size());
    auto number = errno;
    sealed_.clear();
    if (whole) return {};
    if (sent < 0) return errno_error(number, "sending the handshake");
    return Error{Errc::closed, "the peer does not take what is sent to it"};
  }

  void farewell() override {
    // In the middle of a record nothing else can be said.
    if (!proven_ || !sealed_.empty()) return;
    ERR_clear_error();
    SSL_shutdown(ssl_.get());
    (void)send_now();
    ERR_clear_error();
  }

 private:
  static const BIO_METHOD* method() {
    static const BIO_METHOD* made = [] {
      auto* one = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket of csvfs");
      CSV_CHECK(one != nullptr);
      BIO_meth_set_read_ex(one, [](BIO* bio, char* into, std::size_t size, std::size_t* got) {
        BIO_clear_retry_flags(bio);
        return of(bio).receive(bio, into, size, *got);
      });
      BIO_meth_set_write_ex(one, [](BIO* bio, const char* data, std::size_t size, std::size_t* n) {
        BIO_clear_retry_flags(bio);
        of(bio).sealed_.append(data, size);
        *n = size;
        return 1;
      });
      BIO_meth_set_ctrl(
          one, [](BIO*, int what, long, void*) -> long { return what == BIO_CTRL_FLUSH ? 1 : 0; });
      return one;
    }();
    return made;
  }
  static Session& of(BIO* bio) { return *static_cast<Session*>(BIO_get_data(bio)); }

  int receive(BIO* bio, char* into, std::size_t size, std::size_t& got) {
    got = 0;
    if (!proven_) {
      size = std::min(size, setup_.most_before_proof - read_);
      if (size == 0) {
        too_much_ = true;
        return 0;
      }
    }
    auto n = ::recv(setup_.socket, into, size, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
      BIO_set_retry_read(bio);
      return 0;
    }
    if (n < 0) errno_ = errno;
    if (n == 0) eof_ = true;
    if (n <= 0) return 0;
    got = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < got && read_ + i < first_.size(); ++i) first_[read_ + i] = into[i];
    if (!proven_) read_ += got;
    return 1;
  }

  [[nodiscard]] bool expected(const NodeName& name) const {
    return name.node != NodeId{} && name.cluster == setup_.cluster &&
           raw(name.node) < setup_.peers.size() && setup_.peers.test(raw(name.node));
  }

  static int verify(int good, X509_STORE_CTX* chain) {
    auto* ssl =
        static_cast<SSL*>(X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx()));
    return static_cast<Session*>(SSL_get_app_data(ssl))->judge(good == 1, *chain) ? 1 : 0;
  }

  bool judge(bool good, X509_STORE_CTX& chain) {
    auto* certificate = X509_STORE_CTX_get_current_cert(&chain);
    auto subject = certificate ? "\"" + subject_of(*certificate) + "\"" : std::string{"?"};
    // Quotes belong to the log's own syntax.
    for (auto& c : subject)
      if (c == '"') c = '\'';
    if (!good) {
      auto error = X509_STORE_CTX_get_error(&chain);
      refusal_ =
          "the certificate " + subject + " is refused: " + X509_verify_cert_error_string(error);
      if (certificate && error == X509_V_ERR_CERT_HAS_EXPIRED)
        refusal_ += " on " + date_text(validity_of(*certificate).until);
      if (certificate && error == X509_V_ERR_CERT_NOT_YET_VALID)
        refusal_ += ", but from " + date_text(validity_of(*certificate).from) + " on";
      return false;
    }
    if (X509_STORE_CTX_get_error_depth(&chain) > 0) return true;
    auto name = certificate ? node_of(*certificate) : std::nullopt;
    if (name && expected(*name)) return true;
    if (!name)
      refusal_ = "the certificate " + subject + " names no node";
    else if (name->cluster != setup_.cluster)
      refusal_ = "the certificate " + subject + " is of another cluster, " + to_uri(*name);
    else if (setup_.side == Side::accepting)
      refusal_ = "the certificate " + subject + " is of node " + std::to_string(raw(name->node)) +
                 ", which is not in this node's configuration";
    else
      refusal_ = "another node answers there: the certificate " + subject + " is of node " +
                 std::to_string(raw(name->node));
    X509_STORE_CTX_set_error(&chain, X509_V_ERR_APPLICATION_VERIFICATION);
    return false;
  }

  /// Why a call did not succeed; wants_ if it only has to wait.
  Error why(int result, const char* otherwise) {
    auto kind = SSL_get_error(ssl_.get(), result);
    wants_ = kind == SSL_ERROR_WANT_READ && !eof_ && !too_much_ && errno_ == 0;
    if (wants_) return Error{Errc::retry};
    if (kind == SSL_ERROR_ZERO_RETURN) return Error{Errc::closed, "the peer closed the connection"};
    auto code = ERR_peek_last_error();
    auto reason = ERR_GET_REASON(code);
    auto text = openssl_reason(otherwise);
    if (!refusal_.empty()) return Error{Errc::refused, refusal_};
    if (too_much_) return Error{Errc::refused, "it sends too much before it says who it is"};
    if (errno_ != 0) return errno_error(errno_, "receiving");
    if (eof_)
      return Error{Errc::closed,
                   proven_ ? "the connection broke off" : "it went away within the handshake"};
    if (!proven_ && std::string_view{first_.data(), first_.size()} == "CSVF")
      return Error{Errc::refused, "it speaks plain text: is [tls] mode = off there?"};
    if (!proven_ && setup_.side == Side::accepting &&
        (reason == SSL_R_UNSUPPORTED_PROTOCOL || reason == SSL_R_NO_PROTOCOLS_AVAILABLE))
      return Error{Errc::refused, "it speaks an older TLS than 1.3"};
    if (!proven_ && reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
      return Error{Errc::refused, "it shows no certificate"};
    if (reason > SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256)
      return Error{Errc::refused, "the peer refuses this node: " + text + " (its log says why)"};
    return Error{Errc::refused, std::string{otherwise} + ": " + text};
  }

  Setup setup_;
  std::unique_ptr<SSL, FreeBy<&SSL_free>> ssl_;
  std::string sealed_;
  std::string refusal_;
  NodeId peer_{};
  bool proven_ = false, wants_ = false, eof_ = false, too_much_ = false;
  int errno_ = 0;
  std::size_t read_ = 0;  ///< Before the peer was known.
  std::array<char, 4> first_{};
};

}  // namespace

Expected<std::unique_ptr<TlsSession>> TlsSession::make(const Setup& setup) {
  auto made = std::make_unique<Session>(setup);
  CSV_TRY(made->begin());
  return std::unique_ptr<TlsSession>{std::move(made)};
}

}  // namespace csv::protocol

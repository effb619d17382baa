#pragma once
// The door to OpenSSL: include this, not its headers, and only in .cc files of this folder.
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/protocol/certificate.h"

namespace csv::protocol {

template <auto free>
struct FreeBy {
  template <typename T>
  void operator()(T* p) const {
    free(p);
  }
};
using BioPtr = std::unique_ptr<BIO, FreeBy<&BIO_free_all>>;
using CertificatePtr = std::unique_ptr<X509, FreeBy<&X509_free>>;
using PrivateKeyPtr = std::unique_ptr<EVP_PKEY, FreeBy<&EVP_PKEY_free>>;

/// What OpenSSL says went wrong last on this thread, and forgets: `otherwise` if it says nothing.
std::string openssl_reason(const std::string& otherwise = "no reason given");

/// Every certificate of a PEM text; none where there is none or one cannot be read.
std::vector<CertificatePtr> read_certificates(std::string_view pem);
/// Null where there is no key, or it wants a password: nobody is asked for one.
PrivateKeyPtr read_private_key(std::string_view pem);
/// Which node it names: nothing unless it has exactly one name of ours, and that well formed.
std::optional<NodeName> node_of(const X509& certificate);
std::string subject_of(const X509& certificate);
Validity validity_of(const X509& certificate);

}  // namespace csv::protocol

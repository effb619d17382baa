#include "iscsi/configured_lun.h"

namespace csv::iscsi {
namespace {

std::uint64_t hash_of(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

}  // namespace

LunOpener configured_opener(AsioLoop& home, const Config& config, const VolumeConfig& volume) {
  return [&home, initiator = config.initiator, volume](
             LunOptions options, Function<void(Expected<std::unique_ptr<Lun>>)> done) {
    options.initiator = initiator;
    options.isid_seed = options.isid_seed * 0x9e3779b97f4a7c15ull + hash_of(volume.name);
    options.sessions = volume.sessions;
    options.header_digest = volume.header_digest;
    options.data_digest = volume.data_digest;
    options.write_cache_safe = volume.write_cache_safe;
    options.chap_user = volume.chap_user;
    if (!volume.chap_user.empty()) {
      auto secret = read_secret(volume.chap_secret_file);
      if (!secret) {
        home.post([done = std::move(done), why = secret.error()]() mutable { done(why); });
        return;
      }
      options.chap_secret = *std::move(secret);
    }
    open_lun(home, volume.lun, std::move(options), std::move(done));
  };
}

}  // namespace csv::iscsi

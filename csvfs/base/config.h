#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv {

/// A volume as this node reaches it.
struct VolumeConfig {
  std::string name;  ///< At most 63 of letters, digits, '.', '_', '-'.
  std::string lun;   ///< iscsi://…, /dev/… or file:… (iscsi/lun.h).
  int sessions = 2;
  bool coordinate = false;  ///< This node takes it over at start if nobody coordinates it.
  std::string chap_user;
  std::string chap_secret_file;  ///< Read with read_secret().
  bool header_digest = false, data_digest = false;
  /// "safe": the array's cache outlives a power loss, whatever it reports. "ask": it is believed.
  bool write_cache_safe = false;
  /// Hours between two copies of the catalog that the coordinator takes; 0: by command only.
  int catalog_copy_hours = 24;
  /// What csvd keeps of the volume while this node coordinates it (coordinator/service/memory.h).
  int coordinator_memory_mib = 320;
  int mount_memory_mib = 96;  ///< What the mount keeps of files (csvfs/mount.h).
  bool operator==(const VolumeConfig&) const = default;
};

struct PeerConfig {
  NodeId id{};
  std::string name;
  std::string address;             ///< "address:port", numeric: where its csvd listens.
  std::vector<std::string> links;  ///< As Config::links.
  bool operator==(const PeerConfig&) const = default;
};

/// How nodes speak with each other.
struct TlsConfig {
  bool off = false;  ///< Plain text, and whoever connects is believed.
  std::string ca = "/etc/csvfs/tls/ca.crt";
  std::string certificate = "/etc/csvfs/tls/node.crt";
  std::string key = "/etc/csvfs/tls/node.key";
  bool operator==(const TlsConfig&) const = default;
};

/// What a watchdog must count to at least, by the times of the membership lease.
inline constexpr Duration kShortestWatchdog = 10s, kLongestWatchdog = 600s;

/// What /etc/csvfs/csvd.toml says, checked: docs/configuration.md has every key. A value; the same
/// for csvd, csvfs and csvctl of a node.
struct Config {
  std::uint16_t cluster = 0;  ///< 1..65535
  /// Corosync says who is here, and the nodes vote; else nothing fails over by itself.
  bool corosync = false;
  /// Numeric; pinged when this node has lost its quorum. Empty: those of the cluster's
  /// configuration, or else the default gateways.
  std::vector<std::string> isolation_addresses;
  /// A node that has lost its quorum, and did not find it again after a restart of csvd, reboots.
  bool reboot_when_isolated = false;
  /// A device's path (coordinator/cluster/watchdog.h); empty: none is used.
  std::string watchdog;
  Duration watchdog_timeout = kShortestWatchdog;  ///< Whole seconds.
  bool hold_wake_latency = true;                  ///< csvfs/base/wake_latency.h
  NodeId node{};
  std::string node_name;
  std::string listen;  ///< "address:port", numeric; where mounts and peers reach this csvd.
  /// Numeric addresses of Corosync's links, the private network's first; empty: one link, on the
  /// address of `listen`. As many on every node.
  std::vector<std::string> links;
  std::string initiator;  ///< iSCSI name of this node.
  std::string state_dir;  ///< Where what outlives a restart is kept: copies of catalogs.
  std::vector<PeerConfig> peers;
  std::vector<VolumeConfig> volumes;
  TlsConfig tls;
  std::string status_group;  ///< Whose members may ask csvd for its status; empty: root only.
};

inline constexpr const char* kConfigFile = "/etc/csvfs/csvd.toml";
inline constexpr const char* kStateDir = "/var/lib/csvfs";
inline constexpr const char* kBoardName = "csvfs-board";
inline constexpr const char* kAdminSocket = "/run/csvfs/csvd.sock";

/// Errc::refused where the text is wrong: "FILE:LINE:COLUMN: what stands there, and what was
/// expected". Unknown keys are wrong: a misspelt option would be ignored in silence otherwise.
Expected<Config> parse_config(std::string_view text, const std::string& file_name);
/// The same of a file.
Expected<Config> load_config(const std::string& path);

/// The first line of a file that nobody but its owner (root, or the caller) may read: Errc::refused
/// where others may.
Expected<std::string> read_secret(const std::string& path);

/// "iqn.2026-01.org.csvfs:NAME": the initiator name of a node without one of its own.
std::string default_initiator(std::string_view node_name);

}  // namespace csv

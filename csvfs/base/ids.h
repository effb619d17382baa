#pragma once
#include <compare>
#include <cstdint>
#include <functional>

namespace csv {

enum class NodeId : std::uint8_t {
};  ///< 1..63, as configured; the heartbeat slots and keys hold it.
enum class Epoch : std::uint64_t {};  ///< Grows by one with every change of a volume's coordinator.
enum class InodeId : std::uint64_t {};    ///< Never reused within a volume. 1 is the root.
enum class SessionId : std::uint64_t {};  ///< What a mount holds at the coordinator. Never reused.
enum class GrantId : std::uint64_t {
};                                  ///< Space given to a session to write. Never reused. 0: none.
enum class Key : std::uint64_t {};  ///< A reservation key; never 0 (which means "unregister").

inline constexpr InodeId kRootInode{1};

template <typename E>
requires std::is_enum_v<E>
constexpr auto raw(E value) noexcept { return static_cast<std::underlying_type_t<E>>(value); }

/// Orders configurations of a cluster: compared member by member. `forced` grows only when an
/// administrator forces a quorum, `epoch` each time a cluster forms, `sequence` with each change.
struct ClusterTag {
  std::uint64_t forced = 0, epoch = 0, sequence = 0;
  auto operator<=>(const ClusterTag&) const = default;
};

/// What a key is for. Each dies separately, so each has its own key.
enum class KeyRole : std::uint8_t { mount = 0, coordinator = 1, heartbeat = 2 };

/// A key is cluster (16 bit) | node (8) | role (2) | number (38). One admission of one process uses
/// it, on all of its nexuses; it is never used again.
struct KeyParts {
  std::uint16_t cluster = 0;
  NodeId node{};
  KeyRole role{};
  std::uint64_t number = 0;  ///< Below 2^38, and not 0.
  auto operator<=>(const KeyParts&) const = default;
};
constexpr Key make_key(const KeyParts& parts) noexcept {
  return Key{(std::uint64_t{parts.cluster} << 48) | (std::uint64_t{raw(parts.node)} << 40) |
             (std::uint64_t{raw(parts.role)} << 38) | (parts.number & ((1ull << 38) - 1))};
}
constexpr KeyParts parts_of(Key key) noexcept {
  auto bits = raw(key);
  return {static_cast<std::uint16_t>(bits >> 48), NodeId{static_cast<std::uint8_t>(bits >> 40)},
          KeyRole{static_cast<std::uint8_t>((bits >> 38) & 3)}, bits & ((1ull << 38) - 1)};
}

}  // namespace csv

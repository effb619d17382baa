#pragma once
#include <cstddef>
#include <cstdint>

#include "coordinator/protocol/csv.pb.h"
#include "csvfs/base/error.h"

namespace csv::protocol {

// What a message may say at most. Wide enough that no program of a healthy node can make its mount
// send more (the kernel's own limits lie below), because a message over a limit ends the
// connection. What is an error of the program (a name of 300 bytes) is the catalog's to refuse.
inline constexpr std::uint32_t kSlots = 64;    ///< Of a session.
inline constexpr std::uint32_t kMaxNode = 63;  ///< Nodes are 1..63.
inline constexpr std::size_t kMaxVolumeName = 63;
inline constexpr std::size_t kMaxEndpoint = 64;  ///< A numeric address and a port.
inline constexpr std::size_t kMaxName = 1024;    ///< Of an entry; FUSE sends no longer ones.
inline constexpr std::size_t kMaxLinkTarget = 4096;
inline constexpr std::size_t kMaxXattrName = 255;
inline constexpr std::size_t kMaxXattrValue = 64 * 1024;
inline constexpr std::size_t kMaxBytes =
    256 * 1024;                                ///< A list of xattr names, the longest of `Bytes`.
inline constexpr std::size_t kMaxText = 4096;  ///< A reason, an error's sentence.
inline constexpr std::size_t kMaxIdentity = 255;  ///< Of a LUN.
inline constexpr int kMaxCoordinates = 64;        ///< Volumes a node coordinates.
inline constexpr int kMaxReached = 64;            ///< Volumes of a node.
inline constexpr int kMaxSigns = 64 * 63;         ///< Mounts of all its volumes.
inline constexpr int kMaxOpenInodes = 100'000;    ///< Re-declared in a Hello.
/// Files that one mount has open: all three lists of a Hello that may name them then fit into one
/// head, whatever their numbers.
inline constexpr std::size_t kMostOpenFiles = 48'000;
inline constexpr std::size_t kMostHelloBytes = (1u << 20) - 4096;  ///< Of a head, with the rest.
inline constexpr int kMaxLayoutInodes = 65'536;                    ///< More: layouts_unlisted.
inline constexpr int kMaxEntries = 4096;                       ///< Of a directory, in one reply.
inline constexpr int kMaxSegments = 4096;                      ///< Of a layout.
inline constexpr int kMaxHeldLocks = 4096;                     ///< In one message.
inline constexpr int kMaxResumed = 1024;                       ///< Files, in one message.
inline constexpr int kMaxReleased = 256;                       ///< Beside one, in one message.
inline constexpr int kMaxGaveUp = 16;                          ///< Of one request.
inline constexpr std::uint64_t kMostVouched = 60'000;          ///< Milliseconds.
inline constexpr int kMaxAlso = 16;                            ///< Attributes beside a result.
inline constexpr int kMaxUnwatched = 4096;                     ///< In one message.
inline constexpr std::uint64_t kMaxOffset = (1ull << 63) - 1;  ///< The kernel's loff_t.

/// What an entry of a directory takes of ReadDir.room: that of the kernel's fuse_dirent.
constexpr std::size_t room_of_entry(std::size_t name_length) {
  return (24 + name_length + 7) / 8 * 8;
}

/// Whether everything `frame` says, with `bulk_length` bytes beside it, is within the limits and
/// the ranges of its fields, and a body is there at all. Errc::refused with the field's name.
Expected<void> check_limits(const wire::Frame& frame, std::size_t bulk_length);

}  // namespace csv::protocol

#include "csvfs/watched.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <set>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/named_inodes.h"

namespace csv {
namespace {

constexpr std::size_t kMostDoubts = 4096;

/// Whether executing it changes what was known of the inodes it names.
bool changes(const wire::Request& request) {
  if (protocol::must_be_once(request)) return true;
  switch (request.op_case()) {
    case wire::Request::kWrote: return true;
    case wire::Request::kGetAttr:
      return request.get_attr().wrote() || request.get_attr().accessed();
    case wire::Request::kRelease: return request.release().wrote() || request.release().accessed();
    case wire::Request::kLayoutReturn: return request.layout_return().wrote();
    default: return false;
  }
}

}  // namespace

void Watched::sending(wire::Request& request, std::uint64_t id) {
  if (!changes(request)) return;
  for (auto inode : protocol::named_inodes(request)) {
    doubt(inode, id);
    request.add_gave_up(raw(inode));
  }
}

void Watched::doubt(InodeId inode, std::uint64_t id) {
  known_.forget({&inode, 1});
  if (doubts_.size() >= kMostDoubts) {
    // What is on its way now is doubted as a whole instead: it is not kept, that is all.
    doubts_.clear();
    doubts_from_ = id;
  }
  doubts_[inode] = id;
}

bool Watched::doubted(InodeId inode, std::uint64_t id) const {
  if (id < doubts_from_) return true;
  auto found = doubts_.find(inode);
  return found != doubts_.end() && id < found->second;
}

void Watched::replied(const wire::Request& request, std::uint64_t id, TimePoint sent_at,
                      const wire::Reply& reply) {
  if (reply.vouched_ms() == 0 || stopped_) return;
  vouched_until_ =
      std::max(vouched_until_, sent_at + std::chrono::milliseconds{reply.vouched_ms()});
  auto watched = [&](std::uint64_t inode) {
    return std::find(reply.watched().begin(), reply.watched().end(), inode) !=
               reply.watched().end() &&
           !doubted(InodeId{inode}, id);
  };
  auto error = protocol::decode(reply.failure());
  switch (request.op_case()) {
    case wire::Request::kLookup: {
      const auto& asked = request.lookup();
      if (reply.has_attr()) {
        InodeId inode{reply.attr().inode()};
        if (watched(raw(inode))) known_.learn(inode, reply.attr());
        if (watched(asked.parent())) known_.learn(InodeId{asked.parent()}, asked.name(), inode);
      } else if (error == std::errc::no_such_file_or_directory && watched(asked.parent())) {
        known_.learn_absent(InodeId{asked.parent()}, asked.name());
      }
      return;
    }
    case wire::Request::kGetAttr:
    case wire::Request::kOpen:
      if (reply.has_attr() && watched(reply.attr().inode()))
        known_.learn(InodeId{reply.attr().inode()}, reply.attr());
      return;
    case wire::Request::kGetXattr: {
      const auto& asked = request.get_xattr();
      if (!watched(asked.inode())) return;
      if (reply.has_bytes())
        known_.learn_xattr(InodeId{asked.inode()}, asked.name(), reply.bytes().value());
      else if (error == std::error_code{ENODATA, std::generic_category()})
        known_.learn_xattr(InodeId{asked.inode()}, asked.name(), std::nullopt);
      return;
    }
    case wire::Request::kReadDir: {
      std::set<std::uint64_t> all{reply.watched().begin(), reply.watched().end()};
      auto directory = request.read_dir().inode();
      bool names = all.contains(directory) && !doubted(InodeId{directory}, id);
      for (const auto& entry : reply.entries().entries()) {
        InodeId inode{entry.attr().inode()};
        if (all.contains(raw(inode)) && !doubted(inode, id)) known_.learn(inode, entry.attr());
        if (names) known_.learn(InodeId{directory}, entry.name(), inode);
      }
      return;
    }
    default: break;
  }
  auto learn = [&](const wire::Attr& attr) {
    if (watched(attr.inode())) known_.learn(InodeId{attr.inode()}, attr);
  };
  if (reply.has_attr()) learn(reply.attr());
  if (reply.has_written()) learn(reply.written().attr());
  for (const auto& attr : reply.also()) learn(attr);
}

void Watched::noticed(const wire::Unwatch& notice) {
  for (auto number : notice.inodes()) {
    InodeId inode{number};
    known_.forget({&inode, 1});
  }
  for (auto number : notice.attributes()) {
    InodeId inode{number};
    known_.forget_attributes({&inode, 1});
  }
}

void Watched::forget_all() {
  known_.clear();
  vouched_until_ = {};
}

void Watched::stop() {
  forget_all();
  stopped_ = true;
}

const wire::Attr* Watched::attr(InodeId inode) { return good() ? known_.attr(inode) : nullptr; }

Watched::Found Watched::find(InodeId parent, const std::string& name) {
  return good() ? known_.find(parent, name) : Found{};
}

const std::optional<std::string>* Watched::xattr(InodeId inode, const std::string& name) {
  static const std::optional<std::string> kNotSet;
  if (!good()) return nullptr;
  if (const auto* known = known_.attr(inode); known != nullptr && known->plain()) return &kNotSet;
  return known_.xattr(inode, name);
}

}  // namespace csv

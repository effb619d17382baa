#include "coordinator/protocol/limits.h"

#include <string>
#include <string_view>

#include "coordinator/protocol/frame.h"

namespace csv::protocol {
namespace {

Error out_of_range(std::string_view field, std::uint64_t value) {
  return Error{Errc::refused, "a message's field " + std::string{field} + " is out of range (" +
                                  std::to_string(value) + ")"};
}

Expected<void> at_most(std::string_view field, std::uint64_t value, std::uint64_t limit) {
  if (value > limit) return out_of_range(field, value);
  return {};
}

Expected<void> list(std::string_view field, int length, int limit) {
  if (length > limit) return out_of_range(field, static_cast<std::uint64_t>(length));
  return {};
}

Expected<void> length_between(std::string_view field, const std::string& text, std::size_t least,
                              std::size_t most) {
  if (text.size() < least || text.size() > most) return out_of_range(field, text.size());
  return {};
}

Expected<void> node(std::string_view field, std::uint32_t value) {
  if (value == 0 || value > kMaxNode) return out_of_range(field, value);
  return {};
}

Expected<void> range(std::string_view field, std::uint64_t offset, std::uint64_t length) {
  if (offset > kMaxOffset) return out_of_range(field, offset);
  if (length > kMaxOffset - offset) return out_of_range(field, length);
  return {};
}

Expected<void> check(const wire::Failure& failure) {
  CSV_TRY(at_most("failure.code", failure.code(), 0xffff));
  return length_between("failure.message", failure.message(), 0, kMaxText);
}

Expected<void> check(const wire::BeatEcho& echo) {
  CSV_TRY(node("beat_echo.node", echo.node()));
  CSV_TRY(list("beat_echo.coordinates", echo.coordinates_size(), kMaxCoordinates));
  for (const auto& one : echo.coordinates())
    CSV_TRY(length_between("coordinates.volume", one.volume(), 1, kMaxVolumeName));
  CSV_TRY(list("beat_echo.reached", echo.reached_size(), kMaxReached));
  for (const auto& one : echo.reached())
    CSV_TRY(length_between("reached.volume", one.volume(), 1, kMaxVolumeName));
  CSV_TRY(list("beat_echo.signs", echo.signs_size(), kMaxSigns));
  for (const auto& one : echo.signs()) {
    CSV_TRY(node("storage_sign.node", one.node()));
    CSV_TRY(length_between("storage_sign.volume", one.volume(), 1, kMaxVolumeName));
  }
  return {};
}

Expected<void> check(const wire::Hello& hello) {
  CSV_TRY(length_between("hello.volume", hello.volume(), 1, kMaxVolumeName));
  CSV_TRY(node("hello.node", hello.node()));
  CSV_TRY(list("hello.open_inodes", hello.open_inodes_size(), kMaxOpenInodes));
  CSV_TRY(list("hello.write_inodes", hello.write_inodes_size(), kMaxOpenInodes));
  CSV_TRY(list("hello.page_inodes", hello.page_inodes_size(), kMaxOpenInodes));
  CSV_TRY(list("hello.read_inodes", hello.read_inodes_size(), kMaxLayoutInodes));
  return list("hello.layout_inodes", hello.layout_inodes_size(), kMaxLayoutInodes);
}

Expected<void> check(const wire::HelloReply& reply) {
  CSV_TRY(check(reply.failure()));
  constexpr std::size_t kVolumeId = 16;
  if (reply.failure().code() == 0)
    CSV_TRY(length_between("hello_reply.volume_id", reply.volume_id(), kVolumeId, kVolumeId));
  CSV_TRY(at_most("hello_reply.volume_id", reply.volume_id().size(), kVolumeId));
  CSV_TRY(length_between("hello_reply.lun_identity", reply.lun_identity(), 0, kMaxIdentity));
  CSV_TRY(at_most("hello_reply.cluster", reply.cluster(), 0xffff));
  CSV_TRY(at_most("hello_reply.elsewhere_node", reply.elsewhere_node(), kMaxNode));
  CSV_TRY(length_between("hello_reply.elsewhere_endpoint", reply.elsewhere_endpoint(), 0,
                         kMaxEndpoint));
  return range("hello_reply.slot_offset", reply.slot_offset(), 0);
}

// The rest of a mode is refused: type and permission bits are all there is.
constexpr std::uint32_t kModeBits = 0xffff;

Expected<void> check(const wire::SetAttr& change) {
  CSV_TRY(at_most("set_attr.mode", change.mode(), kModeBits));
  return at_most("set_attr.size", change.size(), kMaxOffset);
}

Expected<void> check(const wire::Make& make) {
  CSV_TRY(length_between("make.name", make.name(), 0, kMaxName));
  CSV_TRY(length_between("make.target", make.target(), 0, kMaxLinkTarget));
  return at_most("make.mode", make.mode(), kModeBits);
}

Expected<void> check(const wire::Rename& rename) {
  CSV_TRY(length_between("rename.name", rename.name(), 0, kMaxName));
  CSV_TRY(length_between("rename.new_name", rename.new_name(), 0, kMaxName));
  return at_most("rename.flags", rename.flags(), 7);
}

Expected<void> check(const wire::SetXattr& set) {
  CSV_TRY(length_between("set_xattr.name", set.name(), 0, kMaxXattrName));
  CSV_TRY(length_between("set_xattr.value", set.value(), 0, kMaxXattrValue));
  return at_most("set_xattr.flags", set.flags(), 3);
}

Expected<void> check(const wire::LockOf& lock, bool has_type = true) {
  CSV_TRY(at_most("lock.kind", lock.kind(), 1));
  if (has_type && (lock.type() < 1 || lock.type() > 2))
    return out_of_range("lock.type", lock.type());
  if (lock.owner() == 0) return out_of_range("lock.owner", 0);
  CSV_TRY(at_most("lock.last", lock.last(), kMaxOffset));
  return at_most("lock.first", lock.first(), lock.last());
}

Expected<void> check(const wire::HeldLocks& locks) {
  CSV_TRY(list("held_locks", locks.held_size(), kMaxHeldLocks));
  for (const auto& one : locks.held()) CSV_TRY(check(one));
  return {};
}

Expected<void> check(const wire::Resume& resume) {
  CSV_TRY(list("resume.files", resume.files_size(), kMaxResumed));
  for (const auto& one : resume.files()) {
    if (one.inode() == 0) return out_of_range("resume.inode", 0);
    CSV_TRY(at_most("resume.size", one.size(), kMaxOffset));
  }
  CSV_TRY(list("resume.locks", resume.locks_size(), kMaxHeldLocks));
  for (const auto& one : resume.locks()) CSV_TRY(check(one));
  return {};
}

Expected<void> check(const wire::Request& request, std::size_t bulk_length) {
  CSV_TRY(at_most("request.slot", request.slot(), kSlots - 1));
  CSV_TRY(list("request.gave_up", request.gave_up_size(), kMaxGaveUp));
  if (request.op_case() != wire::Request::kWrite && bulk_length > 0)
    return out_of_range("request's bulk data", bulk_length);
  switch (request.op_case()) {
    case wire::Request::kLookup:
      return length_between("lookup.name", request.lookup().name(), 0, kMaxName);
    case wire::Request::kSetAttr: return check(request.set_attr());
    case wire::Request::kMake: return check(request.make());
    case wire::Request::kLink:
      return length_between("link.name", request.link().name(), 0, kMaxName);
    case wire::Request::kUnlink:
      return length_between("unlink.name", request.unlink().name(), 0, kMaxName);
    case wire::Request::kRename: return check(request.rename());
    case wire::Request::kGetXattr:
      return length_between("get_xattr.name", request.get_xattr().name(), 0, kMaxXattrName);
    case wire::Request::kSetXattr: return check(request.set_xattr());
    case wire::Request::kRemoveXattr:
      return length_between("remove_xattr.name", request.remove_xattr().name(), 0, kMaxXattrName);
    case wire::Request::kLayout:
      CSV_TRY(at_most("layout.pages", request.layout().pages(), 2));
      return range("layout", request.layout().offset(), request.layout().length());
    case wire::Request::kCommit:
      return range("commit", request.commit().offset(), request.commit().length());
    case wire::Request::kRead:
      CSV_TRY(at_most("read.length", request.read().length(), kMaxBulk));
      return range("read", request.read().offset(), request.read().length());
    case wire::Request::kWrite: return range("write", request.write().offset(), bulk_length);
    case wire::Request::kAllocate:
      return range("allocate", request.allocate().offset(), request.allocate().length());
    case wire::Request::kClone:
      CSV_TRY(range("clone", request.clone().offset(), request.clone().length()));
      return range("clone.into", request.clone().into_offset(), request.clone().length());
    case wire::Request::kSeek: return range("seek", request.seek().offset(), 0);
    case wire::Request::kLock: return check(request.lock().what());
    case wire::Request::kUnlock: return check(request.unlock().what(), false);
    case wire::Request::kTestLock: return check(request.test_lock().what());
    case wire::Request::kHeldLocks: return check(request.held_locks());
    case wire::Request::kResume: return check(request.resume());
    case wire::Request::kRelease:
      return list("release.also", request.release().also_size(), kMaxReleased);
    case wire::Request::kLockTaken:
    case wire::Request::kLockCancel:
    case wire::Request::kAdmitBegin:
    case wire::Request::kAdmitDone:
    case wire::Request::kGoodbye:
    case wire::Request::kGetAttr:
    case wire::Request::kReadLink:
    case wire::Request::kOpen:
    case wire::Request::kReadDir:  // the coordinator cuts its limit to what a reply holds
    case wire::Request::kListXattr:
    case wire::Request::kStatFs:
    case wire::Request::kLayoutReturn:
    case wire::Request::kWrote: return {};
    case wire::Request::OP_NOT_SET: break;
  }
  return Error{Errc::refused, "a request asks for nothing this program knows"};
}

Expected<void> check(const wire::Attr& attr) {
  CSV_TRY(at_most("attr.mode", attr.mode(), kModeBits));
  return at_most("attr.size", attr.size(), kMaxOffset);
}

Expected<void> check(const wire::Entries& entries) {
  CSV_TRY(list("entries", entries.entries_size(), kMaxEntries));
  for (const auto& entry : entries.entries()) {
    CSV_TRY(length_between("entry.name", entry.name(), 1, kMaxName));
    CSV_TRY(check(entry.attr()));
  }
  return {};
}

Expected<void> check(const wire::LayoutReply& layout) {
  CSV_TRY(list("layout.segments", layout.segments_size(), kMaxSegments));
  for (const auto& segment : layout.segments()) {
    CSV_TRY(range("segment", segment.offset(), segment.length()));
    CSV_TRY(range("segment.lun_offset", segment.lun_offset(), segment.length()));
    CSV_TRY(at_most("segment.state", segment.state(), 2));
  }
  CSV_TRY(range("layout.pages", layout.pages_offset(), layout.pages_length()));
  return at_most("layout.size", layout.size(), kMaxOffset);
}

Expected<void> check(const wire::Reply& reply) {
  CSV_TRY(check(reply.failure()));
  CSV_TRY(list("reply.watched", reply.watched_size(), kMaxEntries + 1));
  CSV_TRY(at_most("reply.vouched_ms", reply.vouched_ms(), kMostVouched));
  CSV_TRY(list("reply.also", reply.also_size(), kMaxAlso));
  for (const auto& attr : reply.also()) CSV_TRY(check(attr));
  switch (reply.result_case()) {
    case wire::Reply::kAdmission:
      return at_most("admission.reservation_type", reply.admission().reservation_type(), 15);
    case wire::Reply::kAttr: return check(reply.attr());
    case wire::Reply::kEntries: return check(reply.entries());
    case wire::Reply::kBytes:
      return length_between("bytes.value", reply.bytes().value(), 0, kMaxBytes);
    case wire::Reply::kLayout: return check(reply.layout());
    case wire::Reply::kWritten:
      CSV_TRY(range("written", reply.written().offset(), reply.written().length()));
      return check(reply.written().attr());
    case wire::Reply::kCloned:
      CSV_TRY(range("cloned", 0, reply.cloned().length()));
      return check(reply.cloned().attr());
    case wire::Reply::kLockFound:
      CSV_TRY(at_most("lock_found.type", reply.lock_found().type(), 2));
      CSV_TRY(at_most("lock_found.last", reply.lock_found().last(), kMaxOffset));
      return at_most("lock_found.first", reply.lock_found().first(), reply.lock_found().last());
    case wire::Reply::kResumed:
      return list("resumed.inodes", reply.resumed().inodes_size(), kMaxResumed);
    case wire::Reply::kPosition: return range("position", reply.position().offset(), 0);
    case wire::Reply::kFsStat:
    case wire::Reply::RESULT_NOT_SET: return {};
  }
  return {};
}

Expected<void> check(const wire::Notice& notice) {
  switch (notice.what_case()) {
    case wire::Notice::kRecall:
      // A recall of everything says so with a length up to the end of the number's range.
      return {};
    case wire::Notice::kQueryWrote: return {};
    case wire::Notice::kFenced:
      return length_between("fenced.reason", notice.fenced().reason(), 0, kMaxText);
    case wire::Notice::kUnwatch:
      CSV_TRY(list("unwatch.inodes", notice.unwatch().inodes_size(), kMaxUnwatched));
      return list("unwatch.attributes", notice.unwatch().attributes_size(), kMaxUnwatched);
    case wire::Notice::WHAT_NOT_SET: break;
  }
  return Error{Errc::refused, "a notice says nothing this program knows"};
}

}  // namespace

Expected<void> check_limits(const wire::Frame& frame, std::size_t bulk_length) {
  bool may_have_bulk = frame.has_request() || frame.has_reply();
  if (bulk_length > (may_have_bulk ? kMaxBulk : 0)) return out_of_range("bulk data", bulk_length);
  switch (frame.body_case()) {
    case wire::Frame::kBeat: return node("beat.node", frame.beat().node());
    case wire::Frame::kBeatEcho: return check(frame.beat_echo());
    case wire::Frame::kHello: return check(frame.hello());
    case wire::Frame::kHelloReply: return check(frame.hello_reply());
    case wire::Frame::kRequest: return check(frame.request(), bulk_length);
    case wire::Frame::kReply: return check(frame.reply());
    case wire::Frame::kNotice: return check(frame.notice());
    case wire::Frame::kResumeDone:
    case wire::Frame::kNoticeReply: return {};
    case wire::Frame::BODY_NOT_SET: break;
  }
  return Error{Errc::refused, "a message has no body this program knows"};
}

}  // namespace csv::protocol

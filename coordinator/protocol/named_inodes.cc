#include "coordinator/protocol/named_inodes.h"

namespace csv::protocol {

std::vector<InodeId> named_inodes(const wire::Request& request) {
  switch (request.op_case()) {
    case wire::Request::kLookup: return {InodeId{request.lookup().parent()}};
    case wire::Request::kMake: return {InodeId{request.make().parent()}};
    case wire::Request::kLink:
      return {InodeId{request.link().inode()}, InodeId{request.link().parent()}};
    case wire::Request::kUnlink: return {InodeId{request.unlink().parent()}};
    case wire::Request::kRename:
      return {InodeId{request.rename().parent()}, InodeId{request.rename().new_parent()}};
    case wire::Request::kGetAttr: return {InodeId{request.get_attr().inode()}};
    case wire::Request::kSetAttr: return {InodeId{request.set_attr().inode()}};
    case wire::Request::kReadLink: return {InodeId{request.read_link().inode()}};
    case wire::Request::kOpen: return {InodeId{request.open().inode()}};
    case wire::Request::kRelease: return {InodeId{request.release().inode()}};
    case wire::Request::kGetXattr: return {InodeId{request.get_xattr().inode()}};
    case wire::Request::kSetXattr: return {InodeId{request.set_xattr().inode()}};
    case wire::Request::kListXattr: return {InodeId{request.list_xattr().inode()}};
    case wire::Request::kRemoveXattr: return {InodeId{request.remove_xattr().inode()}};
    case wire::Request::kReadDir: return {InodeId{request.read_dir().inode()}};
    case wire::Request::kLayout: return {InodeId{request.layout().inode()}};
    case wire::Request::kLayoutReturn: return {InodeId{request.layout_return().inode()}};
    case wire::Request::kCommit: return {InodeId{request.commit().inode()}};
    case wire::Request::kRead: return {InodeId{request.read().inode()}};
    case wire::Request::kWrite: return {InodeId{request.write().inode()}};
    case wire::Request::kWrote: return {InodeId{request.wrote().inode()}};
    case wire::Request::kAllocate: return {InodeId{request.allocate().inode()}};
    case wire::Request::kClone:
      return {InodeId{request.clone().inode()}, InodeId{request.clone().into()}};
    case wire::Request::kSeek: return {InodeId{request.seek().inode()}};
    case wire::Request::kAdmitBegin:
    case wire::Request::kAdmitDone:
    case wire::Request::kGoodbye:
    case wire::Request::kStatFs:
    case wire::Request::kLock:
    case wire::Request::kLockTaken:
    case wire::Request::kLockCancel:
    case wire::Request::kUnlock:
    case wire::Request::kTestLock:
    case wire::Request::kHeldLocks:
    case wire::Request::kResume:
    case wire::Request::OP_NOT_SET: break;
  }
  return {};
}

bool must_be_once(const wire::Request& request) {
  switch (request.op_case()) {
    case wire::Request::kSetAttr:
    case wire::Request::kMake:
    case wire::Request::kLink:
    case wire::Request::kUnlink:
    case wire::Request::kRename:
    case wire::Request::kSetXattr:
    case wire::Request::kRemoveXattr:
    case wire::Request::kCommit:
    case wire::Request::kWrite:
    case wire::Request::kAllocate:
    case wire::Request::kClone: return true;
    case wire::Request::kOpen: return request.open().truncate();
    default: return false;
  }
}

}  // namespace csv::protocol

// Names and attributes: one function a request. Each is one transaction, so these need no locks of
// their own; what depends on the mapping of a file is in data.cc.
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/relatime.h"
#include "coordinator/service/service.h"
#include "coordinator/volume/acl.h"

namespace csv::service {
namespace {

using volume::Catalog;

/// A directory's listing is cut where the message gets long.
constexpr std::size_t kMaxListed = 1024;
constexpr std::size_t kMaxListedBytes = 256 * 1024;
/// So many are looked up before it is seen whether there is room for more.
constexpr std::size_t kListedAtOnce = 64;

/// How long access times are kept back, how many at most, and how many make one transaction.
constexpr Duration kAccessDelay = 1s;
constexpr std::size_t kMostAccesses = 64 * 1024;
constexpr std::size_t kAccessesAtOnce = 256;
constexpr std::size_t kLargestKnownXattr = 128;

Expected<wire::Reply> attr_reply(Expected<volume::Attr> attr) {
  if (!attr) return attr.error();
  wire::Reply reply;
  fill(*reply.mutable_attr(), *attr);
  return reply;
}

Expected<wire::Reply> bytes_reply(Expected<std::string> bytes) {
  if (!bytes) return bytes.error();
  wire::Reply reply;
  reply.mutable_bytes()->set_value(*std::move(bytes));
  return reply;
}

Expected<wire::Reply> empty_reply(Expected<void> done) {
  if (!done) return done.error();
  return wire::Reply{};
}

Answer attr_answer(const volume::Attr& attr) {
  Answer answer;
  fill(*answer.reply.mutable_attr(), attr);
  return answer;
}

Answer answered(wire::Reply reply) {
  Answer answer;
  answer.reply = std::move(reply);
  return answer;
}

struct Listed {
  volume::Attr directory;
  std::vector<volume::Entry> entries;
  bool end = false;
};

/// Up to `limit` entries, as far as there is room for them, but for one that there always is: who
/// asks may have said less room than the longest name takes. What is left over would be asked for
/// again.
Expected<Listed> list(Catalog& catalog, InodeId directory, std::uint64_t cookie, std::size_t limit,
                      std::size_t room) {
  Listed listed;
  listed.directory = CSV_TRY(catalog.attr(directory));
  std::size_t used = 0;
  while (listed.entries.size() < limit) {
    auto wanted = std::min(limit - listed.entries.size(), kListedAtOnce);
    auto some = CSV_TRY(catalog.list(directory, cookie, wanted));
    for (auto& entry : some) {
      used += protocol::room_of_entry(entry.name.size());
      if (used > room && !listed.entries.empty()) return listed;
      cookie = entry.cookie;
      listed.entries.push_back(std::move(entry));
    }
    listed.end = some.size() < wanted;
    if (listed.end) break;
  }
  return listed;
}

}  // namespace

Task<Service::Outcome> Service::lookup(CallRef call) {
  const auto& asked = call->request.lookup();
  InodeId parent{asked.parent()};
  for (;;) {
    if (auto found = names_.find(parent, asked.name());
        found.known && (!found.attr || known_by_heart(found.inode))) {
      if (found.attr == nullptr) co_return errno_error(ENOENT, "lookup");
      co_return attr_answer(*found.attr);
    }
    auto body = [call](Catalog& catalog) {
      const auto& what = call->request.lookup();
      return catalog.lookup(InodeId{what.parent()}, what.name());
    };
    auto found = co_await writer_.read(std::move(body));
    // At once: see names_.
    if (!found) {
      if (found.error() == std::errc::no_such_file_or_directory)
        names_.learn_absent(parent, asked.name());
      co_return found.error();
    }
    names_.learn(parent, asked.name(), found->inode, *found);
    if (known_by_heart(found->inode)) co_return attr_answer(*found);
    // A change of its times is on its way. After that the name may be another's, or nobody's.
    while (!known_by_heart(found->inode)) co_await touched_.wait();
  }
}

/// An inode's attributes as they are after the last change that was answered.
Task<Expected<volume::Attr>> Service::attr_of(InodeId inode) {
  while (!known_by_heart(inode)) co_await touched_.wait();
  if (const auto* known = names_.attr(inode)) co_return *known;
  auto body = [inode](Catalog& catalog) { return catalog.attr(inode); };
  auto attr = co_await writer_.read(std::move(body));
  if (attr) names_.learn(inode, *attr);  // at once: see names_
  co_return std::move(attr);
}

Task<Service::Outcome> Service::get_attr(CallRef call) {
  const auto& asked = call->request.get_attr();
  InodeId inode{asked.inode()};
  if (asked.wrote()) CSV_CO_CHECK(co_await touch(inode));
  if (asked.accessed()) note_access(inode);
  co_await settle_access(inode);
  co_await ask_who_wrote(call->session, inode);
  CSV_CO_TRY(attr, co_await attr_of(inode));
  co_return attr_answer(attr);
}

Task<Service::Outcome> Service::set_attr(CallRef call) {
  const auto& asked = call->request.set_attr();
  InodeId inode{asked.inode()};
  // What was written directly so far comes before a time that is set now, whoever wrote it.
  if (asked.wrote()) CSV_CO_CHECK(co_await touch(inode));
  if (asked.has_mtime() || asked.mtime_now()) co_await ask_who_wrote(call->session, inode);
  auto now = wall_now();
  if (asked.accessed()) note_access(inode);
  co_await settle_access(inode);
  volume::AttrChange change;
  if (asked.has_mode()) change.mode = asked.mode() & 07777u;
  if (asked.has_uid()) change.uid = asked.uid();
  if (asked.has_gid()) change.gid = asked.gid();
  if (asked.has_atime()) change.atime = asked.atime();
  if (asked.has_mtime()) change.mtime = asked.mtime();
  if (asked.atime_now()) change.atime = now;
  if (asked.mtime_now()) change.mtime = now;
  bool changes = change.mode || change.uid || change.gid || change.atime || change.mtime;
  if (asked.has_size())
    co_return co_await truncate(call, inode, asked.size(),
                                changes ? std::optional{change} : std::nullopt,
                                asked.drop_set_id());
  // A file that gives privileges is written through us alone, so that a write can take them away.
  Quiet alone;
  if (change.mode && (*change.mode & (S_ISUID | S_ISGID)) != 0) {
    CSV_CO_TRY(quieted, co_await quiet(call->session, inode, {.layouts = kWholeFile}));
    alone = std::move(quieted);
  }
  auto body = [inode, change, now](Catalog& catalog) {
    return attr_reply(catalog.change(inode, change, now));
  };
  co_return co_await settle(call, std::move(body));
}

Task<Service::Outcome> Service::read_link(CallRef call) {
  auto body = [call](Catalog& catalog) {
    return bytes_reply(catalog.read_link(InodeId{call->request.read_link().inode()}));
  };
  CSV_CO_TRY(reply, co_await writer_.read(std::move(body)));
  if (call->request.read_link().accessed())
    tasks_.spawn(note_reading(InodeId{call->request.read_link().inode()}));
  co_return answered(std::move(reply));
}

Task<Service::Outcome> Service::make(CallRef call) {
  auto body = [call, now = wall_now()](Catalog& catalog) {
    const auto& asked = call->request.make();
    Catalog::NewInode what;
    what.mode = asked.mode();
    what.uid = call->request.uid();
    what.gid = call->request.gid();
    what.rdev = asked.rdev();
    what.target = asked.target();
    what.umask = asked.umask();
    if (asked.nameless())
      return attr_reply(catalog.make_nameless(InodeId{asked.parent()}, what, now));
    return attr_reply(catalog.make(InodeId{asked.parent()}, asked.name(), what, now));
  };
  auto outcome = co_await settle(call, std::move(body));
  if (!outcome) co_return std::move(outcome);
  InodeId made{outcome->reply.attr().inode()};
  if (first_made_ == InodeId{}) first_made_ = made;
  if (call->request.make().open()) opened(call->session, made, true);
  if (call->request.make().nameless()) orphaned(made);
  co_return std::move(outcome);
}

Task<Service::Outcome> Service::link(CallRef call) {
  InodeId inode{call->request.link().inode()};
  if (is_removed(inode)) co_return errno_error(ENOENT, "the file has been removed");
  auto body = [call, now = wall_now()](Catalog& catalog) {
    const auto& asked = call->request.link();
    return attr_reply(
        catalog.link(InodeId{asked.inode()}, InodeId{asked.parent()}, asked.name(), now));
  };
  auto outcome = co_await settle(call, std::move(body));
  if (outcome) orphans_.erase(inode);  // it may have been nameless
  co_return std::move(outcome);
}

Task<Service::Outcome> Service::unlink(CallRef call) {
  auto body = [call, now = wall_now()](Catalog& catalog) {
    const auto& asked = call->request.unlink();
    InodeId parent{asked.parent()};
    return attr_reply(asked.directory() ? catalog.rmdir(parent, asked.name(), now)
                                        : catalog.unlink(parent, asked.name(), now));
  };
  auto outcome = co_await settle(call, std::move(body));
  if (outcome && outcome->reply.attr().nlink() == 0)
    orphaned(InodeId{outcome->reply.attr().inode()});
  co_return std::move(outcome);
}

Task<Service::Outcome> Service::rename(CallRef call) {
  auto body = [call, now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    const auto& asked = call->request.rename();
    auto replaced =
        CSV_TRY(catalog.rename(InodeId{asked.parent()}, asked.name(), InodeId{asked.new_parent()},
                               asked.new_name(), asked.flags(), now));
    wire::Reply reply;
    if (replaced) fill(*reply.mutable_attr(), *replaced);
    return reply;
  };
  if ((call->request.rename().flags() &
       ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0)
    co_return errno_error(EINVAL, "rename flags");
  auto outcome = co_await settle(call, std::move(body));
  if (outcome && outcome->reply.has_attr() && outcome->reply.attr().nlink() == 0)
    orphaned(InodeId{outcome->reply.attr().inode()});
  co_return std::move(outcome);
}

Task<Service::Outcome> Service::open(CallRef call) {
  const auto& asked = call->request.open();
  auto session = call->session;
  InodeId inode{asked.inode()};
  bool had = session->open.contains(inode);
  if (had) session->opened_again.insert(inode);
  session->opened_by_resume.erase(inode);
  // Before anything is looked up, so that a file that loses its last name now is kept for us.
  if (is_removed(inode)) co_return errno_error(ESTALE, "the file has been removed");
  opened(session, inode, asked.writes());
  Outcome outcome = Answer{};
  auto noted = Expected<void>{};
  if (asked.writes()) noted = co_await touches(session, inode, Touch::content);
  if (!noted) {
    outcome = noted.error();
  } else if (asked.truncate()) {
    outcome = co_await truncate(call, inode, 0, std::nullopt, asked.drop_set_id());
  } else {
    auto attr = co_await attr_of(inode);
    outcome = attr ? Outcome{attr_answer(*attr)} : Outcome{attr.error()};
  }
  // Unless another Open has come meanwhile, and counts on it.
  if (!outcome && !had && !session->opened_again.contains(inode)) closed(session, inode);
  co_return std::move(outcome);
}

Task<Service::Outcome> Service::release(CallRef call) {
  const auto& asked = call->request.release();
  InodeId inode{asked.inode()};
  // At once: an Open that comes after it must not be undone by what is waited for here.
  last_closed(call->session, inode, asked.reads_only());
  for (auto also : asked.also()) last_closed(call->session, InodeId{also}, true);
  // Whoever asks for its times waits for this from now on: there was no wait in between.
  if (asked.wrote()) CSV_CO_CHECK(co_await touch(inode));
  if (asked.accessed()) note_access(inode);
  auto give_back = [this, &call](InodeId of) {
    if (layouts_.may_have_grant(of, call->session_id))
      tasks_.spawn(take_back_grant(call->session, of));
  };
  give_back(inode);
  for (auto also : asked.also()) give_back(InodeId{also});
  co_return Answer{};
}

/// The mount has no handle of it any more.
void Service::last_closed(const SessionRef& session, InodeId inode, bool reads_only) {
  closed(session, inode);
  if (reads_only) layouts_.dropped(inode, session->id, {.range = kWholeFile});
  // The kernel drops what it may have left before anybody can see it through a new opening.
  layouts_.dropped(inode, session->id, {.range = kWholeFile, .pages = true});
}

Task<Service::Outcome> Service::read_dir(CallRef call) {
  const auto& asked = call->request.read_dir();
  InodeId directory{asked.inode()};
  auto limit = std::clamp<std::size_t>(asked.limit(), 1, kMaxListed);
  auto room = asked.room() == 0 ? std::numeric_limits<std::size_t>::max() : asked.room();
  auto body = [directory, limit, room, cookie = asked.cookie()](Catalog& catalog) {
    return list(catalog, directory, cookie, limit, room);
  };
  CSV_CO_TRY(listed, co_await writer_.read(std::move(body)));
  if (asked.accessed()) tasks_.spawn(note_reading(directory));
  Answer answer;
  auto& entries = *answer.reply.mutable_entries();
  entries.set_parent(raw(listed.directory.parent));
  std::size_t bytes = 0;
  for (const auto& entry : listed.entries) {
    // Who lists a directory most often looks at what is in it next.
    names_.learn(directory, entry.name, entry.attr.inode, entry.attr);
    auto& out = *entries.add_entries();
    out.set_name(entry.name);
    out.set_cookie(entry.cookie);
    fill(*out.mutable_attr(), entry.attr);
    bytes += out.ByteSizeLong();
    if (bytes > kMaxListedBytes) break;
  }
  entries.set_end(listed.end &&
                  static_cast<std::size_t>(entries.entries_size()) == listed.entries.size());
  co_return std::move(answer);
}

Task<Service::Outcome> Service::get_xattr(CallRef call) {
  const auto& what = call->request.get_xattr();
  InodeId inode{what.inode()};
  if (const auto* known = names_.xattr(inode, what.name())) {
    if (!*known) co_return errno_error(ENODATA, "xattr");
    co_return answered(*bytes_reply(**known));
  }
  auto body = [call](Catalog& catalog) {
    const auto& asked = call->request.get_xattr();
    return bytes_reply(catalog.xattr(InodeId{asked.inode()}, asked.name()));
  };
  auto reply = co_await writer_.read(std::move(body));
  // At once: see names_.
  if (reply && reply->bytes().value().size() <= kLargestKnownXattr)
    names_.learn_xattr(inode, what.name(), reply->bytes().value());
  else if (!reply && reply.error() == std::error_code{ENODATA, std::generic_category()})
    names_.learn_xattr(inode, what.name(), std::nullopt);
  if (!reply) co_return reply.error();
  co_return answered(*std::move(reply));
}

Task<Service::Outcome> Service::list_xattr(CallRef call) {
  auto body = [call](Catalog& catalog) {
    return bytes_reply(catalog.list_xattrs(InodeId{call->request.list_xattr().inode()}));
  };
  CSV_CO_TRY(reply, co_await writer_.read(std::move(body)));
  co_return answered(std::move(reply));
}

Task<Service::Outcome> Service::set_xattr(CallRef call) {
  const auto& name = call->request.set_xattr().name();
  InodeId inode{call->request.set_xattr().inode()};
  bool privileges = name == "security.capability";
  if (name == volume::kAccessAcl) {
    // With the group's permission to execute, the set-group-ID bit is a privilege.
    CSV_CO_TRY(attr, co_await attr_of(inode));
    privileges = S_ISREG(attr.mode) && (attr.mode & S_ISGID) != 0;
  }
  Quiet alone;
  if (privileges) {  // as in set_attr
    CSV_CO_TRY(quieted, co_await quiet(call->session, inode, {.layouts = kWholeFile}));
    alone = std::move(quieted);
  }
  auto body = [call, inode, now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    const auto& asked = call->request.set_xattr();
    CSV_TRY(catalog.set_xattr(inode, asked.name(), asked.value(), asked.flags(), now));
    auto mode = CSV_TRY(catalog.attr(inode)).mode;
    if (asked.drop_set_gid() && (mode & S_ISGID) != 0) {
      volume::AttrChange change;
      change.mode = mode & 07777 & ~static_cast<std::uint32_t>(S_ISGID);
      CSV_TRY(catalog.change(inode, change, now));
    }
    return wire::Reply{};
  };
  co_return co_await settle(call, std::move(body));
}

Task<Service::Outcome> Service::remove_xattr(CallRef call) {
  auto body = [call, now = wall_now()](Catalog& catalog) {
    const auto& asked = call->request.remove_xattr();
    return empty_reply(catalog.remove_xattr(InodeId{asked.inode()}, asked.name(), now));
  };
  co_return co_await settle(call, std::move(body));
}

Task<Service::Outcome> Service::stat_fs(CallRef) {
  auto body = [](Catalog& catalog) { return catalog.space(); };
  CSV_CO_TRY(space, co_await writer_.read(std::move(body)));
  Answer answer;
  auto& out = *answer.reply.mutable_fs_stat();
  out.set_total_blocks(space.total);
  out.set_free_blocks(space.free);
  out.set_inodes(space.inodes);
  co_return std::move(answer);
}

Task<Service::Outcome> Service::wrote(CallRef call) {
  CSV_CO_CHECK(co_await touch(InodeId{call->request.wrote().inode()}));
  co_return Answer{};
}

Task<Service::Outcome> Service::seek(CallRef call) {
  const auto& asked = call->request.seek();
  if (asked.whence() != SEEK_DATA && asked.whence() != SEEK_HOLE)
    co_return errno_error(EINVAL, "lseek");
  auto body = [call](Catalog& catalog) {
    const auto& what = call->request.seek();
    return catalog.seek(InodeId{what.inode()}, what.offset(), what.whence() == SEEK_DATA);
  };
  CSV_CO_TRY(offset, co_await writer_.read(std::move(body)));
  Answer answer;
  answer.reply.mutable_position()->set_offset(offset);
  co_return std::move(answer);
}

// ---------------------------------------------------------------------------- access times

/// Kept for a moment, so that reading many files is not as many transactions. Whoever asks for the
/// times of a file, or sets them, gets them as if there were no delay.
void Service::note_access(InodeId inode) {
  unwatch_attributes({&inode, 1});  // until it is in the catalog nobody may have them by heart
  if (accesses_.size() < kMostAccesses || accesses_.contains(inode)) accesses_[inode] = wall_now();
}

Task<void> Service::settle_access(InodeId inode) {
  while (accesses_.contains(inode)) co_await write_accesses();
}

Task<void> Service::write_accesses() {
  if (writing_accesses_) {
    co_await accesses_written_.wait();
    co_return;
  }
  struct Turn {
    explicit Turn(Service& of) : service{&of} { service->writing_accesses_ = true; }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() {
      service->writing_accesses_ = false;
      service->accesses_written_.notify();
    }
    Service* service;
  } turn{*this};
  std::vector<std::pair<InodeId, std::int64_t>> some;
  for (const auto& each : accesses_) {
    if (some.size() >= kAccessesAtOnce) break;
    some.emplace_back(each);
  }
  if (some.empty()) co_return;
  auto body = [some](Catalog& catalog) -> Expected<void> {
    for (auto [inode, when] : some) {
      auto noted = catalog.accessed(inode, when);
      if (!noted && !is_stale(noted.error())) return noted.error();
    }
    return {};
  };
  // If there is no space for them they are lost: no reason for a read to fail.
  (void)co_await writer_.change(std::move(body));
  for (auto [inode, when] : some) {
    auto found = accesses_.find(inode);
    if (found != accesses_.end() && found->second == when) accesses_.erase(found);
  }
}

Task<void> Service::keep_accesses() {
  for (;;) {
    co_await sleep(loop_, kAccessDelay);
    if (!serving()) co_return;
    while (!accesses_.empty() && serving()) co_await write_accesses();
  }
}

/// Of a directory or symbolic link: by relatime, in the background, since nobody waits for it.
Task<void> Service::note_reading(InodeId inode) {
  auto attr = co_await attr_of(inode);
  if (attr && relatime_due(attr->atime, attr->mtime, attr->ctime, wall_now())) note_access(inode);
}

// ---------------------------------------------------------------------------- open files

/// `writes` stays until the last handle is closed: nobody says when the last of those is.
void Service::opened(const SessionRef& session, InodeId inode, bool writes) {
  if (session->gone) return;
  session->open.insert(inode);
  if (writes) session->open_to_write.insert(inode);
  openers_[inode].insert(session->id);
}

void Service::closed(const SessionRef& session, InodeId inode) {
  session->open.erase(inode);
  session->open_to_write.erase(inode);
  session->opened_again.erase(inode);
  session->opened_by_resume.erase(inode);
  session->written_together.erase(inode);
  auto found = openers_.find(inode);
  if (found == openers_.end()) return;
  found->second.erase(session->id);
  if (!found->second.empty()) return;
  openers_.erase(found);
  if (orphans_.contains(inode)) reap_due_.notify();
}

void Service::orphaned(InodeId inode) {
  orphans_.insert(inode);
  reap_due_.notify();
}

}  // namespace csv::service

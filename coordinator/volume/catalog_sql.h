#pragma once
#include "coordinator/volume/sql_catalog.h"

namespace csv::volume {

/// The catalog's tables; docs/catalog.md says what each column is for.
inline constexpr const char* kSchema = R"(
CREATE TABLE kv(key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE inodes(
  id INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
  nlink INTEGER NOT NULL, rdev INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
  atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, btime INTEGER NOT NULL,
  truncation INTEGER NOT NULL, parent INTEGER NOT NULL, next_cookie INTEGER NOT NULL,
  keep_beyond_end INTEGER NOT NULL, target BLOB) STRICT;
CREATE TABLE entries(
  parent INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL, cookie INTEGER NOT NULL,
  PRIMARY KEY(parent, name)) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX entries_by_cookie ON entries(parent, cookie);
CREATE TABLE links(
  inode INTEGER NOT NULL, parent INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY(inode, parent)) STRICT, WITHOUT ROWID;
CREATE TABLE orphans(inode INTEGER PRIMARY KEY, nameless INTEGER NOT NULL) STRICT;
CREATE TABLE xattrs(
  inode INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY(inode, name)) STRICT, WITHOUT ROWID;
CREATE TABLE extents(
  inode INTEGER NOT NULL, file_block INTEGER NOT NULL, count INTEGER NOT NULL,
  lun_block INTEGER NOT NULL, grant_id INTEGER NOT NULL, birth INTEGER NOT NULL,
  written_count INTEGER NOT NULL, written BLOB,
  PRIMARY KEY(inode, file_block)) STRICT, WITHOUT ROWID;
CREATE INDEX extents_by_grant ON extents(grant_id) WHERE grant_id<>0;
CREATE TABLE freeing(
  inode INTEGER NOT NULL, first INTEGER NOT NULL, until INTEGER NOT NULL,
  PRIMARY KEY(inode, first)) STRICT, WITHOUT ROWID;
CREATE TABLE dying(
  id INTEGER PRIMARY KEY, lun_block INTEGER NOT NULL UNIQUE, count INTEGER NOT NULL) STRICT;
CREATE TABLE groups(
  id INTEGER PRIMARY KEY, free INTEGER NOT NULL, longest_free INTEGER NOT NULL,
  bitmap BLOB NOT NULL) STRICT;
CREATE INDEX groups_by_longest_free ON groups(longest_free);
CREATE TABLE fresh(first INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE TABLE chunks(number INTEGER PRIMARY KEY, at INTEGER NOT NULL UNIQUE) STRICT;
CREATE TABLE copies(
  slot INTEGER NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL UNIQUE,
  PRIMARY KEY(slot, number)) STRICT, WITHOUT ROWID;
CREATE TABLE sessions(
  id INTEGER PRIMARY KEY, node INTEGER NOT NULL, incarnation INTEGER NOT NULL,
  ended INTEGER NOT NULL) STRICT;
CREATE TABLE slots(
  session INTEGER NOT NULL, slot INTEGER NOT NULL, sequence INTEGER NOT NULL, reply BLOB NOT NULL,
  PRIMARY KEY(session, slot)) STRICT, WITHOUT ROWID;
CREATE TABLE admissions(
  key INTEGER PRIMARY KEY, session INTEGER NOT NULL, node INTEGER NOT NULL,
  incarnation INTEGER NOT NULL, state INTEGER NOT NULL) STRICT;
CREATE TABLE grants(
  id INTEGER PRIMARY KEY, session INTEGER NOT NULL, inode INTEGER NOT NULL,
  unwritten INTEGER NOT NULL) STRICT;
CREATE INDEX grants_by_session ON grants(session, inode);
CREATE INDEX grants_by_inode ON grants(inode);
CREATE TABLE shared(
  start INTEGER PRIMARY KEY, length INTEGER NOT NULL, count INTEGER NOT NULL) STRICT;
CREATE TABLE suspended(
  node INTEGER PRIMARY KEY, session INTEGER NOT NULL, incarnation INTEGER NOT NULL,
  listed INTEGER NOT NULL, next_inode INTEGER NOT NULL) STRICT;
CREATE TABLE suspended_files(
  node INTEGER NOT NULL, inode INTEGER NOT NULL, touched INTEGER NOT NULL,
  PRIMARY KEY(node, inode)) STRICT, WITHOUT ROWID;
)";
/// What a catalog made by an earlier program lacks.
inline constexpr const char* kLaterTables = R"(
CREATE TABLE IF NOT EXISTS shared(
  start INTEGER PRIMARY KEY, length INTEGER NOT NULL, count INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS suspended(
  node INTEGER PRIMARY KEY, session INTEGER NOT NULL, incarnation INTEGER NOT NULL,
  listed INTEGER NOT NULL, next_inode INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS suspended_files(
  node INTEGER NOT NULL, inode INTEGER NOT NULL, touched INTEGER NOT NULL,
  PRIMARY KEY(node, inode)) STRICT, WITHOUT ROWID;
)";

#define CSV_INODE_COLUMNS                                                             \
  "id,mode,uid,gid,nlink,rdev,size,blocks,atime,mtime,ctime,btime,truncation,parent," \
  "next_cookie,keep_beyond_end"
#define CSV_HAS_XATTRS "EXISTS(SELECT 1 FROM xattrs WHERE xattrs.inode=inodes.id)"
#define CSV_EXTENT_COLUMNS "file_block,count,lun_block,grant_id,birth,written_count,written"

struct SqlCatalog::Statements {
  Statement begin{"BEGIN IMMEDIATE"};
  Statement commit{"COMMIT"};
  Statement rollback{"ROLLBACK"};
  Statement savepoint{"SAVEPOINT change"};
  Statement release{"RELEASE change"};
  Statement rollback_to{"ROLLBACK TO change"};
  Statement page_count{"PRAGMA page_count"};
  Statement freelist_count{"PRAGMA freelist_count"};

  Statement get_number{"SELECT value FROM kv WHERE key=CAST(?1 AS TEXT)"};
  Statement put_number{
      "INSERT INTO kv(key,value) VALUES(CAST(?1 AS TEXT),?2)"
      " ON CONFLICT(key) DO UPDATE SET value=excluded.value"};

  Statement get_inode{"SELECT " CSV_INODE_COLUMNS "," CSV_HAS_XATTRS " FROM inodes WHERE id=?1"};
  Statement insert_inode{
      "INSERT INTO inodes(" CSV_INODE_COLUMNS
      ",target) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)"};
  Statement update_inode{
      "UPDATE inodes SET "
      "mode=?2,uid=?3,gid=?4,nlink=?5,rdev=?6,size=?7,blocks=?8,atime=?9,mtime=?10,"
      "ctime=?11,btime=?12,truncation=?13,parent=?14,next_cookie=?15,keep_beyond_end=?16 WHERE "
      "id=?1"};
  Statement delete_inode{"DELETE FROM inodes WHERE id=?1"};
  Statement add_blocks{"UPDATE inodes SET blocks=blocks+?2 WHERE id=?1"};
  Statement get_target{"SELECT target FROM inodes WHERE id=?1"};

  Statement get_entry{"SELECT inode,cookie FROM entries WHERE parent=?1 AND name=?2"};
  Statement insert_entry{"INSERT INTO entries(parent,name,inode,cookie) VALUES(?1,?2,?3,?4)"};
  Statement point_entry{"UPDATE entries SET inode=?3 WHERE parent=?1 AND name=?2"};
  Statement delete_entry{"DELETE FROM entries WHERE parent=?1 AND name=?2"};
  Statement list_entries{
      "SELECT " CSV_INODE_COLUMNS "," CSV_HAS_XATTRS
      ",name,cookie FROM (SELECT parent AS directory,name,inode,cookie FROM entries"
      " INDEXED BY entries_by_cookie) CROSS JOIN inodes ON id=inode"
      " WHERE directory=?1 AND cookie>?2 ORDER BY cookie LIMIT ?3"};

  Statement get_link{"SELECT count FROM links WHERE inode=?1 AND parent=?2"};
  Statement first_link{"SELECT parent FROM links WHERE inode=?1 ORDER BY parent LIMIT 1"};
  Statement put_link{"INSERT OR REPLACE INTO links(inode,parent,count) VALUES(?1,?2,?3)"};
  Statement delete_link{"DELETE FROM links WHERE inode=?1 AND parent=?2"};
  Statement delete_links{"DELETE FROM links WHERE inode=?1"};

  Statement get_orphan{"SELECT nameless FROM orphans WHERE inode=?1"};
  Statement insert_orphan{"INSERT INTO orphans(inode,nameless) VALUES(?1,?2)"};
  Statement delete_orphan{"DELETE FROM orphans WHERE inode=?1"};
  Statement list_orphans{"SELECT inode FROM orphans WHERE inode>?1 ORDER BY inode LIMIT ?2"};

  Statement get_xattr{"SELECT value FROM xattrs WHERE inode=?1 AND name=?2"};
  Statement list_xattrs{"SELECT name,length(value) FROM xattrs WHERE inode=?1 ORDER BY name"};
  Statement put_xattr{"INSERT OR REPLACE INTO xattrs(inode,name,value) VALUES(?1,?2,?3)"};
  Statement delete_xattr{"DELETE FROM xattrs WHERE inode=?1 AND name=?2"};
  Statement delete_xattrs{"DELETE FROM xattrs WHERE inode=?1"};

  Statement get_extents{
      "SELECT " CSV_EXTENT_COLUMNS
      " FROM extents WHERE inode=?1 AND file_block>=?2 AND file_block<?3 ORDER BY file_block"};
  Statement next_extent{
      "SELECT " CSV_EXTENT_COLUMNS
      " FROM extents WHERE inode=?1 AND file_block>=?2 ORDER BY file_block LIMIT 1"};
  /// Of the rows from ?2 on, the first that ends behind ?3.
  Statement next_extent_beyond{
      "SELECT " CSV_EXTENT_COLUMNS
      " FROM extents WHERE inode=?1 AND file_block>=?2 AND file_block+count>?3"
      " ORDER BY file_block LIMIT 1"};
  Statement last_extent{
      "SELECT " CSV_EXTENT_COLUMNS
      " FROM extents WHERE inode=?1 AND file_block<?2 ORDER BY file_block DESC LIMIT 1"};
  Statement extents_of_grant{
      "SELECT inode,file_block FROM extents INDEXED BY extents_by_grant"
      " WHERE grant_id=?1 AND grant_id<>0 LIMIT 1"};
  Statement put_extent{"INSERT OR REPLACE INTO extents(inode," CSV_EXTENT_COLUMNS
                       ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8)"};
  Statement delete_extent{"DELETE FROM extents WHERE inode=?1 AND file_block=?2"};
  Statement end_grant_of_extents{"UPDATE extents SET grant_id=0 WHERE grant_id=?1 AND grant_id<>0"};

  Statement get_freeing{
      "SELECT first,until FROM freeing WHERE inode=?1 AND until>?2 AND first<?3 ORDER BY first"};
  Statement any_freeing{"SELECT inode,first,until FROM freeing LIMIT 1"};
  Statement put_freeing{"INSERT INTO freeing(inode,first,until) VALUES(?1,?2,?3)"};
  Statement delete_freeing{"DELETE FROM freeing WHERE inode=?1 AND first=?2"};

  Statement last_dying{"SELECT id,lun_block,count FROM dying ORDER BY id DESC LIMIT 1"};
  Statement insert_dying{"INSERT INTO dying(lun_block,count) VALUES(?1,?2)"};
  Statement set_dying{"UPDATE dying SET count=?2 WHERE id=?1"};
  Statement dying_before{
      "SELECT id,lun_block,count FROM dying WHERE lun_block<?1 ORDER BY lun_block DESC LIMIT 1"};
  Statement delete_dying{"DELETE FROM dying WHERE id=?1"};
  Statement list_dying{"SELECT lun_block,count FROM dying ORDER BY id LIMIT ?1"};

  /// The ranges that overlap or touch [?1, ?2).
  Statement get_shared{
      "SELECT start,length,count FROM shared WHERE start>=coalesce((SELECT max(start) FROM shared"
      " WHERE start<?1),?1) AND start<=?2 AND start+length>=?1 ORDER BY start"};
  Statement put_shared{"INSERT OR REPLACE INTO shared(start,length,count) VALUES(?1,?2,?3)"};
  Statement delete_shared{"DELETE FROM shared WHERE start=?1"};
  Statement has_table{"SELECT 1 FROM sqlite_schema WHERE type='table' AND name=CAST(?1 AS TEXT)"};

  Statement list_chunks{"SELECT at,number FROM chunks ORDER BY number"};
  Statement put_chunk{"INSERT INTO chunks(at,number) VALUES(?1,?2)"};

  Statement list_copies{"SELECT at FROM copies WHERE slot=?1 ORDER BY number"};
  Statement put_copy{"INSERT INTO copies(slot,number,at) VALUES(?1,?2,?3)"};

  Statement insert_session{"INSERT INTO sessions(id,node,incarnation,ended) VALUES(?1,?2,?3,0)"};
  Statement get_session{"SELECT ended FROM sessions WHERE id=?1"};
  Statement list_sessions{"SELECT id,node,incarnation,ended FROM sessions ORDER BY id"};
  Statement end_session{"UPDATE sessions SET ended=1 WHERE id=?1"};
  Statement delete_session{"DELETE FROM sessions WHERE id=?1"};
  Statement get_slot{"SELECT sequence,reply FROM slots WHERE session=?1 AND slot=?2"};
  Statement put_slot{
      "INSERT OR REPLACE INTO slots(session,slot,sequence,reply) VALUES(?1,?2,?3,?4)"};
  Statement delete_slots{"DELETE FROM slots WHERE session=?1"};

  Statement put_admission{
      "INSERT OR REPLACE INTO admissions(key,session,node,incarnation,state) "
      "VALUES(?1,?2,?3,?4,?5)"};
  Statement delete_admission{"DELETE FROM admissions WHERE key=?1"};
  Statement delete_admissions_of{"DELETE FROM admissions WHERE session=?1"};
  Statement list_admissions{
      "SELECT key,session,node,incarnation,state FROM admissions ORDER BY key"};

  Statement put_suspended{
      "INSERT OR REPLACE INTO suspended(node,session,incarnation,listed,next_inode)"
      " VALUES(?1,?2,?3,?4,?5)"};
  Statement touch_suspended{
      "INSERT INTO suspended_files(node,inode,touched)"
      " SELECT ?1,?2,?3 WHERE EXISTS(SELECT 1 FROM suspended WHERE node=?1)"
      " ON CONFLICT(node,inode) DO UPDATE SET touched=touched|excluded.touched"};
  Statement delete_suspended{"DELETE FROM suspended WHERE node=?1"};
  Statement delete_suspended_files{"DELETE FROM suspended_files WHERE node=?1"};
  Statement list_suspended{
      "SELECT node,session,incarnation,listed,next_inode FROM suspended ORDER BY node"};
  Statement list_suspended_files{"SELECT inode,touched FROM suspended_files WHERE node=?1"};

  Statement insert_grant{"INSERT INTO grants(id,session,inode,unwritten) VALUES(?1,?2,?3,0)"};
  Statement get_grant{"SELECT session,inode,unwritten FROM grants WHERE id=?1"};
  Statement set_grant{"UPDATE grants SET unwritten=?2 WHERE id=?1"};
  Statement delete_grant{"DELETE FROM grants WHERE id=?1"};
  Statement delete_empty_grants{"DELETE FROM grants WHERE inode=?1 AND unwritten=0"};
  Statement grant_of_session{"SELECT id FROM grants WHERE session=?1 ORDER BY inode,id LIMIT 1"};
  Statement grant_of_session_on{
      "SELECT id FROM grants WHERE session=?1 AND inode=?2 ORDER BY id LIMIT 1"};
};

}  // namespace csv::volume

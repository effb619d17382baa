#include "coordinator/protocol/certificate.h"

#include <doctest/doctest.h>

#include "csvfs/base/asio_loop.h"
#include "tests/protocol/tls_world.h"

using namespace csv;
using namespace csv::protocol;
using namespace csv::protocol::test;

TEST_CASE("certificate: says what it was made for") {
  AsioLoop clock;
  TlsWorld world{clock};
  auto ca = describe_certificates(world.authority.certificate);
  REQUIRE(ca);
  REQUIRE(ca->size() == 1);
  CHECK(ca->front().is_authority);
  CHECK(ca->front().cluster == kCluster);
  CHECK_FALSE(ca->front().node);
  auto pair = world.issue(7);
  auto node = describe_certificates(pair.certificate);
  REQUIRE(node);
  CHECK_FALSE(node->front().is_authority);
  CHECK(node->front().node == NodeName{kCluster, node_id(7)});
  CHECK(node->front().subject.find("node7") != std::string::npos);
  CHECK(node->front().issuer == ca->front().subject);
  CHECK(node->front().fingerprint.size() == 64);
  auto wanted = world.days(-1, 30);
  CHECK(std::abs(static_cast<std::int64_t>(node->front().validity.until) -
                 static_cast<std::int64_t>(wanted.until)) < kDay);
  // Keys are never the same twice, nor are certificates.
  CHECK(world.issue(7).key != pair.key);
}

TEST_CASE("certificate: only a cluster's CA with its own key issues any") {
  AsioLoop clock;
  TlsWorld world{clock};
  auto node = world.issue(2);
  CHECK_FALSE(issue_certificate(node, node_id(3), "node3", world.days(0, 1)));
  auto mixed = world.authority;
  mixed.key = world.new_authority().key;
  CHECK_FALSE(issue_certificate(mixed, node_id(3), "node3", world.days(0, 1)));
  CHECK_FALSE(issue_certificate({}, node_id(3), "node3", world.days(0, 1)));
  CHECK_FALSE(describe_certificates("no PEM at all"));
  CHECK_FALSE(describe_certificates(""));
}

TEST_CASE("certificate: what strangers call themselves cannot forge a line of the log") {
  CHECK(printable("node\n[error] \"x\\") == "node?[error] ?x?");
  CHECK(printable(std::string(1000, 'a')).size() == 160);
  CHECK(date_text(WallTime{0}) == "1970-01-01 00:00:00 UTC");
}

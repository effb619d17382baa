#include "coordinator/admin/settled.h"

#include <doctest/doctest.h>

using namespace csv;
using namespace csv::admin;

namespace {

struct Volume {
  const char* name;
  int given;
  bool served;
  bool stopped = false;
  bool closed = false;
};

std::string status(std::initializer_list<Volume> volumes) {
  std::string list;
  for (const auto& each : volumes)
    list += (list.empty() ? "" : ",") + std::string{"{\"name\":\""} + each.name +
            "\",\"coordinator\":" + std::to_string(each.given) +
            ",\"served\":" + (each.served ? "true" : "false") +
            ",\"stopped\":" + (each.stopped ? "true" : "false") +
            ",\"closed\":" + (each.closed ? "true" : "false") + ",\"preferred\":0}";
  return R"({"voting":{"nodes":[{"id":1,"name":"a"},{"id":2,"name":"b"}],"volumes":[)" + list +
         "]}}";
}
std::string left(const std::string& of, const AdminRequest& request) {
  auto said = left_to_do(of, request);
  return said ? *said : "error: " + said.error().message();
}
bool has(const std::string& text, const char* part) { return text.find(part) != text.npos; }

const AdminRequest kDrain{.command = "node_drain", .node = "b"};
const AdminRequest kMove{.command = "volume_move", .volume = "v", .node = "2"};
const AdminRequest kMoveAway{.command = "volume_move", .volume = "v"};

}  // namespace

TEST_CASE("settled: a node is drained once others serve what it coordinated") {
  CHECK(left(status({}), kDrain).empty());
  CHECK(left(status({{"v", 1, true}, {"w", 0, false}}), kDrain).empty());
  CHECK(has(left(status({{"v", 2, true}}), kDrain), "v is b's still"));
  CHECK(has(left(status({{"u", 1, true}, {"v", 1, false}}), kDrain), "v is given to a, which"));
}

TEST_CASE("settled: a volume has moved once whoever it is given to serves it") {
  CHECK(left(status({{"v", 2, true}}), kMove).empty());
  CHECK(has(left(status({{"v", 1, true}}), kMove), "v is not given to b"));
  CHECK(has(left(status({{"v", 2, false}}), kMove), "b, which does not serve it yet"));
  CHECK(left(status({{"v", 1, true}}), kMoveAway).empty());
  CHECK(has(left(status({{"v", 0, false}}), kMoveAway), "nobody is given v"));
  CHECK(has(left(status({{"w", 1, true}}), kMove), "no volume v"));
}

TEST_CASE("settled: a volume is stopped once nobody can serve it, and started once somebody does") {
  AdminRequest stop{.command = "volume_stop", .volume = "v"};
  AdminRequest start{.command = "volume_start", .volume = "v"};
  CHECK(left(status({{"v", 0, false, true, true}}), stop).empty());
  // Somebody may be taking it over, or be cut off and have a lease.
  CHECK(has(left(status({{"v", 0, false, true, false}}), stop), "ends with their leases"));
  CHECK(has(left(status({{"v", 0, true, true}}), stop), "is being closed"));
  CHECK(has(left(status({{"v", 1, true}}), stop), "is not stopped"));
  // Who serves what is not known before the members have greeted each other.
  auto forming = status({{"v", 0, false, true, true}});
  forming.replace(forming.find("\"nodes\""), 0, R"("state":"greeting",)");
  CHECK(has(left(forming, stop), "forms anew"));
  CHECK(has(left(status({{"v", 0, false}}), start), "nobody is given v"));
  CHECK(has(left(status({{"v", 1, false}}), start), "does not serve it yet"));
  CHECK(left(status({{"v", 1, true}}), start).empty());
}

TEST_CASE("settled: what is no status is said to be none") {
  for (const char* text : {"", "[]", "{}", R"({"voting":null})", R"({"voting":{"nodes":1}})",
                           R"({"voting":{"volumes":[{"name":7}],"nodes":[]}})",
                           R"({"voting":{"volumes":[{"name":"v","coordinator":"x"}]}})"}) {
    CAPTURE(text);
    auto said = left_to_do(text, kMove);
    CHECK((!said || !said->empty()));
  }
}

#include "csvfs/base/events.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

using namespace csv;
using events::Event;
using events::Ring;
using events::Severity;

namespace {

struct Place {
  std::string folder, path;
  Place() {
    std::string name = "/tmp/csvfs-events-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
    path = folder + "/events";
  }
  ~Place() {
    events::close();
    std::filesystem::remove_all(folder);
  }
};

Event event_of(const std::string& text) {
  Event event;
  event.text = text;
  event.what = "mount";
  return event;
}

}  // namespace

TEST_CASE("events: what was reported is read back by others, in order") {
  Place place;
  REQUIRE(events::open("csvfs", place.path));
  events::report(Severity::warning, "mount", "volume1", "paused", "no coordinator");
  events::report(Severity::info, "mount", "volume1", "direct");
  auto ring = Ring::read_only(place.path);
  REQUIRE(ring);
  auto all = (*ring)->after(0);
  REQUIRE(all.size() == 2);
  CHECK(all[0].text == "paused");
  CHECK(all[0].cause == "no coordinator");
  CHECK(all[0].severity == Severity::warning);
  CHECK(all[0].program == "csvfs");
  CHECK(all[0].pid == static_cast<std::uint32_t>(::getpid()));
  CHECK(all[0].volume == "volume1");
  CHECK(all[1].text == "direct");
  CHECK(all[1].sequence == all[0].sequence + 1);
  CHECK((*ring)->latest() == all[1].order);
  CHECK((*ring)->after(all[0].order).size() == 1);
}

TEST_CASE("events: a repeat is counted, moves to the end and has the newest cause") {
  Place place;
  REQUIRE(events::open("csvd", place.path));
  for (int i = 0; i < 5; ++i) {
    events::report(Severity::warning, "mount", "v", "paused", "cause " + std::to_string(i));
    events::report(Severity::info, "mount", "v", "direct");
  }
  events::report(Severity::warning, "mount", "other", "paused");
  auto ring = Ring::read_only(place.path);
  REQUIRE(ring);
  auto all = (*ring)->after(0);
  REQUIRE(all.size() == 3);
  CHECK(all[0].text == "paused");
  CHECK(all[0].count == 5);
  CHECK(all[0].cause == "cause 4");
  CHECK(all[0].first <= all[0].last);
  CHECK(all[1].text == "direct");
  CHECK(all[1].count == 5);
  CHECK(all[2].volume == "other");
}

TEST_CASE("events: the ring keeps the last, and a repeat of what has left it is a new event") {
  Place place;
  auto ring = Ring::make(place.path);
  REQUIRE(ring);
  auto first = (*ring)->add(event_of("first"));
  for (std::size_t i = 0; i < Ring::kSlots; ++i) (*ring)->add(event_of(std::to_string(i)));
  CHECK_FALSE((*ring)->repeat(first, WallTime{1}, ""));
  auto all = (*ring)->after(0);
  REQUIRE(all.size() == Ring::kSlots);
  CHECK(all.front().text == "0");
  CHECK(all.back().text == std::to_string(Ring::kSlots - 1));
}

TEST_CASE("events: long texts are cut, between characters") {
  Place place;
  REQUIRE(events::open("csvd", place.path));
  std::string text = "x";
  for (int i = 0; i < 300; ++i) text += "é";
  events::report(Severity::info, "mount", std::string(100, 'v'), text, text);
  auto ring = Ring::read_only(place.path);
  REQUIRE(ring);
  auto all = (*ring)->after(0);
  REQUIRE(all.size() == 1);
  CHECK(all[0].volume == std::string(63, 'v'));
  CHECK(text.starts_with(all[0].text));
  CHECK(all[0].text.size() > 200);
  CHECK(static_cast<unsigned char>(all[0].text.back()) == 0xa9);  // the second half of é
}

TEST_CASE("events: several processes write at once, and none is lost or torn") {
  Place place;
  constexpr int kWriters = 4, kEach = 200;
  REQUIRE(Ring::make(place.path));
  for (int writer = 0; writer < kWriters; ++writer) {
    if (::fork() != 0) continue;
    if (!events::open("w" + std::to_string(writer), place.path)) ::_exit(1);
    for (int i = 0; i < kEach; ++i)
      events::report(Severity::info, "test", "v", std::to_string(writer * 1000 + i));
    ::_exit(0);
  }
  for (int writer = 0; writer < kWriters; ++writer) {
    int status = 0;
    ::wait(&status);
    CHECK(status == 0);
  }
  auto ring = Ring::read_only(place.path);
  REQUIRE(ring);
  auto all = (*ring)->after(0);
  CHECK(all.size() == kWriters * kEach);
  for (const auto& each : all)
    CHECK(each.program == "w" + std::to_string(std::stoi(each.text) / 1000));
}

TEST_CASE("events: whoever has the ring does not keep others from it") {
  Place place;
  auto first = Ring::make(place.path);
  REQUIRE(first);
  ::alarm(30);  // rather than wait forever for its lock
  auto second = Ring::make(place.path);
  ::alarm(0);
  REQUIRE(second);
  (*first)->add(event_of("one"));
  (*second)->add(event_of("two"));
  CHECK((*first)->after(0).size() == 2);
}

TEST_CASE("events: damage costs the event it hits, and a file of another version is replaced") {
  Place place;
  auto ring = Ring::make(place.path);
  REQUIRE(ring);
  for (int i = 0; i < 3; ++i) (*ring)->add(event_of("event " + std::to_string(i)));
  std::string bytes(std::filesystem::file_size(place.path), '\0');
  std::ifstream{place.path, std::ios::binary}.read(bytes.data(),
                                                   static_cast<std::streamsize>(bytes.size()));
  auto at = bytes.find("event 1");
  REQUIRE(at != std::string::npos);
  std::fstream{place.path, std::ios::binary | std::ios::in | std::ios::out}.seekp(
      static_cast<std::streamoff>(at))
      << 'X';
  auto all = (*ring)->after(0);
  REQUIRE(all.size() == 2);
  CHECK(all[0].text == "event 0");
  CHECK(all[1].text == "event 2");

  std::fstream{place.path, std::ios::binary | std::ios::in | std::ios::out} << "other";
  CHECK_FALSE(Ring::read_only(place.path));
  auto replaced = Ring::make(place.path);
  REQUIRE(replaced);
  CHECK((*replaced)->after(0).empty());
  (*ring)->add(event_of("to the old one"));  // whoever has it mapped goes on, unheard
  CHECK((*replaced)->after(0).empty());
}

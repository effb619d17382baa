// Copies of the catalog.
#include <algorithm>

#include "coordinator/service/service.h"
#include "coordinator/volume/catalog_copy.h"
#include "csvfs/base/log.h"

namespace csv::service {
namespace {

constexpr Duration kRetryCopy = std::chrono::hours{1};

template <typename T>
Task<T> on_worker(std::shared_ptr<Worker> worker, Loop& loop, Function<T()> work) {
  co_return co_await completion<T>([&worker, &loop, &work](auto done) {
    worker->post([worker, &loop, work = std::move(work), done = std::move(done)]() mutable {
      auto result = work();
      loop.post([worker = std::move(worker), result = std::move(result),
                 done = std::move(done)]() mutable { done(std::move(result)); });
    });
  });
}

/// For what runs on the writer thread: a service that has stopped may have closed the catalog there
/// (note_loss_afresh), and the copy with it.
Expected<void> open_still(const Tenure& on) {
  if (on.catalog && on.store) return {};
  return Error{Errc::closed, "the catalog has been closed"};
}
Expected<volume::CopyTaker*> copy_of(const Tenure& on) {
  CSV_TRY(open_still(on));
  if (!on.copy) return Error{Errc::closed, "the copy of the catalog has been given up"};
  return on.copy.get();
}

}  // namespace

Task<Expected<VolumeService::CatalogCopied>> VolumeService::copy_catalog() {
  co_return Error{Errc::refused, "no copies of the catalog are taken here"};
}

/// The file and its thread: a disk that is slow must not hold up the catalog.
struct Service::FileWork {
  Loop* loop = nullptr;
  std::shared_ptr<Worker> worker;
  std::shared_ptr<std::unique_ptr<CatalogFile>> file =
      std::make_shared<std::unique_ptr<CatalogFile>>();
  Expected<void> failed;
};

/// Whoever asked may wait longer than we live, so the copy is taken by a task of our own.
Task<Expected<VolumeService::CatalogCopied>> Service::copy_catalog() {
  if (!serving()) co_return Error{Errc::refused, "the volume is not served any more"};
  if (copying_) co_return Error{Errc::retry, "a copy of the catalog is being taken already"};
  co_return co_await completion<Expected<CatalogCopied>>([this](auto done) {
    copy_asked_.emplace(std::move(done));
    tasks_.spawn(copy_by_command());
  });
}

Task<void> Service::copy_by_command() {
  auto copied = co_await take_copy();
  if (auto asked = std::exchange(copy_asked_, std::nullopt)) (*asked)(std::move(copied));
}

void Service::give_up_copy() {
  auto asked = std::exchange(copy_asked_, std::nullopt);
  if (!asked) return;
  Error why{Errc::closed, fmt::format("volume {} was given up while its catalog was copied: ask "
                                      "again once it is coordinated",
                                      around_.volume)};
  // Posted: whoever asked may end us.
  loop_.post([done = *std::move(asked), why]() mutable { done(why); });
}

Task<Expected<VolumeService::CatalogCopied>> Service::take_copy() {
  copying_ = true;
  auto copied = co_await take_copy_now();
  Function<Expected<void>(Tenure&)> drop = [](Tenure& on) -> Expected<void> {
    on.copy.reset();
    return {};
  };
  auto dropped = co_await on_writer<Expected<void>>(tenure_, std::move(drop));
  (void)dropped;
  copying_ = false;  // from here on another one may be asked for, whose answer is its own
  if (copied) {
    log::info("catalog copied volume={} pages={} on_lun={} file={}", around_.volume, copied->pages,
              copied->on_lun, copied->file.empty() ? "none" : copied->file);
    if (!copied->no_file.empty())
      log::warning("no file of the catalog volume={} why=\"{}\"", around_.volume, copied->no_file);
  } else {
    log::warning("catalog not copied volume={} why=\"{}\"", around_.volume,
                 copied.error().message());
  }
  co_return std::move(copied);
}

/// Where it goes, then the image, with nothing of the catalog's in between.
Task<Expected<void>> Service::prepare_copy() {
  auto now = loop_.wall_now();
  auto pages_now = [](Tenure& on) -> Expected<std::uint64_t> {
    CSV_TRY(open_still(on));
    return volume::copy_space(*on.catalog).pages();
  };
  Function<Expected<std::uint64_t>(Tenure&)> count = pages_now;
  CSV_CO_TRY(pages, co_await on_writer<Expected<std::uint64_t>>(tenure_, std::move(count)));
  // The older one is overwritten.
  auto places_of = [](volume::Catalog& catalog) -> Expected<std::array<std::uint64_t, 2>> {
    std::array<std::uint64_t, 2> first{};
    for (std::uint32_t slot = 0; slot < volume::kCopySlots; ++slot)
      if (auto places = CSV_TRY(volume::copy_space(catalog).copy_places(slot, 0)); !places.empty())
        first[slot] = places.front();
    return first;
  };
  CSV_CO_TRY(first, co_await writer_.change(std::move(places_of)));
  struct Marks {
    volume::CopyMark marks[volume::kCopySlots];
  };
  Function<Expected<Marks>(Tenure&)> look = [first](Tenure& on) -> Expected<Marks> {
    Marks out;
    for (std::uint32_t slot = 0; slot < volume::kCopySlots; ++slot)
      if (first[slot] != 0)
        out.marks[slot] = CSV_TRY(volume::read_copy_mark(on.blocking, on.info.id, first[slot]));
    return out;
  };
  CSV_CO_TRY(found, co_await on_writer<Expected<Marks>>(tenure_, std::move(look)));
  volume::CatalogCopy target;
  target.slot = found.marks[0].sequence <= found.marks[1].sequence ? 0 : 1;
  target.sequence = std::max(found.marks[0].sequence, found.marks[1].sequence) + 1;
  target.taken_at = now;
  // With some to spare, since the catalog goes on growing until the image is taken.
  auto slot = target.slot;
  auto take = [slot, wanted = pages + 1024](volume::Catalog& catalog) {
    return volume::copy_space(catalog).copy_places(slot, wanted);
  };
  auto places = co_await writer_.change(std::move(take));
  if (places)
    target.places = *std::move(places);
  else if (!(places.error() == std::errc::no_space_on_device))
    co_return places.error();
  auto begin = [target](Tenure& on) mutable -> Expected<void> {
    CSV_TRY(open_still(on));
    CSV_TRY(on.catalog->checkpoint());
    on.copy = CSV_TRY(volume::CopyTaker::begin(*on.store, std::move(target)));
    return {};
  };
  Function<Expected<void>(Tenure&)> begin_image = std::move(begin);
  co_return co_await on_writer<Expected<void>>(tenure_, std::move(begin_image));
}

Task<Expected<void>> Service::copy_pages(std::shared_ptr<FileWork> file) {
  using Pieces = std::vector<volume::CopyTaker::Piece>;
  for (;;) {
    if (!serving()) co_return Error{Errc::closed, "the volume is being given up"};
    Function<Expected<Pieces>(Tenure&)> next = [](Tenure& on) -> Expected<Pieces> {
      return CSV_TRY(copy_of(on))->next();
    };
    CSV_CO_TRY(pieces, co_await on_writer<Expected<Pieces>>(tenure_, std::move(next)));
    if (pieces.empty()) break;
    if (!file->worker || !file->failed) continue;
    auto shared = std::make_shared<Pieces>(std::move(pieces));
    Function<Expected<void>()> put = [to = file->file, shared]() -> Expected<void> {
      for (const auto& piece : *shared)
        CSV_TRY((*to)->write((piece.page - 1ull) * volume::disk::kPageSize, piece.content.span()));
      return {};
    };
    file->failed = co_await on_worker<Expected<void>>(file->worker, *file->loop, std::move(put));
  }
  Function<Expected<void>(Tenure&)> finish = [](Tenure& on) -> Expected<void> {
    return CSV_TRY(copy_of(on))->finish();
  };
  co_return co_await on_writer<Expected<void>>(tenure_, std::move(finish));
}

Task<Expected<VolumeService::CatalogCopied>> Service::take_copy_now() {
  CatalogCopied out;
  auto file = std::make_shared<FileWork>();
  file->loop = &loop_;
  if (around_.open_catalog_file) {
    file->worker = around_.make_worker();
    Function<Expected<void>()> open = [to = file->file,
                                       make = around_.open_catalog_file]() -> Expected<void> {
      *to = CSV_TRY(make());
      return {};
    };
    file->failed = co_await on_worker<Expected<void>>(file->worker, loop_, std::move(open));
  }
  // An error of the catalog's own is told by its writer at the next change; one of the image's
  // reading may be of a page that nobody else has read yet.
  CSV_CO_CHECK(co_await prepare_copy());
  CSV_CO_CHECK(co_await copy_pages(file));
  if (file->worker && file->failed) {
    Function<Expected<std::string>()> finish = [to = file->file] { return (*to)->finish(); };
    auto path = co_await on_worker<Expected<std::string>>(file->worker, loop_, std::move(finish));
    if (path)
      out.file = *path;
    else
      file->failed = path.error();
  }
  if (!file->failed) out.no_file = file->failed.error().message();
  if (file->worker) {
    Function<Expected<void>()> drop = [to = file->file]() -> Expected<void> {
      to->reset();
      return {};
    };
    auto dropped = co_await on_worker<Expected<void>>(file->worker, loop_, std::move(drop));
    (void)dropped;
  }
  struct Told {
    std::uint64_t pages = 0;
    WallTime taken_at{};
    bool on_lun = false;
    volume::VolumeInfo info;
    std::vector<std::string> problems;
  };
  Function<Expected<Told>(Tenure&)> ask = [](Tenure& on) -> Expected<Told> {
    const auto& taker = *CSV_TRY(copy_of(on));
    Told told;
    told.pages = taker.copy().pages;
    told.taken_at = taker.copy().taken_at;
    told.on_lun = taker.on_lun();
    told.info = taker.copy().info;
    told.problems = CSV_TRY(volume::superblock_problems(on.blocking));
    for (auto& problem : CSV_TRY(volume::chunk_problems(on.blocking, on.store->info())))
      told.problems.push_back(std::move(problem));
    return told;
  };
  CSV_CO_TRY(told, co_await on_writer<Expected<Told>>(tenure_, std::move(ask)));
  out.pages = told.pages;
  out.taken_at = told.taken_at;
  out.on_lun = told.on_lun;
  out.info = std::move(told.info);
  out.problems = std::move(told.problems);
  co_return out;
}

Task<Expected<WallTime>> Service::last_copy() {
  auto places_of = [](volume::Catalog& catalog) -> Expected<std::vector<std::uint64_t>> {
    std::vector<std::uint64_t> first;
    for (std::uint32_t slot = 0; slot < volume::kCopySlots; ++slot)
      if (auto places = CSV_TRY(volume::copy_space(catalog).copy_places(slot, 0)); !places.empty())
        first.push_back(places.front());
    return first;
  };
  CSV_CO_TRY(places, co_await writer_.change(std::move(places_of)));
  Function<Expected<WallTime>(Tenure&)> look = [places](Tenure& on) -> Expected<WallTime> {
    WallTime last{};
    for (auto at : places)
      last = std::max(last, CSV_TRY(volume::read_copy_mark(on.blocking, on.info.id, at)).taken_at);
    return last;
  };
  co_return co_await on_writer<Expected<WallTime>>(tenure_, std::move(look));
}

Task<void> Service::copy_daily() {
  const auto interval = around_.timing.catalog_copy;
  if (interval == Duration{}) co_return;
  co_await sleep(loop_, around_.timing.catalog_copy_after);
  while (serving()) {
    auto last = co_await last_copy();
    if (!serving()) co_return;
    auto wait = Duration{};
    if (last) {
      auto age = static_cast<std::int64_t>(loop_.wall_now()) - static_cast<std::int64_t>(*last);
      // A copy from the future is of a clock that was wrong: it does not count.
      if (age >= 0 && age < interval.count()) wait = interval - Duration{age};
    }
    if (wait > Duration{}) {
      co_await sleep(loop_, wait);
      continue;
    }
    auto copied = Expected<CatalogCopied>{Errc::retry};
    if (!copying_) copied = co_await take_copy();
    if (!serving()) co_return;
    // Where the LUN has no room for one nothing there says when the last was taken.
    co_await sleep(loop_, copied && copied->on_lun ? Duration{1s} : copied ? interval : kRetryCopy);
  }
}

}  // namespace csv::service

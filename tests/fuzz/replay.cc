// Runs a target on files, or on all files of folders: the corpora, as tests of every build. Where
// there is no libFuzzer it also searches by itself, blindly.
//
//   csv_fuzz_FORMAT FILE-OR-FOLDER...           a folder is a corpus, which has every seed
//   csv_fuzz_FORMAT --seeds FOLDER              writes the inputs that the target begins with
//   csv_fuzz_FORMAT --mutate SECONDS FOLDER     runs changes of the folder's inputs; one that
//                                               crashes, or takes 20 s, is left in ./crash-input
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/log.h"
#include "csvfs/base/random.h"
#include "tests/fuzz/fuzz.h"

namespace {

namespace fs = std::filesystem;

int write_seeds(const fs::path& folder) {
  fs::create_directories(folder);
  for (const auto& seed : csv::fuzz::seeds()) {
    std::ofstream file{folder / seed.name, std::ios::binary};
    file.write(seed.bytes.data(), static_cast<std::streamsize>(seed.bytes.size()));
    if (!file.flush()) {
      std::fprintf(stderr, "cannot write %s\n", (folder / seed.name).c_str());
      return 1;
    }
  }
  return 0;
}

std::vector<fs::path> files_of(const fs::path& place) {
  if (!fs::is_directory(place)) return {place};
  std::vector<fs::path> files;
  for (const auto& each : fs::directory_iterator{place})
    if (each.is_regular_file()) files.push_back(each.path());
  std::sort(files.begin(), files.end());
  return files;
}

std::string content_of(const fs::path& path) {
  std::ifstream file{path, std::ios::binary};
  return std::string{std::istreambuf_iterator<char>{file}, {}};
}

/// Inputs that are nowhere but in seeds() would be run by nobody.
bool has_seeds(const fs::path& corpus) {
  bool all = true;
  for (const auto& seed : csv::fuzz::seeds()) {
    if (fs::exists(corpus / seed.name) && content_of(corpus / seed.name) == seed.bytes) continue;
    std::fprintf(stderr, "the corpus does not have the seed %s as it is now: --seeds writes it\n",
                 seed.name.c_str());
    all = false;
  }
  return all;
}

void run(std::string_view bytes) { csv::fuzz::run(std::as_bytes(std::span{bytes})); }

// --- Searching

std::string current;  // what runs now, for the handler

/// For a process that is about to die: nothing but system calls.
void keep_input(int signal) {
  int fd = ::open("crash-input", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd >= 0 && ::write(fd, current.data(), current.size()) >= 0) ::close(fd);
  std::signal(signal, SIG_DFL);
  ::raise(signal);
}

void change_once(std::string& bytes, const std::vector<std::string>& corpus, csv::Random& random) {
  static const std::vector<std::string> telling = {
      std::string(1, '\0'),
      "\xff",
      std::string(4, '\0'),
      std::string(4, '\xff'),
      std::string(8, '\0'),
      std::string(8, '\xff'),
      "\x7f",
      "\x80",
      std::string("\0\0\0\0\0\0\0\x80", 8),
      std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8)};
  auto at = [&] { return static_cast<std::size_t>(random.below(bytes.size() + 1)); };
  auto from = at();
  auto length = static_cast<std::size_t>(random.below(16));
  switch (random.below(7)) {
    case 0:
      if (from < bytes.size())
        bytes[from] = static_cast<char>(bytes[from] ^ (1 << random.below(8)));
      return;
    case 1:
      if (from < bytes.size()) bytes[from] = static_cast<char>(random.next());
      return;
    case 2: bytes.erase(from, length); return;
    case 3: bytes.insert(from, bytes.substr(at(), length)); return;
    case 4: {
      const auto& what = telling[random.below(telling.size())];
      bytes.replace(from, what.size(), what);
      return;
    }
    case 5: {
      const auto& other = corpus[random.below(corpus.size())];
      auto begin = static_cast<std::size_t>(random.below(other.size() + 1));
      bytes.insert(from, other.substr(begin, random.below(64)));
      return;
    }
    default: {
      const auto& other = corpus[random.below(corpus.size())];
      bytes = bytes.substr(0, from) + other.substr(random.below(other.size() + 1));
      return;
    }
  }
}

int search(int seconds, const fs::path& folder) {
  std::vector<std::string> corpus;
  for (const auto& path : files_of(folder)) corpus.push_back(content_of(path));
  if (corpus.empty()) return 1;
  for (int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM})
    std::signal(signal, keep_input);
  auto random = csv::Random::from_system();
  auto begun = std::chrono::steady_clock::now();
  auto until = begun + std::chrono::seconds{seconds};
  std::size_t ran = 0;
  for (; std::chrono::steady_clock::now() < until; ++ran) {
    current = corpus[random.below(corpus.size())];
    for (auto n = 1 + random.below(8); n > 0; --n) change_once(current, corpus, random);
    ::alarm(20);
    run(current);
  }
  ::alarm(0);
  std::printf("%zu inputs, %zu a second\n", ran, ran / static_cast<std::size_t>(seconds));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  csv::log::set_up("fuzz", csv::log::Level::error);
  std::string_view first = argc > 1 ? argv[1] : "";
  if (argc == 3 && first == "--seeds") return write_seeds(argv[2]);
  if (argc == 4 && first == "--mutate") return search(std::max(std::atoi(argv[2]), 1), argv[3]);
  std::size_t ran = 0;
  bool complete = true;
  for (int i = 1; i < argc; ++i) {
    if (fs::is_directory(argv[i])) complete = has_seeds(argv[i]) && complete;
    for (const auto& path : files_of(argv[i])) {
      // Said before: a crash leaves the name of its input behind.
      std::printf("%s\n", path.filename().c_str());
      std::fflush(stdout);
      run(content_of(path));
      ++ran;
    }
  }
  std::printf("%zu inputs\n", ran);
  return ran > 0 && complete ? 0 : 1;
}

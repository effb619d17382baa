#include "tests/iscsi/tgt.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <filesystem>
#include <string_view>
#include <thread>

namespace csv::iscsi {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kPrefix = "csvfs-tgt-";

/// Directories of tests that crashed.
void sweep() {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator{fs::temp_directory_path(), error}) {
    auto name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    pid_t owner = 0;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), owner);
    if (owner > 0 && ::kill(owner, 0) != 0 && errno == ESRCH) fs::remove_all(entry.path(), error);
  }
}

int free_port() {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0);
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

std::string find_program(const char* name) {
  for (auto* folder : {"/usr/sbin/", "/usr/bin/", "/usr/local/sbin/"})
    if (auto path = std::string{folder} + name; ::access(path.c_str(), X_OK) == 0) return path;
  return {};
}

pid_t spawn(const std::vector<std::string>& command, const std::string& socket,
            const std::string& log) {
  auto parent = ::getpid();
  auto child = ::fork();
  REQUIRE(child >= 0);
  if (child > 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(126);
  ::setenv("TGT_IPC_SOCKET", socket.c_str(), 1);
  int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, 0);
  ::dup2(out, 1);
  ::dup2(out, 2);
  std::vector<char*> arguments;
  for (const auto& each : command) arguments.push_back(const_cast<char*>(each.c_str()));
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace

std::unique_ptr<Tgt> Tgt::start(const Options& options) {
  if (find_program("tgtd").empty() || find_program("tgtadm").empty()) {
    MESSAGE("skipped: tgtd and tgtadm (package tgt) are not installed");
    return nullptr;
  }
  if (::geteuid() != 0) {
    MESSAGE("skipped: tgtd needs root");
    return nullptr;
  }
  sweep();
  static int count = 0;
  std::unique_ptr<Tgt> made{new Tgt};
  made->options_ = options;
  made->directory_ =
      fs::temp_directory_path() /
      (std::string{kPrefix} + std::to_string(::getpid()) + "-" + std::to_string(++count));
  fs::create_directories(made->directory_);
  made->disk_ = made->directory_ + "/disk";
  made->port_ = free_port();
  int fd = ::open(made->disk_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  REQUIRE(fd >= 0);
  REQUIRE(::ftruncate(fd, static_cast<off_t>(options.size)) == 0);
  ::close(fd);
  REQUIRE(made->launch());
  return made;
}

bool Tgt::launch() {
  pid_ = spawn({find_program("tgtd"), "-f", "-C", "1", "--iscsi", "portal=" + portal()},
               directory_ + "/control", directory_ + "/log");
  bool up = false;
  for (int i = 0; i < 500 && !up; ++i) {
    up = admin({"--mode", "sys", "--op", "show"});
    if (!up) std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  if (!up) return false;
  bool good = admin({"--mode", "target", "--op", "new", "--tid", "1", "--targetname", kTarget});
  for (auto [name, value] : {std::pair{"MaxRecvDataSegmentLength", "262144"},
                             {"MaxBurstLength", "1048576"},
                             {"FirstBurstLength", "262144"}})
    good = good && admin({"--mode", "target", "--op", "update", "--tid", "1", "--name", name,
                          "--value", value});
  good =
      good && admin({"--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1",
                     "--backing-store", disk_, "--blocksize", std::to_string(options_.block_size)});
  auto set = [&](const std::string& parameter) {
    good = good && admin({"--mode", "logicalunit", "--op", "update", "--tid", "1", "--lun", "1",
                          "--params", parameter});
  };
  if (options_.thin) set("thin_provisioning=1");
  if (options_.write_protected) set("readonly=1");
  if (!options_.chap_user.empty()) {
    good = good && admin({"--mode", "account", "--op", "new", "--user", options_.chap_user,
                          "--password", options_.chap_secret});
    good = good &&
           admin({"--mode", "account", "--op", "bind", "--tid", "1", "--user", options_.chap_user});
  }
  return good &&
         admin({"--mode", "target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL"});
}

bool Tgt::admin(const std::vector<std::string>& arguments) const {
  std::vector<std::string> command{find_program("tgtadm"), "-C", "1", "--lld", "iscsi"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  auto status = wait_for(spawn(command, directory_ + "/control", directory_ + "/log"));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

Tgt::~Tgt() {
  kill();
  std::error_code error;
  fs::remove_all(directory_, error);
}

std::string Tgt::portal() const { return "127.0.0.1:" + std::to_string(port_); }
std::string Tgt::url(int lun) const {
  return "iscsi://" + portal() + "/" + kTarget + "/" + std::to_string(lun);
}
void Tgt::stop() { REQUIRE(::kill(pid_, SIGSTOP) == 0); }
void Tgt::go_on() { REQUIRE(::kill(pid_, SIGCONT) == 0); }
void Tgt::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
  pid_ = -1;
}
void Tgt::restart() { REQUIRE(launch()); }

}  // namespace csv::iscsi

#include "iscsi/lun_url.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

#include "csvfs/base/log.h"

namespace csv::iscsi {
namespace {

constexpr std::string_view kScheme = "iscsi://";
constexpr int kDefaultPort = 3260;
constexpr int kMostLuns = 16383;  // flat addressing; what libiscsi can put into a PDU

Error refused(std::string_view url, std::string_view why) {
  return {Errc::refused, fmt::format("LUN \"{}\": {}", url, why)};
}

template <typename T>
bool to_number(std::string_view text, T& value) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && !text.empty();
}

/// "1.2.3.4", "1.2.3.4:3260", "[::1]:3260". Numeric, because a name would have to be looked up, and
/// looking up blocks.
Expected<std::string> portal(std::string_view text) {
  std::string_view host = text, port;
  if (text.starts_with('[')) {
    auto end = text.find(']');
    if (end == std::string_view::npos) return Error{Errc::refused, "']' is missing"};
    host = text.substr(1, end - 1);
    auto rest = text.substr(end + 1);
    if (!rest.empty() && !rest.starts_with(':'))
      return Error{Errc::refused, "':' and a port expected after ']'"};
    if (!rest.empty()) port = rest.substr(1);
    in6_addr address{};
    if (::inet_pton(AF_INET6, std::string{host}.c_str(), &address) != 1)
      return Error{Errc::refused, fmt::format("\"{}\" is no numeric IPv6 address", host)};
    host = text.substr(0, end + 1);
    if (!rest.empty() && port.empty()) return Error{Errc::refused, "a port is missing after ':'"};
  } else {
    if (auto colon = text.find(':'); colon != std::string_view::npos) {
      host = text.substr(0, colon);
      port = text.substr(colon + 1);
      if (port.empty()) return Error{Errc::refused, "a port is missing after ':'"};
    }
    in_addr address{};
    if (::inet_pton(AF_INET, std::string{host}.c_str(), &address) != 1)
      return Error{
          Errc::refused,
          fmt::format(
              "\"{}\" is no numeric address (host names are not looked up; IPv6 goes in [])",
              host)};
  }
  int number = kDefaultPort;
  if (!port.empty() && (!to_number(port, number) || number < 1 || number > 65535))
    return Error{Errc::refused, fmt::format("\"{}\" is no port", port)};
  return fmt::format("{}:{}", host, number);
}

Expected<LunAddress> iscsi_address(std::string_view url) {
  auto rest = url.substr(kScheme.size());
  IscsiAddress address;
  auto slash = rest.find('/');
  if (slash == std::string_view::npos)
    return refused(kScheme, "expected iscsi://HOST:PORT/TARGET/LUN; the target's name is missing");
  auto portals = rest.substr(0, slash);
  auto path = rest.substr(slash + 1);
  if (auto at = portals.rfind('@'); at != std::string_view::npos) {
    auto user = portals.substr(0, at);
    portals = portals.substr(at + 1);
    auto percent = user.find('%');
    if (percent == std::string_view::npos || percent == 0)
      return refused(kScheme, "expected USER%SECRET before '@'");
    address.chap_user = user.substr(0, percent);
    address.chap_secret = user.substr(percent + 1);
  }
  while (true) {
    auto comma = portals.find(',');
    auto found = portal(portals.substr(0, comma));
    if (!found) return refused(path, found.error().message());
    address.portals.push_back(std::move(*found));
    if (comma == std::string_view::npos) break;
    portals = portals.substr(comma + 1);
  }
  slash = path.rfind('/');
  if (slash == std::string_view::npos || slash + 1 == path.size())
    return refused(path, "the number of the LUN is missing after the target's name");
  address.target = path.substr(0, slash);
  if (!address.target.starts_with("iqn.") && !address.target.starts_with("eui.") &&
      !address.target.starts_with("naa."))
    return refused(path,
                   fmt::format("\"{}\" is no iSCSI name (iqn.…, eui.… or naa.…)", address.target));
  if (address.target.size() > 223)
    return refused(path, "the target's name has more than 223 characters");
  if (!to_number(path.substr(slash + 1), address.lun) || address.lun < 0 || address.lun > kMostLuns)
    return refused(path, fmt::format("\"{}\" is no number of a LUN (0 to {})",
                                     path.substr(slash + 1), kMostLuns));
  return LunAddress{std::move(address)};
}

}  // namespace

Expected<LunAddress> parse_lun_url(std::string_view url) {
  // A NUL would end the name early wherever it is given to the system.
  auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(url.begin(), url.end(), control))
    return Error{Errc::refused, "a LUN's URL has a control character in it"};
  if (url.starts_with(kScheme)) return iscsi_address(url);
  if (url.starts_with("file:")) {
    auto path = url.substr(5);
    if (path.empty()) return refused(url, "a path is missing after \"file:\"");
    return LunAddress{ImagePath{std::string{path}}};
  }
  if (url.starts_with("/dev/") && url.size() > 5) return LunAddress{DevicePath{std::string{url}}};
  return refused(url, "expected iscsi://HOST:PORT/TARGET/LUN, /dev/… or file:PATH");
}

}  // namespace csv::iscsi

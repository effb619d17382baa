#pragma once
#include <string>

namespace csv::iscsi {

/// A LUN's identity as it is kept and compared: whole, or if it has more than 127 bytes its
/// beginning and a checksum. Differs from that of the LUN a volume was formatted on: this one is a
/// clone.
std::string kept_identity(const std::string& whole);

}  // namespace csv::iscsi

#pragma once
#include <map>

namespace csv::service {

/// Whose set is the largest; Key{}: all are empty.
template <typename Key, typename Set>
[[nodiscard]] Key key_of_largest(const std::map<Key, Set>& sets) {
  Key key{};
  decltype(Set{}.size()) most = 0;
  for (const auto& [each, set] : sets)
    if (set.size() > most) {
      key = each;
      most = set.size();
    }
  return key;
}

}  // namespace csv::service

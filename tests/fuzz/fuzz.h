#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace csv::fuzz {

/// What a target does with one input, whatever that is: it must neither crash nor hang, and what it
/// promises about the result is checked with CSV_CHECK. One target an executable.
void run(std::span<const std::byte> input);

/// Inputs to begin with: what our own side writes, and what is nearly that. `--seeds DIR` of the
/// plain driver (replay.cc) writes them.
struct Seed {
  std::string name;
  std::string bytes;
};
std::vector<Seed> seeds();

}  // namespace csv::fuzz

#pragma once
#include <string>

namespace CLI {
class App;
}

namespace csv {

/// The completion of `app` for bash, made from its commands and options, so that it knows what they
/// know. Names of volumes are asked of `csvctl volume list --names` when they are needed.
std::string bash_completion(const CLI::App& app);

/// Each command with its options and operands, a line each: "volume add --coordinate NAME LUN". For
/// the tests that hold manuals and completion against it.
std::string command_list(const CLI::App& app);

}  // namespace csv

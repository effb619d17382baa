#include "coordinator/csvctl_completion.h"

#include <CLI/CLI.hpp>
#include <functional>

namespace csv {
namespace {

bool is_shown(const CLI::App* command) { return !command->get_group().empty(); }

/// Every command that people see, with its words from the program on.
void each_command(const CLI::App& app, const std::string& path,
                  const std::function<void(const CLI::App&, const std::string&)>& visit) {
  visit(app, path);
  for (const auto* below : app.get_subcommands([](const CLI::App*) { return true; }))
    if (is_shown(below))
      each_command(*below, path + (path.empty() ? "" : " ") + below->get_name(), visit);
}

std::string long_name(const CLI::Option* option) {
  return option->get_lnames().empty() ? "" : "--" + option->get_lnames().front();
}

std::vector<const CLI::Option*> options_of(const CLI::App& command) {
  return command.get_options([](const CLI::Option*) { return true; });
}

bool wants_value(const CLI::Option* option) { return option->get_items_expected_max() > 0; }

std::string words_of(const CLI::App& command) {
  std::string out;
  for (const auto* below : command.get_subcommands([](const CLI::App*) { return true; }))
    if (is_shown(below)) out += (out.empty() ? "" : " ") + below->get_name();
  for (const auto* option : options_of(command))
    if (!long_name(option).empty()) out += (out.empty() ? "" : " ") + long_name(option);
  return out;
}

bool takes_volume(const CLI::App& command) {
  for (const auto* option : options_of(command))
    if (option->get_positional() && option->get_name(true) == "NAME" && command.get_name() != "add")
      return true;
  return false;
}

}  // namespace

std::string bash_completion(const CLI::App& app) {
  const auto& program = app.get_name();
  std::string descend, words, valued;
  each_command(app, "", [&](const CLI::App& command, const std::string& path) {
    auto quoted = "'" + path + "'";
    if (!path.empty()) descend += (descend.empty() ? "" : " | ") + quoted;
    words += "    " + quoted + ") words='" + words_of(command) + "'";
    if (takes_volume(command))
      words += "; [[ $cur == -* ]] || words=$(" + program + " volume list --names 2>/dev/null)";
    words += " ;;\n";
    for (const auto* option : options_of(command))
      if (!long_name(option).empty() && wants_value(option) &&
          (" " + valued + " ").find(" " + long_name(option) + " ") == std::string::npos)
        valued += (valued.empty() ? "" : " ") + long_name(option);
  });
  std::string cases;
  for (char c : valued) cases += c == ' ' ? std::string{" | "} : std::string{c};
  return "# Completion of " + program + " for bash, made by `" + program +
         " completion` from its commands.\n"
         "_" +
         program +
         "() {\n"
         "  local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}\n"
         "  local path='' word words='' next\n"
         "  COMPREPLY=()\n"
         "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
         "    next=${path:+$path }$word\n"
         "    case $next in " +
         descend +
         ") path=$next ;; esac\n"
         "  done\n"
         "  case $previous in\n"
         "    --volume) words=$(" +
         program +
         " volume list --names 2>/dev/null) ;;\n"
         "    " +
         cases +
         ") return ;;  # a file, or what nobody can guess\n"
         "    *) case $path in\n" +
         words +
         "    esac ;;\n"
         "  esac\n"
         "  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
         "}\n"
         "complete -o default -F _" +
         program + " " + program + "\n";
}

std::string command_list(const CLI::App& app) {
  std::string out;
  each_command(app, "", [&](const CLI::App& command, const std::string& path) {
    if (path.empty()) return;
    bool is_leaf = command.get_subcommands([](const CLI::App*) { return true; }).empty();
    if (!is_leaf) return;
    out += path;
    for (const auto* option : options_of(command)) {
      auto name = option->get_positional() ? option->get_name(true) : long_name(option);
      if (!name.empty() && name != "--help") out += " " + name;
    }
    out += "\n";
  });
  return out;
}

}  // namespace csv

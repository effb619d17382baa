// csvctl: see docs/csvctl.md. Wiring only.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <functional>

#include "coordinator/admin/certificate_commands.h"
#include "coordinator/admin/cluster_commands.h"
#include "coordinator/admin/dump_commands.h"
#include "coordinator/admin/events_command.h"
#include "coordinator/admin/fs_commands.h"
#include "coordinator/admin/join_commands.h"
#include "coordinator/admin/node_volumes.h"
#include "coordinator/admin/prepare_command.h"
#include "coordinator/admin/repair_commands.h"
#include "coordinator/admin/tool.h"
#include "coordinator/admin/top.h"
#include "coordinator/admin/volume_commands.h"
#include "coordinator/csvctl_completion.h"
#include "csvfs/base/log.h"

namespace {

using namespace csv;
using namespace csv::admin;

/// What the command line says, for whichever command it names.
struct Arguments {
  bool no_wait = false;
  int wait_s = 60;
  std::string config = kConfigFile, socket = kAdminSocket, initiator, chap_user, chap_secret_file;
  LunChoice lun;
  FormatRequest format;
  FsRequest fs;
  EventsRequest events;
  TopRequest top;
  AddRequest add;
  double interval = 2;
  AuthorityRequest authority;
  IssueRequest issue;
  std::vector<std::string> files;
  CreateRequest create;
  AdminRequest cluster;
  struct {
    std::string delay, threshold, preset;
  } heartbeat;
  PrepareRequest prepare;
  LeaveRequest leave;
  TokenRequest token;
  JoinRequest join;
  ImportRequest import;
  std::string file;
  bool force = false, prevents = false, only = false;
  std::uint32_t delay_ms = 0, threshold = 0;
  RepairRequest repair;
  DumpRequest dump;
  bool repairs = false, despite_users = false;
  std::string volume;
  bool json = false, yes = false, debug = false, names = false, once = false;
  std::function<ExitCode(Terminal&)> action;
};

/// The LUN's options, once everything is parsed.
Expected<iscsi::LunOptions> lun_options(const Arguments& given) {
  iscsi::LunOptions out;
  out.initiator = given.initiator.empty() ? tool_initiator(given.config) : given.initiator;
  out.chap_user = given.chap_user;
  if (!given.chap_secret_file.empty())
    out.chap_secret = CSV_TRY(read_secret(given.chap_secret_file));
  return out;
}

void add_lun_options(CLI::App& command, Arguments& given) {
  command.add_option("--initiator", given.initiator,
                     "iSCSI name of this node (default: the configuration's, else of the host)");
  command.add_option("--chap-user", given.chap_user, "CHAP user at the target");
  command.add_option("--chap-secret-file", given.chap_secret_file,
                     "File with the CHAP secret, readable by its owner only");
}

void add_lun(CLI::App& command, Arguments& given) {
  command
      .add_option("LUN", given.lun.url,
                  "iscsi://HOST:PORT/TARGET/LUN, /dev/… or file:PATH; of check, dump and grow a "
                  "served volume's name, too")
      ->required();
  add_lun_options(command, given);
}

using Action = std::function<ExitCode(Arguments&, Terminal&)>;

CLI::App* add(CLI::App& under, Arguments& given, const std::string& name, const std::string& about,
              Action action) {
  auto* command = under.add_subcommand(name, about);
  command->callback([&given, action = std::move(action)] {
    given.action = [&given, action](Terminal& terminal) { return action(given, terminal); };
  });
  return command;
}

/// Checking, repairing, copies, looking inside, growing.
void add_care(CLI::App& volume, Arguments& given) {
  auto* check = add(volume, given, "check", "Read all of a volume and say what is wrong with it",
                    [](Arguments& a, Terminal& terminal) {
                      if (is_volume_name(a.lun.url) && !a.repairs)
                        return check_served(a.socket, a.lun.url, a.json, terminal);
                      if (!a.repairs) return check_volume(a.lun, a.json, terminal);
                      a.repair.lun = a.lun;
                      a.repair.yes = a.yes;
                      a.repair.json = a.json;
                      return repair_volume(a.repair, terminal);
                    });
  add_lun(*check, given);
  check->add_flag("--json", given.json, "For programs");
  auto* repair = check->add_flag("--repair", given.repairs,
                                 "Put right what is wrong; of a volume that nobody uses");
  check->add_flag("--dry-run", given.repair.dry_run, "Only say what a repair would do")
      ->needs(repair);
  check->add_flag("--yes", given.yes, "Repair without asking")->needs(repair);
  check
      ->add_flag("--fence", given.repair.fence,
                 "Take the access of whoever may be using the volume away first")
      ->needs(repair);
  check
      ->add_option("--from", given.repair.from,
                   "Start from a copy of the catalog: \"copy\" for the one on the LUN, or a file")
      ->needs(repair);
  check
      ->add_option("--work-dir", given.repair.work_dir,
                   "Where the repaired catalog is made before the LUN is changed")
      ->capture_default_str()
      ->needs(repair);
  check->add_option("--name", given.repair.name, "The volume's name, if no superblock is left")
      ->needs(repair);
  check->add_option("--cluster-id", given.repair.cluster, "Its cluster, if no superblock is left")
      ->needs(repair);
  check->add_option("--log-size", given.repair.log_mib, "MiB of its log, if no superblock is left")
      ->capture_default_str()
      ->needs(repair);

  auto* backup = add(volume, given, "backup-catalog",
                     "Copy the catalog of a served volume to this node's disk and to the LUN",
                     [](Arguments& a, Terminal& terminal) {
                       return back_up_catalog(a.socket, a.volume, a.json, terminal);
                     });
  backup->add_option("NAME", given.volume, "The volume, as configured")->required();
  backup->add_flag("--json", given.json, "For programs");

  auto* grow =
      add(volume, given, "grow", "Let a volume have all of its LUN, which was enlarged",
          [](Arguments& a, Terminal& terminal) { return grow_volume(a.socket, a.lun, terminal); });
  add_lun(*grow, given);

  auto* dump = add(volume, given, "dump", "Show what lies on a volume",
                   [](Arguments& a, Terminal& terminal) {
                     a.dump.lun = a.lun;
                     a.dump.json = a.json;
                     return dump_volume(a.socket, a.dump, terminal);
                   });
  add_lun(*dump, given);
  dump->add_flag("--json", given.json, "For programs");
  dump->add_flag("--superblock", given.dump.superblock, "All copies of the superblock");
  dump->add_flag("--slots", given.dump.slots, "The heartbeat slots");
  dump->add_flag("--catalog", given.dump.catalog, "The catalog's tables and how much is in them");
  dump->add_option("--table", given.dump.table, "The rows of one of them");
  dump->add_option("--inode", given.dump.inode, "All that is known of an inode");
  dump->add_option("--path", given.dump.path, "The same, of what has this path");
  dump->add_option("--map", given.dump.map, "Where the content of a file lies on the LUN");
}

void add_volume(CLI::App& app, Arguments& given) {
  auto* volume =
      app.add_subcommand("volume", "Volumes: list, format, add, start, stop, check, repair, grow");
  volume->require_subcommand(1);
  auto* format = add(*volume, given, "format", "Make an empty volume on a LUN",
                     [](Arguments& a, Terminal& terminal) {
                       a.format.lun = a.lun;
                       a.format.yes = a.yes;
                       return format_volume(a.format, terminal);
                     });
  add_lun(*format, given);
  format->add_option("--name", given.format.name, "The volume's name, at most 63 bytes")
      ->required();
  format->add_option("--cluster-id", given.format.cluster, "The cluster it belongs to, 1 to 65535")
      ->required()
      ->check(CLI::Range(1, 65535));
  format->add_flag("--yes", given.yes, "Destroy whatever is on the LUN without asking");

  add_care(*volume, given);

  auto* start = add(
      *volume, given, "start", "Let this node coordinate a volume, now",
      [](Arguments& a, Terminal& terminal) { return start_volume(a.socket, a.volume, terminal); });
  auto* stop = add(
      *volume, given, "stop", "Let this node give a volume up in good order",
      [](Arguments& a, Terminal& terminal) { return stop_volume(a.socket, a.volume, terminal); });
  for (auto* each : {start, stop})
    each->add_option("NAME", given.volume, "The volume, as configured")->required();
}

/// What concerns this node: its volumes, its csvd, what happens on it.
void add_node(CLI::App& app, CLI::App& volume, Arguments& given) {
  auto* list = add(volume, given, "list", "The volumes of this node, and how they are",
                   [](Arguments& a, Terminal& terminal) {
                     return list_volumes({a.config, a.socket, a.json, a.names}, terminal);
                   });
  list->add_flag("--json", given.json, "For programs");
  list->add_flag("--names", given.names, "Names only, a line each");

  auto* added = add(volume, given, "add", "Add a formatted volume to this node's configuration",
                    [](Arguments& a, Terminal& terminal) {
                      auto request = a.add;
                      request.config_file = a.config;
                      request.socket = a.socket;
                      request.lun = a.lun;
                      request.chap_user = a.chap_user;
                      request.chap_secret_file = a.chap_secret_file;
                      return add_volume(request, terminal);
                    });
  added->add_option("NAME", given.add.name, "The volume's name, as it was formatted")->required();
  add_lun(*added, given);
  added->add_option("--sessions", given.add.sessions, "iSCSI sessions of each program that uses it")
      ->check(CLI::Range(1, 8));
  added->add_flag("--coordinate", given.add.coordinate,
                  "This node takes it over at start if nobody has it");

  add(app, given, "reload", "Let csvd read its configuration again, and take new volumes",
      [](Arguments& a, Terminal& terminal) { return reload(a.socket, terminal); });

  auto* events = add(app, given, "events", "What has happened on this node, and why",
                     [](Arguments& a, Terminal& terminal) {
                       auto request = a.events;
                       request.json = a.json;
                       return show_events(request, terminal);
                     });
  events->add_flag("--follow", given.events.follow, "Go on with what happens from now on");
  events->add_option("--since", given.events.since,
                     "90s, 10m, 2h, 1d; 18:30; \"2026-01-31 18:30\"");
  events->add_option("--volume", given.events.volume, "Of this volume only");
  events->add_flag("--json", given.json, "For programs; with --follow an object a line");

  auto* top = add(app, given, "top", "What goes on now: I/O, the time it takes, requests",
                  [](Arguments& a, Terminal& terminal) {
                    auto request = a.top;
                    request.socket = a.socket;
                    request.json = a.json;
                    request.interval =
                        std::chrono::milliseconds{static_cast<int>(a.interval * 1000)};
                    return show_top(request, terminal);
                  });
  top->add_option("--interval", given.interval, "Seconds between two looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  top->add_flag("--once", given.top.once, "One interval, then the end");
  top->add_flag("--json", given.json, "For programs; without --once an object a line");
}

void add_completion(CLI::App& app, Arguments& given) {
  auto* completion = add(app, given, "completion", "Write the completion for bash",
                         [&app](Arguments& a, Terminal& terminal) {
                           terminal.out(a.names ? command_list(app) : bash_completion(app));
                           return ExitCode::done;
                         });
  completion->add_flag("--list", given.names, "All commands instead, with their options");
}

void add_reservation(CLI::App& app, Arguments& given) {
  auto* reservation =
      app.add_subcommand("reservation", "A LUN's persistent reservation and its keys");
  reservation->require_subcommand(1);
  auto* show = add(
      *reservation, given, "show", "Who is registered, and what is reserved",
      [](Arguments& a, Terminal& terminal) { return show_reservation(a.lun, a.json, terminal); });
  add_lun(*show, given);
  show->add_flag("--json", given.json, "For programs");
  auto* clear = add(*reservation, given, "clear",
                    "Remove all keys and the reservation from a LUN that nobody uses",
                    [](Arguments& a, Terminal& terminal) {
                      return clear_reservation({a.lun, a.yes, a.despite_users}, terminal);
                    });
  add_lun(*clear, given);
  clear->add_flag("--yes", given.yes, "Do not ask");
  clear->add_flag("--despite-users", given.despite_users,
                  "Although the LUN says that somebody may be using it");
}

void add_cluster(CLI::App& app, Arguments& given) {
  auto* cluster = app.add_subcommand("cluster", "The cluster as a whole");
  cluster->require_subcommand(1);
  auto* ca = cluster->add_subcommand(
      "ca", "The cluster's certificate authority, and the certificates of its nodes");
  ca->require_subcommand(1);
  auto* create =
      add(*ca, given, "create", "Make the cluster's CA, once, on a machine you trust",
          [](Arguments& a, Terminal& terminal) { return create_authority(a.authority, terminal); });
  create->add_option("--cluster-id", given.authority.cluster, "The cluster, 1 to 65535")
      ->required()
      ->check(CLI::Range(1, 65535));
  create->add_option("--dir", given.authority.folder, "Where it is kept")->capture_default_str();
  create->add_option("--days", given.authority.days, "How long it is valid")
      ->check(CLI::Range(1, 36500))
      ->capture_default_str();
  auto* issue = add(*ca, given, "issue", "Make a node's certificate and key",
                    [](Arguments& a, Terminal& terminal) {
                      a.issue.yes = a.yes;
                      return issue_certificate(a.issue, terminal);
                    });
  issue->add_option("--node", given.issue.node, "The node's number, 1 to 63")
      ->required()
      ->check(CLI::Range(1, 63));
  issue->add_option("--name", given.issue.name, "The node's name")->required();
  issue->add_option("--dir", given.issue.folder, "Where the CA is kept")->capture_default_str();
  issue->add_option("--out", given.issue.out, "The folder to write to; the node's name by default");
  issue->add_option("--days", given.issue.days, "How long it is valid")
      ->check(CLI::Range(1, 36500))
      ->capture_default_str();
  issue->add_flag("--yes", given.yes, "Replace what is there");
  auto* show = add(*ca, given, "show", "What certificates say, and when they expire",
                   [](Arguments& a, Terminal& terminal) {
                     auto files = a.files;
                     if (files.empty()) {
                       auto config = load_config(a.config);
                       TlsConfig tls = config ? config->tls : TlsConfig{};
                       files = {tls.ca, tls.certificate};
                     }
                     return show_certificates(files, a.json, terminal);
                   });
  show->add_option("FILE", given.files, "Certificates as PEM; those of this node by default");
  show->add_flag("--json", given.json, "For programs");
}

/// What nodes that vote are told: `cluster` and `node`, and which volume goes where.
void add_voting(CLI::App& app, CLI::App& cluster, CLI::App& volume, Arguments& given) {
  auto* create = add(cluster, given, "create",
                     "Found the cluster: this node and the peers of its configuration",
                     [](Arguments& a, Terminal& terminal) {
                       return create_cluster(a.config, a.socket, a.create, terminal);
                     });
  create->add_option("--name", given.create.name, "The cluster's name")->required();
  create->add_flag("--without-witness", given.create.without_witness,
                   "Two nodes, although the failure of one may stop the other");
  auto* status = add(
      cluster, given, "status", "Who takes part, whose vote counts, and since when",
      [](Arguments& a, Terminal& terminal) { return show_cluster(a.socket, a.json, terminal); });
  status->add_flag("--json", given.json, "For programs");
  auto* token = add(cluster, given, "token", "A token by which another machine becomes a node",
                    [](Arguments& a, Terminal& terminal) {
                      a.token.config_file = a.config;
                      a.token.socket = a.socket;
                      return invite_node(a.token, terminal);
                    });
  token->add_option("--node", given.token.node, "The new node's number")
      ->required()
      ->check(CLI::Range(1, 63));
  token->add_option("--name", given.token.name, "The new node's name")->required();
  token
      ->add_option("--address", given.token.address,
                   "ADDRESS:PORT, numeric: where its csvd will listen")
      ->required();
  token
      ->add_option("--links", given.token.links,
                   "Addresses of its Corosync, as many as the other nodes have")
      ->delimiter(',');
  token->add_option("--minutes", given.token.minutes, "How long the token can be used")
      ->check(CLI::Range(1, 1440))
      ->capture_default_str();
  token->add_option("--at", given.token.at,
                    "ADDRESS:PORT to wait at; a free port of this node's address by default");
  token->add_option("--ca-dir", given.token.authority_folder, "Where the CA is kept")
      ->capture_default_str();
  token->add_option("--dir", given.token.corosync_folder, "Where Corosync's files are")
      ->capture_default_str();
  auto* join = add(cluster, given, "join", "Make this machine a node of a cluster",
                   [](Arguments& a, Terminal& terminal) {
                     a.join.config_file = a.config;
                     a.join.yes = a.yes;
                     if (a.join.token.empty()) a.join.token = terminal.read_line("Token: ");
                     return join_cluster(a.join, terminal);
                   });
  join->add_option("TOKEN", given.join.token,
                   "As csvctl cluster token printed it; without it, it is read from the standard "
                   "input. On the command line other users of this machine can see it");
  join->add_option("--dir", given.join.corosync_folder, "Where Corosync's files are")
      ->capture_default_str();
  join->add_flag("--yes", given.yes, "Replace a corosync.conf that csvctl did not write");
  auto* leave = add(cluster, given, "leave", "Take this node out of the cluster, in good order",
                    [](Arguments& a, Terminal& terminal) {
                      a.leave.config_file = a.config;
                      a.leave.yes = a.yes;
                      return leave_cluster(a.socket, a.leave, terminal);
                    });
  leave->add_option("--dir", given.leave.corosync_folder, "Where Corosync's files are")
      ->capture_default_str();
  leave->add_flag("--yes", given.yes, "Do not ask");
  auto* start =
      add(cluster, given, "start",
          "Whether this node may bring a cluster about: as ever, against the votes, or not at all",
          [](Arguments& a, Terminal& terminal) {
            if (a.force) return force_quorum(a.socket, a.yes, terminal);
            return prevent_quorum(a.config, a.socket, a.prevents, terminal);
          });
  auto* forced = start->add_flag("--force-quorum", given.force,
                                 "This side goes on, on your word that the others are off");
  start
      ->add_flag("--prevent-quorum", given.prevents,
                 "It joins what others have formed, and forms nothing before")
      ->excludes(forced);
  start->add_flag("--yes", given.yes, "Do not ask")->needs(forced);

  auto change = [&given](CLI::App& under, const std::string& name, const std::string& about,
                         const std::string& command, const std::string& done) {
    return add(under, given, name, about, [command, done](Arguments& a, Terminal& terminal) {
      auto request = a.cluster;
      request.command = command;
      return change_cluster(a.socket, request, done, terminal);
    });
  };
  auto* witness = add(cluster, given, "witness", "What decides between two halves",
                      [](Arguments& a, Terminal& terminal) {
                        auto request = a.cluster;
                        request.command = "witness";
                        if (a.only) request.value = "only " + request.value;
                        return change_cluster(a.socket, request, "The witness is set.", terminal);
                      });
  witness->add_option("WITNESS", given.cluster.value, "none, disk:LUN or share:/FOLDER")
      ->required();
  witness->add_flag(
      "--only", given.only,
      "It decides alone: whoever holds the disk goes on, were it one node, and nobody "
      "without it");
  auto* policy =
      change(cluster, "policy", "How the cluster behaves", "policy", "The policy is set.");
  policy->add_option("POLICY", given.cluster.value, "dynamic_quorum=on|off, hold=SECONDS")
      ->required();

  auto* heartbeat = add(
      cluster, given, "heartbeat", "How soon the loss of a node is noticed",
      [](Arguments& a, Terminal& terminal) {
        auto request = a.cluster;
        request.command = "heartbeat";
        auto word = [&request](const std::string& key, const std::string& value) {
          if (!value.empty())
            request.value += (request.value.empty() ? "" : " ") + key + "=" + value;
        };
        word("delay", a.heartbeat.delay);
        word("threshold", a.heartbeat.threshold);
        word("preset", a.heartbeat.preset);
        return change_cluster(a.socket, request, "The heartbeats are set, on all nodes.", terminal);
      });
  auto* delay =
      heartbeat->add_option("--delay", given.heartbeat.delay, "Milliseconds between two of them");
  auto* threshold = heartbeat->add_option("--threshold", given.heartbeat.threshold,
                                          "So many missed, and a node is gone");
  heartbeat->add_option("--preset", given.heartbeat.preset, "lan (100 ms, 10) or wan (125 ms, 10)")
      ->excludes(delay)
      ->excludes(threshold);

  auto* ready = add(cluster, given, "prepare", "Write corosync.conf from this node's configuration",
                    [](Arguments& a, Terminal& terminal) {
                      a.prepare.config_file = a.config;
                      a.prepare.yes = a.yes;
                      return prepare(a.prepare, terminal);
                    });
  ready->add_flag("--new-key", given.prepare.new_key, "Make an authkey, too: on one node only");
  ready->add_flag("--dry-run", given.prepare.dry_run, "Only print corosync.conf");
  ready->add_flag("--yes", given.yes, "Replace what is there without asking");
  ready->add_option("--dir", given.prepare.folder, "Where to")->capture_default_str();

  auto* config = cluster.add_subcommand("config", "The cluster's configuration as a file");
  config->require_subcommand(1);
  auto* exported =
      add(*config, given, "export", "Write it as TOML", [](Arguments& a, Terminal& terminal) {
        return export_configuration(a.socket, a.file, a.yes, terminal);
      });
  exported->add_option("FILE", given.file, "Where to; the standard output by default");
  exported->add_flag("--yes", given.yes, "Replace the file if it is there");
  auto* imported = add(*config, given, "import", "Make the cluster as a file says",
                       [](Arguments& a, Terminal& terminal) {
                         a.import.yes = a.yes;
                         return import_configuration(a.socket, a.import, terminal);
                       });
  imported->add_option("FILE", given.import.file, "As export wrote it")->required();
  imported->add_flag("--dry-run", given.import.dry_run, "Only show what would change");
  imported->add_flag("--yes", given.yes, "Do not ask");

  auto* node = app.add_subcommand("node", "Nodes of the cluster");
  node->require_subcommand(1);
  auto* list = add(
      *node, given, "list", "The nodes, and whose vote counts",
      [](Arguments& a, Terminal& terminal) { return show_cluster(a.socket, a.json, terminal); });
  list->add_flag("--json", given.json, "For programs");
  auto* vote = change(*node, "vote", "Whether a node votes", "node_vote", "The vote is set.");
  auto waiting = [&given](CLI::App& under, const std::string& name, const std::string& about,
                          const std::string& command, const std::string& done) {
    auto* made = add(under, given, name, about, [command, done](Arguments& a, Terminal& terminal) {
      auto request = a.cluster;
      request.command = command;
      auto patience = a.no_wait ? Duration{0} : Duration{std::chrono::seconds{a.wait_s}};
      return change_and_wait(a.socket, request, done, patience, terminal);
    });
    auto* no_wait = made->add_flag("--no-wait", given.no_wait, "Until it is accepted only");
    made->add_option("--timeout", given.wait_s, "Seconds to wait until it is done")
        ->check(CLI::Range(1, 86'400))
        ->capture_default_str()
        ->excludes(no_wait);
    return made;
  };
  auto* drain = waiting(*node, "drain", "Maintenance: all volumes leave the node", "node_drain",
                        "The node is drained: it coordinates no volume.");
  auto* resume = change(*node, "resume", "The end of maintenance", "node_resume",
                        "The node takes volumes again.");
  auto* fence = add(*node, given, "fence", "Shut a node out of all volumes, and prove it",
                    [](Arguments& a, Terminal& terminal) {
                      return fence_node(a.socket, a.cluster.node, a.yes, terminal);
                    });
  fence->add_flag("--yes", given.yes, "Do not ask");
  auto* unfence = change(*node, "unfence", "Let a fenced node come back", "node_unfence",
                         "The node may come back; its mounts do so by themselves.");
  auto* evict = add(*node, given, "evict", "Take a node out of the cluster",
                    [](Arguments& a, Terminal& terminal) {
                      return evict_node(a.socket, a.cluster.node, a.yes, terminal);
                    });
  evict->add_flag("--yes", given.yes, "Although it takes part");
  for (auto* each : {vote, drain, resume, fence, unfence, evict})
    each->add_option("NODE", given.cluster.node, "Its name or number")->required();
  vote->add_option("VOTE", given.cluster.value, "0 or 1")->required();

  auto* move = waiting(volume, "move", "Let another node coordinate a volume", "volume_move",
                       "The volume has moved.");
  move->add_option("NAME", given.cluster.volume, "The volume")->required();
  move->add_option("--to", given.cluster.node,
                   "The node; it goes back there when it can. Without: wherever is best");
}

void add_fs(CLI::App& app, Arguments& given) {
  auto* fs = app.add_subcommand(
      "fs", "Files of a volume that nobody uses, without mounts and csvd: takes the volume over");
  fs->require_subcommand(1);
  auto command = [&](const std::string& name, const std::string& about,
                     ExitCode (*run)(const FsRequest&, Terminal&)) {
    auto* made = add(*fs, given, name, about, [run](Arguments& a, Terminal& terminal) {
      a.fs.options.lun = a.lun.options;
      a.fs.options.although_mounted = a.yes;
      a.fs.json = a.json;
      if (auto config = load_config(a.config)) a.fs.options.node = config->node;
      return run(a.fs, terminal);
    });
    made->add_option("--lun", given.fs.lun, "iscsi://HOST:PORT/TARGET/LUN, /dev/… or file:PATH")
        ->required();
    add_lun_options(*made, given);
    made->add_flag("--yes", given.yes, "Although mounts are registered: they are fenced");
    return made;
  };
  auto* ls = command("ls", "List a directory", fs_list);
  ls->add_option("PATH", given.fs.paths, "Of the volume; its root by default");
  ls->add_flag("--json", given.json, "For programs");
  auto* mkdir = command("mkdir", "Make directories", fs_make_directories);
  mkdir->add_option("PATH", given.fs.paths, "Of the volume")->required();
  mkdir->add_flag("-p,--parents", given.fs.parents, "Those above, too; none to make is no error");
  auto* put = command("put", "Copy files and trees to the volume", fs_put);
  put->add_option("LOCAL… PATH", given.fs.paths, "What, and where to on the volume")
      ->required()
      ->expected(2, -1);
  auto* get = command("get", "Copy files and trees from the volume", fs_get);
  get->add_option("PATH… LOCAL", given.fs.paths, "What of the volume, and where to")
      ->required()
      ->expected(2, -1);
  auto* cat = command("cat", "Write files to the standard output", fs_cat);
  cat->add_option("PATH", given.fs.paths, "Of the volume")->required();
  auto* rm = command("rm", "Remove files and directories", fs_remove);
  rm->add_option("PATH", given.fs.paths, "Of the volume")->required();
  rm->add_flag("-r,--recursive", given.fs.recursive, "Directories with all that is below them");
}

}  // namespace

int main(int argc, char** argv) {
  Arguments given;
  CLI::App app{"csvctl commands csvd, and volumes of csvfs on their LUNs; man csvctl has more",
               "csvctl"};
  app.require_subcommand(1);
  app.add_option("--config", given.config, "This node's configuration")->capture_default_str();
  app.add_option("--socket", given.socket, "The admin socket of csvd")->capture_default_str();
  app.add_flag("--debug", given.debug, "Log what happens below");
  app.set_version_flag("--version", "csvctl " CSV_VERSION, "The version");
  add_cluster(app, given);
  add_volume(app, given);
  add_reservation(app, given);
  add_fs(app, given);
  add_node(app, *app.get_subcommand("volume"), given);
  add_voting(app, *app.get_subcommand("cluster"), *app.get_subcommand("volume"), given);
  add_completion(app, given);
  auto* status =
      add(app, given, "status", "How the cluster and its volumes are",
          [](Arguments& a, Terminal& terminal) { return show_status(a.socket, a.json, terminal); });
  status->add_flag("--json", given.json, "For programs; the fields are only ever added to");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& wrong) {
    return app.exit(wrong) == 0 ? 0 : static_cast<int>(ExitCode::usage);
  }
  ::signal(SIGPIPE, SIG_IGN);
  log::set_up("csvctl", given.debug ? log::Level::debug : log::Level::error);
  AsioLoop clock;
  auto terminal = Terminal::standard(clock);
  auto options = lun_options(given);
  if (!options) {
    terminal.note("csvctl: " + options.error().message());
    return static_cast<int>(ExitCode::usage);
  }
  given.lun.options = *std::move(options);
  return static_cast<int>(given.action(terminal));
}

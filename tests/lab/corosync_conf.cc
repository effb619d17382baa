// csv_corosync_conf CLUSTER NUMBER,NAME,ADDRESS[,ADDRESS...] ...: what csvfs would write to
// /etc/corosync/corosync.conf. For the lab.
#include "coordinator/cluster/corosync_conf.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>

using namespace csv;
using namespace csv::cluster;

int main(int count, char** words) {
  if (count < 3) {
    std::fprintf(stderr, "usage: csv_corosync_conf CLUSTER NUMBER,NAME,ADDRESS[,ADDRESS...] ...\n");
    return 2;
  }
  CorosyncConf conf;
  conf.cluster = words[1];
  for (int i = 2; i < count; ++i) {
    std::stringstream parts{words[i]};
    std::string number;
    CorosyncConf::Node node;
    std::getline(parts, number, ',');
    node.id = NodeId{static_cast<std::uint8_t>(std::atoi(number.c_str()))};
    std::getline(parts, node.name, ',');
    for (std::string address; std::getline(parts, address, ',');) node.addresses.push_back(address);
    conf.nodes.push_back(std::move(node));
  }
  auto text = render(conf);
  if (!text) {
    std::fprintf(stderr, "%s\n", text.error().message().c_str());
    return 1;
  }
  std::fputs(text->c_str(), stdout);
  return 0;
}

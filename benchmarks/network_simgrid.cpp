// A ring all-reduce of network.py in SimGrid: network_simgrid --cfg=FLAG.. < ring
//
// Knows nothing of GlassCluster. Standard input: ranks, bytes, links; bandwidth and latency of every link; for every rank, the number of
// links on its way to the next rank, and which. An actor a rank, who posts the receive, sends, and waits for both.
// C++, because SimGrid's Python binding switches operating system threads between actors and is some 25 times slower.
// Prints sends, wall seconds of the simulation alone (not of building it), the virtual end and the version.

#include <chrono>
#include <cstdio>
#include <iostream>
#include <simgrid/s4u.hpp>
#include <simgrid/version.h>
#include <string>
#include <vector>

namespace sg = simgrid::s4u;

int main(int argc, char** argv) {
  sg::Engine engine(&argc, argv);  // takes --cfg and --log out of argv
  int ranks, count;
  double bytes;
  std::cin >> ranks >> bytes >> count;
  auto* zone = sg::create_full_zone("network");
  std::vector<const sg::Link*> links;
  for (int i = 0; i < count; i++) {
    double bandwidth, latency;
    std::cin >> bandwidth >> latency;
    links.push_back(zone->create_link("link " + std::to_string(i), bandwidth)->set_latency(latency)->seal());
  }
  std::vector<sg::Host*> hosts;
  for (int rank = 0; rank < ranks; rank++) hosts.push_back(zone->create_host("rank " + std::to_string(rank), 1e9));
  for (int rank = 0; rank < ranks; rank++) {
    int hops, link;
    std::vector<sg::LinkInRoute> way;
    for (std::cin >> hops; hops > 0; hops--) {
      std::cin >> link;
      way.emplace_back(links[link]);
    }
    zone->add_route(hosts[rank]->get_netpoint(), hosts[(rank + 1) % ranks]->get_netpoint(), nullptr, nullptr, way, false);
  }
  zone->seal();
  static int something;
  for (int rank = 0; rank < ranks; rank++)
    sg::Actor::create("rank", hosts[rank], [=] {
      auto* mine = sg::Mailbox::by_name(std::to_string(rank));
      auto* theirs = sg::Mailbox::by_name(std::to_string((rank + 1) % ranks));
      for (int step = 0; step < 2 * (ranks - 1); step++) {
        int* arrived;
        auto incoming = mine->get_async<int>(&arrived);
        auto outgoing = theirs->put_async(&something, static_cast<uint64_t>(bytes / ranks));
        incoming->wait();
        outgoing->wait();
      }
    });
  const auto begun = std::chrono::steady_clock::now();
  engine.run();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begun;
  std::printf("{\"sends\": %d, \"seconds\": %.9f, \"virtual_s\": %.12g, \"version\": \"%d.%d\"}\n", 2 * ranks * (ranks - 1),
              spent.count(), sg::Engine::get_clock(), SIMGRID_VERSION_MAJOR, SIMGRID_VERSION_MINOR);
}

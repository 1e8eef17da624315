"""Runs one case of simgrid_cases.py in SimGrid.

    python -I simgrid_worker.py FLAG.. < case.json > times.json

Knows nothing of GlassCluster: it is started by the Python in which SimGrid is installed. Every node is a
host, every link a shared link, every route is given. One actor launches each event when those before it are
done; `sendto_async` needs no posted receive.
"""

import heapq
import json
import sys

import simgrid

OLD = simgrid.simgrid_version.startswith("3.")  # Debian's; PyPI has 4


def build(case):
    """Hosts in a zone whose routes are all explicit; a message event's route is a pair of hosts."""
    if OLD:
        zone = simgrid.NetZone.create_full_zone("network")
        new_host, new_link = zone.create_host, zone.create_link
    else:
        zone = simgrid.Engine.instance.netzone_root.add_netzone_full("network")
        new_host, new_link = zone.add_host, zone.add_link
    hosts = [new_host(f"node {i}", 1e9) for i in range(case["nodes"])]
    links = []
    for number, (bandwidth, latency) in enumerate(case["links"]):
        link = new_link(f"link {number}", bandwidth)
        link.set_latency(latency)
        link.seal()
        links.append(link)
    for u, v, way in case["routes"]:
        hops = [simgrid.LinkInRoute(links[i]) for i in way]
        if OLD:
            zone.add_route(hosts[u].netpoint, hosts[v].netpoint, None, None, hops, False)
        else:
            zone.add_route(hosts[u], hosts[v], hops, False)
    zone.seal()
    return hosts


def first(comms, until):
    """The place of the first of `comms` to end; -1 where none has ended by `until`."""
    timeout = -1.0 if until is None else max(0.0, until - simgrid.Engine.clock)
    try:
        if OLD:
            return simgrid.Comm.wait_any_for(comms, timeout)
        done = simgrid.ActivitySet(comms).wait_any_for(timeout)
    except simgrid.TimeoutException:
        return -1
    return next(i for i, comm in enumerate(comms) if comm is done)


def drive(case, hosts, ended):
    """The only actor: begins events as soon as all before them have ended, and writes down when each ends."""
    events = case["events"]
    missing = [len(e[-1]) for e in events]
    followers = [[] for _ in events]
    for number, event in enumerate(events):
        for before in event[-1]:
            followers[before].append(number)
    comms, numbers, timers = [], [], []
    ready = [n for n, m in enumerate(missing) if m == 0]
    while True:
        while ready:
            number = ready.pop()
            kind, *what, _ = events[number]
            if kind == "message":
                u, v, _ = case["routes"][what[0]]
                comms.append(simgrid.Comm.sendto_async(hosts[u], hosts[v], what[1]))
                numbers.append(number)
            else:
                heapq.heappush(timers, (simgrid.Engine.clock + what[0], number))
        if comms:
            at = first(comms, timers[0][0] if timers else None)
        elif timers:
            simgrid.this_actor.sleep_until(timers[0][0])
            at = -1
        else:
            break
        done = []
        if at >= 0:
            comms.pop(at)
            done.append(numbers.pop(at))
        while timers and timers[0][0] <= simgrid.Engine.clock:
            done.append(heapq.heappop(timers)[1])
        for number in done:
            ended[number] = simgrid.Engine.clock
            for follower in followers[number]:
                missing[follower] -= 1
                if missing[follower] == 0:
                    ready.append(follower)


def main(flags):
    """One case from standard input; the version and the events' ends to standard output."""
    case = json.load(sys.stdin)
    engine = simgrid.Engine(["simgrid_worker", *(f"--cfg={f}" for f in flags), "--log=root.thresh:error"])
    ended = [-1.0] * len(case["events"])
    hosts = build(case)
    simgrid.Actor.create("driver", hosts[0], drive, case, hosts, ended)
    engine.run()
    print(json.dumps({"version": simgrid.simgrid_version, "ended": ended}))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The ring all-reduce of network.py in SimPy: `python -I network_simpy.py RANKS BYTES BANDWIDTH LATENCY`.

Knows nothing of GlassCluster. A process a rank; a link is a resource that one message holds at a time, which
is as much of a network as SimPy knows. Prints sends, wall seconds of the simulation alone (not of building
it), the virtual end and the version.
"""

import json
import sys
import time

import simpy


def main(ranks, nbytes, bandwidth, latency):
    """One ring all-reduce."""
    env, chunk = simpy.Environment(), nbytes / ranks
    links = [simpy.Resource(env) for _ in range(ranks)]
    inbox = [simpy.Store(env) for _ in range(ranks)]

    def program(rank):
        mine, link, theirs = inbox[rank], links[rank], inbox[(rank + 1) % ranks]

        def arrive(_):
            theirs.put(chunk)

        for _ in range(2 * (ranks - 1)):
            with link.request() as turn:
                yield turn
                yield env.timeout(chunk / bandwidth)
            env.timeout(latency).callbacks.append(arrive)
            yield mine.get()

    for rank in range(ranks):
        env.process(program(rank))
    begun = time.perf_counter()
    env.run()
    spent = time.perf_counter() - begun
    sends = 2 * ranks * (ranks - 1)
    print(json.dumps({"sends": sends, "seconds": spent, "virtual_s": env.now, "version": simpy.__version__}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(float, sys.argv[2:]))

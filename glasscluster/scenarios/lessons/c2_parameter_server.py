"""C2: a parameter server with one shard and with one on every worker, and what each GPU's port carries."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson


def program(gpu: Any, elements: int, algorithm: str, servers: int | None) -> float:
    """Sum a gradient over all ranks: pushed to the servers, added there, pulled back."""
    import torch

    with gpu.unrecorded():  # only the messages are timed
        x = torch.full((elements,), float(gpu.rank))
    gpu.comm.all_reduce(x, algorithm=algorithm, servers=servers)
    with gpu.unrecorded():
        return float(x[-1])


def port_load(graph: Any, topology: Any) -> dict[str, list[int]]:
    """Bytes that every GPU's link carries, out of the GPU and into it, along the routes of all messages."""
    from glasscluster.sim.recording.events import SEND
    from glasscluster.sim.time.network import gpu

    load = dict.fromkeys(topology.links, 0)
    for row in (graph.kind == SEND).nonzero()[0].tolist():
        for number in topology.route(int(graph.rank[row]), int(graph.peer[row])):
            load[topology.links[number]] += int(graph.bytes[row])
    ports = [gpu(i) for i in range(graph.ranks)]
    return {
        "out": [sum(b for (u, _), b in load.items() if u == p) for p in ports],
        "in": [sum(b for (_, v), b in load.items() if v == p) for p in ports],
    }


# fmt: off
@lesson(
    "C2",
    title=("Parameter server", "参数服务器"),
    topic=("communication", "通信"),
    question=("At 16 workers, what is the busiest link?", "16 个 worker 时，哪条链路最忙？"),
    formula=Formula("Eq 11", "server: sends (N−1)S/K for its shard, receives as much; worker: S out, S in; K = N: 2S(N−1)/N sent per rank", "X",
                    "Li et al., OSDI 2014; derivation for servers on the workers"),
    kills=("“The parameter server is obsolete, and asynchronous training is free.” With a shard on every worker it sends a ring's bytes in 2 steps. What runs here is "
           "synchronous; without waiting for each other workers use old weights, and `glass run async_servers` measures that price.",
           "“参数服务器过时了，而且异步训练没有代价。”每个 worker 各放一个分片时，它与环形发送同样多字节，只需 2 步。这里运行的是同步方式；"
           "若互不等待，worker 就会用旧权重，其代价用 `glass run async_servers` 测量。"),
    card=Card(
        ("Where is the bottleneck of a parameter server?", "参数服务器的瓶颈在哪里？"),
        ("At the server's port: with one server all W workers push S into it and pull S out. K shards on K ports divide that by K.",
         "在服务器的端口：只有一个服务器时，W 个 worker 都向它推 S、再拉 S。K 个分片放在 K 个端口上，就除以 K。"),
        ("Separate servers: each sends and receives 2WS/K in all, each worker 2S; balanced when K = W. On the workers themselves a server's port carries "
         "(N+K−2)/K·S each way: (N−1)S for one shard, 2(N−1)/N·S for N. The latter is the all-reduce lower bound, in two steps instead of 2(N−1), so it wins while "
         "latency counts; the ring wins where N−1 messages at once would meet in the network. Servers still win for sparse embeddings, where few rows move.",
         "独立服务器：每个服务器共收发 2WS/K，每个 worker 2S；K = W 时平衡。放在 worker 上时，服务器端口每个方向 (N+K−2)/K·S：一个分片是 (N−1)S，N 个是 2(N−1)/N·S。"
         "后者正是 all-reduce 的下界，只需两步而不是 2(N−1) 步，所以延迟重要时它胜出；N−1 条消息会在网络中相遇时，环更好。稀疏嵌入只传少量行，参数服务器仍占优。"),
        (("When does a parameter server still win?", "什么时候参数服务器仍然更好？"), ("What does staleness do to SGD?", "梯度过期对 SGD 有何影响？")),
    ),
)
def parameter_server(lab: Lab, gpus: int = 16, elements: int = 800_000) -> None:
    """A synchronous parameter server sums one gradient over 16 workers behind one switch, first with one shard, then with 16."""
    from dataclasses import replace

    from glasscluster.sim.ranks.collectives import parameter_server as theory
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.sim.time.network import of_hardware
    from glasscluster.visualize.figures.cells import Table, cells_figure, shade
    from glasscluster.visualize.figures.plots import lines

    elements -= elements % gpus
    size, star = 4 * elements, replace(hardware(lab.hardware), node_size=gpus)  # one switch: every GPU's port is a link of its own
    network, link = of_hardware(star, gpus), star.intra
    one = lab.run("one", ("One server", "一个服务器"), program, elements, "parameter-server", 1, gpus=gpus)
    every = lab.run("sharded", (f"{gpus} shards", f"{gpus} 个分片"), program, elements, "parameter-server", gpus, gpus=gpus)
    for entry in lab.entries:  # the times to compare are those with shared links, below
        entry.compared, entry.note = False, ("This timeline shares no links; the figures of the story do.", "此时间线不计链路共享；概要中的图计入。")
    loads = {1: port_load(one.graph, network), gpus: port_load(every.graph, network)}
    busiest = max(loads[1]["in"] + loads[1]["out"])
    lab.ask(f"One server for {gpus} workers (it is one of them), S bytes: how many S cross the busiest link, in one direction?",
            f"{gpus} 个 worker 共用一个服务器（它也是 worker），S 字节：最忙的链路单方向通过几个 S？", busiest / size, "S")
    lab.check("sent by the only server", (gpus - 1) * size, one.graph.bytes_sent()[0], "Eq 11")
    lab.check("received by the only server", (gpus - 1) * size, loads[1]["in"][0], "Eq 11")
    lab.check("workers that did not send S and receive S", 0, sum(loads[1][way][r] != size for way in loads[1] for r in range(1, gpus)), "Eq 11", unit="ranks")
    even = every.graph.bytes_sent()
    lab.check("sent by every rank", 2 * (gpus - 1) * size // gpus, even[0], "Eq 11, K = N")
    lab.check("ranks that sent something else", 0, sum(s != even[0] for s in even), "Eq 11, K = N", unit="ranks")
    lab.check("ranks with a wrong sum", 0, sum(x != sum(range(gpus)) for x in one.results + every.results), "definition", unit="ranks")
    counts = [k for k in (1, 2, 4, 8, 16, 32) if k < gpus] + [gpus]
    runs = {k: {1: one, gpus: every}.get(k) or lab.cluster(gpus).run(program, elements, "parameter-server", k) for k in counts}
    for k in counts:
        lab.check(f"busiest port, K = {k}", (gpus + k - 2) * (size / k), max(map(max, port_load(runs[k].graph, network).values())),
                  "Eq 11 and the worker's own push", tolerance=0 if elements % k == 0 else 8)
    shared = {k: runs[k].replay(star, contention=True).makespan for k in counts}
    circle = lab.cluster(gpus).run(program, elements, "ring", None)
    ring, chains = circle.replay(star, contention=True).makespan, (every.graph.message_chain(), circle.graph.message_chain())
    push = link.overhead_s + (gpus - 1) * size / link.bandwidth + link.latency_s  # all at once through one port
    pull = (gpus - 1) * (link.overhead_s + size / link.bandwidth) + link.latency_s  # one after the other
    both = {1: push + pull, gpus: theory.predict("all_reduce", gpus, size, link).time_s or 0.0}
    for k, seconds in both.items():
        added = (gpus - 1) * size / k / star.gpu.reduce_rate
        lab.check(f"time behind one switch, K = {k}", seconds + added, None, "derivation; ports shared max-min fairly", simulated=shared[k], unit="s", match="virtual", tolerance=1e-9)
    words = {"en": ("K = {}, {}", "GPU (its link to the switch)", "out", "in"), "zh": ("K = {}，{}", "GPU（通向交换机的链路）", "出", "入")}

    def heat(lang: str) -> Any:
        rows = [(words[lang][0].format(k, words[lang][2 + (way == "in")]), loads[k][way]) for k in loads for way in ("out", "in")]
        text = [[f"{b / size:.3g}" for b in row] for _, row in rows]
        fill = [[shade(b / busiest) for b in row] for _, row in rows]
        return cells_figure([Table("", [name for name, _ in rows], [str(r) for r in range(gpus)], text, fill, words[lang][1])])

    lab.figure(("Bytes that every GPU's link carries, in S", "每块 GPU 的链路承载的字节数（以 S 计）"), heat)
    axes = {"en": ("parameter server", "a server's own bytes ÷ β", "ring all-reduce", "shards K", "ms, links shared"),
            "zh": ("参数服务器", "一个服务器的字节 ÷ β", "环形 all-reduce", "分片数 K", "ms（计入链路共享）")}
    least = {k: 2 * (gpus - 1) * size / k / link.bandwidth for k in counts}  # pushed in, then pulled out
    drawn = [(counts, [t * 1e3 for t in ts]) for ts in (shared.values(), least.values(), [ring] * len(counts))]
    lab.figure((f"Time of one sum on {gpus} GPUs behind one switch", f"{gpus} 块 GPU 接同一交换机，一次求和的时间"),
               lambda lang: lines(dict(zip(axes[lang], drawn, strict=False)), *axes[lang][3:], log_x=True))
    use = (gpus - 1) * size / link.bandwidth / shared[1]
    lab.tell(f"One server's link carries {busiest / size:.4g} S each way, every other link {loads[1]['in'][1] / size:.4g} S: that is the busiest link.",
             f"唯一服务器的链路每个方向承载 {busiest / size:.4g} S，其他链路各 {loads[1]['in'][1] / size:.4g} S：它就是最忙的链路。",
             "tab=network&run=one")
    lab.tell(f"That link is busy {use:.1%} of the time in each direction: first everybody pushes into it, then everybody pulls from it; the whole takes {shared[1] * 1e3:.4g} ms.",
             f"该链路每个方向有 {use:.1%} 的时间在忙：先是所有人推入，再是所有人拉出；全程 {shared[1] * 1e3:.4g} ms。", "tab=timeline&run=one")
    lab.tell(f"With {gpus} shards every link carries {loads[gpus]['in'][0] / size:.4g} S and the sum takes {shared[gpus] * 1e3:.4g} ms: {shared[1] / shared[gpus]:.3g} times as fast.",
             f"用 {gpus} 个分片时每条链路承载 {loads[gpus]['in'][0] / size:.4g} S，求和只需 {shared[gpus] * 1e3:.4g} ms：速度是 {shared[1] / shared[gpus]:.3g} 倍。",
             "tab=network&run=sharded")
    between = max((k for k in counts if k < gpus), key=lambda k: shared[k] / least[k])
    if shared[between] > 2 * least[between]:
        lab.tell(f"With {between} shards a server's own bytes would need {least[between] * 1e3:.4g} ms; the sum takes {shared[between] * 1e3:.4g}: workers push shard after shard and meet at one port after another.",
                 f"用 {between} 个分片时，一个服务器自己的字节只需 {least[between] * 1e3:.4g} ms；求和却要 {shared[between] * 1e3:.4g} ms：worker 逐个分片推送，依次在各个端口相遇。")
    lab.tell(f"A ring sends the same bytes in {chains[1]} steps instead of {chains[0]} and takes {ring * 1e3:.4g} ms: sharded, the parameter server is not obsolete.",
             f"环发送同样的字节，但要 {chains[1]} 步而不是 {chains[0]} 步，用时 {ring * 1e3:.4g} ms：分片之后，参数服务器并不过时。")
    lab.conclude(f"The server's own link: {busiest / size:.4g} S each way with one server, {loads[gpus]['in'][0] / size:.4g} S with a shard on every worker.",
                 f"服务器自己的链路：一个服务器时每个方向 {busiest / size:.4g} S，每个 worker 各放一个分片时 {loads[gpus]['in'][0] / size:.4g} S。")
    lab.explain("All workers but the server itself push S through one port and pull S through it again. Shards put that on K ports, and each server pushes to the others too.",
                "除服务器自己外，所有 worker 都经同一端口推入 S、再拉出 S。分片把这些分到 K 个端口上，每个服务器也要推给其他服务器。",
                ("The server's port carries (N−1)S each way, a worker's S.", "服务器端口每个方向 (N−1)S，worker 的端口 S。"),
                ("With K = N the load is even: 2(N−1)/N·S, as for a ring, in two steps.", "K = N 时负载均匀：2(N−1)/N·S，与环相同，但只需两步。"))
    lab.own_number(f"{busiest / size:.4g} S through one port against {loads[gpus]['in'][0] / size:.4g} S; {shared[1] / shared[gpus]:.3g} times the time.",
                   f"一个端口 {busiest / size:.4g} S，对比 {loads[gpus]['in'][0] / size:.4g} S；时间差 {shared[1] / shared[gpus]:.3g} 倍。")

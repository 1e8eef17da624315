"use strict";
/* The timeline as a Chrome/Perfetto trace, for the download.
   Counterpart: glasscluster/visualize/page/trace.py. */
const GlassTrace = (function () {
  const LANES = ["collectives", "sends", "receives", "launches", "messages out", "messages in"];

  /* One process a rank, one thread a lane, an arrow a message; times in microseconds. */
  function chromeTrace(timeline, hardware) {
    const { graph, start, end } = timeline;
    const K = graph.KIND;
    const us = (seconds) => Math.round(seconds * 1e12) / 1e6;
    const events = [];
    for (let pid = 0; pid < graph.ranks; pid++) {
      events.push({ ph: "M", name: "process_name", pid, args: { name: "rank " + pid } });
    }
    const seen = new Set();
    for (let row = 0; row < graph.n; row++) {
      const [pid, tid] = [graph.rank[row], graph.lane[row]];
      if (!seen.has(pid + "/" + tid)) {
        seen.add(pid + "/" + tid);
        events.push({ ph: "M", name: "thread_name", pid, tid, args: { name: laneName(graph, row) } });
      }
      if (graph.kind[row] === K.begin) continue;
      const when = { ts: us(start[row]), dur: us(end[row] - start[row]) };
      const what = { name: name(graph, row), cat: graph.kinds[graph.kind[row]] };
      events.push({ ph: "X", ...what, pid, tid, ...when, args: given(graph, row) });
      if (graph.kind[row] === K.recv && graph.match[row] >= 0) {
        const sender = graph.match[row];
        const common = { name: "message", cat: "message", id: row };
        const from = { pid: graph.rank[sender], tid: graph.lane[sender] };
        events.push({ ph: "s", ...common, ...from, ts: us(start[sender]) });
        events.push({ ph: "f", bp: "e", ...common, pid, tid, ts: us(end[row]) });
      }
    }
    return { traceEvents: events, displayTimeUnit: "ns", otherData: { hardware, time: "virtual" } };
  }

  function laneName(graph, row) {
    if (graph.lane[row] === 0) return "compute";
    return (graph.axisOf(row) || "world") + " " + LANES[(graph.lane[row] - 1) % graph.lanesPerGroup];
  }

  function name(graph, row) {
    const label = graph.label[row] >= 0 ? graph.names[graph.label[row]] : "";
    return graph.names[graph.op[row]] + (label ? " · " + label : "");
  }

  /* What a trace viewer shows of an event beside its times. */
  function given(graph, row) {
    const K = graph.KIND;
    const said = { phase: graph.phases[graph.phase[row]], bytes: graph.bytes[row] };
    if (graph.kind[row] === K.compute) {
      const { flops, layer, micro_batch } = graph;
      Object.assign(said, { flops: flops[row], layer: layer[row], micro_batch: micro_batch[row] });
    } else if (graph.kind[row] === K.send || graph.kind[row] === K.recv) said.peer = graph.peer[row];
    else if (graph.kind[row] === K.collective) said.sequence = graph.sequence[row];
    return said;
  }

  return { LANES, chromeTrace };
})();

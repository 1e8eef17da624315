"""Sound files of every kind, made by the package itself: mutations begin with them."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
SHAPE = ["--layers", "2", "--hidden", "16", "--heads", "2", "--seq", "16"]
SCHEDULE = "0F0 0F1 - - 0B0 0B1\n- 1F0 1B0 1F1 1B1 -\n"
CSV = "layers,hidden,heads,seq,dp,tp,zero\n2,16,2,16,1,1,0\n2,16,2,16,2,1,1\n2,16,2,16,1,2,\n"
REQUESTS = [
    {"prompt": "abc", "tokens": 2, "arrival_s": 0},
    {"prompt": [1, 2, 3, 4], "tokens": 3, "arrival_s": 1e-5},
]
TOPOLOGY = {
    "nodes": [{"id": "a", "kind": "gpu"}, {"id": "b", "kind": "gpu"}, {"id": "s", "kind": "switch"}],
    "edges": [
        {"source": "a", "target": "s", "bandwidth": 1e9, "latency": 1e-6},
        {"source": "b", "target": "s", "bandwidth": 1e9, "latency": 1e-6},
    ],
}
PREDICTED = {"layers": 2, "hidden": 16, "heads": 2, "seq": 16, "dp": 2, "zero": 1, "hardware": "dgx-h100"}
SPLIT = {"W/one.safetensors": 0, "W/two.safetensors": 1}  # the same weights in two files, and an index


@cache
def samples() -> dict[str, bytes]:
    """Path -> content. The same bytes in every process."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        made = _made(Path(place))
    made["data.txt"] = " ".join(random.Random(0).choices(["ab", "cde", "f", "gh"], k=400)).encode()
    made["schedule.txt"], made["rows.csv"] = SCHEDULE.encode(), CSV.encode()
    made |= {f"configs/{path.name}": path.read_bytes() for path in CONFIGS.glob("*.json")}
    for name, content in {
        "requests.json": REQUESTS,
        "topology.json": TOPOLOGY,
        "request.json": PREDICTED,
    }.items():
        made[name] = json.dumps(content).encode()
    return made


def _made(folder: Path) -> dict[str, bytes]:
    import torch
    from safetensors.torch import load_file, save_file

    from glasscluster.model.config import ModelConfig
    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.text.tokenizer import Tokenizer
    from glasscluster.model.weights import hugging_face
    from glasscluster.sim.recording.packed import FORMAT, pack_graph
    from glasscluster.sim.run import Cluster
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.strategies.job import Job, job_info
    from glasscluster.strategies.plan import Plan
    from glasscluster.strategies.trainer import train_rank

    model = ModelConfig(layers=2, hidden=16, heads=2, seq=16)
    torch.manual_seed(0)
    stage = GPTStage(model)
    for tensor in hugging_face.tensors_of(stage).values():
        with torch.no_grad():
            tensor.normal_(0, 0.02)
    hugging_face.save(stage, folder / "W")
    weights = load_file(folder / "W" / "model.safetensors")
    names, where = sorted(weights), {}
    for file, half in SPLIT.items():
        part = names[half::2]
        save_file({n: weights[n] for n in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, Path(file).name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "W" / "model.safetensors.index.json").write_text(json.dumps(index))
    job = Job(Plan(dp=2), model, steps=1)
    run = Cluster("classroom", 2, "dry").run(train_rank, job, info=job_info(job))
    (folder / "run").mkdir()
    run.graph.save(folder / "run" / "graph.npz")
    (folder / "graph.json").write_text(json.dumps({"format": FORMAT, **pack_graph(run.graph)}))
    hardware("dgx-a100-40gb").save(folder / "hw.json")
    Tokenizer.train([b"abc def abc def ghi"], 260).save(folder / "tok.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

"""Every word that figures and reports say, once, in English and 中文."""

from __future__ import annotations

import re
from dataclasses import dataclass

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Said:
    """A text in two languages."""

    en: str
    zh: str

    def in_(self, lang: str) -> str:
        """The text in a language."""
        return self.zh if lang == "zh" else self.en


CATALOGUE: dict[str, Said] = {
    # kinds of event
    "forward": Said("Forward", "前向"),
    "backward": Said("Backward", "反向"),
    "weight": Said("Weight gradient", "权重梯度"),
    "recompute": Said("Recompute", "重计算"),
    "optimizer": Said("Optimizer", "优化器"),
    "other": Said("Other compute", "其他计算"),
    "collective": Said("Collective", "集合通信"),
    "p2p": Said("Point-to-point send", "点对点发送"),
    "bubble": Said("Bubble (idle)", "气泡（空闲）"),
    "critical": Said("Critical path", "关键路径"),
    "opt": Said("opt", "优化"),
    # memory
    "parameters": Said("Parameters", "参数"),
    "gradients": Said("Gradients", "梯度"),
    "optimizer_state": Said("Optimizer state", "优化器状态"),
    "activations": Said("Activations", "激活"),
    "buffers": Said("Buffers", "缓冲区"),
    # time
    "compute": Said("Forward and backward", "前向与反向计算"),
    "exposed": Said("Exposed communication", "暴露的通信"),
    "alone": Said("Compute, no communication under way", "计算（无通信）"),
    "overlapped": Said("Compute, communication hidden behind it", "计算（与通信重叠）"),
    "waiting": Said("Other waiting", "其他等待"),
    "latency": Said("Messages in flight (latency)", "消息在途（延迟）"),
    "messages_of": Said("messages of {axis}", "{axis} 的消息"),
    "on_path": Said("On the critical path", "关键路径上的时间"),
    "if_faster": Said("Gain if this kind were × {factor} as fast", "若该类快 {factor} 倍可节省"),
    "saved": Said("saved", "节省"),
    "never_idle": Said("No rank was ever idle.", "没有任何 rank 空闲过。"),
    "split_title": Said("Where each rank's time goes (adds up to the step)", "每个 rank 的时间去向（合计为一步）"),
    "idle_title": Said("Why ranks stood still", "rank 为什么空闲"),
    "path_title": Said("The critical path, and what would be gained", "关键路径，以及可以得到的收益"),
    "side_by_side": Said("The runs on one time axis", "同一时间轴上的各次运行"),
    # axes and titles
    "virtual_time": Said("virtual time", "虚拟时间"),
    "measured_time": Said("measured time", "实测时间"),
    "rank": Said("rank", "rank"),
    "drawn": Said(
        "{events} events, {blocks} bars; in view {single} drawn one by one, {binned} binned at {pixel} a pixel.",
        "共 {events} 个事件、{blocks} 个条；视野内逐个绘出 {single} 个，{binned} 个按每像素 {pixel} 合并。",
    ),
    "table_cut": Said(
        "The first {shown} of {all} bars; trace.json has everything.", "前 {shown} 个，共 {all} 个条；完整数据见 trace.json。"
    ),
    "follows": Said("waited for", "等待的是"),
    "whatif": Said("What if?", "如果……会怎样？"),
    "whatif_bw": Said("link bandwidth", "链路带宽"),
    "whatif_lat": Said("link latency", "链路延迟"),
    "whatif_flops": Said("FLOP/s", "算力 FLOP/s"),
    "whatif_slow": Said("one slow rank", "一个慢 rank"),
    "whatif_faster": Said("this kind of work, faster", "某类操作更快"),
    "whatif_reset": Said("As recorded", "恢复原样"),
    "whatif_idle": Said(
        "The recorded graph takes {before}: move a slider and it is replayed here.", "记录的图需要 {before}：移动滑块，页面会当场重放。"
    ),
    "whatif_shared": Said(
        "{before}, with messages that share links: for other links run `glass replay --contention`.",
        "{before}，消息共享链路：换其他链路请运行 `glass replay --contention`。",
    ),
    "whatif_says": Said(
        "{before} → {after} ({change}); bubble {bubble}, exposed communication {exposed} a rank.",
        "{before} → {after}（{change}）；气泡 {bubble}，每个 rank 暴露的通信 {exposed}。",
    ),
    "buffer_size": Said("buffer (bytes)", "缓冲区（字节）"),
    "bus_bandwidth": Said("bus bandwidth (GB/s)", "总线带宽 (GB/s)"),
    "latency_region": Said("latency bound", "受延迟限制"),
    "bandwidth_region": Said("bandwidth bound", "受带宽限制"),
    "time_us": Said("virtual time (µs)", "虚拟时间 (µs)"),
    "gpus_n": Said("GPUs N", "GPU 数 N"),
    "load": Said("Load of the links, where they stand", "各链路的负载（物理位置）"),
    "whole_run": Said("whole run", "整个运行"),
    "utilisation": Said("Bandwidth in use", "带宽占用"),
    "download": Said("Download", "下载"),
    "previous": Said("previous step", "上一步"),
    "next": Said("next step", "下一步"),
    "your_words": Said("In one sentence, why did it come out so?", "用一句话说明：为什么会是这样？"),
    "compare_words": Said("Compare with ours", "与参考解释对照"),
    "did_you_say": Said("Did your sentence say this? Nobody but you scores it.", "你的句子说到这些了吗？只由你自己评判。"),
    "click": Said("Click a bar to see what it waited for.", "点击一个条，查看它在等什么。"),
    "lane_compute": Said("compute", "计算"),
    "lane_comm": Said("comm", "通信"),
    "peak_memory": Said("Peak memory by category", "峰值显存（按类别）"),
    "memory_over_time": Said("Memory over the step, rank {rank}", "一步之内的显存，rank {rank}"),
    "sent": Said("Bytes sent per rank", "各 rank 发送的字节数"),
    "step_time": Said("One step on {hardware}", "一步的时间（{hardware}）"),
    "sent_gpu": Said("Sent per GPU", "每卡发送"),
    "memory_gpu": Said("Peak memory per GPU", "每卡峰值显存"),
    "comparison": Said("The same model, the same batch, side by side", "同一模型、同一批数据的并排比较"),
    "chunk": Said("chunk", "块"),
    "chunk_axis": Said("chunk of the buffer ({size} each)", "缓冲区的块（每块 {size}）"),
    "steps_done": Said("steps done:", "已完成步数："),
    "step_next": Said("step {step}: {messages} messages about to move", "第 {step} 步：即将传输 {messages} 条消息"),
    "step_over": Said("finished", "完成"),
    "sum_of": Said("holds contributions of ranks", "含有以下 rank 的贡献："),
    "all_ranks": Said("all", "全部"),
    "stepper_title": Said("The largest collective, step by step", "最大的一次集合通信，逐步查看"),
    "all_axes": Said("all axes", "所有并行维"),
    "sender": Said("sender", "发送方"),
    "receiver": Said("receiver", "接收方"),
    "by_formula": Said("By the formula", "按公式"),
    "states_by_strategy": Said("Model states a GPU holds, before the optimizer step", "优化器步之前每卡持有的模型状态"),
    "loss_float64": Said("Loss (float64)", "损失（float64）"),
    "difference_from_one": Said("Difference from one device", "与单卡的差异"),
    "one_device": Said("one device", "单卡"),
    "this_run": Said("this run", "本次运行"),
    "largest_grad": Said("gradients", "梯度"),
    "largest_weight": Said("weights", "权重"),
    "tolerance": Said("allowed", "允许"),
    "all_tensors": Said("all tensors (largest)", "所有张量（最大值）"),
    "step_number": Said("training step", "训练步"),
    "relative_difference": Said("difference from the formula, relative (10⁻¹⁷: exactly none)", "与公式的相对差异（10⁻¹⁷ 表示完全相等）"),
    "found": Said("found", "实际"),
    "allowed": Said("allowed", "允许"),
    "binned": Said(
        "{events} events; {drawn} blocks drawn one by one, {binned} shorter ones joined at {pixel} a pixel",
        "共 {events} 个事件；逐个绘出 {drawn} 块，其余 {binned} 个较短的按每像素 {pixel} 合并",
    ),
    # hover
    "from_to": Said("start", "开始"),
    "launched": Said("launched", "发起"),
    "length": Said("length", "时长"),
    "events": Said("operations", "算子数"),
    "micro_batch": Said("micro-batch", "微批次"),
    "cause": Said("cause", "原因"),
    "bytes": Said("bytes", "字节"),
    "axis": Said("axis", "并行维"),
    "communication": Said("communication", "通信"),
    "dependency": Said("waiting for another rank", "等待其他 rank"),
    "warm-up": Said("warm-up", "预热"),
    "drain": Said("drain", "排空"),
    "to_rank": Said("to rank", "发往 rank"),
    # the page
    "pass": Said("PASS", "通过"),
    "fail": Said("FAIL", "未通过"),
    "partial": Said("PARTIAL", "部分完成"),
    "simulated": Said("simulated: {hardware}", "模拟：{hardware}"),
    "tab_story": Said("Story", "概要"),
    "tab_timeline": Said("Timeline", "时间线"),
    "tab_memory": Said("Memory", "显存"),
    "tab_network": Said("Network", "通信"),
    "tab_ledger": Said("Ledger", "账本"),
    "tab_checks": Said("Checks", "检查"),
    "show_table": Said("show table", "显示数据表"),
    "hide_table": Said("hide table", "收起数据表"),
    "run": Said("Run", "运行"),
    "hardware": Said("Hardware", "硬件"),
    "backend": Said("backend", "后端"),
    "seed": Said("seed", "随机种子"),
    "question": Said("Question", "问题"),
    "predict": Said("Predict", "预测"),
    "enter": Said("Show me what happened", "看看结果"),
    "locked": Said(
        "Write down a number first: the answer stays closed until you do.",
        "先写下一个数字：在此之前答案不会打开。",
    ),
    "you_said": Said(
        "You said {guess} {unit}; it was {answer} {unit} ({ratio}).", "你的预测 {guess} {unit}；实际 {answer} {unit}（{ratio}）。"
    ),
    "not_a_number": Said("That is not a number.", "这不是一个数字。"),
    "what_ran": Said("Run and see", "运行与观察"),
    "check": Said("Check", "核对"),
    "explain": Said("Explain", "解释"),
    "misconception": Said("The misconception this kills", "破除的误解"),
    "card": Said("Interview card", "面试卡"),
    "short_answer": Said("In 30 seconds", "30 秒回答"),
    "long_answer": Said("In 2 minutes", "2 分钟回答"),
    "follow_ups": Said("They will ask next", "追问"),
    "own_number": Said("Your own number", "你自己的数字"),
    "see": Said("see it", "查看"),
    "keys": Said(
        "Keys: ← → pan, + − zoom, 0 all, j k next and previous event",
        "键盘：← → 平移，+ − 缩放，0 全览，j k 下一个与上一个事件",
    ),
    "quantity": Said("quantity", "量"),
    "predicted": Said("predicted", "公式预测"),
    "counted": Said("counted", "实际计数"),
    "simulated_column": Said("simulated", "模拟"),
    "measured_column": Said("measured", "实测"),
    "unit": Said("unit", "单位"),
    "source": Said("source", "出处"),
    "holds": Said("holds", "成立"),
    "fails": Said("fails", "不成立"),
    "all_hold": Said("{held} of {all} checks held", "{all} 项检查中 {held} 项成立"),
    "no_checks": Said(
        "This run states no checks. `glass train` states them; in a scenario use lab.check(...).",
        "本次运行没有检查项。`glass train` 会给出检查；在 scenario 中请用 lab.check(...)。",
    ),
    "no_story": Said(
        "This run tells no story. A scenario tells one with lab.tell(...).",
        "本次运行没有故事。scenario 可用 lab.tell(...) 讲述。",
    ),
    "no_traffic": Said(
        "No bytes were counted: nothing was sent, or the collectives were native (then use --algorithm ring).",
        "没有计到字节：没有发送任何数据，或用了原生集合通信（可改用 --algorithm ring）。",
    ),
    "no_memory": Said(
        "No memory was recorded: memory is counted of runs that hold tensors (record=True).",
        "没有记录显存：只有持有张量的运行才会计数（record=True）。",
    ),
    "no_equivalence": Said(
        "No comparison with one device: `--check` (the default of `glass train`) makes it.",
        "没有与单卡的比较：`--check`（`glass train` 的默认值）会给出。",
    ),
    "matrix": Said("Who sends to whom (row: sender, column: receiver)", "谁发给谁（行：发送方，列：接收方）"),
    "table_bubble": Said("bubble", "气泡"),
    "table_exposed": Said("exposed communication", "暴露的通信"),
    "table_step": Said("step", "一步"),
    "table_mfu": Said("MFU", "MFU"),
    "definitions": Said(
        "Bubble: idle share of ranks × (first forward to last backward); over ideal: idle over useful time.",
        "气泡：rank 数 ×（首个前向到最后一个反向）中的空闲占比；相对理想：空闲时间除以有效时间。",
    ),
    "over_ideal": Said("over ideal", "相对理想"),
    "same_training": Said(
        "Is it the same training? Every tensor against one device, float64",
        "训练结果一样吗？逐个张量与单卡 float64 对比",
    ),
    "gallery": Said("GlassCluster: the lessons", "GlassCluster：课程"),
    "gallery_about": Said(
        "Each card is a run of real strategies on simulated GPUs, checked and counted. Predict first.",
        "每张卡片都是在模拟 GPU 上真实运行、核对并计数的一次实验。先预测，再看答案。",
    ),
    "all_topics": Said("all", "全部"),
    "glossary": Said("Glossary", "术语表"),
    # a run's own story
    "told_loss": Said(
        "The loss went from {first:.4f} to {last:.4f} in {steps} steps on {gpus} ranks.",
        "{gpus} 个 rank 训练 {steps} 步，损失从 {first:.4f} 到 {last:.4f}。",
    ),
    "told_time": Said(
        "A step takes {step:.4g} ms on {hardware}; {bubble:.1%} of it is bubble and {exposed:.4g} ms of communication is waited for.",
        "在 {hardware} 上一步需 {step:.4g} ms，气泡占 {bubble:.1%}，等待通信 {exposed:.4g} ms。",
    ),
    "told_memory": Said("The fullest rank holds {peak:.4g} MB at its peak.", "占用最多的 rank 峰值为 {peak:.4g} MB。"),
    "told_bytes": Said("The busiest rank sends {sent:.4g} MB.", "发送最多的 rank 发出 {sent:.4g} MB。"),
    "told_checks": Said("{held} of {all} checks held.", "{all} 项检查中 {held} 项成立。"),
}

# Names of ledger rows: what is said in English is matched, what stands in () is carried over.
ROWS: tuple[tuple[str, str], ...] = (
    (r"largest (gradient|weight|loss) difference from one device, float64, (\d+) steps", "与单卡（float64，{1} 步）的最大{0}差异"),
    (r"(dp|pp|tp) (gradients|parameters) sent, all ranks", "{0} 方向发送的{1}，全部 rank"),
    (r"pp activations and their gradients sent, all ranks", "pp 方向发送的激活及其梯度，全部 rank"),
    (r"tied embedding gradients sent, all ranks", "共享词嵌入的梯度发送量，全部 rank"),
    (r"tp all-reduces sent, 4 per layer", "tp all-reduce 发送量，每层 4 次"),
    (r"tp all-reduces sent, embedding, once", "tp all-reduce 发送量，词嵌入（一次）"),
    (r"tp all-reduces sent, head input, once", "tp all-reduce 发送量，输出头的输入（一次）"),
    (r"tp all-reduces sent, loss, 3 scalars a token", "tp all-reduce 发送量，损失（每 token 3 个标量）"),
    (r"(parameters|gradients|optimizer) held, all ranks", "持有的{0}，全部 rank"),
    (r"micro-batches in flight, stage (\d+)", "第 {0} 级在途的微批次"),
    (r"largest (gradient) difference from one device", "与单卡的最大{0}差异"),
    (r"largest difference from torch's softmax, any order", "与 torch softmax 的最大差异（任意顺序）"),
    (r"final maximum, difference between orders", "最终最大值在不同顺序之间的差异"),
    (r"tiled, N = (\d+)", "分块，N = {0}"),
    (r"textbook, N = (\d+)", "教科书写法，N = {0}"),
    (r"sizes at which both give the same output", "两种写法输出相同的大小个数"),
    (r"time of (\d+) bytes, one way", "{0} 字节单程时间"),
    (r"([αβ]) fitted from two sizes", "由两个大小拟合的 {0}"),
    (r"sent by every rank", "每个 rank 发送量"),
    (r"ranks that sent something else", "发送量不同的 rank 数"),
    (r"ranks with a wrong sum", "和不正确的 rank 数"),
    (r"time on (\S+)", "在 {0} 上的时间"),
    (r"(sent|received) by the only server", "唯一服务器的{0}量"),
    (r"workers that did not send S and receive S", "没有恰好发送 S、接收 S 的 worker 数"),
    (r"busiest port, K = (\d+)", "最忙的端口，K = {0}"),
    (r"time behind one switch, K = (\d+)", "同一交换机下的时间，K = {0}"),
    (r"elements that differ: all-reduce and its two halves", "不同的元素数：all-reduce 与它的两半"),
    (r"elements that differ: reduce-scatter and a detour over rank 0", "不同的元素数：reduce-scatter 与绕道 rank 0"),
    (r"elements that differ: all-to-all and torch's transpose", "不同的元素数：all-to-all 与 torch 的转置"),
    (r"elements that differ: ZeRO step and full update", "不同的元素数：一步 ZeRO 与完整更新"),
    (r"sent by each rank in (.+)", "每个 rank 的发送量：{0}"),
    (r"ranks that sent something else in (.+)", "发送量不同的 rank 数：{0}"),
    (r"received by rank 0 on the detour", "绕道时 rank 0 接收的量"),
    (r"time of a ring's reduce-scatter", "环形 reduce-scatter 的时间"),
    (r"time of the detour over rank 0", "绕道 rank 0 的时间"),
    (r"time of ([a-z-]+), N = (\d+)", "{0} 的时间，N = {1}"),
    (r"time of ([a-z-]+), N = (\d+), (\d+) bytes", "{0} 的时间，N = {1}，{2} 字节"),
    (r"size at which ring and ([a-z-]+) take the same time", "环与 {0} 用时相同的大小"),
    (r"time in two levels, (\d+) x (\d+) GPUs", "两级的时间，{0} × {1} 块 GPU"),
    (r"sent to another node by each GPU, (\d+) x (\d+) GPUs", "每块 GPU 发往其他节点的量，{0} × {1} 块 GPU"),
    (r"GPUs that sent something else to another node, (\d+) x (\d+) GPUs", "发往其他节点的量不同的 GPU 数，{0} × {1} 块 GPU"),
    (r"sent to another node by a flat ring's last GPU of a node", "平坦的环中节点末尾 GPU 发往其他节点的量"),
    (r"programs that hang at (\d+) bytes, sends buffered up to (\d+)", "{0} 字节、缓冲不超过 {1} 字节的发送时卡死的程序数"),
    (r"runs whose waits are not those of the rule", "等待关系与规则不符的运行数"),
    (r"hangs whose named ranks are not a cycle or a chain's end", "所报告的 rank 不是环也不是链尾的卡死数"),
    (r"repaired: steps finished without buffering", "修复后：无缓冲时完成的步数"),
    (r"sum over all tokens", "对所有 token 求和"),
    (r"tokens over all ranks", "所有 rank 的 token 数"),
    (r"largest gradient difference of the GPT from one device", "GPT 与单卡的最大梯度差异"),
    (r"end of the last bucket", "最后一个桶的结束时间"),
    (r"stage (\d): bytes of model states on a rank", "第 {0} 级：每个 rank 的模型状态字节数"),
    (r"stage (\d): bytes sent by all ranks", "第 {0} 级：所有 rank 发送的字节数"),
    (r"all-reduces inside the layers, one rank", "层内 all-reduce 次数（一个 rank）"),
    (r"bytes of them, all ranks", "这些 all-reduce 的字节数（全部 rank）"),
    (r"column then row: one all-reduce of tokens × h", "先列后行：一次 tokens × h 的 all-reduce"),
    (r"row then column: all-reduce 4 × as wide, all-gather", "先行后列：四倍宽的 all-reduce，再加 all-gather"),
    (r"largest error of (column then row|row then column)", "{0}的最大误差"),
    (r"GPipe makespan, first F to last B", "GPipe 总时长，首个 F 到最后一个 B"),
    (r"ZeRO-3 losses with and without prefetch, steps that differ", "ZeRO-3 预取与不预取，损失不同的步数"),
    (r"ZeRO-3 bytes without prefetch, as with it", "ZeRO-3 不预取时的字节数，应与预取相同"),
)
_PARTS = {
    "gradient": "梯度",
    "gradients": "梯度",
    "weight": "权重",
    "loss": "损失",
    "parameters": "参数",
    "optimizer": "优化器状态",
    "column then row": "先列后行",
    "row then column": "先行后列",
    "reduce-scatter and all-gather": "reduce-scatter 加 all-gather",
    "halving-doubling": "折半-加倍",
    "recursive-doubling": "递归加倍",
    "tree": "树",
    "ring": "环",
    "a ZeRO step": "一步 ZeRO",
    "received": "接收",
    "sent": "发送",
}


def word(key: str, lang: str = "en", **values: object) -> str:
    """A catalogue entry in a language, with its blanks filled."""
    text = CATALOGUE[key].in_(lang)
    return text.format(**values) if values else text


def row_name(name: str, lang: str = "en") -> str:
    """A ledger row's name in a language; a name that the catalogue does not know stays as it is."""
    if lang != "zh":
        return name
    run, separator, rest = name.rpartition(": ")  # rows of several runs are named after theirs
    for prefix, text in (("", name), (run + separator, rest)):
        for pattern, chinese in ROWS:
            match = re.fullmatch(pattern, text)
            if match:
                return prefix + chinese.format(*(_PARTS.get(g, g) for g in match.groups()))
    return name


# symbol, term, meaning: the symbols that lessons and ledgers use
GLOSSARY: tuple[tuple[str, Said, Said], ...] = (
    ("N", Said("ranks", "rank 数"), Said("GPUs that take part in a collective", "参与一次集合通信的 GPU 数")),
    ("S", Said("size", "大小"), Said("bytes of the full buffer on a rank", "一个 rank 上完整缓冲区的字节数")),
    ("Ψ", Said("parameters", "参数量"), Said("number of parameters of the model", "模型的参数个数")),
    ("α", Said("latency", "延迟"), Said("fixed cost of a message: overhead o plus time in flight L", "一条消息的固定代价：开销 o 加飞行时间 L")),
    ("β", Said("bandwidth", "带宽"), Said("bytes per second of a link", "链路每秒传输的字节数")),
    ("p", Said("stages", "级数"), Said("pieces the layers are cut into, one after the other", "层被切成的前后相接的段数")),
    ("m", Said("micro-batches", "微批次数"), Said("pieces of a rank's batch that pass the pipeline", "一个 rank 的批被切成的份数")),
    ("t", Said("tensor-parallel size", "张量并行度"), Said("GPUs a matrix is cut over", "切分一个矩阵的 GPU 数")),
    ("f, b", Said("forward, backward", "前向、反向"), Said("time of one micro-batch on one stage", "一个微批次在一级上的时间")),
    ("", Said("bubble", "气泡"), Said("idle time of ranks between the first forward and the last backward", "首个前向与最后一个反向之间 rank 的空闲")),
    ("", Said("exposed communication", "暴露的通信"), Said("communication that compute waits for", "计算必须等待的那部分通信")),
    ("", Said("all-reduce", "全归约"), Said("every rank ends with the sum over ranks", "每个 rank 都得到所有 rank 的和")),
    ("", Said("reduce-scatter", "归约散发"), Said("every rank ends with its chunk of the sum", "每个 rank 得到和的一块")),
    ("", Said("all-gather", "全聚集"), Said("every rank ends with every rank's chunk", "每个 rank 得到所有 rank 的块")),
    ("", Said("MFU", "MFU"), Said("model FLOPs over what the GPUs could do in that time", "模型 FLOPs 与同一时间内峰值算力之比")),
)  # fmt: skip

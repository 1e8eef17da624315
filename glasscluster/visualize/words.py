"""Every word that figures and reports say, once, in English and 中文."""

from __future__ import annotations

from glasscluster.base.breakdown import (
    BUBBLE,
    BUSY,
    ENTRIES,
    EXPOSED,
    HOST,
    PAPERS,
    Entry,
    capital,
    entry_of,
)
from glasscluster.base.text import Said
from glasscluster.base.utilisation import DEFINITIONS, MEANINGS

ANY_AXIS = entry_of(f"{EXPOSED}_{{axis}}")  # of an axis that a page puts in


def _legend(entry: Entry) -> Said:
    return Said(capital(entry.name.en), entry.name.zh)


CATALOGUE: dict[str, Said] = {
    # where time goes: names in a legend and in a sentence, and what they mean (base/breakdown.py)
    **{key: _legend(entry) for key, entry in ENTRIES.items() if key != HOST},
    **{f"entry_{key}": entry.name for key, entry in ENTRIES.items()},
    **{f"means_{key}": entry.meaning for key, entry in ENTRIES.items() if key not in (HOST, *BUSY)},
    "host_wait": _legend(ENTRIES[HOST]),
    "means_host_wait": ENTRIES[HOST].meaning,
    "exposed": Said("Exposed communication", "暴露的通信"),
    "entry_exposed": ANY_AXIS.name,
    "means_exposed": Said(
        "the rank computes nothing while the message it waits for is in flight",
        "rank 没有计算，它等待的消息正在传输",
    ),
    # kinds of event
    "forward": Said("Forward", "前向"),
    "backward": Said("Backward", "反向"),
    "weight": Said("Weight gradient", "权重梯度"),
    "other": Said("Other compute", "其他计算"),
    "collective": Said("Collective", "集合通信"),
    "p2p": Said("Point-to-point send", "点对点发送"),
    "host": Said("Host: link and CPU", "主机：链路与 CPU"),
    "critical": Said("Critical path", "关键路径"),
    "opt": Said("opt", "优化"),
    # serving
    "slot": Said("slot", "槽位"),
    "request": Said("request", "请求"),
    "serving_prefill": Said("prefill", "预填充"),
    "serving_decode": Said("decode, a token a step", "解码，每步一个 token"),
    "serving_again": Said("prefill once more, after preemption", "被抢占后重新预填充"),
    "serving_held": Said("has ended, holds its slot", "已结束，仍占着槽位"),
    "cache_tokens": Said("tokens in the cache", "缓存中的 token"),
    "cache_empty": Said("reserved, without a token", "已预留但没有 token"),
    # patients
    "patient_healthy": Said("as it should be", "正常"),
    "patient_broken": Said("broken", "损坏"),
    "patient_cured": Said("cured", "治愈"),
    "training_step": Said("step", "步"),
    "loss_nats": Said("loss (nats)", "损失（nat）"),
    # memory
    "parameters": Said("Parameters", "参数"),
    "gradients": Said("Gradients", "梯度"),
    "optimizer_state": Said("Optimizer state", "优化器状态"),
    "activations": Said("Activations", "激活"),
    "buffers": Said("Buffers", "缓冲区"),
    "scalars": Said("Scalars", "标量"),
    "data": Said("Data", "数据"),
    # time
    "alone": Said("Compute, no communication under way", "计算（无通信）"),
    "overlapped": Said("Compute, communication hidden behind it", "计算（与通信重叠）"),
    "latency": Said("Messages in flight (latency)", "消息在途（延迟）"),
    "messages_of": Said("messages of {axis}", "{axis} 的消息"),
    "on_path": Said("On the critical path", "关键路径上的时间"),
    "if_faster": Said("Gain if this kind were × {factor} as fast", "若该类快 {factor} 倍可节省"),
    "saved": Said("saved", "节省"),
    "span_bubble": Said("span bubble {x}", "阶段跨度气泡 {x}"),
    "idle_over_work": Said("idle over work {x}", "空闲相对有效时间 {x}"),
    "never_idle": Said("No rank was ever idle.", "没有任何 rank 空闲过。"),
    "split_title": Said(
        "Where each rank's time goes (adds up to the step)", "每个 rank 的时间去向（合计为一步）"
    ),
    "idle_title": Said("Why ranks stood still", "rank 为什么空闲"),
    "path_title": Said("The critical path, and what would be gained", "关键路径，以及可以得到的收益"),
    "side_by_side": Said("The runs on one time axis", "同一时间轴上的各次运行"),
    # the roofline
    "roof": Said("Roof: min(peak, intensity × bandwidth)", "屋顶线：min(峰值, 强度 × 带宽)"),
    "intensity": Said("FLOPs per byte of slow memory", "每字节慢速显存访问的 FLOPs"),
    "ridge_at": Said(
        "ridge: {ridge:.3g} FLOPs a byte, {precision}", "脊点：每字节 {ridge:.3g} FLOPs，{precision}"
    ),
    # axes and titles
    "virtual_time": Said("virtual time", "虚拟时间"),
    "cost_units": Said("time, in units of the costs", "时间（以代价为单位）"),
    "measured_time": Said("measured time", "实测时间"),
    "rank": Said("rank", "rank"),
    "drawn": Said(
        "{events} events, {blocks} bars; in view {single} drawn one by one, {binned} binned at {pixel} a "
        "pixel.",
        "共 {events} 个事件、{blocks} 个条；视野内逐个绘出 {single} 个，{binned} 个按每像素 {pixel} 合并。",
    ),
    "still_note": Said(
        "Rest the pointer on a bar to see what it is; timeline.show() opens the figure that zooms.",
        "把指针停在条上可查看说明；timeline.show() 打开可缩放的图。",
    ),
    "still_binned": Said(
        "{events} events; bars narrower than a pixel are summed, the paler the less busy. "
        "timeline.show() opens the figure that zooms.",
        "共 {events} 个事件；窄于一个像素的条已合并，颜色越浅越空闲。timeline.show() 打开可缩放的图。",
    ),
    "table_cut": Said(
        "The first {shown} of {all} bars; trace.json has everything.",
        "前 {shown} 个，共 {all} 个条；完整数据见 trace.json。",
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
        "The recorded graph takes {before}: move a slider and it is replayed here.",
        "记录的图需要 {before}：移动滑块，页面会当场重放。",
    ),
    "whatif_shared": Said(
        "{before}, with messages that share links: for other links run `glass replay --contention`.",
        "{before}，消息共享链路：换其他链路请运行 `glass replay --contention`。",
    ),
    "whatif_says": Said(
        "{before} → {after} ({change}). Rank {rank} finishes last; of its time: {entries}.",
        "{before} → {after}（{change}）。rank {rank} 最后完成，它的时间：{entries}。",
    ),
    "whatif_papers": Said(
        f"{capital(PAPERS['bubble_fraction'][0].en)}: {{bubble}} of the window.",
        f"{PAPERS['bubble_fraction'][0].zh}：窗口的 {{bubble}}。",
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
    "did_you_say": Said(
        "Did your sentence say this? Nobody but you scores it.", "你的句子说到这些了吗？只由你自己评判。"
    ),
    "click": Said("Click a bar to see what it waited for.", "点击一个条，查看它在等什么。"),
    "lane_compute": Said("compute", "计算"),
    "lane_comm": Said("comm", "通信"),
    "peak_memory": Said("Peak memory by category", "峰值显存（按类别）"),
    "memory_note": Said(
        "Counted: every live tensor, from the operation that made it until it is let go. Not modelled: "
        "fragmentation and a kernel's own workspace.",
        "计入：每个存活的张量，从产生它的操作到被释放为止。未建模：碎片与内核自身的工作区。",
    ),
    "together": Said("Together", "合计"),
    "live_memory": Said("live memory", "占用的显存"),
    "per_gpu": Said("per GPU, mean", "每卡平均"),
    "peak_of": Said("peak {size}", "峰值 {size}"),
    "capacity": Said("capacity of the GPU: {size}", "GPU 显存容量：{size}"),
    "capacity_far": Said(
        "↑ capacity of the GPU {size}: {times} × the peak", "↑ GPU 显存容量 {size}：峰值的 {times} 倍"
    ),
    "held_at": Said("held most at {time}:", "{time} 时占用最多："),
    "layer_of": Said("layer {layer}", "第 {layer} 层"),
    "peak_by_strategy": Said("Memory of a GPU at its peak, by strategy", "各策略的每卡峰值显存"),
    "memory_over_time": Said("Memory over the step, rank {rank}", "一步之内的显存，rank {rank}"),
    "sent": Said("Bytes sent per rank", "各 rank 发送的字节数"),
    "step_time": Said("One step on {hardware}", "一步的时间（{hardware}）"),
    "sent_gpu": Said("Sent per GPU", "每卡发送"),
    "memory_gpu": Said("Peak memory per GPU", "每卡峰值显存"),
    "comparison": Said("The same model, the same batch, side by side", "同一模型、同一批数据的并排比较"),
    "chunk": Said("chunk", "块"),
    "chunk_axis": Said("chunk of the buffer ({size} each)", "缓冲区的块（每块 {size}）"),
    "steps_done": Said("steps done:", "已完成步数："),
    "step_next": Said(
        "step {step}: {messages} messages about to move", "第 {step} 步：即将传输 {messages} 条消息"
    ),
    "step_over": Said("finished", "完成"),
    "sum_of": Said("holds contributions of ranks", "含有以下 rank 的贡献："),
    "all_ranks": Said("all", "全部"),
    "stepper_title": Said("The largest collective, step by step", "最大的一次集合通信，逐步查看"),
    "all_axes": Said("all axes", "所有并行维"),
    "sender": Said("sender", "发送方"),
    "receiver": Said("receiver", "接收方"),
    "by_formula": Said("By the formula", "按公式"),
    "states_by_strategy": Said(
        "Model states a GPU holds, before the optimizer step", "优化器步之前每卡持有的模型状态"
    ),
    "loss_float64": Said("Loss (float64)", "损失（float64）"),
    "difference_from_one": Said("Difference from one device", "与单卡的差异"),
    "one_device": Said("one device", "单卡"),
    "this_run": Said("this run", "本次运行"),
    "largest_grad": Said("gradients", "梯度"),
    "largest_weight": Said("weights", "权重"),
    "tolerance": Said("allowed", "允许"),
    "all_tensors": Said("all tensors (largest)", "所有张量（最大值）"),
    "step_number": Said("training step", "训练步"),
    "relative_difference": Said(
        "difference from the formula, relative (10⁻¹⁷: exactly none)",
        "与公式的相对差异（10⁻¹⁷ 表示完全相等）",
    ),
    "observed": Said("found", "实际"),
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
    "held_chunks": Said("micro-batches' activations held", "持有的微批次激活份数"),
    "bytes": Said("bytes", "字节"),
    "axis": Said("axis", "并行维"),
    "to_rank": Said("to rank", "发往 rank"),
    # tensor parallelism: matrices, and what stands around them in a layer
    "on_all_ranks": Said("whole on every rank", "每个 rank 都完整"),
    "by_columns": Said("cut by columns", "按列切"),
    "by_rows": Said("cut by rows", "按行切"),
    "gate": Said("gate", "门"),
    "value": Said("value", "值"),
    "shared_heads": Said(
        "{heads} key heads, each gathered by {ranks} neighbours",
        "{heads} 个 KV 头，每个由相邻 {ranks} 个 rank 聚集",
    ),
    "f_reduces": Said("→ nothing<br>← all-reduce", "→ 无<br>← all-reduce"),
    "g_reduces": Said("→ all-reduce<br>← nothing", "→ all-reduce<br>← 无"),
    "f_scatters": Said("→ all-gather<br>← reduce-scatter", "→ all-gather<br>← reduce-scatter"),
    "g_scatters": Said("→ reduce-scatter<br>← all-gather", "→ reduce-scatter<br>← all-gather"),
    "matrices_title": Said(
        "One layer's matrices, and where sums over ranks land", "一层的矩阵，以及跨 rank 求和的位置"
    ),
    "kept_title": Said(
        "What one layer keeps for backward on a GPU, counted tensor by tensor",
        "一层为反向在每块 GPU 上保留的量（逐个张量计数）",
    ),
    "kept_axis": Said("kept by a layer, per GPU ({unit})", "每层每卡保留（{unit}）"),
    "part_outside": Said("outside the matrices: norms, residuals, masks", "矩阵之外：归一化、残差、掩码"),
    "part_mlp": Said("inside the MLP's matrices", "MLP 矩阵之间"),
    "part_attention": Said("inside attention: Q, K, V, output", "注意力内：Q、K、V、输出"),
    "part_scores": Said("attention scores, grow with s²", "注意力分数，随 s² 增长"),
    "one_gpu": Said("one GPU", "单卡"),
    "strip_ms": Said(
        "ms from the beginning of the layer's {phase} · {hardware}", "自该层{phase}开始的毫秒数 · {hardware}"
    ),
    "product": Said("matrix product", "矩阵乘"),
    "kernel": Said("attention", "注意力"),
    "elementwise": Said("norm, GELU, sums", "归一化、GELU、加法"),
    "gathers": Said("all-gather (AG)", "all-gather（AG）"),
    "scatters": Said("reduce-scatter (RS)", "reduce-scatter（RS）"),
    "reduces": Said("all-reduce (AR)", "all-reduce（AR）"),
    "ring_pieces": Said("a piece on its way round the ring", "沿环传递的一块"),
    # the page
    "pass": Said("PASS", "通过"),
    "fail": Said("FAIL", "未通过"),
    "partial": Said("PARTIAL", "部分完成"),
    "cut": Said("INCOMPLETE FILE", "文件不完整"),
    "simulated": Said("simulated: {hardware}", "模拟：{hardware}"),
    "order_fixed": Said("order as recorded", "顺序同记录"),
    "tab_story": Said("Story", "概要"),
    "tab_timeline": Said("Timeline", "时间线"),
    "tab_memory": Said("Memory", "显存"),
    "tab_network": Said("Network", "通信"),
    "tab_ledger": Said("Ledger", "账本"),
    "tab_checks": Said("Checks", "检查"),
    "show_table": Said("show table", "显示数据表"),
    "hide_table": Said("hide table", "收起数据表"),
    # tool bars, presentation mode, narrow screens
    "figure_tools": Said("Tools of this figure", "这张图的工具"),
    "whole_figure": Said("reset view", "恢复全图"),
    "save_png": Said("PNG", "PNG 图片"),
    "present": Said("Present (p)", "演示 (p)"),
    "present_figure": Said("full screen", "全屏"),
    "slide_keys": Said("← → figure · ↓ more · Esc end", "← → 换图 · ↓ 下方 · Esc 退出"),
    "slide_back": Said("previous figure", "上一张图"),
    "slide_on": Said("next figure", "下一张图"),
    "slide_end": Said("end the presentation", "退出演示"),
    "sideways": Said("↔ wider than the screen: scroll sideways", "↔ 比屏幕宽：可左右滑动"),
    "stage_label": Said("Timeline; keys move in it", "时间线，可用键盘操作"),
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
        "You said {guess} {unit}; it was {answer} {unit} ({ratio}).",
        "你的预测 {guess} {unit}；实际 {answer} {unit}（{ratio}）。",
    ),
    "not_a_number": Said("That is not a number.", "这不是一个数字。"),
    "out_of_range": Said(
        "{guess} {unit} cannot be: the answer is in {unit} and lies between {low} and {high}.",
        "不可能是 {guess} {unit}：答案以 {unit} 为单位，介于 {low} 与 {high} 之间。",
    ),
    "see_lesson": Said("The lesson that answers it:", "解答这个问题的一课："),
    "in_code": Said("In code", "代码"),
    "in_code_about": Said("The lines that ran, from this package:", "本次运行过的代码，取自本软件包："),
    "formula_number": Said(
        "Eq numbers are those of docs/formulas.md.", "Eq 的编号见 docs/formulas.md（公式表）。"
    ),
    "match_x": Said(
        "X, exact: whole numbers or bits equal what the run counted.",
        "X，精确：整数或比特与运行中的计数相等。",
    ),
    "match_v": Said(
        "V, virtual: equal in simulated time to 1e-9, under the formula's assumptions.",
        "V，虚拟时间：在公式的假设下，与模拟时间相差不超过 1e-9。",
    ),
    "match_t": Said(
        "T, statistical: within the tolerance that the row states.", "T，统计：在该行给出的容差之内。"
    ),
    "sources": Said("Sources", "来源"),
    "what_ran": Said("Run and see", "运行与观察"),
    "check": Said("Check", "核对"),
    "explain": Said("Explain", "解释"),
    "misconception": Said("The misconception this kills", "常见误区"),
    "card": Said("Interview card", "面试卡"),
    "short_answer": Said("In 30 seconds", "30 秒回答"),
    "long_answer": Said("In 2 minutes", "2 分钟回答"),
    "follow_ups": Said("They will ask next", "追问"),
    "own_number": Said("Your own number", "本次实验的数字"),
    "see": Said("see it", "查看"),
    "keys": Said(
        "Keys: ← → pan, + − zoom, 0 all, j k next and previous event, Esc none, p presentation",
        "键盘：← → 平移，+ − 缩放，0 全览，j k 下一个与上一个事件，Esc 取消选择，p 演示模式",
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
    "not_applicable": Said("not applicable", "不适用"),
    "not_checked": Said("Not checked:", "未检查："),
    "no_checks": Said(
        "This run states no checks. `glass train` states them; in a scenario use lab.check(...).",
        "本次运行没有检查项。`glass train` 会给出检查；在 scenario 中请用 lab.check(...)。",
    ),
    "no_story": Said(
        "This run tells no story. A scenario tells one with lab.tell(...).",
        "本次运行没有故事。scenario 可用 lab.tell(...) 讲述。",
    ),
    "no_traffic": Said(
        "No bytes were counted: nothing was sent, or the collectives were native (then use --algorithm "
        "ring).",
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
    "queries_axis": Said("queries (number: rank)", "查询（数字：rank）"),
    "keys_axis": Said("keys", "键"),
    "query": Said("query", "查询"),
    "key": Said("key", "键"),
    "pairs": Said("query-key pairs", "个查询-键对"),
    "mean": Said("the mean", "平均值"),
    "work_over_mean": Said("work ÷ mean", "工作量 ÷ 平均"),
    "causal_work": Said(
        "Which rank computes which part of the mask (drawn for {tokens} tokens)",
        "掩码的各部分由哪个 rank 计算（以 {tokens} 个 token 画出）",
    ),
    "tree_byte": Said("byte", "字节"),
    "tree_merge": Said("merge inside a token, with its rank", "token 内部的合并及其名次"),
    "tree_token": Said("token, with the rank of its last merge", "token 及其最后一次合并的名次"),
    "tree_word": Said("{text}   bytes: {bytes}, tokens: {tokens}", "{text}   字节：{bytes}，token：{tokens}"),
    "expert": Said("expert", "专家"),
    "rows_axis": Said("token rows", "token 行数"),
    "rows_kept": Said("computed", "已计算"),
    "rows_dropped": Said("dropped: no place left", "丢弃：没有位置"),
    "mean_load": Said("(dotted: mean {rows})", "（点线：平均 {rows}）"),
    "places_line": Said("places: {rows}", "位置：{rows}"),
    "expert_load": Said(
        "Rows for each expert, all ranks, layers and micro-batches", "各专家的行数（所有 rank、层与微批次）"
    ),
    "dispatch_matrix": Said("Rows on their way to experts, dispatch", "发往专家的行（dispatch）"),
    **{f"table_{key}": name for key, (name, _) in PAPERS.items()},
    "table_exposed": Said("exposed communication, mean of the ranks", "暴露的通信，各 rank 平均"),
    "table_step": Said("step", "一步"),
    **{f"table_{key}": name for key, (name, _) in MEANINGS.items()},
    **{f"define_{key}": sentence for key, sentence in DEFINITIONS.items()},
    "unvalidated": Said(
        "Seconds are virtual, from data sheets and formulas; not validated against measured clusters.",
        "秒是虚拟秒，由数据手册与公式算出，尚未与实测集群核对。",
    ),
    "definitions": Said("Where a rank's time goes", "rank 的时间去向"),
    "same_training": Said(
        "Is it the same training? Every tensor against one device, float64",
        "训练结果一样吗？逐个张量与单卡 float64 对比",
    ),
    "gallery": Said("GlassCluster: the lessons", "GlassCluster：课程"),
    "gallery_about": Said(
        "Each card is a run of real strategies on simulated GPUs, checked and counted. Predict first.",
        "每张卡片都是在模拟 GPU 上真实运行、核对并计数的一次实验。先预测，再看答案。",
    ),
    "gallery_topics": Said("By topic", "按主题"),
    "gallery_questions": Said("By interview question", "按面试题"),
    "search": Said("Search lessons and questions", "搜索课程与问题"),
    "show_answers": Said("show what came out", "显示实验结果"),
    "found_lessons": Said("lessons", "节课"),
    "all_topics": Said("all", "全部"),
    "glossary": Said("Glossary", "术语表"),
    # a run's own story
    "told_loss": Said(
        "The loss went from {first:.4f} to {last:.4f} in {steps} steps on {gpus} ranks.",
        "{gpus} 个 rank 训练 {steps} 步，损失从 {first:.4f} 到 {last:.4f}。",
    ),
    "told_time": Said(
        "A step takes {step} on {hardware}. Rank {rank} finishes last; of its time: {entries}.",
        "在 {hardware} 上一步需 {step}。rank {rank} 最后完成，它的时间：{entries}。",
    ),
    "told_papers": Said(
        "The {name} is {bubble:.1%}: {meaning}. Over the useful time it is {over:.1%}.",
        "{name}为 {bubble:.1%}：{meaning}。相对有效时间为 {over:.1%}。",
    ),
    "told_memory": Said("The fullest rank holds {peak} at its peak.", "占用最多的 rank 峰值为 {peak}。"),
    "told_bytes": Said("The busiest rank sends {sent}.", "发送最多的 rank 发出 {sent}。"),
}


def word(key: str, lang: str = "en", **values: object) -> str:
    """A catalogue entry in a language, with its blanks filled."""
    text = CATALOGUE[key].in_(lang)
    return text.format(**values) if values else text


# symbol, term, meaning: the symbols that lessons and ledgers use
# units of ledger rows that are English words; any other stands in both languages as it is
UNITS = {
    "bytes": "字节",
    "relative": "相对值",
    "absolute": "绝对值",
    "micro-batches": "微批次",
    "rows": "行",
    "ranks": "个 rank",
    "steps": "步",
    "layers": "层",
    "layer": "层",
    "elements": "元素",
    "parameters": "参数",
    "messages": "消息",
    "fraction": "比例",
    "pairs": "对",
    "chunks": "块",
    "slots": "槽位",
    "requests": "请求",
    "sequences": "序列",
    "tensors": "张量",
    "runs": "次运行",
}

GLOSSARY: tuple[tuple[str, Said, Said], ...] = (
    ("N", Said("ranks", "rank 数"), Said("GPUs that take part in a collective", "参与一次集合通信的 GPU 数")),
    ("S", Said("size", "大小"), Said("bytes of the full buffer on a rank", "一个 rank 上完整缓冲区的字节数")),
    ("n", Said("tokens", "token 数"), Said("tokens of a sequence", "一条序列的 token 数")),
    ("Ψ", Said("parameters", "参数量"), Said("number of parameters of the model", "模型的参数个数")),
    (
        "α",
        Said("latency", "延迟"),
        Said(
            "fixed cost of a message: overhead o plus time in flight L",
            "一条消息的固定代价：开销 o 加飞行时间 L",
        ),
    ),
    ("β", Said("bandwidth", "带宽"), Said("bytes per second of a link", "链路每秒传输的字节数")),
    (
        "p",
        Said("stages", "阶段数"),
        Said("pieces the layers are cut into, one after the other", "层被切成的前后相接的段数"),
    ),
    (
        "m",
        Said("micro-batches", "微批次数"),
        Said("pieces of a rank's batch that pass the pipeline", "一个 rank 的批被切成的份数"),
    ),
    (
        "t",
        Said("tensor-parallel size", "张量并行度"),
        Said("GPUs a matrix is cut over", "切分一个矩阵的 GPU 数"),
    ),
    (
        "f, b",
        Said("forward, backward", "前向、反向"),
        Said("time of one micro-batch on one stage", "一个微批次在一个阶段上的时间"),
    ),
    ("", Said("exposed communication", "暴露的通信"), CATALOGUE["means_exposed"]),
    ("", ENTRIES[BUBBLE].name, ENTRIES[BUBBLE].meaning),
    *(("", name, meaning) for name, meaning in PAPERS.values()),
    (
        "",
        Said("all-reduce", "全归约"),
        Said("every rank ends with the sum over ranks", "每个 rank 都得到所有 rank 的和"),
    ),
    (
        "",
        Said("reduce-scatter", "归约散发"),
        Said("every rank ends with its chunk of the sum", "每个 rank 得到和的一块"),
    ),
    (
        "",
        Said("all-gather", "全聚集"),
        Said("every rank ends with every rank's chunk", "每个 rank 得到所有 rank 的块"),
    ),
    *(("", name, meaning) for name, meaning in MEANINGS.values()),
)

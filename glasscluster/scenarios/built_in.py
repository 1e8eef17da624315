"""The scenarios of the package by title, so that they are listed without being imported."""

from __future__ import annotations

from glasscluster.base.text import Said

TITLES = {
    "tour": Said("Four GPUs, four ways to train one GPT", "四块 GPU，训练同一个 GPT 的四种方式"),
    "async_servers": Said("A parameter server that does not wait", "不等待的参数服务器"),
    "diloco": Said("Talk every H steps: local SGD and DiLoCo", "每 H 步才通信一次：local SGD 与 DiLoCo"),
    "zoo": Said("The bug zoo: what the loss does not tell", "缺陷动物园：损失看不出来的错误"),
    "preference": Said("A judge can be fooled", "评判者会被欺骗"),
    "emergency_room": Said("The loss emergency room", "损失急诊室"),
    "captions": Said("Images on the same blocks", "图像走同样的模块"),
}

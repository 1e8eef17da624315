"""Pipeline parallelism: one executor for any schedule. A rank does its list of actions, in order.

Follows GPipe (1811.06965), PyTorch's pipelining runtime and, for the parts I and W, Zero bubble (2401.10241).
A received activation is a leaf that requires grad. A stage's input and output of a micro-batch are saved from
its forward to its backward. The loss is on the last stage.

    F i:  receive x_i from the stage before · y_i = stage(x_i) · send y_i to the stage after
    B i:  receive dy_i from the stage after · backward(y_i, dy_i) · send dx_i to the stage before
    I i:  as B i, but what the gradients of the weights need is saved (weight_gradients.py)
    W i:  computes them from that

A rank may have several stages. Between two of its own, tensors are handed over; every other tensor is a
message with a tag of its own. As long as the schedule itself has no cycle of waits, the executor adds none:

    receives  are posted in the order in which the other rank sends (NCCL has no tags); a rank never waits for
              a send before it posts one
    sends     are launched, not waited for. An activation's buffer is released when its gradient has come
              back, so the activation has surely arrived. A gradient's buffer is released before a later
              gradient is sent, once a simulation of the schedule with F = I = W = 1 has seen it arrive.
              Every wait is for something earlier in that simulation, so there is no cycle of waits

In a slot of two (DualPipe) both receives are posted first, then F and B run one after the other.
But: kernels of F and B of a slot do not overlap: one rank has one compute lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from glasscluster.model.layers.dropout import Draw
from glasscluster.sim.ranks.communicator import Communicator
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.ranks.work import Done, Work
from glasscluster.sim.recording.repeated import EachTime, Made, Step
from glasscluster.strategies.pipeline.schedules.base import Action, Schedule
from glasscluster.strategies.pipeline.weight_gradients import Remainder, WeightGradients

PHASE = {"F": "forward", "B": "backward", "I": "backward", "W": "weight"}
LABEL = {"F": "activation", "B": "activation gradient"}


class Gradients(Protocol):
    """What the executor tells whoever reduces a stage's gradients (see `Manager` in
    strategies/data/stages.py).
    """

    def backward_begins(self, last: bool, parameters_used: bool = True) -> None:
        """Called before a micro-batch's backward, or its W; `last`: it is the last of the step.

        In W the parameters themselves are not used.
        """

    def backward_ends(self) -> None:
        """Called after it."""

    def input_gradient_begins(self) -> None:
        """Called before I: parameters are used, and no gradient of theirs comes."""

    def input_gradient_ends(self) -> None:
        """Called after I."""

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """Called when W has added to this parameter's gradient."""


@dataclass(frozen=True)
class Message:
    """What stage `to` waits for: an activation (kind F) or its gradient (kind B) of a micro-batch."""

    to: int
    kind: str
    micro_batch: int


class PipelineExecutor:
    """Runs one rank's actions of a schedule.

    Args:
        gpu: this rank.
        comm: the communicator along pp.
        schedule: what every rank does.
        stages: this rank's stages by number.
        shape: of an activation between stages, [b, s, h].
        dtype: of an activation between stages.
        gradients: who reduces each stage's gradients, by number.
        weight_gradients: takes the gradients that W computes; None: one of its own.
        repeated: runs the actions, or in a dry run emits what they record; None: runs them all.
        journals: lists that stages append to, beside what is recorded.
    """

    def __init__(
        self,
        gpu: GPU,
        comm: Communicator,
        schedule: Schedule,
        stages: Mapping[int, nn.Module],
        shape: Sequence[int],
        dtype: torch.dtype,
        gradients: Mapping[int, Gradients],
        weight_gradients: WeightGradients | None = None,
        repeated: EachTime | None = None,
        journals: Sequence[list[Any]] = (),
    ) -> None:
        self.gpu, self.comm, self.schedule, self.stages, self.gradients = (
            gpu,
            comm,
            schedule,
            stages,
            gradients,
        )
        self.weight_gradients = weight_gradients or WeightGradients(gpu)
        self.repeated, self.journals = repeated or EachTime(), journals
        self.shape, self.dtype = tuple(shape), dtype
        self.final = schedule.stages - 1
        self.actions = schedule.ranks[comm.rank]
        self.last_gradients = {a.stage: a for a in self.actions if a.kind in "BW"}
        self.parameters = {s: dict(module.named_parameters()) for s, module in stages.items()}
        self.begin, self.end = schedule.unit_times
        self.most_live = (
            0  # chunks' activations that waited for their B or W at once, counted after each slot
        )

    # ---- a step --------------------------------------------------------------------------------------------
    def run(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        loss: Tensor,
        seed: Tensor | None = None,
        draws: Sequence[Draw] | None = None,
    ) -> None:
        """Run one step. The losses are added to `loss` on the last stage.

        Args:
            inputs: for each micro-batch what the first stage reads.
            targets: for each micro-batch what the last stage compares with.
            loss: a tensor that the losses are added to.
            seed: the initial gradient that backward starts from at the loss; None: 1.
            draws: for each micro-batch what a stage with dropout draws its mask from; None: no dropout.
        """
        self.inputs, self.targets, self.loss, self.seed = inputs, targets, loss, seed
        self.more: list[dict[str, Draw]] = [{"draw": d} for d in draws] if draws else [{}] * len(inputs)
        # an emitted action (`repeated`) saves nothing for its backward
        self.saved: dict[tuple[int, int], tuple[Tensor, GradientEdge]] = {}
        self.remainders: dict[tuple[int, int], Remainder] = {}  # by I for W
        self.expected = {
            rank: self._messages_from(rank) for rank in range(self.comm.size) if rank != self.comm.rank
        }
        self.arriving: dict[Message, tuple[Tensor, Work]] = {}
        self.activations_sent: dict[tuple[int, int], Work] = {}
        self.gradients_sent: list[
            tuple[float, Work]
        ] = []  # with the time at which the unit-cost simulation sees them arrive
        self.repeated.begin([self._step(action) for action in self.actions], self.journals)
        for slot in self.schedule.slots(self.comm.rank):
            for action in slot if len(slot) > 1 else ():
                self._post(action)
            for action in slot:
                with self.gpu.region(PHASE[action.kind], layer=-1, micro_batch=action.micro_batch):
                    {
                        "F": self.forward,
                        "B": self.backward,
                        "I": self.input_gradient,
                        "W": self.weight_gradient,
                    }[action.kind](action)
            self.most_live = max(self.most_live, len(self.saved) + len(self.remainders))
        for _, work in self.gradients_sent:
            work.wait()
        self.gradients_sent.clear()

    def forward(self, action: Action) -> None:
        """Do F of a micro-batch."""
        stage, _, i = action
        x = self.inputs[i] if stage == 0 else self._receive(Message(stage, "F", i)).requires_grad_()
        y, edge = self.repeated.run(self._step(action), [x], [], lambda: self._forward(stage, i, x))
        if y is not None:
            self.activations_sent[stage, i] = self._send(y, Message(stage + 1, "F", i))
        self.saved[stage, i] = (x, edge)

    def _forward(self, stage: int, i: int, x: Tensor) -> Made:
        """The stage's output, which the last one adds to the loss instead; and where its backward starts."""
        if stage == self.final:
            y = self.stages[stage](x, self.targets[i], **self.more[i])
            self.loss.add_(y.detach())
            return None, get_gradient_edge(y)
        y = self.stages[stage](x, **self.more[i])
        # not y: nobody here needs its values, and who does may let them go
        return y.detach(), get_gradient_edge(y)

    def backward(self, action: Action) -> None:
        """Do B of a micro-batch."""
        stage, _, i = action
        dy = self._output_gradient(stage, i)
        x = self.saved[stage, i][0]
        dx, _ = self.repeated.run(self._step(action), [x], dy, lambda: self._backward(action, dy))
        self.saved.pop((stage, i), None)
        if stage > 0:
            assert dx is not None
            self._send_gradient(action, dx)

    def _backward(self, action: Action, given: list[Tensor]) -> Made:
        """The gradient of the stage's input; None on the first stage."""
        stage, _, i = action
        dy = given.pop() if given else None
        x, y = self.saved.pop((stage, i))
        self.gradients[stage].backward_begins(action is self.last_gradients[stage])
        torch.autograd.backward(y, dy)
        self.gradients[stage].backward_ends()
        del y, dy
        return x.grad if stage > 0 else None, None

    def input_gradient(self, action: Action) -> None:
        """Do I of a micro-batch."""
        stage, _, i = action
        given = [*self._output_gradient(stage, i), self.saved[stage, i][0]]
        dx, remainder = self.repeated.run(
            self._step(action), [], given, lambda: self._input_gradient(stage, i, given)
        )
        self.saved.pop((stage, i), None)
        self.remainders[stage, i] = remainder
        if dx is not None:
            self._send_gradient(action, dx)

    def _input_gradient(self, stage: int, i: int, given: list[Tensor]) -> Made:
        """The gradient of the stage's input, None on the first stage; and what is left for W."""
        x, y = self.saved.pop((stage, i))
        given.pop()  # x
        dy = given.pop() if given else None
        self.gradients[stage].input_gradient_begins()
        made = self.weight_gradients.input_gradient(y, dy, x if stage > 0 else None, self.parameters[stage])
        self.gradients[stage].input_gradient_ends()
        del x, y, dy
        return made

    def weight_gradient(self, action: Action) -> None:
        """Do W of a micro-batch."""
        stage, _, i = action
        self.repeated.run(self._step(action), [], [], lambda: self._weight_gradient(action))
        self.remainders.pop((stage, i), None)

    def _weight_gradient(self, action: Action) -> Made:
        stage, _, i = action
        manager = self.gradients[stage]
        manager.backward_begins(action is self.last_gradients[stage], parameters_used=False)
        self.weight_gradients.weight_gradients(
            self.remainders.pop((stage, i)), self.parameters[stage], manager.gradient_ready
        )
        manager.backward_ends()
        return None, None

    def _step(self, action: Action) -> Step:
        """An action of the same kind on the same stage does the same, unless it is the last of a step."""
        stage, kind, i = action
        last = action is self.last_gradients.get(stage)
        return Step(key=(stage, kind, last), chain=(stage, i), place=stage)

    # ---- messages ------------------------------------------------------------------------------------------
    def _output_gradient(self, stage: int, i: int) -> list[Tensor]:
        """The gradient that a backward starts from, if there is one; the activation's buffer is released."""
        if stage == self.final:
            return [] if self.seed is None else [self.seed]
        dy = self._receive(Message(stage, "B", i))
        self.activations_sent.pop((stage, i)).wait()
        return [dy]

    def _messages_from(self, rank: int) -> deque[Message]:
        """The messages that a rank sends to this one in a step, in its order."""
        sent = (_output_of(action, self.final) for action in self.schedule.ranks[rank])
        return deque(m for m in sent if m is not None and self.schedule.placement[m.to] == self.comm.rank)

    def _source(self, message: Message) -> int:
        return self.schedule.placement[message.to + (-1 if message.kind == "F" else 1)]

    def _tag(self, message: Message) -> int:
        return 2 * (message.to * self.schedule.micro_batches + message.micro_batch) + (message.kind == "B")

    def _post(self, action: Action) -> None:
        """Post the receive of what an action needs, after those of all that its sender sends before."""
        message = Message(action.stage, "F" if action.kind == "F" else "B", action.micro_batch)
        if (
            action.kind == "W"
            or (message.kind == "F" and action.stage == 0)
            or (message.kind == "B" and action.stage == self.final)
        ):
            return
        source = self._source(message)
        while source != self.comm.rank and message not in self.arriving:
            coming = self.expected[source].popleft()
            buffer = torch.empty(self.shape, dtype=self.dtype, device=self.gpu.device)
            label = LABEL[coming.kind]
            self.arriving[coming] = (
                buffer,
                self.comm.irecv(buffer, source, tag=self._tag(coming), purpose="activations", label=label),
            )

    def _receive(self, message: Message) -> Tensor:
        """Wait for a message; returns its tensor."""
        self._post(Action(message.to, message.kind, message.micro_batch))
        x, work = self.arriving.pop(message)
        work.wait()
        return x

    def _send(self, x: Tensor, message: Message) -> Work:
        rank = self.schedule.placement[message.to]
        if rank == self.comm.rank:
            self.arriving[message] = x, Done()
            return Done()
        return self.comm.isend(
            x, rank, tag=self._tag(message), purpose="activations", label=LABEL[message.kind]
        )

    def _send_gradient(self, action: Action, dx: Tensor) -> None:
        """Release the buffers of gradients that have surely arrived, then send one more."""
        now = self.end[action]
        for seen, work in self.gradients_sent:
            if seen < now:
                work.wait()
        self.gradients_sent = [(seen, work) for seen, work in self.gradients_sent if seen >= now]
        message = Message(action.stage - 1, "B", action.micro_batch)
        used = next(a for k in "BI" if (a := Action(message.to, k, message.micro_batch)) in self.begin)
        self.gradients_sent.append((self.begin[used], self._send(dx, message)))


def _output_of(action: Action, final: int) -> Message | None:
    """The message that an action makes for another stage; None without one."""
    stage, kind, i = action
    if kind == "F":
        return Message(stage + 1, "F", i) if stage < final else None
    return Message(stage - 1, "B", i) if kind in "BI" and stage > 0 else None


# ---- theory ------------------------------------------------------------------------------------------------


def predict_traffic(hops: int, m: int, tokens: int, hidden: int, width: int) -> int:
    """Eq 21: the bytes of activations and their gradients that all ranks send in a step.

    Each of m micro-batches sends b·s·h elements forward and as many back over every hop from rank to rank:
    p-1 hops with a stage a rank, pv-1 in a loop, 2p-2 folded.
    """
    return 2 * hops * m * tokens * hidden * width

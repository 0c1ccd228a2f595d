"""Simulated training: against the library's own dense reference, and between methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossover_comm.errors import InvalidArgument
from crossover_comm.formulas import Row
from crossover_comm.optim import LARS, WarmUpPolynomial
from crossover_comm.simulate.method import Method, Recipe, allreduce
from crossover_comm.simulate.mixing import Mixer
from crossover_comm.simulate.replicas import Replicas
from crossover_comm.simulate.rules import Stepper
from crossover_comm.simulate.tasks import TASKS, Data, Task
from crossover_comm.simulate.training import train
from crossover_comm.topology import Complete, Crossover, Table, Topology, mixing_matrix

WORKERS = 4
CPU = torch.device("cpu")
RECIPE = Recipe(steps=6, global_batch=32, learning_rate=0.2, weight_decay=0.01)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def blobs(seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (128,), generator=generator)
    inputs = torch.randn(128, 5, generator=generator) + 2 * nn.functional.one_hot(labels, 5)
    return Data(inputs[:96], labels[:96], inputs[96:], labels[96:])


TASK = Task("blobs", model, blobs)


def spread_replicas() -> Replicas:
    """Workers that start apart, as every semantic test wants."""
    replicas = Replicas(model(), WORKERS, CPU)
    replicas.x += 0.1 * torch.randn(replicas.x.shape)
    return replicas


def stepped(
    method: Method, topology: Topology, gradients: list[Tensor], recipe: Recipe = RECIPE
) -> tuple[Tensor, Tensor]:
    """Replicas before and after some steps with given gradients."""
    replicas = spread_replicas()
    before = replicas.x.clone()
    mixer = Mixer(topology.schedule(WORKERS, 0, len(replicas.segments)), replicas.segments)
    stepper = Stepper(method, recipe, replicas.x, mixer, replicas.tensors)
    for step, g in enumerate(gradients):
        stepper.step(step, g.clone())
    return before, replicas.x


def random_gradients(count: int) -> list[Tensor]:
    columns = Replicas(model(), 1, CPU).x.shape[1]
    return [torch.randn(WORKERS, columns) for _ in range(count)]


def mixed(x: Tensor, topology: Topology, round: int) -> Tensor:
    """W x, segment by segment, through the dense matrix."""
    segments = Replicas(model(), 1, CPU).segments
    schedule = topology.schedule(WORKERS, 0, len(segments))
    parts = [
        torch.from_numpy(mixing_matrix(schedule, round, k)).float() @ x[:, begin:end]
        for k, (begin, end) in enumerate(segments)
    ]
    return torch.cat(parts, dim=1)


def test_stacked_gradients_are_those_of_each_replica_alone() -> None:
    replicas = spread_replicas()
    data = blobs(0)
    chosen = torch.arange(16).view(WORKERS, 4)
    gradients, losses = replicas.gradients(replicas.x, data.inputs[chosen], data.labels[chosen])
    for worker, row in enumerate(replicas.x):
        alone = model()
        named = dict(alone.named_parameters())
        for place in replicas.places:
            named[place.name].data.copy_(row[place.begin : place.end].view(place.shape))
        logits = alone(data.inputs[chosen[worker]])
        loss = nn.functional.cross_entropy(logits, data.labels[chosen[worker]])
        loss.backward()
        torch.testing.assert_close(losses[worker], loss.detach())
        for place in replicas.places:
            expected = named[place.name].grad
            assert expected is not None
            found = gradients[worker, place.begin : place.end].view(place.shape)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", ["after", "before"])
def test_each_order_of_mixing_is_its_formula(order: str) -> None:
    gradients = random_gradients(3)
    before, after = stepped(Method(order=order), Crossover(), gradients)  # type: ignore[arg-type]
    x, v = before, torch.zeros_like(before)
    for t, g in enumerate(gradients):
        v = RECIPE.momentum * v + g + RECIPE.weight_decay * x
        lr = RECIPE.learning_rate * RECIPE.factor(t)
        moved = mixed(x, Crossover(), t) - lr * v
        x = moved if order == "before" else mixed(x - lr * v, Crossover(), t)
    torch.testing.assert_close(after, x)


def test_push_sum_steps_at_the_weighed_model() -> None:
    rows: list[Row] = [[(1, 0.5), (2, 0.25)], [(0, 0.5)], [(3, 0.5)], [(2, 0.25)]]
    table = Table(tables=[rows], stochasticity="column")
    shares = torch.tensor(
        [[0.5, 0.5, 0.25, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.25, 0.5]]
    )
    gradients = random_gradients(4)
    x, after = stepped(Method(), table, gradients)
    w, v = torch.ones(WORKERS, 1), torch.zeros_like(x)
    for t, g in enumerate(gradients):
        v = RECIPE.momentum * v + g + RECIPE.weight_decay * x
        x = shares @ (x - RECIPE.learning_rate * RECIPE.factor(t) * v)
        w = shares @ w
    torch.testing.assert_close(after, x / w, rtol=1e-4, atol=1e-5)


def test_decentlam_takes_the_mixing_into_the_gradient() -> None:
    gradients = random_gradients(3)
    before, after = stepped(Method(momentum_rule="decentlam"), Crossover(), gradients)
    x, m = before, torch.zeros_like(before)
    for t, g in enumerate(gradients):
        lr = RECIPE.learning_rate * RECIPE.factor(t)
        moved = mixed(x - lr * (g + RECIPE.weight_decay * x), Crossover(), t)
        m = RECIPE.momentum * m + (x - moved) / lr
        x = x - lr * m
    torch.testing.assert_close(after, x, rtol=1e-4, atol=1e-5)


def test_quasi_global_momentum_follows_the_mixed_model() -> None:
    gradients = random_gradients(3)
    before, after = stepped(Method(momentum_rule="quasi-global"), Crossover(), gradients)
    x, m = before, torch.zeros_like(before)
    for t, g in enumerate(gradients):
        lr = RECIPE.learning_rate * RECIPE.factor(t)
        direction = RECIPE.momentum * m + g + RECIPE.weight_decay * x
        new = mixed(x - lr * direction, Crossover(), t)
        m = 0.9 * m + 0.1 * (x - new) / lr
        x = new
    torch.testing.assert_close(after, x, rtol=1e-4, atol=1e-5)


def test_exact_averages_come_when_asked_for() -> None:
    gradients = random_gradients(4)
    _, periodic = stepped(Method(exact_every=4), Crossover(), gradients)
    assert Replicas.distance(periodic) < 1e-5
    _, warm = stepped(Method(warm_up_steps=3), Crossover(), gradients[:3])
    assert Replicas.distance(warm) < 1e-5
    _, cold = stepped(Method(warm_up_steps=3), Crossover(), gradients)
    assert Replicas.distance(cold) > 1e-3


def test_slow_momentum_of_the_first_average_is_the_plain_average() -> None:
    recipe = Recipe(steps=2, global_batch=4, learning_rate=0.5, warm_up=0.0, power=0.0, floor=1.0)
    gradients = random_gradients(2)
    _, plain = stepped(Method(exact_every=1), Complete(), gradients[:1], recipe)
    replicas = Replicas(model(), WORKERS, CPU)
    mixer = Mixer(Complete().schedule(WORKERS, 0, 2), replicas.segments)
    method = Method(exact_every=1, slow_momentum=0.5)
    stepper = Stepper(method, recipe, replicas.x, mixer, replicas.tensors)
    first = replicas.x[0].clone()
    assert plain.shape == replicas.x.shape
    stepper.step(0, gradients[0].clone())
    after_one = replicas.x[0].clone()
    stepper.step(1, torch.zeros_like(gradients[1]))
    local = after_one - 0.5 * (
        0.9 * (gradients[0].mean(dim=0) + recipe.weight_decay * first)
        + recipe.weight_decay * after_one
    )
    slow = 0.5 * (first - after_one) / 0.5 + (after_one - local) / 0.5
    torch.testing.assert_close(replicas.x[0], after_one - 0.5 * slow, rtol=1e-4, atol=1e-5)


def test_lars_is_the_optimizers() -> None:
    recipe = Recipe(
        steps=4, global_batch=4, learning_rate=3.0, momentum=0.8, weight_decay=0.01, lars=0.1
    )
    replicas = Replicas(model(), 1, CPU)
    alone = model()
    optimizer = LARS(alone.parameters(), 3.0, momentum=0.8, weight_decay=0.01, trust=0.1)
    schedule = WarmUpPolynomial(optimizer, total=4, warm_up=0, power=1.0, floor=0.01)
    stepper = Stepper(allreduce(), recipe, replicas.x, None, replicas.tensors)
    data = blobs(0)
    for t in range(4):
        batch = slice(8 * t, 8 * t + 8)
        inputs, labels = data.inputs[batch], data.labels[batch]
        gradients, _ = replicas.gradients(replicas.x, inputs[None], labels[None])
        stepper.step(t, gradients)
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(inputs), labels).backward()
        optimizer.step()
        schedule.step()
    named = dict(alone.named_parameters())
    for place in replicas.places:
        found = replicas.x[0, place.begin : place.end].view(place.shape)
        torch.testing.assert_close(found, named[place.name].data, rtol=1e-4, atol=1e-5)


def test_averaging_everybody_every_step_is_the_all_reduce() -> None:
    exact = train(TASK, Method(topology="complete"), RECIPE, workers=4, seed=1)
    reduced = train(TASK, allreduce(), RECIPE, workers=4, seed=1)
    assert exact.loss == pytest.approx(reduced.loss, rel=1e-4)
    assert reduced.models_sent == pytest.approx(1.5)


def test_a_hierarchy_is_gossip_of_its_groups() -> None:
    grouped = train(TASK, Method(group=2), RECIPE, workers=8, seed=1)
    flat = train(TASK, Method(), RECIPE, workers=4, seed=1)
    assert grouped.loss == flat.loss
    assert grouped.models_sent == pytest.approx(0.5 + 1.0)


def test_a_narrow_wire_halves_the_bytes() -> None:
    outcome = train(TASK, Method(wire="bf16", rounds_per_step=2), RECIPE, workers=4, seed=0)
    assert outcome.models_sent == pytest.approx(1.0)


@pytest.mark.parametrize("budget", [0.52, 1.04])
def test_a_measured_wire_stays_within_its_budget(budget: float) -> None:
    method = Method(wire="auto", wire_budget=budget)
    outcome = train(TASK, method, RECIPE, workers=4, seed=0)
    assert 0.9 * budget < outcome.models_sent <= budget


def test_what_is_no_method_of_a_measured_wire_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="wire='auto': expected rounds_per_step=1, got 2"):
        Method(wire="auto", rounds_per_step=2)
    with pytest.raises(InvalidArgument, match=r"wire_budget: expected at least 0\.2578"):
        Method(wire="auto", wire_budget=0.2)


@pytest.mark.parametrize("name", TASKS)
def test_each_task_learns_a_little_in_a_few_steps(name: str) -> None:
    pytest.importorskip("sklearn", reason="the digits task needs scikit-learn")
    recipe = Recipe(steps=12, global_batch=64, learning_rate=0.5)
    outcome = train(TASKS[name], Method(), recipe, workers=8, seed=0)
    assert outcome.accuracy > 12.0
    assert outcome.local_accuracy > 12.0


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="group: 3 does not divide 8 workers"):
        train(TASK, Method(group=3), RECIPE, workers=8, seed=0)

"""How many user-steps a second the simulators make in batches, against one user at a time over the same networks.

``python -m benchmarks.simulators --case virtual_taobao --weights FOLDER`` (the folder of the published weights; by
default that of the test data). Both sides run in turn on one thread, each time in a process of its own, ``--repeat``
times, and CPU seconds count: wall time would measure who else is on the machine. A user-step is a page that a user
answers, with all that belongs to it: the users who come, their luck, observations and rewards.

What bounds Virtual Taobao: 57 % of the time goes to the networks, the rest to luck, sampling, newcomers and copies.
A user-step takes 112,000 floating-point operations, those of the users who come included; at the 208 GFLOP/s that
oneDNN reached on a core of the EPYC where it was written, that alone allows 1.9 million user-steps a second, 66 times
what the leanest loop over single users reached there in a quiet moment (28,000).
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, one_hot

from benchmarks import fitted_simulators
from benchmarks.common import Measurement, alone, publish
from models.environments.virtual_taobao import VirtualTaobaoVectorEnv
from models.simulators.virtual_taobao import ACTION, CLICKS, GROUPS, LATENT, LENGTHS, SHAPES, USER, VirtualTaobaoConfig
from models.simulators.virtual_taobao_baselines import baseline_rows, baseline_table
from pipeline.experiment import PROJECT

SEED = 7
BASELINE_USERS = 10_000  # of the table of what a policy that learns nothing reaches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="by default, all of them")
    parser.add_argument("--users", type=int, default=8192, help="at once")
    parser.add_argument("--steps", type=int, default=100, help="of the batch")
    parser.add_argument("--repeat", type=int, default=5)
    data = Path(os.environ.get("HINDSIGHT_TEST_DATA") or PROJECT.parent / "shared" / "data")
    parser.add_argument("--weights", default=str(data / "virtualtaobao"), help="the folder of Virtual Taobao's weights")
    options = parser.parse_args()
    for case in options.case or CASES:
        publish("simulators", CASES[case](options))


# ---- Virtual Taobao


def virtual_taobao(options: argparse.Namespace) -> list[Measurement]:
    """The vector environment under random actions; on a GPU too, where there is one."""
    weights, users = options.weights, options.users
    if not Path(weights).is_dir():
        print(f"Virtual Taobao is left out: there are no weights at {weights}.")
        return []
    print(baseline_table(baseline_rows(VirtualTaobaoConfig(weights=weights).load(), BASELINE_USERS, SEED)), "\n")
    runs = [
        (alone(taobao_alone, weights, users).result, alone(taobao_batched, weights, users, options.steps).result)
        for _ in range(options.repeat)
    ]
    baseline, ours = (median(run[side].rate for run in runs) for side in (0, 1))
    ratio = median(run[1].rate / run[0].rate for run in runs)
    what = f"Virtual Taobao, {users:,} users at once"
    plain = median(alone(taobao_plain, weights, users // 8).result for _ in range(options.repeat))
    both = two_cores(weights, users, options.steps)
    found = [
        Measurement(f"{what}, against one at a time", ours, "user-steps / CPU s", baseline, ratio),
        Measurement(f"{what}, on two cores against one at a time", both, "user-steps / s", baseline, both / baseline),
        Measurement(f"{what}, on two cores against a plain loop", both, "user-steps / s", plain, both / plain),
        Measurement(f"{what}: outside the networks", median(run[1].outside for run in runs), "of the time"),
    ]
    if torch.cuda.is_available():
        gpu = taobao_batched(weights, users, options.steps, "cuda")
        found += [
            Measurement(f"{what} on a GPU, against one at a time on a core", gpu.rate, "user-steps / s", baseline,
                        gpu.rate / baseline),
            Measurement(f"{what} on a GPU: outside the networks", gpu.outside, "of the time"),
        ]  # fmt: skip
    return found


def two_cores(weights: str, users: int, steps: int) -> float:
    """User-steps a second of two processes at once, by the clock."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        played = list(pool.map(_timed, [weights] * 2, [users] * 2, [steps] * 2))
    return sum(steps / seconds for steps, seconds in played)


def _timed(weights: str, users: int, steps: int) -> tuple[int, float]:
    torch.set_num_threads(1)
    env = VirtualTaobaoVectorEnv(users, weights)
    env.reset(seed=SEED)
    actions = np.random.default_rng(SEED).uniform(-1, 1, (users, ACTION)).astype(np.float32)
    _play(env, actions, steps // 10 + 1)
    start = time.perf_counter()
    played, _ = _play(env, actions, steps)
    return played, time.perf_counter() - start


def taobao_plain(weights: str, users: int) -> float:
    """User-steps a CPU second of a loop as one writes it at first: modules, softmax, multinomial, one user."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    generator, answers, leave = (_module(load_networks(weights)[name]) for name in ("generator", "action", "leave"))
    before, steps = time.process_time(), 0
    with torch.no_grad():
        for _ in range(users):
            logits = generator(torch.rand(1, LATENT))
            groups = [part.softmax(dim=-1) for part in logits.split(GROUPS, dim=-1)]
            user = torch.cat([one_hot(torch.multinomial(p, 1)[:, 0], p.shape[1]) for p in groups], dim=-1).float()
            length = int(torch.multinomial(leave(user).softmax(dim=-1), 1))
            for page in range(max(1, length)):
                action = 2 * torch.rand(1, ACTION) - 1
                logits = answers(torch.cat([user, torch.tensor([[float(page)]]), action], dim=-1))
                for part in logits.split([CLICKS, logits.shape[1] - CLICKS], dim=-1):
                    torch.multinomial(part.softmax(dim=-1), 1).item()
                steps += 1
    return steps / (time.process_time() - before)


def _module(layers: "Layers") -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, nn.LeakyReLU()]
    return nn.Sequential(*modules[:-1])


@dataclass(frozen=True)
class Played:
    steps: int
    clicks: int
    seconds: float  # of the CPU; of the clock with a GPU
    outside: float  # share of the seconds outside the networks

    @property
    def rate(self) -> float:
        return self.steps / self.seconds


class Stopwatch:
    """Seconds spent inside the functions that it wraps, or between calls of itself."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def __call__(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*inputs: Tensor) -> Tensor:
            start = self()
            outputs = function(*inputs)
            self.seconds += self() - start
            return outputs

        return timed


def taobao_batched(weights: str, users: int, steps: int, device: str = "cpu") -> Played:
    """The vector environment, first as it is, and once more with a watch on its networks."""
    torch.set_num_threads(1)
    env = VirtualTaobaoVectorEnv(users, weights, device=device)
    env.reset(seed=SEED)
    actions = np.random.default_rng(SEED).uniform(-1, 1, (users, ACTION)).astype(np.float32)
    watch = Stopwatch(device)
    _play(env, actions, steps // 10 + 1)  # until users come and leave
    start = watch()
    played, clicks = _play(env, actions, steps)
    seconds = watch() - start
    for network in ("generator", "leave", "answers"):
        setattr(env.model, network, watch.around(getattr(env.model, network)))
    start = watch()
    _play(env, actions, steps)
    return Played(played, clicks, seconds, 1 - watch.seconds / (watch() - start))


def _play(env: VirtualTaobaoVectorEnv, actions: NDArray[np.float32], steps: int) -> tuple[int, int]:
    """User-steps and clicks; the steps on which an environment only takes its next user do not count."""
    played = clicks = 0
    for _ in range(steps):
        _, rewards, _, _, infos = env.step(actions)
        played += int(infos["_CTR"].sum())
        clicks += int(rewards.sum())
    return played, clicks


def taobao_alone(weights: str, users: int) -> Played:
    """Whole sessions of so many users, one after the other, without gymnasium; their luck is drawn beforehand."""
    torch.set_num_threads(1)
    random = np.random.default_rng(SEED)
    networks = load_networks(weights)
    actions = torch.from_numpy(random.uniform(-1, 1, (users, ACTION)).astype(np.float32))
    start = torch.from_numpy(random.random((users, LATENT + len(GROUPS) + 1), dtype=np.float32))
    luck = random.random((users, LENGTHS, 2))
    play_alone(networks, actions[:20], start[:20], luck[:20])
    before = time.process_time()
    pages = play_alone(networks, actions, start, luck)
    seconds = time.process_time() - before
    return Played(sum(map(len, pages)), sum(map(sum, pages)), seconds, float("nan"))


Layers = list[tuple[Tensor, Tensor]]


def load_networks(weights: str) -> dict[str, Layers]:
    """(weight, bias) of each layer of each network."""
    found = {}
    for name, shapes in SHAPES.items():
        state = torch.load(Path(weights) / f"{name}_model.pt", weights_only=True)
        found[name] = [(state[f"{2 * n}.weight"], state[f"{2 * n}.bias"]) for n in range(len(shapes))]
    return found


@torch.inference_mode()
def play_alone(
    networks: dict[str, Layers], actions: Tensor, start: Tensor, luck: NDArray[np.float64]
) -> list[list[int]]:
    """The clicks on each page of each user, one user and page at a time, with as few calls as we found.

    ``actions`` [N, 27] are shown, one to a user; ``start`` [N, 140] and ``luck`` [N, pages, 2] are uniform draws.
    """
    sessions = []
    for user_actions, draws, answers in zip(actions, start, luck.tolist(), strict=True):
        group_draws = draws[LATENT:].tolist()
        user = torch.zeros(USER)
        logits, first = _forward(networks["generator"], draws[:LATENT]).numpy(), 0
        for width, draw in zip(GROUPS, group_draws, strict=False):
            user[first + _sample(logits[first : first + width], draw)] = 1.0
            first += width
        length = _sample(_forward(networks["leave"], user).numpy(), group_draws[-1])
        inputs = torch.cat([user, torch.zeros(1), user_actions])
        clicks: list[int] = []
        while not clicks or len(clicks) < length:
            inputs[USER] = len(clicks)
            logits = _forward(networks["action"], inputs).numpy()
            click_draw, attribute_draw = answers[len(clicks)]
            clicks.append(_sample(logits[:CLICKS], click_draw))
            _sample(logits[CLICKS:], attribute_draw)
        sessions.append(clicks)
    return sessions


def _forward(layers: Layers, x: Tensor) -> Tensor:
    for weight, bias in layers[:-1]:
        x = leaky_relu(torch.addmv(bias, weight, x), inplace=True)
    weight, bias = layers[-1]
    return torch.addmv(bias, weight, x)


def _sample(logits: NDArray[np.float32], draw: float) -> int:
    cumulative = np.exp(logits - logits.max()).cumsum()
    return int(cumulative.searchsorted(draw * cumulative[-1], side="right"))


CASES: dict[str, Callable[[argparse.Namespace], list[Measurement]]] = {
    "virtual_taobao": virtual_taobao,
    **fitted_simulators.CASES,
}


if __name__ == "__main__":
    main()

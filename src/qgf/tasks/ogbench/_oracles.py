"""OGBench's scripted oracles as its datasets use them, with faster planning."""

import itertools
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from ogbench.manipspace import lie
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.plan_oracle import PlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter1d

from qgf.tasks.ogbench._kinematics import half_turn, multiply, yaws_of
from qgf.tasks.ogbench.envs import EnvName

# Largest change per step: x, y, z in metres, yaw in radians, gripper opening.
_RANGE = np.array([0.05, 0.05, 0.05, 0.3, 1.0])


class _FastPlan(PlanOracle):
    """Plans all times of a segment at once: the same numbers as OGBench's, bit for bit."""

    def compute_plan(self, times, poses, grasps) -> NDArray[np.float64]:
        """Interpolate keyframes; return (n, 5): position, yaw, gripper, noise included."""
        clock = [0.0]
        while (now := clock[-1] + self._env_dt) < self._t_max:
            clock.append(now)
        positions = [pose.translation() for pose in poses]
        rotations = [pose.rotation() for pose in poses]
        plan = np.empty((len(clock), 5))
        plan[:, :3] = interp1d(times, positions, axis=0, assume_sorted=True)(clock)
        plan[:, 3] = yaws_of(_interpolate(times, rotations, clock))
        plan[:, 4] = interp1d(times, grasps, axis=0, assume_sorted=True)(clock)
        if self._noise > 0:
            noise = np.random.normal(0, 1, size=plan.shape) * _RANGE * self._noise
            plan += gaussian_filter1d(noise, axis=0, sigma=self._noise_smoothing)
        return plan


def _interpolate(times: list[float], rotations: list[lie.SO3], clock: list[float]):
    """Return the quaternions at the times of `clock` on geodesics between rotations."""
    pairs = itertools.pairwise(rotations)
    logs = np.array([(a.inverse() @ b).log() for a, b in pairs])
    starts = [rotation.wxyz.tolist() for rotation in rotations]
    edges = np.array(times)
    at = np.searchsorted(edges, clock, side="right") - 1
    share = np.clip((clock - edges[at]) / (edges[at + 1] - edges[at]), 0.0, 1.0)
    quaternions = []
    for i, tangent in zip(at.tolist(), share[:, None] * logs[at], strict=True):
        real, imaginary = half_turn(float(tangent @ tangent))
        turn = (real, *(imaginary * tangent).tolist())
        quaternions.append(multiply(starts[i], turn))
    return quaternions


class _CubePlan(_FastPlan, CubePlanOracle):
    pass


class _ButtonPlan(_FastPlan, ButtonPlanOracle):
    pass


class _DrawerPlan(_FastPlan, DrawerPlanOracle):
    pass


class _WindowPlan(_FastPlan, WindowPlanOracle):
    pass


def make_oracles(env: gymnasium.Env, name: EnvName) -> dict[str, Any]:
    """Return the oracle of each task ("cube", "button", ...) of an environment.

    Play data come from plans with correlated noise, noisy data from Markov oracles.
    """
    if name.type == "play":
        kinds = _CubePlan, _ButtonPlan, _DrawerPlan, _WindowPlan
        settings = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
        patience = {}
    else:
        kinds = CubeMarkovOracle, ButtonMarkovOracle, DrawerMarkovOracle, WindowMarkovOracle
        settings = {"env": env, "min_norm": 0.4}
        patience = {"max_step": 100}
    cube, button, drawer, window = kinds
    if name.domain.startswith("cube"):
        return {"cube": cube(**settings)}
    if name.domain.startswith("puzzle"):
        return {"button": button(gripper_always_closed=True, **settings)}
    return {
        "cube": cube(**patience, **settings),
        "button": button(**settings),
        "drawer": drawer(**settings),
        "window": window(**settings),
    }

"""Rotations and inverse kinematics in few calls, rounding as OGBench's own do."""

import math
from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

Quaternion = Sequence[float]


def multiply(p: Quaternion, q: Quaternion) -> Quaternion:
    """Return the product of two quaternions (w, x, y, z)."""
    # The order of the sums is OGBench's: another order rounds differently.
    w0, x0, y0, z0 = p
    w1, x1, y1, z1 = q
    return (
        -x0 * x1 - y0 * y1 - z0 * z1 + w0 * w1,
        x0 * w1 + y0 * z1 - z0 * y1 + w0 * x1,
        -x0 * z1 + y0 * w1 + z0 * x1 + w0 * y1,
        x0 * y1 - y0 * x1 + z0 * w1 + w0 * z1,
    )


def yaws_of(quaternions: list[Quaternion]) -> NDArray[np.float64]:
    """Return the yaw of each quaternion, in radians, (n,)."""
    # `**` on floats, not on arrays, which square by multiplication: pow may differ by
    # one unit in the last place. NumPy's arctan2 may likewise differ from math.atan2.
    sines = [2 * (w * z + x * y) for w, x, y, z in quaternions]
    cosines = [1 - 2 * (y**2 + z**2) for _, _, y, z in quaternions]
    return np.arctan2(sines, cosines)


def half_turn(squared: float) -> tuple[float, float]:
    """Return cos(θ/2) and sin(θ/2)/θ for an angle θ in radians, given θ²."""
    if squared < 1e-10:
        real = 1.0 - squared / 8.0 + squared * squared / 384.0
        return real, 0.5 - squared / 48.0 + squared * squared / 3840.0
    angle = math.sqrt(squared)
    return float(np.cos(0.5 * angle)), float(np.sin(0.5 * angle)) / angle


def about_z(angle: float) -> tuple[float, float]:
    """Return (w, z) of the quaternion that rotates by `angle` radians about z."""
    real, imaginary = half_turn(angle * angle)
    return real, imaginary * angle


def norm(vector: NDArray[np.float64]) -> float:
    return math.sqrt(vector.dot(vector))


def clip01(x: float) -> float:
    x = x if x > 0.0 else 0.0
    return x if x < 1.0 else 1.0


class InverseKinematics:
    """Damped least squares on one site: `DiffIKController.solve` on buffers made once."""

    def __init__(self, model: mujoco.MjModel, site: int, damping: NDArray, max_angle: float):
        self.model, self._site = model, site
        self._damping, self._max_angle = damping, max_angle
        self._data = data = mujoco.MjData(model)
        self._qpos = data.qpos
        self._xpos, self._xmat = data.site_xpos[site], data.site_xmat[site]
        self._error = np.empty(6)
        self._move, self._turn = self._error[:3], self._error[3:]
        self._quat, self._inverse, self._left = np.empty((3, 4))
        self._jac = np.empty((6, model.nv))
        self._jacp, self._jacr = self._jac[:3], self._jac[3:]

    def twin(self) -> "InverseKinematics":
        """Return an independent controller that shares the model."""
        return InverseKinematics(self.model, self._site, self._damping, self._max_angle)

    def solve(self, pos: NDArray, quat: NDArray, curr_qpos: NDArray) -> NDArray[np.float64]:
        """Return joint angles (6,), in radians, that bring the site to `pos`, `quat`."""
        model, data, jac, threshold = self.model, self._data, self._jac, 1e-4
        self._qpos[:] = curr_qpos
        for _ in range(20):
            mujoco.mj_kinematics(model, data)
            np.subtract(pos, self._xpos, out=self._move)
            mujoco.mju_mat2Quat(self._quat, self._xmat)
            mujoco.mju_negQuat(self._inverse, self._quat)
            mujoco.mju_mulQuat(self._left, quat, self._inverse)
            mujoco.mju_quat2Vel(self._turn, self._left, 1.0)
            if norm(self._move) <= threshold and norm(self._turn) <= threshold:
                break
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, self._jacp, self._jacr, self._site)
            update = jac.T @ np.linalg.solve(jac @ jac.T + self._damping, self._error)
            largest = max(map(abs, update.tolist()))
            if largest > self._max_angle:
                update *= self._max_angle / largest
            self._qpos += update
        return self._qpos.copy()

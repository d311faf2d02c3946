"""The environments with buttons, scene and puzzle, made faster."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
from ogbench.manipspace.envs.scene_env import SceneEnv

from qgf.tasks.ogbench._kinematics import Quaternion
from qgf.tasks.ogbench._manipspace import FastEnv


class _Buttons(FastEnv):
    def _apply_button_states(self) -> None:
        # OGBench runs a full forward pass here. The next step starts with one anyway,
        # so only the positions, which the observation reads, are brought up to date.
        self._set_locks()
        mujoco.mj_kinematics(self._model, self._data)

    def _set_locks(self) -> None:
        pass

    def _paint(self) -> None:
        mujoco.mj_forward(self._model, self._data)
        rgba = self._model.geom_rgba
        for i, state in enumerate(self._cur_button_states):
            rgba[self._button_geom_ids_list[i]] = self._colors[self._button_colors[state]]


class FastScene(_Buttons, SceneEnv):
    """`SceneEnv`, faster."""

    _changes_model = True  # the damping of locked joints
    _button_colors = ("red", "white")

    def _bind(self) -> None:
        joints = [self._model.joint(f"{name}_slide") for name in ("drawer", "window")]
        self._slide_qpos = [int(joint.qposadr[0]) for joint in joints]
        self._slide_qvel = [int(joint.dofadr[0]) for joint in joints]
        names = ("drawer_handle", "window_handle")
        self._handle_materials = [self._model.material(name).id for name in names]
        self._low = (self._workspace_bounds[0] - 0.2).tolist()
        self._high = (self._workspace_bounds[1] + 0.2).tolist()
        super()._bind()

    def _set_locks(self) -> None:
        for at, state in zip(self._slide_qvel, self._cur_button_states, strict=True):
            self._model.dof_damping[at] = 1e6 if state == 0 else 2.0

    def _compute_successes(self):
        buttons = (self._cur_button_states == self._target_button_states).tolist()
        drawer, window = (self._data.qpos[at].item() for at in self._slide_qpos)
        drawer = abs(drawer - self._target_drawer_pos) <= 0.04
        window = abs(window - self._target_window_pos) <= 0.04
        return self._cube_success(), buttons, drawer, window

    def post_step(self) -> None:
        """Toggle buttons, lock and unlock, judge success."""
        if self._mode == "task" and self._lost_cube():
            # OGBench's own code puts the cube back; it reads the earlier button heights.
            before = self._prev_qpos[self._button_qpos, None]
            names = [name + "pos" for name in self._button_names]
            self._prev_ob_info = dict(zip(names, before, strict=True))
            self._cube_done = self._cube_success()
            return SceneEnv.post_step(self)
        pressed = self._pressed()
        for i in pressed:
            self._cur_button_states[i] = (self._cur_button_states[i] + 1) % 2
        if pressed:
            self._set_locks()
        mujoco.mj_kinematics(self._model, self._data)
        self._cube_done, buttons, drawer, window = self._compute_successes()
        if self._mode == "task":
            self._success = all(self._cube_done) and all(buttons) and drawer and window
        else:
            self._success = {
                "cube": self._cube_done[self._target_block],
                "button": buttons[self._target_button],
                "drawer": drawer,
                "window": window,
            }[self._target_task]

    def _lost_cube(self) -> bool:
        at = self._cube_addresses[0]
        position = self._data.qpos[at : at + 3].tolist()
        bounds = zip(self._low, position, self._high, strict=True)
        return any(x <= low or x >= high for low, x, high in bounds)

    def _more_quaternions(self) -> list[Quaternion]:
        matrices = self._data.site_xmat
        handles = (self._drawer_site_id, self._window_site_id)
        return [
            *super()._more_quaternions(),
            *(self._quaternion(matrices[site]) for site in handles),
        ]

    def _add_objects(self, info: dict[str, Any], yaws: NDArray) -> None:
        super()._add_objects(info, yaws)
        qpos, qvel, sites = info["qpos"], info["qvel"], self._data.site_xpos
        handles = (self._drawer_site_id, self._window_site_id)
        for i, name in enumerate(("privileged/drawer_", "privileged/window_")):
            at, speed, yaw = self._slide_qpos[i], self._slide_qvel[i], len(yaws) - 2 + i
            info[name + "pos"] = qpos[at : at + 1].copy()
            info[name + "vel"] = qvel[speed : speed + 1].copy()
            info[name + "handle_pos"] = sites[handles[i]].copy()
            info[name + "handle_yaw"] = yaws[yaw : yaw + 1]

    def _add_targets(self, info: dict[str, Any], yaws: NDArray) -> None:
        super()._add_targets(info, yaws)
        drawer, window = self._drawer_target_site_id, self._window_target_site_id
        sites = self._data.site_xpos
        info["privileged/target_drawer_pos"] = np.array([self._target_drawer_pos])
        info["privileged/target_drawer_handle_pos"] = sites[drawer].copy()
        info["privileged/target_window_pos"] = np.array([self._target_window_pos])
        info["privileged/target_window_handle_pos"] = sites[window].copy()

    def _more_parts(self, info: dict[str, Any]) -> list[NDArray]:
        return [
            info["privileged/drawer_pos"] * 18.0,
            info["privileged/drawer_vel"],
            info["privileged/window_pos"] * 15.0,
            info["privileged/window_vel"],
        ]

    def _paint(self) -> None:
        super()._paint()
        self._paint_cubes()
        for material, state in zip(self._handle_materials, self._cur_button_states, strict=True):
            self._model.mat_rgba[material] = self._colors[self._button_colors[state]]


class FastPuzzle(_Buttons, PuzzleEnv):
    """`PuzzleEnv`, faster."""

    _button_colors = ("red", "blue")

    def _compute_successes(self):
        return (self._cur_button_states == self._target_button_states).tolist()

    def post_step(self) -> None:
        """Toggle pressed buttons with their neighbours, judge success."""
        states = self._cur_button_states.reshape(self._num_rows, self._num_cols)
        for button in self._pressed():
            row, column = divmod(button, self._num_cols)
            for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                i, j = row + down, column + right
                if 0 <= i < self._num_rows and 0 <= j < self._num_cols:
                    states[i, j] = (states[i, j] + 1) % 2
        self._apply_button_states()
        done = self._compute_successes()
        self._success = all(done) if self._mode == "task" else done[self._target_button]

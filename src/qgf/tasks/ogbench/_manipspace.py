"""OGBench's manipulation environments with the Python around the physics made short.

The physics, the task logic and every random draw stay OGBench's (Park et al. 2025,
`ogbench.manipspace`); observations, rewards and infos are equal to its own bit for bit.
What is gone: infos built three times a step, quaternions as objects, name look-ups,
colours written when nobody looks, a second full forward pass after each step.
"""

import copy
import functools
import math
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray
from ogbench.manipspace.envs.cube_env import CubeEnv
from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv

from qgf.tasks.ogbench._kinematics import (
    InverseKinematics,
    Quaternion,
    about_z,
    clip01,
    multiply,
    norm,
    yaws_of,
)

CENTER = np.array([0.425, 0.0, 0.0])
ONE_HOT = np.eye(2)
PRESSED = -0.02


class FastEnv(ManipSpaceEnv):
    """What the three families share; stands before an OGBench class in the bases."""

    # A model takes 60 MB. Where only colours change, which are set before each picture,
    # the environments of one process share it.
    _changes_model = False

    @classmethod
    @functools.lru_cache(maxsize=3)
    def _prototype(cls, kwargs: tuple[tuple[str, Any], ...]) -> "FastEnv":
        # Compiling takes a second; the environments of one process share the result, of which
        # each takes 170 MB.
        env = cls(**dict(kwargs))
        env._mjcf_model = env.build_mjcf_model()
        env.compile_model_and_data()
        env._never_compiled = False
        ik = env._ik
        env._ik = InverseKinematics(
            ik._model, int(ik._site_ids[0]), ik._damping, ik._max_angle_change
        )
        return env

    @classmethod
    def make(cls, **kwargs: Any) -> "FastEnv":
        """Return a new environment with state of its own."""
        env = copy.copy(cls._prototype(tuple(sorted(kwargs.items()))))
        for name, value in vars(env).items():
            if isinstance(value, np.ndarray):
                setattr(env, name, value.copy())
        if cls._changes_model:
            env._model = copy.copy(env._model)
        env._data = mujoco.MjData(env._model)
        env._ik = env._ik.twin()
        env._scene_option, env._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        env._actions = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        env._bind()
        return env

    def _bind(self) -> None:
        """Look up, once, the addresses and array rows that each step needs."""
        model, data = self._model, self._data
        mujoco.mj_forward(model, data)
        self._arm = slice(0, len(self._arm_joint_ids))
        self._pinch_pos = data.site_xpos[self._pinch_site_id]
        self._pinch_mat = data.site_xmat[self._pinch_site_id]
        self._contact_force = data.cfrc_ext[model.body("ur5e/robotiq/right_pad").id]
        self._quat = np.empty(4)
        self._attach = self._T_pa.wxyz_xyz.tolist()
        self._bounds = self._workspace_bounds
        self._action_range = self.action_high - self.action_low
        self._cubes = getattr(self, "_num_cubes", 0)
        self._cube_addresses = [
            model.joint(f"object_joint_{i}").qposadr[0] for i in range(self._cubes)
        ]
        self._mocap = getattr(self, "_cube_target_mocap_ids", [])
        buttons = range(getattr(self, "_num_buttons", 0))
        joints = [model.joint(f"buttonbox_joint_{i}") for i in buttons]
        self._button_qpos = np.array([joint.qposadr[0] for joint in joints], int)
        self._button_qvel = np.array([joint.dofadr[0] for joint in joints], int)
        self._cube_names = [f"privileged/block_{i}_" for i in range(self._cubes)]
        self._button_names = [f"privileged/button_{i}_" for i in buttons]
        targets = ("_target_task", "_target_block", "_target_button")
        targets += ("_target_drawer_pos", "_target_window_pos")
        self._start = {name: vars(self)[name] for name in targets if name in vars(self)}
        self._start_sites = model.site_pos.copy()
        if buttons:
            self._prev_button_states = self._cur_button_states.copy()
        self.pre_step()

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """Five relative controls in [-1, 1]: x, y, z, yaw, gripper."""
        return self._actions

    def reset(self, options=None, *args, seed=None, **kwargs):
        """Reset as OGBench does; with `seed`, the episode depends on it and nothing else.

        OGBench takes the task and the actions that settle the goal scene from unseeded
        generators; here they come from the action space's, seeded with `seed` too.
        """
        if seed is not None:
            self._actions.seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
        self.__dict__.update(self._start)
        self._model.site_pos[:] = self._start_sites
        if self._button_names:
            self._cur_button_states = np.zeros_like(self._cur_button_states)
            self._target_button_states = np.zeros_like(self._target_button_states)
        if self._mode == "task" and self._reward_task_id is None:
            options = dict(options or {})
            if not {"task_id", "task_info"} & options.keys():
                task = self._actions.np_random.integers(1, self.num_tasks + 1)
                options["task_id"] = int(task)
        return super().reset(options, *args, seed=seed, **kwargs)

    def step(self, action):
        """Advance one control step of 0.05 s; returns Gymnasium's five values."""
        early = self._success_timing == "pre"
        if early:
            outcome = self._success, self.terminate_episode(), self.compute_reward()
        self.set_control(np.array(action))
        self.pre_step()
        mujoco.mj_step(self._model, self._data, nstep=self._n_steps)
        mujoco.mj_rnePostConstraint(self._model, self._data)
        self.post_step()
        if not early:
            outcome = self._success, self.terminate_episode(), self.compute_reward()
        success, terminated, reward = outcome
        info = self.compute_ob_info()
        observation = self.compute_observation(info)
        info["success"] = success
        return observation, reward, terminated, self.truncate_episode(), info

    def normalize_action(self, action: NDArray) -> NDArray[np.float64]:
        """Scale a change of pose, (5,) in metres, radians and opening, to [-1, 1]."""
        scaled = 2 * (action - self.action_low) / self._action_range - 1
        return np.minimum(np.maximum(scaled, -1), 1)

    def set_control(self, action: NDArray) -> None:
        """Turn relative end-effector control, (5,) in [-1, 1], into joint targets."""
        dx, dy, dz, turn, grip = (
            0.5 * (action + 1) * self._action_range + self.action_low
        ).tolist()
        target = self._pinch_pos + np.array([dx, dy, dz])
        np.maximum(target, self._bounds[0], out=target)
        np.minimum(target, self._bounds[1], out=target)
        # Two turns about z, then upside down: the yaw comes back from the product,
        # as OGBench does it, since the rounding is part of the physics.
        w0, z0 = about_z(turn)
        w1, z1 = about_z(self._pinch_yaw())
        w, z = -z0 * z1 + w0 * w1, z0 * w1 + w0 * z1
        yaw = float(yaws_of([(0.0, -w, -z, 0.0)])[0])
        w, z = about_z(min(max(yaw, -math.pi), math.pi))
        down = (0.0, w, z, 0.0)
        aw, ax, ay, az, *offset = self._attach
        rotated = multiply(multiply(down, (0.0, *offset)), (0.0, -w, -z, -0.0))[1:]
        opening = clip01(self._data.qpos[self._gripper_opening_joint_id].item() / 0.8)
        joints = self._ik.solve(
            rotated + target,
            np.array(multiply(down, (aw, ax, ay, az))),
            self._data.qpos[self._arm],
        )
        self._data.ctrl[self._arm_actuator_ids] = joints
        self._data.ctrl[self._gripper_actuator_ids] = 255.0 * clip01(opening + grip)

    def _quaternion(self, matrix: NDArray) -> Quaternion:
        mujoco.mju_mat2Quat(self._quat, matrix)
        return self._quat.tolist()

    def _pinch_yaw(self) -> float:
        return float(yaws_of([self._quaternion(self._pinch_mat)])[0])

    def pre_step(self) -> None:
        """Remember the state before the step."""
        self._prev_qpos = self._data.qpos.copy()
        self._prev_qvel = self._data.qvel.copy()
        if self._button_names:
            self._prev_button_states = self._cur_button_states.copy()

    def compute_ob_info(self) -> dict[str, Any]:
        """Return OGBench's info: proprioception, objects, targets, state."""
        data, gripper = self._data, self._gripper_opening_joint_id
        qpos, qvel = data.qpos.copy(), data.qvel.copy()
        quaternions = [self._quaternion(self._pinch_mat)]
        quaternions += [qpos[a + 3 : a + 7].tolist() for a in self._cube_addresses]
        quaternions += self._more_quaternions()
        yaws = yaws_of(quaternions)
        self._cur_yaws = yaws
        info = {
            "proprio/joint_pos": qpos[self._arm].copy(),
            "proprio/joint_vel": qvel[self._arm].copy(),
            "proprio/effector_pos": self._pinch_pos.copy(),
            "proprio/effector_yaw": yaws[:1],
            "proprio/gripper_opening": np.array([clip01(qpos[gripper].item() / 0.8)]),
            "proprio/gripper_vel": qvel[gripper : gripper + 1].copy(),
            "proprio/gripper_contact": np.array([clip01(norm(self._contact_force) / 50)]),
            "prev_qpos": self._prev_qpos.copy(),
            "prev_qvel": self._prev_qvel.copy(),
            "qpos": qpos,
            "qvel": qvel,
            "control": data.ctrl.copy(),
            "time": np.array([data.time]),
        }
        self._add_objects(info, yaws)
        return info

    def _more_quaternions(self) -> list[Quaternion]:
        """Further rotations whose yaw `_add_objects` needs, after those of the cubes."""
        if self._cubes and self._mode == "data_collection":
            return [self._data.mocap_quat[self._mocap[self._target_block]].tolist()]
        return []

    def _add_objects(self, info: dict[str, Any], yaws: NDArray) -> None:
        qpos, qvel = info["qpos"], info["qvel"]
        for i, name in enumerate(self._cube_names):
            at = self._cube_addresses[i]
            info[name + "pos"] = qpos[at : at + 3].copy()
            info[name + "quat"] = qpos[at + 3 : at + 7].copy()
            info[name + "yaw"] = yaws[i + 1 : i + 2]
        if self._button_names:
            positions, velocities = qpos[self._button_qpos], qvel[self._button_qvel]
            for i, name in enumerate(self._button_names):
                info[name + "state"] = self._cur_button_states[i]
                info[name + "pos"] = positions[i : i + 1]
                info[name + "vel"] = velocities[i : i + 1]
            info["prev_button_states"] = self._prev_button_states.copy()
            info["button_states"] = self._cur_button_states.copy()
        if self._mode == "data_collection":
            self._add_targets(info, yaws)

    def _add_targets(self, info: dict[str, Any], yaws: NDArray) -> None:
        info["privileged/target_task"] = self._target_task
        if self._cubes:
            at = self._mocap[self._target_block]
            info["privileged/target_block"] = self._target_block
            info["privileged/target_block_pos"] = self._data.mocap_pos[at].copy()
            info["privileged/target_block_yaw"] = yaws[self._cubes + 1 : self._cubes + 2]
        if self._button_names:
            button = self._target_button
            state = self._target_button_states[button]
            top = self._data.site_xpos[self._button_site_ids[button]].copy()
            info["privileged/target_button"] = button
            info["privileged/target_button_state"] = state
            info["privileged/target_button_top_pos"] = top

    def compute_observation(self, info: dict[str, Any] | None = None) -> NDArray:
        """Return the observation, float64, (n,); or a rendered image, (h, w, 3)."""
        if self._ob_type == "pixels":
            return self.get_pixel_observation()
        info = self.compute_ob_info() if info is None else info
        yaws = self._cur_yaws[: self._cubes + 1]
        cosines, sines = np.cos(yaws), np.sin(yaws)
        parts = [
            info["proprio/joint_pos"],
            info["proprio/joint_vel"],
            (info["proprio/effector_pos"] - CENTER) * 10.0,
            cosines[:1],
            sines[:1],
            info["proprio/gripper_opening"] * 3.0,
            info["proprio/gripper_contact"],
        ]
        if self._cubes:
            start = self._cube_addresses[0]
            cubes = info["qpos"][start : start + 7 * self._cubes].reshape(-1, 7)
            rows = np.empty((self._cubes, 9))
            rows[:, :3] = (cubes[:, :3] - CENTER) * 10.0
            rows[:, 3:7] = cubes[:, 3:]
            rows[:, 7], rows[:, 8] = cosines[1:], sines[1:]
            parts.append(rows.ravel())
        if self._button_names:
            rows = np.empty((len(self._button_names), 4))
            rows[:, :2] = ONE_HOT[self._cur_button_states]
            rows[:, 2] = info["qpos"][self._button_qpos] * 120.0
            rows[:, 3] = info["qvel"][self._button_qvel]
            parts.append(rows.ravel())
        return np.concatenate(parts + self._more_parts(info))

    def _more_parts(self, info: dict[str, Any]) -> list[NDArray]:
        return []

    def _cube_success(self) -> list[bool]:
        qpos, mocap = self._data.qpos, self._data.mocap_pos
        return [
            norm(qpos[at : at + 3] - mocap[self._mocap[i]]) <= 0.04
            for i, at in enumerate(self._cube_addresses)
        ]

    def _pressed(self) -> list[int]:
        """Return the buttons that went down during the step."""
        before = self._prev_qpos[self._button_qpos].tolist()
        now = self._data.qpos[self._button_qpos].tolist()
        moved = enumerate(zip(before, now, strict=True))
        return [i for i, (x, y) in moved if x > PRESSED >= y]

    def _paint_cubes(self) -> None:
        rgba = self._model.geom_rgba
        for i, done in enumerate(self._cube_done):
            shown = self._mode == "task" or i == self._target_block
            colors = self._cube_success_colors if done else self._cube_colors
            colors = colors if self._visualize_info else self._cube_colors
            ids = self._cube_target_geom_ids_list[i]
            rgba[ids, 3] = 0.2 if self._visualize_info and shown else 0.0
            rgba[self._cube_geom_ids_list[i], :3] = colors[i, :3]

    def _paint(self) -> None:
        """Bring colours, and what else only a picture shows, up to date."""
        raise NotImplementedError

    def render(self, *args, **kwargs):
        """Return an RGB image of the scene, (h, w, 3), uint8."""
        self._paint()
        return super().render(*args, **kwargs)

    def sync_passive_viewer(self) -> None:
        """Show the current state in the open viewer."""
        self._paint()
        super().sync_passive_viewer()


class FastCube(FastEnv, CubeEnv):
    """`CubeEnv`, faster."""

    def _compute_successes(self):
        return self._cube_success()

    def post_step(self) -> None:
        """Judge success."""
        self._cube_done = done = self._cube_success()
        self._success = all(done) if self._mode == "task" else done[self._target_block]

    def _paint(self) -> None:
        self._paint_cubes()

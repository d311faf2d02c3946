"""Write tests/fixtures/lerobot with LeRobot itself, in an environment of its own.

python3.12 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install 'lerobot[dataset]==0.6.1'
/tmp/lerobot/bin/python tests/data/write_lerobot.py
"""

import shutil
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent / "fixtures/lerobot"
LENGTHS = (3, 5, 4, 2)
SOLVED = (True, False, True, False)
"""whether an episode's last action solves the task; the others stop unsolved"""
FEATURES = {
    "observation.state": ("float32", (4,)),
    "observation.gripper": ("float32", (1,)),
    "observation.pose": ("float32", (2, 3)),
    "observation.images.top": ("image", (8, 8, 3)),
    "action": ("float32", (3,)),
    "next.reward": ("float32", (1,)),
    "next.success": ("bool", (1,)),
    "next.done": ("bool", (1,)),
}


def episodes():
    """Return what is written, an array per feature and episode."""
    rng = np.random.default_rng(0)
    for length, solved in zip(LENGTHS, SOLVED, strict=True):
        at_end = np.arange(length)[:, None] == length - 1
        yield {
            "observation.state": rng.normal(size=(length, 4)).astype(np.float32),
            "observation.gripper": rng.normal(size=(length, 1)).astype(np.float32),
            "observation.pose": rng.normal(size=(length, 2, 3)).astype(np.float32),
            "observation.images.top": rng.integers(0, 255, (length, 8, 8, 3), np.uint8),
            "action": rng.uniform(-99, 100, size=(length, 3)).astype(np.float32),
            "next.reward": rng.normal(size=(length, 1)).astype(np.float32),
            "next.success": at_end & solved,
            "next.done": at_end,
        }


def main():
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    shutil.rmtree(FOLDER, ignore_errors=True)
    features = {
        name: {"dtype": dtype, "shape": shape, "names": [f"{name}.{i}" for i in range(shape[0])]}
        for name, (dtype, shape) in FEATURES.items()
    }
    features["observation.images.top"]["names"] = ["height", "width", "channels"]
    dataset = LeRobotDataset.create(
        "qgf/tiny", fps=10, features=features, root=FOLDER, use_videos=False
    )
    for number, episode in enumerate(episodes()):
        for step in range(LENGTHS[number]):
            frame = {name: array[step] for name, array in episode.items()}
            dataset.add_frame({**frame, "task": "push"})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    main()

"""What holds for recordings of every format: kinds of numbers, rewards, what is refused."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from qgf.data import Fields, from_arrays, held_out, missing_for_critic, open_recording
from qgf.errors import UserError

LENGTHS = (4, 3)
SUCCESS = np.array([0, 1, 0, 1, 0, 0, 0], bool)
TIMEOUTS = np.array([0, 0, 0, 1, 0, 0, 1], bool)


def arrays(**changed):
    steps = np.arange(7)
    return {
        "observations": np.stack([steps, -steps], axis=1).astype(np.float32),
        "actions": np.linspace(-1, 1, 7, dtype=np.float32)[:, None],
        "timeouts": TIMEOUTS,
        **changed,
    }


def recording(**changed):
    """Two episodes, the first of which is solved."""
    return from_arrays(**arrays(success=SUCCESS, **changed))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((7, 2), complex), "observations cannot be used: it is of complex numbers"),
        (np.zeros((7, 2), object), "observations cannot be used: it is of objects"),
        (np.full((7, 2), "far"), "observations cannot be used: it is of text"),
        (np.zeros(7, "M8[s]"), "observations cannot be used: it is of dates"),
        (np.zeros(7, [("x", "f4")]), "observations cannot be used: it is of records"),
        (np.zeros((7, 0)), "observations cannot be used: it is empty"),
        (np.full((7, 2), 1e39), "numbers too large for float32 in observations, first in row 0"),
    ],
)
def test_what_is_no_number_is_refused_by_name(values, said):
    made = from_arrays(**arrays(observations=values))
    with pytest.raises(UserError, match=said):
        made.trajectories()


def test_objects_in_a_file_are_not_unpickled(tmp_path):
    values = np.array([{"a": 1}] * 7, object)
    np.savez(tmp_path / "d.npz", **arrays(notes=values, terminals=TIMEOUTS))
    made = open_recording(tmp_path / "d.npz")
    assert "objects" in made.refused["notes"]
    with pytest.raises(UserError, match="notes cannot be used: it is of objects"):
        made.trajectories(Fields(obs=("notes",)))


def test_nan_in_a_field_that_is_not_used_is_no_matter():
    from_arrays(**arrays(other=np.full(7, np.nan))).trajectories()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (Fields(obs=("observation",)), "no field 'observation'. Did you mean 'observations'"),
        (Fields(action="action"), "no field 'action'. Did you mean 'actions'"),
        (Fields(reward="succes"), "no rewards 'succes'. Did you mean 'success'"),
        (Fields(obs=("actions",)), "actions is the action; it is no observation"),
        (Fields(reward="observations"), "2 numbers per row"),
        (Fields(reward="success:no"), "cannot import 'success'"),
    ],
)
def test_a_field_that_does_not_fit(fields, said):
    with pytest.raises(UserError, match=said):
        recording(next_observations=np.zeros((7, 2))).trajectories(fields)


def test_success_pays_once_and_ends_the_task():
    found = recording().trajectories(Fields(reward="success"))
    assert found.reward.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert found.terminated.tolist() == [False, True, True, True] + [False] * 5
    assert found.success.tolist() == [False, True, False, True] + [False] * 5


def test_the_first_action_may_solve_the_task():
    solved = np.array([0, 0, 0, 1, 1, 0, 0], bool)
    made = from_arrays(**arrays(success=solved))
    found = made.trajectories(Fields(reward="success"))
    assert found.reward.tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert found.terminated.tolist() == [False] * 3 + [True, False, True, True, True, False]
    sparse = made.trajectories(Fields(reward="sparse")).reward
    assert sparse.tolist() == [-1, -1, -1, 0, 0, 0, 0, 0, 0]


def test_sparse_costs_until_success():
    found = recording().trajectories(Fields(reward="sparse"))
    # A last row goes on as its episode did, for those who take returns to go on.
    assert found.reward.tolist() == [-1, 0, 0, 0, 0, -1, -1, -1, -1]
    assert found.terminated.tolist() == [False, True, True, True] + [False] * 5


def test_giving_up_ends_what_earns_by_success_but_not_what_costs_until_then():
    """Where every step costs, to end by failing would look like a gain."""
    made = recording(terminals=np.arange(7) == 6, rewards=np.zeros(7))
    assert made.trajectories(Fields(reward="success")).terminated[7]
    assert not made.trajectories(Fields(reward="sparse")).terminated[7]


def test_rewards_of_states_are_those_of_the_states_reached():
    unseen = from_arrays(**arrays(observations=np.arange(7.0)))
    found = dataclasses.replace(unseen, unseen=None).trajectories(Fields(reward="observations"))
    assert found.reward.tolist() == [1, 2, 3, 3, 3, 5, 6, 6, 6]
    with pytest.raises(UserError, match="observations describes states, and those after the last"):
        unseen.trajectories(Fields(reward="observations"))


def test_only_the_observation_s_own_fields_say_whether_its_last_was_recorded():
    made = from_arrays(**arrays(height=np.arange(7.0), next_observations=np.zeros((7, 2))))
    assert made.trajectories().unseen is None
    found = made.trajectories(Fields(obs=("observations", "height")))
    assert found.unseen.tolist() == found.last.tolist()
    assert found.observation[:, 2].tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    # What came of an action is a reward as it stands.
    assert made.trajectories(Fields(reward="height")).reward.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 6]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the current folder, whose functions are given as text."""
    monkeypatch.chdir(tmp_path)

    def module(text):
        Path("own_rewards.py").write_text(text)
        monkeypatch.delitem(sys.modules, "own_rewards", raising=False)

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return module


def test_rewards_by_a_function(module):
    module("def reached(episode):\n    return -abs(episode['observations'][1:, 0] - 2.0)\n")
    found = recording().trajectories(Fields(reward="own_rewards:reached"))
    assert found.reward.tolist() == [-1, 0, -1, -1, -1, -3, -4, -4, -4]
    assert found.terminated is None


def test_a_function_may_mark_the_task_s_end(module):
    module(
        "def reached(episode):\n"
        "    there = episode['observations'][1:, 0] == 2\n"
        "    return there * 5, there\n"
    )
    found = recording().trajectories(Fields(reward="own_rewards:reached"))
    assert found.reward.tolist() == [0, 5, 0, 0, 0, 0, 0, 0, 0]
    assert found.terminated.tolist() == [False, True] + [False] * 7


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "nowhere:f", "cannot import 'nowhere' of 'nowhere:f'"),
        ("1 / 0", "own_rewards:f", "cannot import 'own_rewards' .*ZeroDivisionError"),
        ("def reward(e): pass", "own_rewards:rewards", "no function 'rewards'. Did you mean"),
        ("def f(e): raise KeyError('x')", "own_rewards:f", "on episode 0 .* raised KeyError: 'x'"),
        ("def f(e): return e['observation']", "own_rewards:f", "raised KeyError|has no field"),
        ("def f(e): return [0.0]", "own_rewards:f", r"shape \(1,\); it has 4 actions"),
        ("def f(e): return 'good'", "own_rewards:f", "returned no numbers as rewards"),
        ("def f(e): return ['1'] * len(e['actions'])", "own_rewards:f", "returned no numbers"),
        ("def f(e): return [0, float('nan'), 0, 0]", "own_rewards:f", "NaN .* first in row 1"),
        ("def f(e): return [0] * 4, [1]", "own_rewards:f", r"marks of shape \(1,\)"),
    ],
)
def test_a_function_that_does_not_give_rewards(module, text, name, said):
    module(text)
    with pytest.raises(UserError, match=said):
        recording().trajectories(Fields(reward=name))


def test_which_rewards_there_could_be():
    assert recording(rewards=np.zeros(7)).rewards() == (
        "rewards",
        "success",
        "sparse",
        "last-step",
        "success-csv:FILE",
        "module:function",
    )
    with pytest.raises(UserError, match="does not say where the task is solved"):
        from_arrays(**arrays()).trajectories(Fields(reward="sparse"))


def test_what_a_critic_lacks():
    assert missing_for_critic(from_arrays(**arrays()).trajectories()) == ("there are no rewards",)
    equal = from_arrays(**arrays(rewards=np.full(7, 2.0), next_observations=np.zeros((7, 2))))
    (line,) = missing_for_critic(equal.trajectories())
    assert line == "all rewards are equal (2): a critic learns nothing from them"
    last_seen = from_arrays(**arrays(rewards=np.arange(7.0), next_observations=np.zeros((7, 2))))
    assert missing_for_critic(last_seen.trajectories()) == ()
    one_ends = from_arrays(**arrays(rewards=np.arange(7.0), terminals=np.arange(7) == 3))
    (line,) = missing_for_critic(one_ends.trajectories())
    assert line.startswith("the last observation of 1 episodes")


@pytest.mark.parametrize(
    ("episodes", "expected"), [(1, []), (2, [1]), (9, [8]), (10, [9]), (35, [9, 19, 29])]
)
def test_held_out_episodes(episodes, expected):
    made = from_arrays(np.zeros((episodes, 1)), np.zeros((episodes, 1)), timeouts=np.ones(episodes))
    assert held_out(made).tolist() == held_out(made.trajectories()).tolist() == expected

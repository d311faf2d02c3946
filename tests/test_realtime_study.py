"""What is executed when chunks come late, and what is measured of it."""

import numpy as np
import pytest

from qgf.tasks import Reply
from studies.realtime import EXECUTED, Way, episodes


class Policy:
    """Chunk k holds the numbers 100 k, 100 k + 1, …, so that what is executed tells its origin."""

    def __init__(self):
        self.asked = []

    def act(self, obs, *, key, weight, **options):
        self.asked.append(options)
        start = 100.0 * (len(self.asked) - 1)
        return np.broadcast_to(start + np.arange(10.0)[:, None], (len(obs), 10, 1))


class Pool:
    """Two episodes; the second ends after one chunk, the first after three."""

    def __init__(self):
        self.executed = {0: [], 1: []}

    def request(self, requests):
        replies = {}
        for slot, (kind, value) in requests.items():
            if kind == "act":
                self.executed[slot] += value[:, 0].tolist()
            end = 5 if slot else 15
            replies[slot] = Reply(
                np.zeros(2, np.float32),
                done=len(self.executed[slot]) >= end,
                success=slot == 0 and kind == "act",
            )
        return replies


@pytest.mark.parametrize("realtime", [False, True])
def test_late_chunks_are_preceded_by_what_is_left(realtime):
    pool, policy = Pool(), Policy()
    found = episodes(pool.request, policy.act, Way(0.1, 2, realtime), [1, 3])
    assert pool.executed[0] == [0, 1, 2, 3, 4, 5, 6, 102, 103, 104, 105, 106, 202, 203, 204]
    assert pool.executed[1] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.wins, [True, False])
    np.testing.assert_array_equal(found.jumps, [96.0**2] * 2)
    # Steps in the first chunk of both episodes, then in two more of the first one.
    np.testing.assert_array_equal(found.others, [1.0] * (2 * (EXECUTED - 1) + 2 * 4))
    assert policy.asked[0] == {}
    for turn, options in enumerate(policy.asked[1:]):
        if realtime:
            left = 100.0 * turn + np.arange(5, 10)
            np.testing.assert_array_equal(options["previous"][0, :, 0], left)
            assert options["delay"] == 2
        else:
            assert options == {}

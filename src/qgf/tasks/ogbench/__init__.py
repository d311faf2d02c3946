"""OGBench: names, faster environments, data from its scripted oracles (in `collect`)."""

from qgf.tasks.ogbench.envs import EnvName as EnvName, make_env as make_env

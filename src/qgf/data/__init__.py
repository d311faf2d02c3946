"""Trajectories as action chunks, with returns or goals, and the folders they lie in."""

from qgf.data.dataset import (
    Batch as Batch,
    Chunks as Chunks,
    Dataset as Dataset,
    returns_to_go as returns_to_go,
)
from qgf.data.goals import (
    GoalBatch as GoalBatch,
    GoalChunks as GoalChunks,
    GoalDataset as GoalDataset,
)
from qgf.data.inspection import (
    Inspection as Inspection,
    format_inspection as format_inspection,
    inspect as inspect,
    missing_for_critic as missing_for_critic,
)
from qgf.data.manifest import (
    Manifest as Manifest,
    Shard as Shard,
    load_manifest as load_manifest,
    read_manifest as read_manifest,
)
from qgf.data.readers import (
    READERS as READERS,
    Column as Column,
    Fields as Fields,
    Reader as Reader,
    Recording as Recording,
    convert as convert,
    from_arrays as from_arrays,
    held_out as held_out,
    open_recording as open_recording,
)
from qgf.data.source import Source as Source
from qgf.data.trajectories import Trajectories as Trajectories

#!/bin/sh
# Meta-World from data to figures, at the root of a checkout: sh examples/metaworld/run.sh [TASK...]
# What is there already is kept, so it can be broken off and run again.
set -e
[ $# -gt 0 ] || set -- drawer-open lever-pull plate-slide
out=out/metaworld
mkdir -p $out
for task; do
    data=$out/$task.npz run=$out/$task
    [ -f $data ] || python -m examples.metaworld.collect $task --out $data
    resume=
    [ ! -f $run/config.json ] || resume=--resume
    qgf train --env examples.metaworld.tasks:$(echo $task | tr - _) --data $data --out $run \
        --seeds 0..1 --steps 3000 --checkpoint-every 1000 $resume
    [ -f $run/eval.json ] || qgf eval $run --method qgf bfn --weights 0.1 0.3 1 3 --best-of 8 \
        --episodes 50 --tune-episodes 10 --workers 1
done

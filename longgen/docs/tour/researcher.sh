#!/usr/bin/env bash
# A researcher's session: what a preset does to attention, which layers are sensitive, numbers with intervals, and exports.
# Runs in an empty folder, on the built-in model and a CPU in a few minutes: bash researcher.sh
set -euo pipefail
export LONGGEN_BACKBONE=tiny LONGGEN_STEPS=4

# A technique: its paper, its equations, its parameters.
longgen techniques show freespec

# The plan: tables of every branch of attention, cost, memory and, for a published model, time. Then the tables as arrays.
longgen plan --preset freespec --frames 161
longgen plan --preset freespec --frames 321 --backbone wan2.1-1.3b --card h100 --gpus 2,4
longgen plan --preset freespec --frames 161 --npz tables.npz

# Which layers are sensitive to position and to context. Presets such as freeloc use the result.
longgen probe --quick --frames 97 --steps 2 --output probed

# A preset of your own: change a parameter, or keep a file.
longgen presets show freespec | sed '1,/^name/s/^name = .*/name = "mine"/' > mine.toml
longgen plan --preset mine.toml --set freespec.kappa=2 --frames 161 --json > plan.json

# A grid: presets x prompts x seeds, with paired differences and their intervals. The same command goes on after a stop.
printf '%s\n' "a large red circle bouncing on a navy background" "a small cyan triangle orbiting on a sand background" > prompts.txt
longgen compare --presets direct,freespec --prompts prompts.txt --seeds 0,1 --frames 97 --metrics motion,drift --output grid --json > grid.json
longgen compare grid --metrics own --export csv,latex,svg
longgen compare grid --export-vbench vbench

# What a step costs: counted, and measured here.
longgen bench --presets direct,freespec --frames 97 --repeats 1 --output bench.json --export csv

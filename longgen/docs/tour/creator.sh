#!/usr/bin/env bash
# A creator's session: a video from a sentence, from a picture, longer, and two presets beside each other.
# Runs in an empty folder, on the built-in model and a CPU in a few minutes: bash creator.sh
set -euo pipefail
export LONGGEN_BACKBONE=tiny LONGGEN_STEPS=6

# Whether this machine is ready, and what to try first on it.
longgen doctor
longgen presets list --backbone tiny

# A video from a sentence. The file is named after it.
longgen "a large red circle bouncing on a navy background" --seed 1

# Longer than the model was trained on: a preset is recommended and named. A strip of frames is kept while it is made.
longgen "a large red circle bouncing on a navy background" --duration 8s --seed 1 --preview -o ball.mp4

# For a chat window or a web page.
longgen "a small cyan triangle orbiting on a sand background" --seed 1 -o triangle.gif
longgen decode ball.run -o ball.webm

# The same as often as you like: without a seed one is drawn and printed; several at once share the loaded model.
longgen "a small cyan triangle orbiting on a sand background" --seeds 0,1 --output triangles

# With a preset of your choice. First what it would cost, then the video.
longgen "a large red circle bouncing on a navy background" --preset freespec --frames 161 --seed 1 -o long.mp4 --dry-run
longgen "a large red circle bouncing on a navy background" --preset freespec --frames 161 --seed 1 -o long.mp4

# Go on from a video, or begin with a picture.
longgen "a large red circle bouncing on a navy background" --continue long.mp4 --frames 33 --join --seed 2 -o longer.mp4
python -c "from PIL import Image; Image.new('RGB', (64, 64), 'navy').save('navy.png')"
longgen "a large red circle bouncing on a navy background" --image navy.png --seed 3 -o picture.mp4

# Two presets side by side, as a video, a table and a page.
longgen compare --presets direct,freespec --prompt "a large red circle bouncing on a navy background" --frames 161 -o compared

# What made a video, and the command that makes it again.
longgen inspect long.mp4
echo "open compared/report.html"

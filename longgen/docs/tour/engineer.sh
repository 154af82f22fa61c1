#!/usr/bin/env bash
# An engineer's session: the Python functions, JSON lines, exit codes, and a run that goes on after a kill.
# Runs in an empty folder, on the built-in model and a CPU in a few minutes: bash engineer.sh
set -euo pipefail
export LONGGEN_BACKBONE=tiny LONGGEN_STEPS=4

# Is this machine ready?
longgen doctor --json > doctor.json || true

# One line of JSON for each video as it is finished; people read stderr.
printf '%s\n' '{"prompt": "a large red circle bouncing on a navy background", "seed": 1}' \
    '{"prompt": "a small cyan triangle orbiting on a sand background", "seed": 2, "preset": "freespec", "frames": 97}' > jobs.jsonl
longgen generate --prompts jobs.jsonl --output batch --json --log-file batch.log | tee lines.jsonl

# What cannot be is refused before the work, with an exit code of its own: 2 for a wrong option.
longgen generate --prompt "a red circle" --preset free-spec --json && exit 1 || test $? = 2

# Stopped in its midst, a run leaves a checkpoint (exit code 75 for SIGTERM) and goes on where it was; so it does after kill -9.
longgen generate --prompt "a large red circle bouncing on a navy background" --seed 1 --frames 97 --steps 20 -o stopped.mp4 &
until test -f stopped.run/checkpoint.safetensors; do sleep 0.05; done
kill -TERM $!
wait $! && exit 1 || test $? = 75
longgen generate -o stopped.mp4 --resume

# The same in Python, on a model that stays loaded.
python - <<'END'
import longgen

with longgen.load("tiny") as model:
    for seed in range(2):
        video = model.generate("a large red circle bouncing on a navy background", f"seed-{seed}.mp4", frames=33, steps=4, seed=seed)
        print(video.path, video.seconds)
try:
    longgen.generate("a red circle", "x.mp4", backbone="tiny", frames=97, duration="4s")
except longgen.LonggenError as error:
    print(error.exit_code, error.given, error.expected, error.hint, sep=" | ")
END

# What the files hold, as JSON Schema.
longgen docs run.json > run.schema.json
longgen inspect stopped.mp4 --json > stopped.json

"""Hints for what the option parser does not know: words of other programs, near names, and where an option is at home.

A hint names options of the command at hand only, so that what it says works there.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable
from typing import Any

from longgen.cli import help as help_text
from longgen.errors import LonggenError, shown
from longgen.textfile import on_one_line

SYNONYMS = (  # words of other programs; the parameters here that they may mean; how these are written
    ("length video-length num-frame nframes frame-num n-frames frame-count", "frames duration",
     "--frames N counts frames, --duration 20s seconds"),
    ("seconds secs time minutes", "duration frames", "--duration 20s, 1m30s or 1:30; --frames N counts frames"),
    ("width height resolution res w h dimensions video-size image-size aspect-ratio", "size", "--size WIDTHxHEIGHT, as 832x480"),
    ("model model-id model-path model-name ckpt checkpoint checkpoint-dir ckpt-dir pretrained pretrained-model weights unet "
     "transformer", "backbone", "--backbone NAME|HUB-ID|DIR|FILE"),
    ("negative neg neg-prompt n-prompt uncond-prompt", "negative_prompt", "--negative-prompt TEXT"),
    ("text caption description positive-prompt", "prompt", "--prompt TEXT"),
    ("prompt-file prompts-file batch-file", "prompts", "--prompts FILE"),
    ("out output-dir out-dir outdir output-path output-file save save-file save-path dest", "output", "--output, or -o"),
    ("gpu num-gpus n-gpu ngpus nproc nproc-per-node world-size ulysses-size", "gpus device",
     "--gpus N splits one video; --device cuda:1 chooses a GPU"),
    ("cuda cpu mps device-id", "device", "--device cpu, cuda or cuda:1"),
    ("precision half fp16 bf16 fp32 torch-dtype", "dtype", "--dtype fp32, bf16 or fp16"),
    ("fp8 int8 quant quantization load-in-8bit", "quantize", "--quantize fp8 or int8"),
    ("lowvram low-vram cpu-offload offload-model enable-model-cpu-offload sequential-offload vram", "offload",
     "--offload model, group or sequential"),
    ("method technique mode config strategy", "preset presets", "--preset NAME|FILE.toml"),
    ("guidance cfg-scale guide-scale sample-guide-scale", "guidance_scale", "--guidance-scale X, or --cfg X"),
    ("shift sample-shift timestep-shift", "flow_shift", "--flow-shift X"),
    ("sample-steps sampling-steps num-steps inference-steps n-steps", "steps", "--steps N"),
    ("sampler scheduler sample-solver", "flow_shift", "each backbone has its publisher's; --flow-shift X shifts it"),
    ("img input input-image init-image image-path first-frame start-image start i2v", "image", "--image FILE"),
    ("end-image last-frame end-frame end", "last_image", "--last-image FILE, with --image"),
    ("extend input-video video from-video init-video", "continue_from", "--continue VIDEO goes on from it"),
    ("num-videos n num samples num-samples batch batch-size variations repeat", "seeds", "--seeds 0,1,2 makes a video with each"),
    ("random-seed rng manual-seed base-seed", "seed", "--seed N, or none: one is drawn and printed"),
    ("framerate frame-rate rate", "fps", "--fps N"),
    ("force f y yes clobber", "overwrite", "--overwrite"),
    ("verbose v debug log logfile", "log_file", "--log-file FILE; LONGGEN_DEBUG=1 shows tracebacks"),
    ("silent s", "quiet", "--quiet, or -q"),
    ("format", "as_json", "--json"),
    ("loras lora-path lora-scale lora-weight", "lora", "--lora PATH[:SCALE]"),
    ("teacache tea-cache cache-threshold", "cache", "--cache first-block or mag, as first-block:0.05"),
    ("vae-path", "vae", "--vae FILE"),
    ("tiling tile vae-slicing enable-vae-tiling", "vae_tiling", "--vae-tiling"),
    ("test check simulate", "dry_run", "--dry-run"),
)  # fmt: skip
NOWHERE = (  # what no command has
    ("music audio sound soundtrack voice", "only ltx-2 makes sound, without being asked; add other sound to the file with ffmpeg"),
    ("interpolate interpolation upscale upscaler", "longgen neither upscales nor interpolates; ffmpeg's filters can"),
    ("version", "longgen --version"),
)
NO_PROMPT = 'a plan is the same for every prompt and seed; longgen generate "..." --dry-run takes the whole command'
OF_COMMAND = {
    ("bench", "steps"): "--repeats K: how often each type of step is measured; --steps are denoising steps elsewhere",
    ("plan", "export"): "--npz FILE.npz writes the tables of a plan; --export writes results for papers elsewhere",
    ("inspect", "schedule"): "--shots prints its schedule; --schedule FILE reads one elsewhere",
    **{("plan", word): NO_PROMPT for word in ("prompt", "p", "prompts", "negative-prompt", "seed", "seeds", "output", "o")},
}
COMMAND_SYNONYMS = (
    ("run create make gen video sample t2v i2v txt2vid infer inference render continue extend resume", "generate"),
    ("models model backbone list-models", "backbones list"),
    ("preset list methods ls", "presets list"),
    ("technique", "techniques list"),
    ("benchmark time speed profile", "bench"),
    ("eval evaluate metrics score diff grid", "compare"),
    ("info show metadata settings", "inspect"),
    ("dry-run estimate explain cost", "plan"),
    ("check env diagnose status", "doctor"),
    ("man manual readme", "docs"),
    ("help", "--help"),
    ("version", "--version"),
)
VALUES = (  # of options with few values: the parameter, what people write, what to do
    ("seed", "random -1 none auto rand", "leave --seed out: a seed is drawn and printed"),
    ("dtype", "float16 half f16 torch.float16", "--dtype fp16"),
    ("dtype", "bfloat16 bf torch.bfloat16", "--dtype bf16"),
    ("dtype", "float32 float full f32", "--dtype fp32"),
    ("dtype", "fp8 int8 8bit", "--quantize fp8 or int8 stores weights in 8 bits"),
    ("offload", "cpu true yes on auto", "--offload model, or group for less memory yet"),
    ("offload", "false no off", "--offload none"),
    ("quantize", "int4 nf4 4bit gguf q4 q8", "--backbone FILE.gguf has weights of 4 bits and more"),
    ("quantize", "none off no", "leave --quantize out"),
)


def _meant(word: str, rows: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The rest of the row whose first words have `word`."""
    return next((row[1:] for row in rows if word in row[0].split()), None)


def is_prompt(word: str) -> bool:
    """Whether the first word after `longgen`, which is no command, is a prompt: it has a space, or letters that no command has."""
    return not word.startswith("-") and (any(letter.isspace() for letter in word.strip()) or not word.isascii())


def usage_error(error: Any, root: Any) -> LonggenError:
    """The error of the option parser as one of longgen's. root: the command `longgen`."""
    context = error.ctx
    path = context.command_path if context is not None else "longgen"
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ") if context is not None else "a value for the option"
    given = str(getattr(error, "message", "") or error.format_message()).strip().rstrip(".")
    if (name := getattr(error, "option_name", None)) and type(error).__name__ == "NoSuchOption":
        return LonggenError(given, *_of_option(name, error, root, path))
    parameter = getattr(error, "param", None)
    if parameter is not None and parameter.param_type_name == "option" and type(error).__name__ == "BadParameter":
        return _of_value(error, parameter, given, path)
    if name and context is not None:  # without its value
        lone = next((one for one in context.command.params if name in one.opts), None)
        if lone is not None:
            return LonggenError(given, _described(lone, context), f"{path} --help")
    if given.startswith("No such command"):
        return _of_command(given, context, path)
    if given.startswith("Got unexpected extra argument") and context is not None:
        return LonggenError(given, usage, f"text with spaces needs quotes; {path} --help")
    return LonggenError(re.split(r"\.? Did you mean", given)[0], usage, f"{path} --help")


def _of_option(name: str, error: Any, root: Any, path: str) -> tuple[str, str]:
    """What is expected in place of the unknown option `name`, and a hint."""
    word, command = name.lstrip("-").replace("_", "-").lower(), error.ctx.command
    own = {parameter.name: parameter for parameter in command.params if parameter.param_type_name == "option"}
    spelled = [option for parameter in own.values() for option in parameter.opts if option.startswith("--")]
    every, where = f"an option of {path}", f"{path} {help_text.ALL} lists every option"
    if special := OF_COMMAND.get((command.name, word)):
        return every, special
    if nowhere := _meant(word, NOWHERE):
        return every, nowhere[0]
    homes = [other for other, below in sorted(root.commands.items()) if other != command.name
             if any(f"--{word}" in parameter.opts or name in parameter.opts for parameter in below.params)]  # fmt: skip
    if homes and hasattr(command, "commands"):
        return (
            "options after the command",
            f"longgen {'generate' if 'generate' in homes else homes[0]} ... {name}; a prompt comes first",
        )
    targets, how = _meant(word, SYNONYMS) or ("", "")
    if present := [target for target in targets.split() if target in own]:
        return every, how if present == targets.split() else _described(own[present[0]], error.ctx)
    if homes:
        return every, f"{name} is an option of longgen {', '.join(help_text.ordered(homes))}; {where}"
    near = difflib.get_close_matches(f"--{word}", spelled, n=3, cutoff=0.6) if name.startswith("--") else []
    near = near or [option for option in spelled if len(word) > 2 and (word in option or option.strip("-") in word)][:3]
    return every, f"did you mean {' or '.join(near)}?" if near else where


def _of_value(error: Any, parameter: Any, given: str, path: str) -> LonggenError:
    """The error for a value that an option does not take, which it names."""
    option = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    value = error.ctx.meta.get("longgen.given", {}).get(parameter.name) if error.ctx is not None else None
    origin = ""
    if value is None and parameter.envvar:
        value, origin = os.environ.get(str(parameter.envvar)), f" (of {parameter.envvar})"
    reason = re.sub(r"^Value error, ", "", given)
    if match := re.fullmatch(r"Input (should be .*?)(, unable to .*|, got .*)?", reason):
        reason = f"{shown(value)} {match[1]}"
    meant = _meant(str(value).lower(), [row[1:] for row in VALUES if row[0] == parameter.name])
    known = meant[0] if meant else None
    if known is None and parameter.name == "frames" and re.fullmatch(r"[\d.:]*\d\s*[a-z:.]+[\d.a-z]*", str(value)):
        known = f"--duration {shlex.quote(str(value))}"
    return LonggenError(f"Invalid value for '{option}'{origin}: {reason}", _described(parameter, error.ctx),
                        known or f"{path} --help")  # fmt: skip


def _described(parameter: Any, context: Any) -> str:
    """An option with its value and its help."""
    _, value, text = help_text.row(parameter, context, everything=False)
    option = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    return f"{option} {value}: {text}"


def _of_command(given: str, context: Any, path: str) -> LonggenError:
    """The error for an unknown command, with the nearest and how a prompt is given."""
    word = next(iter(re.findall(r"'(.*)'", given.partition("Did you mean")[0])), "")
    commands = context.command.list_commands(context)
    top = context.parent is None
    known = _meant(word.lower(), COMMAND_SYNONYMS) if top else None
    near = difflib.get_close_matches(word, commands, n=2, cutoff=0.6) or [
        name for name in commands if name.startswith(word) and word
    ]
    hints = [f"longgen {known[0]}"] if known else [f"did you mean {' or '.join(near)}?"] if near else []
    if top and not near and not known:
        hints.append(f"a prompt of one word: longgen generate {shlex.quote(on_one_line(word, 60))}; of several, in quotes")
    return LonggenError(f"No such command {shown(word)}", f"one of {', '.join(commands)}", hints[0] if hints else f"{path} --help")

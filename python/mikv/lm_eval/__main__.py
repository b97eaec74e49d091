"""python -m mikv.lm_eval: lm-eval's own command, with the model mikv-hf."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from .._cli import INTERRUPTED, USAGE, UsageError, load_tokenizer, run
from ..spec import Spec

_HELP = """\
usage: python -m mikv.lm_eval --model mikv-hf --model_args pretrained=DIR[,gguf_file=FILE][,spec=SPEC] --tasks ...

lm-eval's own command with one more model, mikv-hf: Transformers with a mikv cache.
example:
  python -m mikv.lm_eval --model mikv-hf --model_args pretrained=~/models,gguf_file=qwen.gguf,spec=mikv \\
      --tasks mmlu_astronomy --limit 50 --output_path results

  spec=SPEC   how tokens are held (default: mikv), for example spec=mikv:keep=0.2,hi=f16
  piece=N     tokens of a continuation that one pass reads, 1 to 64 (default: 32)
With --use_cache FILE, what is done is kept after Ctrl-C. --output_path DIR writes JSON.
`python -m mikv.lm_eval run --help` lists lm-eval's options, which all work.
"""


def model_args(values: list[str]) -> list[str]:
    """lm-eval's --model_args with a home directory written out and, for a GGUF file, a tokenizer by name.

    Tasks that make their own texts (RULER) load the tokenizer by name, and a GGUF file has none. lm-eval splits at commas:
    the parts of a spec get semicolons.
    """
    if len(values) == 1 and values[0].lstrip().startswith("{"):
        return values  # JSON
    given: dict[str, str] = {}
    last = ""
    for part in ",".join(values).split(","):
        name, equals, value = part.partition("=")
        if not part:
            continue
        if not equals:
            raise UsageError(f"--model_args: {part!r} has no value; write name=value")
        if last == "spec" and _is_spec_key(name):
            given["spec"] += f"{';' if ':' in given['spec'] else ':'}{part}"
        else:
            given[name], last = value, name
    if given.get("pretrained", "").startswith("~"):
        given["pretrained"] = str(Path(given["pretrained"]).expanduser())
    if "gguf_file" in given and "tokenizer" not in given and "pretrained" in given:
        given["tokenizer"] = str(saved_tokenizer(given["pretrained"], given["gguf_file"]))
    return [",".join(f"{name}={value}" for name, value in given.items())]


def _is_spec_key(name: str) -> bool:
    try:
        Spec(f"mikv:{name}=")
    except ValueError as error:
        return "unknown spec key" not in str(error)  # else it asks for a value
    return True


def saved_tokenizer(model: str, gguf: str) -> Path:
    """The tokenizer of a GGUF file as a directory, made once."""
    file = Path(model) / gguf
    state = f"{file.resolve()} {file.stat().st_mtime_ns if file.exists() else 0}"
    cache = Path(os.environ.get("MIKV_CACHE", Path.home() / ".cache" / "mikv"))
    folder = cache / "tokenizers" / f"{file.stem}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"
    if not (folder / "tokenizer_config.json").exists():
        load_tokenizer(model, gguf).save_pretrained(folder)
    return folder


def with_model_args(arguments: list[str]) -> list[str]:
    """The command line with its --model_args rewritten by model_args()."""
    out: list[str] = []
    at = 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        at += 1
        if name not in ("--model_args", "-a"):
            out.append(arguments[at - 1])
            continue
        values = [value] if equals else []
        while at < len(arguments) and not arguments[at].startswith("-"):
            values.append(arguments[at])
            at += 1
        out += ["--model_args", *model_args(values)]
    return out


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    sys.argv = ["lm-eval", *with_model_args(arguments)]
    from . import model  # noqa: F401, I001  imports lm-eval with a remedy, and registers mikv-hf
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except KeyboardInterrupt:
        kept = (
            "what is done is in --use_cache"
            if "--use_cache" in arguments
            else "give --use_cache FILE to keep what is done"
        )
        print(f"\nmikv.lm_eval: interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else USAGE
    return 0


if __name__ == "__main__":
    sys.exit(run("mikv.lm_eval", main, sys.argv[1:]))

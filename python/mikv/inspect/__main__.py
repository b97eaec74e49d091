"""python -m mikv.inspect: a page that shows which tokens of a prompt a cache holds in which tier."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from .. import _page
from .._cli import (
    Parser,
    Progress,
    UsageError,
    check_folder_of,
    load_model,
    load_tokenizer,
    model_name,
    run,
)
from .._files import write_whole

_EPILOG = """\
example:
  python -m mikv.inspect --model ~/.cache/mikv/models --gguf smollm2-135m.gguf -f PROMPT.txt --kv mikv --kv h2o -o page.html

The page holds all that it needs, and opens in any browser. docs/pictures.md says what it shows.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "mikv.inspect",
        "Writes a page that shows the tokens of a prompt and its answer by tier and importance.",
        _EPILOG,
    )
    parser.add_argument("-m", "--model", required=True, metavar="DIR_OR_NAME", help="as from_pretrained() takes it")
    parser.add_argument("--gguf", metavar="FILE", help="the GGUF file in that directory")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (default)")
    parser.add_argument("-f", "--file", required=True, metavar="PROMPT.txt", help="the prompt; - is standard input")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument(
        "--kv", action="append", metavar="SPEC", help="how tokens are held (default: mikv); once or twice"
    )
    parser.add_argument("-n", type=int, default=16, metavar="N", help="most tokens of the answer (default: 16)")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE.html", help="where to write the page")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    specs = options.kv or ["mikv"]
    if len(specs) > 2:
        raise UsageError(f"--kv is given {len(specs)} times; the page has room for two")
    if options.n < 1:
        raise UsageError(f"-n {options.n} is no number of tokens; give 1 or more")
    check_folder_of(options.output)
    text = read_prompt(options.file)
    quiet_libraries(offline=options.gguf is not None or options.model.endswith(".gguf"))
    from ..spec import Spec
    from . import page
    from .record import hold, pieces

    for spec in specs:
        Spec(spec)  # a wrong one is told before the model is loaded
    tokenizer = load_tokenizer(options.model, options.gguf)
    ids = prompt_ids(tokenizer, text, options.chat)
    model = load_model(options.model, options.gguf, options.dtype, "mikv")
    check_length(len(ids), options.n, model)
    progress = Progress("cache", len(specs))
    runs = []
    for spec in specs:
        runs.append(hold(model, ids, spec, options.n))
        progress.step()
    texts = [pieces(tokenizer, ids + held.answer) for held in runs]
    prompt, answers = pieces(tokenizer, ids), [whole[len(ids) :] for whole in texts]
    command_line = _page.command("mikv.inspect", arguments)
    name = model_name(options.model, options.gguf)
    write_whole(options.output, page.build(name, prompt, runs, answers, command_line))
    kept = ", ".join(f"{held.spec} {held.usage.bits_per_element:.2f}" for held in runs)
    print(f"{options.output}: {len(ids)} tokens of prompt; bits per element: {kept}")
    return 0


def read_prompt(file: str) -> str:
    """The prompt, as UTF-8; other bytes become U+FFFD, which the page shows."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the prompt {file}: {error.strerror}; give a text file with -f") from error
    text = data.decode("utf-8", "replace")
    if not text.strip():
        raise UsageError(f"the prompt {file} is empty; give a text file with -f")
    return text


def prompt_ids(tokenizer: Any, text: str, chat: bool) -> list[int]:
    if chat and not getattr(tokenizer, "chat_template", None):
        raise UsageError("--chat: the model has no chat template; leave --chat out")
    if chat:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    return [int(i) for i in ids]


def check_length(n_prompt: int, n_new: int, model: Any) -> None:
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most and n_prompt + n_new > most:
        raise UsageError(
            f"the prompt has {n_prompt} tokens and the answer up to {n_new}, but the model reads {most}; "
            "give a shorter prompt or a smaller -n"
        )


def quiet_libraries(offline: bool) -> None:
    """Lets no progress bars and no warnings of libraries stand between the lines of the command."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(run("mikv.inspect", main, sys.argv[1:]))

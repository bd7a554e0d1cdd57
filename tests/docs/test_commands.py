"""Every command of the documentation: known to its program, with flags and values that it takes.

Blocks of bash are run by bash with stand-ins for all programs, so that loops, variables and quotes
are its own. What they would start is then given to the programs' own parsers. Nothing is executed.
"""

import importlib
import pathlib
import re
import shlex
import subprocess

import pytest

from contextdiff_jax.__main__ import COMMANDS
from tests.docs.pages import PAGES, ROOT, blocks, calls, spans

NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
ENTRIES = {module for module, _ in COMMANDS.values()}
# Inline: `python -m contextdiff_jax.main --x`, `contextdiff train --x` and `main --x` in a table.
_INLINE = re.compile(
    rf"(?:python -m contextdiff_jax\.({'|'.join(ENTRIES)})|contextdiff ({'|'.join(COMMANDS)})"
    rf"|({'|'.join(ENTRIES)})) (--.*)"
)

# Benchmarks that give their flags to an entry point, and pages whose keys are not the paper's.
PASSED_ON = {"benchmarks.memory_growth": "main"}
CONFIGS = {
    "docs/in_context.md": (
        "--config=configs/in_context.py:stable_diffusion",
        "--config.model=folder",
        "--config.encoders.clip.path=folder",
    )
}


def check(words, forks):
    """Fails where a program would not take these words."""
    program, *rest = words
    if program in ("python", "python3") and rest[:1] == ["-m"]:
        check_module(rest[1], rest[2:], forks)
    elif program == "contextdiff":
        check_entry(COMMANDS[rest[0]][0], rest[1:], forks)
    elif program.startswith("launch/"):
        check_launch(program, rest, forks)
    elif program in ("pip", "bash"):
        for file in [word for word in rest if re.fullmatch(r"requirements.*\.txt|.*\.sh", word)]:
            assert (ROOT / file).exists(), words


def check_module(module, rest, forks):
    package, _, name = module.partition(".")
    if package == "contextdiff_jax":
        check_entry(name or COMMANDS[rest.pop(0)][0], rest, forks)
    elif module in PASSED_ON:
        check_entry(PASSED_ON[module], [word for word in rest if word.startswith("--")], forks)
    elif package == "benchmarks":
        text = (ROOT / f"benchmarks/{name}.py").read_text()
        changes = [word for word in rest if word.startswith("--config.")]
        if changes:
            assert "parse_with_changes(" in text, f"{module} takes no keys of a config"
            [config] = [word for word in rest if word.startswith("--config=")]
            file, colon, preset = config.partition(":")
            whole = file.replace("=", "=configs/") + ".py" + colon + preset
            check_entry("main", [whole, "--workdir=runs", *changes], forks)
        flags = [word for word in rest if word.startswith("--") and word not in changes]
        for flag in [word.partition("=")[0] for word in flags]:
            assert re.search(rf'(add|add_argument)\("{flag}"', text), f"{module} has no {flag}"
    elif module == "pytest":
        folders = [word for word in rest if word.startswith("tests/")]
        assert all((ROOT / folder).exists() for folder in folders), rest
    else:
        assert module == "venv", module


def check_entry(entry, arguments, forks):
    done = forks("tests.docs.parsed", entry, *arguments)
    assert done.returncode == 0, f"{entry} {shlex.join(arguments)}\n{done.stderr}"


def check_launch(script, rest, forks):
    """The script's own dry run; what stands behind -- is for the training command, or --module."""
    own = rest[: rest.index("--")] if "--" in rest else rest
    action = [] if not own or own[0].startswith("--") else [own[0]]
    command = ["bash", str(ROOT / script), *action, "--dry-run", *rest[len(action) :]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{shlex.join(rest)}\n{done.stderr}"
    if "--" in rest:
        modules = [word.partition("=")[2] for word in own if word.startswith("--module=")]
        check_module((modules or ["contextdiff_jax.main"])[0], rest[len(own) + 1 :], forks)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_block_is_one_that_its_program_takes(name, tmp_path, forks):
    for words in calls(blocks(ROOT / name), tmp_path):
        check(words, forks)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_the_text_is_one_that_its_program_takes(name, forks):
    for span in spans(ROOT / name):
        found = _INLINE.fullmatch(span)
        if found and "=..." not in span:
            entry = found[1] or found[3] or COMMANDS[found[2]][0]
            words = shlex.split(found[4])
            if any(word.startswith(("--config=", "--export=", "--workdir=")) for word in words):
                check_entry(entry, words, forks)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_and_preset_is_there(name):
    text = (ROOT / name).read_text()
    printed = re.findall(r"^# configs/(\w+)\.py$", text, re.M)  # tutorials write some
    for config, preset in re.findall(r"configs/(\w+)\.py(?::(\w+))?", text):
        if config in printed:
            continue
        module = importlib.import_module(f"configs.{config}")
        assert preset in module.PRESETS, f"configs/{config}.py:{preset}"


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_config_is_there(name, forks):
    """`--config.KEY=VALUE` of the text, tried on the paper's config, which has every section, or
    on that of video editing."""
    keys = [span for span in spans(ROOT / name) if re.fullmatch(r"--config\.[\w.]+=\S+", span)]
    if keys and name == "docs/video.md":
        needed = ("model", "clip", "source_prompt", "prompt", "output")
        given = [f"--{flag}=x" for flag in needed]
        check_entry("edit", ["--config=configs/video_editing.py", *given, *keys], forks)
    elif keys:
        config = CONFIGS.get(name, ["--config=configs/laion.py"])
        check_entry("main", [*config, "--workdir=runs", *keys], forks)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_the_code_is_there(name):
    for span in spans(ROOT / name):
        if re.fullmatch(r"[\w/]+/\w+\.(py|sh)|tests/[\w/]+", span):
            places = [ROOT, ROOT / "contextdiff_jax", (ROOT / name).parent]
            assert any((place / span).exists() for place in places), f"{span} is not there"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("python -m contextdiff_jax.main --config=configs/quickstart.py", "--workdir is missing"),
        ("contextdiff sample --exprot=a --output=b", "unknown flag"),
        (
            "python -m contextdiff_jax.main --config=configs/laion.py --workdir=a \\\n"
            "    --config.runs.base.task.unet.groups=5",
            "groups = 5",
        ),
        (
            "for i in 1; do contextdiff sample --export=a --output=b --sampler=stepz=$i; done",
            "stepz",
        ),
        ("python -m benchmarks.scale --again", "no --again"),
        ("launch/local.sh --processors=1 -- --config=configs/laion.py", "processors"),
        ("launch/local.sh -- --config=configs/laion.py --workdri=a", "workdri"),
        ("no_such_program --x", "no_such_program: command not found"),
        ("if true; then", "syntax error"),
    ],
)
def test_a_wrong_command_is_found(script, sentence, tmp_path, forks):
    with pytest.raises(AssertionError, match=sentence):
        for words in calls(script, tmp_path):
            check(words, forks)


def test_a_block_is_split_as_bash_does(tmp_path):
    page = pathlib.Path(tmp_path / "page.md")
    page.write_text(
        "a\n```bash\nX='a b'\n```\n```\nno bash\n```\n```bash ci\npip $X \"$X\" # c\n```\n"
    )
    assert calls(blocks(page), tmp_path) == [["pip", "a", "b", "a b"]]


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 6 * 1024

"""Ordinary mistakes at the command line: each ends with one sentence and exit code 2."""

import pytest

QUICK = "--config=configs/quickstart.py:test"
EXPORT = ["--export={tmp}/export", "--output={tmp}/out"]
CONFIGS = {
    "raises.py": "def get_config():\n    return 1 / 0\n",
    "syntax.py": "def get_config(:\n",
    "imports.py": "import no_such_module\n",
    "none.py": "def get_config():\n    return None\n",
    "nothing.py": "",
    "opens.py": "def get_config():\n    open('/no/such/file')\n",
}


@pytest.fixture(scope="module")
def run(forks):
    return forks


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with things that are not what a flag asks for."""
    tmp = tmp_path_factory.mktemp("places")
    (tmp / "export").mkdir()
    (tmp / "folder").mkdir()
    (tmp / "published").mkdir()
    (tmp / "published/model_index.json").write_text("{}")
    (tmp / "bytes.txt").write_bytes(b"a red circle\n\xff\xfe\n")
    (tmp / "prompts.txt").write_text("a red circle\n")
    (tmp / "none.png").write_text("no picture")
    for name, text in CONFIGS.items():
        (tmp / name).write_text(text)
    return tmp


MISTAKES = [
    # The config's file and preset.
    ("main", ["--config=nofile.py", "--workdir={tmp}/w"], "--config=nofile.py: no such file"),
    (
        "main",
        ["--config=config/quikstart.py:test", "--workdir={tmp}/w"],
        "no such file; did you mean configs/quickstart.py?",
    ),
    ("main", ["--config=configs", "--workdir={tmp}/w"], "--config=configs: is a folder"),
    ("main", ["--config=", "--workdir={tmp}/w"], "--config= is empty"),
    (
        "main",
        ["--config=configs/quickstart.py:tset", "--workdir={tmp}/w"],
        "preset 'tset': must be one of '', 'adapter', 'plain', 'test'; did you mean test?",
    ),
    ("main", ["--config={tmp}/raises.py", "--workdir={tmp}/w"], "line 2: ZeroDivisionError"),
    ("main", ["--config={tmp}/syntax.py", "--workdir={tmp}/w"], "SyntaxError: invalid syntax"),
    ("main", ["--config={tmp}/imports.py", "--workdir={tmp}/w"], "No module named 'no_such"),
    ("main", ["--config={tmp}/none.py", "--workdir={tmp}/w"], "get_config returns NoneType"),
    ("main", ["--config={tmp}/nothing.py", "--workdir={tmp}/w"], "no attribute 'get_config'"),
    ("main", ["--config={tmp}/opens.py", "--workdir={tmp}/w"], "/no/such/file"),
    ("main", ["--config={tmp}/raises.py:tiny", "--workdir={tmp}/w"], "1 was given"),
    (
        "main",
        ["--config={tmp}/opens.py", "--config.seed=1", "--workdir={tmp}/w"],
        "/no/such/file",
    ),
    ("prepare", ["--config=nofile.py", "--run=base", "--output={tmp}/o"], "no such file"),
    ("compile", ["--config=nofile.py", "--topology=cpu:4"], "no such file"),
    # Keys of the config.
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.stepz=3"],
        "--config.runs.base.stepz=3: config.runs.base has no key 'stepz', it has ",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.stepz", "3"],
        "did you mean config.runs.base.steps?",
    ),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.run.base.steps=3"], "mean config.runs?"),
    ("main", [QUICK, "--workdir={tmp}/w", "--noconfig.use_adaptor"], "mean config.use_adapter?"),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.seed.x=3"], "config.seed is 0, which has no"),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.task=contrastive"],
        "config.runs.base.task is a section; set one of its keys: config.runs.base.task.adapter,",
    ),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.=3"], "config has no key ''"),
    ("main", ["--config.seed=1", QUICK, "--workdir={tmp}/w"], "before a value for --config"),
    ("main", ["--config.seed=1", "--workdir={tmp}/w"], "--config.seed=1: a key of --config=FILE"),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.steps=many"],
        "--config.runs.base.steps=many: must be an integer",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.optimizer.learning_rate=fast"],
        "learning_rate=fast: must be a number",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.use_adapter=perhaps"],
        "--config.use_adapter=perhaps: must be true or false",
    ),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.runs.base=3"], "--config.runs.base=3: "),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.pipeline=(1,"], "pipeline"),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.pipeline[9]=x"], "config"),
    ("main", [QUICK, "--workdir={tmp}/w", "--config.runs[base]=x"], "config"),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.encoders.text.max_length=ten"],
        "config.encoders.text.max_length is None there",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.task.sampler.name=dimm"],
        "sampler.name = 'dimm': must be one of ddpm, ddim, dpm_solver++, plms, euler, heun, ab2, "
        "mean_flow; did you mean ddim?",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", f"--config.runs.base.steps={10**30}"],
        f"config.runs.base.steps = {10**30}: must fit into 64 bits",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.runs.base.task.diffusion.relation_consistency=nan"],
        "relation_consistency=nan: must be a finite number",
    ),
    ("main", [QUICK, "--workdir={tmp}/w", "--run=bsae"], "clip, base, sr; did you mean base?"),
    # Seeds.
    ("main", [QUICK, "--workdir={tmp}/w", "--config.seed=-1"], "config.seed = -1: must be a seed"),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", f"--config.seed={2**63 - 1}"],
        f"config.seed = {2**63 - 1}: must be at most 4,294,967,295",
    ),
    (
        "main",
        [QUICK, "--workdir={tmp}/w", "--config.samples.seed=-2"],
        "config.samples.seed = -2: must be",
    ),
    ("sample", [*EXPORT, "--prompt=x", "--seed=-1"], "--seed=-1: must be an integer in the range"),
    ("sample", [*EXPORT, "--prompt=x", f"--seed={2**32}"], f"--seed={2**32}: must be an integer"),
    ("sample", [*EXPORT, "--prompt=x", "--seed=one"], "--seed=one: must be an integer"),
    ("evaluate", [*EXPORT, "--seed=-1"], "--seed=-1: must be an integer"),
    ("evaluate", [*EXPORT, f"--caption_seed={2**32}"], f"--caption_seed={2**32}: must be"),
    # Flags.
    ("main", [QUICK], "--workdir is missing"),
    ("main", [], "--config and --workdir are missing"),
    ("sample", [], "--output is missing"),
    ("sample", ["--output={tmp}/o", "--prompt=x"], "--export and --model are missing: give one"),
    (
        "sample",
        [*EXPORT, "--prompt=x", "--model={tmp}/folder"],
        "--model={tmp}/folder: not together with --export=",
    ),
    ("sample", [*EXPORT, "--prompt=x", "--height=64"], "--height=64: only together with --model"),
    ("sample", [*EXPORT, "--prompt=x", "--init_image=y"], "--init_image=y: only together with"),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x", "--mask=y"],
        "--mask=y: only together with --init_image",
    ),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x", "--strength=2"],
        "--strength=2: must be a number in the range",
    ),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x", "--init_image={tmp}/none.png"],
        "none.png: cannot be read as a picture",
    ),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x", "--control=y"],
        "--control=y: only together with --controlnet",
    ),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x", "--controlnet={tmp}/folder"],
        "only together with --control",
    ),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--controlnet={tmp}/none", "--control=y"]
        + ["--prompt=x"],
        "--controlnet={tmp}/none: no such file",
    ),
    ("sample", [*EXPORT, "--query=x", "--label=y"], "--query and --label are given: must be one"),
    ("sample", [*EXPORT, "--prompt=x", "--width=0"], "--width=0: must be an integer in"),
    ("sample", [*EXPORT, "--prompt=x", "--negative_prompt=y"], "--negative_prompt=y: only toge"),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x", "--augmentation=0.1"],
        "--augmentation=0.1: only together with --export",
    ),
    (
        "sample",
        ["--model={tmp}/folder", "--output={tmp}/o", "--prompt=x"],
        "folder: has no model_index.json: must be a folder of Stable Diffusion in diffusers'",
    ),
    (
        "sample",
        ["--model={tmp}/fodler", "--output={tmp}/o", "--prompt=x"],
        "fodler: no such folder; did you mean {tmp}/folder?",
    ),
    # A folder that is there, and is not what the flag asks for.
    ("sample", [*EXPORT, "--prompt=x"], "export: has no export.json: must be an export, which"),
    ("evaluate", [*EXPORT, "--what=fid", "--captions={tmp}/prompts.txt"], "has no export.json"),
    (
        "export",
        ["--workdir={tmp}/folder", "--output={tmp}/o"],
        "folder: has no finished checkpoint of a diffusion run: must be a folder that",
    ),
    ("evaluate", [], "--output is missing"),
    ("export", [], "--output is missing"),
    ("export", ["--output={tmp}/o"], "--workdir or --config must be given, one of the two"),
    ("prepare", [], "--config and --run and --output are missing"),
    ("compile", [], "--config and --topology are missing"),
    ("main", [QUICK, "--workdir="], "--workdir= is empty"),
    ("main", [QUICK, "--workdir={tmp}/w", "--run="], "--run= is empty"),
    ("sample", ["--export=", "--output={tmp}/out", "--prompt=x"], "--export= is empty"),
    ("sample", ["--export={tmp}/export", "--output=", "--prompt=x"], "--output= is empty"),
    ("prepare", [QUICK, "--run=base", "--output="], "--output= is empty"),
    ("main", [QUICK, "--workdr={tmp}/w"], "unknown flag; did you mean --workdir?"),
    ("sample", [*EXPORT, "--promt=x"], "--promt=x: unknown flag; did you mean --prompt?"),
    ("sample", [*EXPORT, "--zzzzzz"], "--zzzzzz: unknown flag; --help lists all"),
    ("evaluate", [*EXPORT, "--feature=clip"], "did you mean --features?"),
    ("export", ["--workdir={tmp}", "--out={tmp}/out"], "did you mean --output?"),
    ("prepare", [QUICK, "--run=base", "--otput={tmp}/o"], "did you mean --output?"),
    ("compile", [QUICK, "--topolgy=cpu:4"], "did you mean --topology?"),
    ("main", [QUICK, "--workdir={tmp}/w", "base"], "'base': unexpected argument"),
    ("main", [QUICK, "--workdir"], "--workdir"),
    ("main", ["--flagfile={tmp}/none.txt"], "none.txt"),
    ("main", [QUICK, "--workdir={tmp}/w", "--distributed=yes"], "must be one of auto, none, exp"),
    ("main", [QUICK, "--workdir={tmp}/w", "--num_processes=2.5"], "num_processes=2.5: must be an"),
    ("sample", [*EXPORT, "--prompt=x", "--repeat=0"], "--repeat=0: must be a positive integer"),
    ("sample", [*EXPORT, "--prompt=x", "--augmentation=2"], "--augmentation=2: must be a number i"),
    ("sample", [*EXPORT, "--prompt=x", "--augmentation=nan"], "--augmentation=nan: must be a fin"),
    ("sample", [*EXPORT, "--prompt=x", "--dtype=float16"], "must be one of auto, float32, bfloat"),
    ("evaluate", [*EXPORT, "--resize=torch_fidelity"], "did you mean torch-fidelity?"),
    ("evaluate", [*EXPORT, "--terms=-1"], "--terms=-1: must be a non-negative integer"),
    ("evaluate", [*EXPORT, "--what=sceens"], "--what=sceens: must be one of scenes"),
    ("evaluate", [*EXPORT, "--what=sceens"], "did you mean scenes?"),
    ("evaluate", [*EXPORT, "--edits=a=b"], "--edits=a=b: only --what=video reads it"),
    ("evaluate", [*EXPORT, "--what=fid", "--tgve=x"], "--tgve=x: only --what=video reads it"),
    ("evaluate", [*EXPORT, "--what=curves", "--masks=x"], "--masks=x: only --what=video reads it"),
    ("evaluate", [*EXPORT, "--pick_score=x"], "--pick_score=x: only --what=video reads it"),
    ("export", ["--workdir={tmp}", "--output={tmp}/o", "--copy_encoders=2"], "must be true or f"),
    (
        "export",
        ["--workdir={tmp}", "--output={tmp}/published"],
        "published: holds model_index.json, of an export of another --format than contextdiff: mus",
    ),
    ("compile", [QUICK, "--topology=cpu:x"], "topology"),
    ("compile", [QUICK, "--topology=cpu:4", "--effort=3"], "--effort=3: must be a number in"),
    ("prepare", [QUICK, "--run=base", "--output={tmp}/o", "--", "--x"], "must come with --runner"),
    # Numbers beyond what can be meant.
    (
        "compile",
        [QUICK, f"--topology=cpu:{10**17}"],
        f"--topology=cpu:{10**17} --slices=1: must be at most 65536 devices",
    ),
    (
        "compile",
        [QUICK, "--topology=cpu:4", f"--batch_size={10**25}"],
        f"--batch_size={10**25}: must be at least 1 and below 2^31",
    ),
    ("evaluate", [*EXPORT, "--what=fid", f"--count={10**20}"], f"--count={10**20}: must be an int"),
    (
        "main",
        [
            "--config=configs/emoji.py:cpu",
            "--workdir={tmp}/w",
            "--config.data_path={0..99999999999}.tar",
        ],
        "{0..99999999999} in '{0..99999999999}.tar': must be at most 1000000 shards",
    ),
    ("evaluate", [*EXPORT, "--what=sweep", "--guidance=1,nan"], "--guidance=nan: must be numbers"),
    ("evaluate", [*EXPORT, "--what=sweep", "--guidance=1,two"], "--guidance=two: must be numbers"),
    ("compile", [QUICK, "--topology=cpu:4", "--output={tmp}/folder"], "folder: is a folder, must"),
    # Files and folders.
    (
        "sample",
        ["--export={tmp}/exprot", "--output={tmp}/out", "--prompt=x"],
        "exprot: no such folder; did you mean {tmp}/export?",
    ),
    (
        "sample",
        ["--export={tmp}/none.png", "--output={tmp}/out", "--prompt=x"],
        "none.png: is a file, must be a folder",
    ),
    ("evaluate", ["--export={tmp}/exprot", "--output={tmp}/out"], "did you mean {tmp}/export?"),
    ("export", ["--workdir={tmp}/exprot", "--output={tmp}/out"], "did you mean {tmp}/export?"),
    ("sample", [*EXPORT, "--prompts={tmp}/folder"], "folder: is a folder, must be a file"),
    ("sample", [*EXPORT, "--prompts={tmp}/promts.txt"], "did you mean {tmp}/prompts.txt?"),
    ("sample", [*EXPORT, "--prompts={tmp}/bytes.txt"], "bytes.txt: line 2 is no UTF-8 text"),
    ("sample", [*EXPORT, "--requests={tmp}/promts.txt"], "did you mean {tmp}/prompts.txt?"),
    (
        "sample",
        [*EXPORT, "--requests={tmp}/prompts.txt"],
        "line 1 of '{tmp}/prompts.txt' is not JSON",
    ),
    ("sample", [*EXPORT, "--prompt=x", "--label=x"], "--prompt and --label are given: must be one"),
    # Inversion.
    (
        "sample",
        [*EXPORT, "--prompt=x", "--prompt=y", "--invert={tmp}/none.png"],
        "1 --invert for 2 requests: must be as many",
    ),
    (
        "sample",
        [*EXPORT, "--prompt=x", "--invert={tmp}/none.png", "--edit=y", "--edit=z"],
        "2 --edit for 1 --invert: must be as many",
    ),
    (
        "sample",
        [*EXPORT, "--prompt=x", "--edit=y"],
        "--edit=y: give --invert=IMAGE, which it edits",
    ),
    (
        "sample",
        [*EXPORT, "--prompt=x", "--invert={tmp}/none.png", "--seed=1"],
        "--seed=1: not with --invert, which draws no noise",
    ),
    (
        "sample",
        [*EXPORT, "--prompt=x", "--invert={tmp}/none.png", "--repeat=2"],
        "--repeat=2: not with --invert",
    ),
    ("sample", [*EXPORT, "--prompt=a\nb"], "--prompt='a\\nb': must be one line"),
    ("sample", [*EXPORT], "no requests: give --prompt=TEXT, --prompts=FILE, --label=NAME, --lay"),
    (
        "main",
        ["--config=configs/emoji.py:cpu", "--workdir={tmp}/w", "--config.data_path=**"],
        "'**'",
    ),
    (
        "main",
        ["--config=configs/emoji.py:cpu", "--workdir={tmp}/w", "--config.data_path={tmp}/exprot"],
        "exprot",
    ),
    (
        "main",
        ["--config=configs/cifar10.py:cpu_folder", "--workdir={tmp}/w", "--config.data_path=**"],
        "**",
    ),
    ("main", [QUICK, "--workdir=/dev/null/runs"], "--workdir=/dev/null/runs: cannot be written"),
]


def in_words(done):
    """Stderr without the log's own lines (info, warnings)."""
    lines = done.stderr.splitlines()
    ours = ("I0", "I1", "W0", "W1", "WARNING: Logging before flag")
    return [line for line in lines if not line.startswith(ours)]


@pytest.mark.parametrize(("module", "arguments", "sentence"), MISTAKES)
def test_a_mistake_ends_with_one_sentence(module, arguments, sentence, run, places):
    done = run(module, *(word.replace("{tmp}", str(places)) for word in arguments))
    assert done.returncode == 2, done.stderr
    [line] = in_words(done)
    assert line.startswith("contextdiff_jax: ")
    assert sentence.replace("{tmp}", str(places)) in line

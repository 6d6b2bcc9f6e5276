"""tools/embed.py: the same rows from a folder, a table and shards, the probe's features, and runs that are ended."""

import json
import shutil
import signal
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY, picture, run_cli
from dicom_files import write_dicom
from PIL import Image

import distributed
import main_linear
import models
import options
from data import lock
from data.tokens import from_json, train_bpe
from evaluation.encoder import open_encoder
from tools import embed
from utils import EXIT_INTERRUPTED

CAPTIONS = {
    "a": "Mammogram showing a mass",
    "b": "Axial CT of the chest",
    "deep": "x-ray, 16 bits",
    "sub/IM7": "a file without suffix",
    "sub/c": "calcifications in the left breast",
}
SMALL = ("--device", "cpu", "--workers", "0", "--amp", "off")
KILLED = """
import os, runpy, sys
sys.path[:0] = [{repository!r}, {repository!r} + "/tools"]
from evaluation import features
number, when, sys.argv[1:] = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
add = features.Shards.add
def call(self, rows):
    left = add(self, rows)
    if self.written == when:
        os.kill(os.getpid(), number)
    return left
features.Shards.add = call
sys.argv[0] = {repository!r} + "/tools/embed.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # a real process, which gets a signal as soon as it has saved so many images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that was trained with captions."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--arch", "resnet10t", "--text-model", "tiny", "--image-size", "32", "--pretrained", "none"]
    args = options.parse(options.train_parser(), [*words, "--ssl-mlp-dim", "8", "--ssl-emb-dim", "8"])
    args.normalize, args.context_length = "imagenet", 16
    tokenizer = train_bpe(list(CAPTIONS.values()))
    size = len(from_json(tokenizer))
    torch.manual_seed(0)
    model = models.create_model("resnet10t", "slip", "none", "tiny", "masked", size, 8, 8, image_size=32)
    torch.save(
        {"model": model.state_dict(), "args": options.plain(args), "tokenizer": tokenizer}, folder / "checkpoint.pt"
    )
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Five images of all kinds in a folder and one below it, a table of them, and a tar shard."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "sub").mkdir()
    picture(0).save(folder / "a.jpg")
    picture(1, colour=True).save(folder / "b.png")
    deep = np.asarray(picture(2)).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    write_dicom(folder / "sub" / "IM7", deep)
    write_dicom(folder / "sub" / "c.dcm", np.asarray(picture(3)).astype(np.uint16))
    (folder / ".hidden.png").write_bytes(b"")
    files = ["a.jpg", "b.png", "deep.png", "sub/IM7", "sub/c.dcm"]
    rows = [f'{file},"{caption}"\n' for file, caption in zip(files, CAPTIONS.values(), strict=True)]
    (folder / "table.csv").write_text("image,caption\n" + "".join(rows))
    with tarfile.open(folder / "shard-000000.tar", "w") as archive:
        for file, (key, caption) in zip(files, CAPTIONS.items(), strict=True):
            archive.add(folder / file, file if "." in file else f"{file}.dcm")
            (folder / "caption.txt").write_text(caption)
            archive.add(folder / "caption.txt", f"{key}.txt")
    return folder


def call(capsys, *words) -> tuple[int, str, str]:
    """The script's main in this process."""
    capsys.readouterr()
    code = 0
    try:
        distributed.run_script(embed.main, embed.make_parser().parse_args([*map(str, words), *SMALL]))
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(path, name="embedding") -> np.ndarray:
    """(N, D) of a column."""
    return np.array(pq.read_table(path)[name].to_pylist(), np.float32)


def test_a_folder_a_table_and_shards_give_the_same_rows(run, scans, tmp_path, capsys):
    lines = tmp_path / "captions.txt"
    lines.write_text("c calcifications in the left breast\nb Axial CT of the chest\nother text\n")
    folder, table, shards = (tmp_path / f"{name}.parquet" for name in ("folder", "table", "shards"))
    for out, *words in (
        (folder, scans, "--captions", lines),
        (table, scans / "table.csv", "--captions"),
        (shards, scans / "shard-{000000..000000}.tar", "--captions"),
    ):
        code, printed, errors = call(capsys, "--run", run, "--out", out, "--images", *words)
        assert code == 0, errors
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "captions.txt", "folder.parquet", "shards.parquet", "table.parquet",
    ]  # fmt: skip
    of_folder, of_table, of_shards = (pq.read_table(path) for path in (folder, table, shards))
    assert of_folder["id"].to_pylist() == of_table["id"].to_pylist() == of_shards["id"].to_pylist() == list(CAPTIONS)
    assert of_table["caption"].to_pylist() == of_shards["caption"].to_pylist() == list(CAPTIONS.values())
    assert of_folder["image"][3].as_py() == of_table["image"][3].as_py() == str(scans / "sub" / "IM7")
    assert of_shards["image"][0].as_py().startswith(f"{scans / 'shard-000000.tar'}\0at=")
    assert (rows(folder) == rows(table)).all() and (rows(folder) == rows(shards)).all()
    assert (rows(table, "caption_embedding") == rows(shards, "caption_embedding")).all()
    assert of_folder["caption"].to_pylist() == [None, CAPTIONS["b"], None, None, CAPTIONS["sub/c"]]
    assert rows(folder, "caption_embedding").any(axis=1).tolist() == [False, True, False, False, True]

    encoder = open_encoder(run)
    asked = encoder.encode_image(of_folder["image"].to_pylist()).numpy()
    np.testing.assert_allclose(rows(folder), asked, rtol=1e-4, atol=1e-5)
    asked = encoder.encode_text(list(CAPTIONS.values())).numpy()
    np.testing.assert_allclose(rows(table, "caption_embedding"), asked, rtol=1e-4, atol=1e-5)
    assert of_folder.schema.field("embedding").type.list_size == rows(folder).shape[1] == encoder.model.embed_dim
    about = json.loads(of_folder.schema.metadata[b"medslip"])
    expected = {"run": str(run / "checkpoint.pt"), "features": "projected", "arch": "resnet10t", "image_size": 32}
    assert about | expected | {"fit": "center", "window": "", "normalize": "imagenet"} == about

    before = table.read_bytes()
    words = ["--run", run, "--out", table, "--images", scans / "table.csv"]
    code, printed, _ = call(capsys, *words, "--captions")
    assert code == 0 and "is there already" in printed and "features" not in printed
    code, _, errors = call(capsys, *words, "--captions", "--features", "pooled")
    assert code == 2 and "holds embeddings of other images" in errors and table.read_bytes() == before
    code, _, errors = call(capsys, *words, "--features", "pooled", "--overwrite")
    assert code == 0 and rows(table).shape == (5, encoder.model.width)
    assert pq.read_schema(table).names == ["id", "image", "embedding"]


def test_as_the_probes_features(run, folders, tmp_path, capsys):
    words = ["--dataset", "imagenet", "--catalog", folders, "--pretrained", run / "checkpoint.pt", *SMALL]
    words += ["--output-dir", tmp_path / "probe", "--batch-size", "5"]
    code, _, errors = run_cli(capsys, main_linear.main, options.linear_parser, *words)
    assert code == 0, errors
    saved = torch.load(tmp_path / "probe" / "features.pt", weights_only=True)["test"]
    out, source = tmp_path / "out.parquet", tmp_path / "folders" / "val"
    words = ("--run", run, "--images", source, "--out", out, "--fit", "center256", "--batch-size", "5")
    assert call(capsys, *words)[0] == 0
    assert (rows(out) == saved["features"].numpy()).all()


def test_runs_that_are_ended_go_on(run, folders, tmp_path, capsys, scripts):
    """One that is killed, and two processes that answer a signal: the file is that of an undisturbed run."""
    (tmp_path / "killed.py").write_text(KILLED.format(repository=str(REPOSITORY)))
    words = ["--run", run, "--images", tmp_path / "folders" / "train", "--save-every", "2", "-b", "1", "--out"]
    whole, killed, shared = (tmp_path / f"{name}.parquet" for name in ("whole", "killed", "shared"))

    def start_two(script, *more):
        url = ("--dist-url", f"file://{tmp_path}/store_{len(scripts.runs)}")
        ranks = [{"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
        both = [scripts.start(script, *more, *words, shared, *SMALL, *url, **one) for one in ranks]
        return [one.wait() for one in both], both[0].output()

    assert call(capsys, *words, whole)[0] == 0
    process = scripts.start(tmp_path / "killed.py", int(signal.SIGKILL), 10, *words, killed, *SMALL)
    assert process.wait() == -signal.SIGKILL, process.output()
    assert not killed.exists() and (tmp_path / "killed.parquet.partial").is_dir()
    code, printed, errors = call(capsys, *words, killed)
    assert code == 0 and "going on with 10 of 24" in printed, errors
    assert killed.read_bytes() == whole.read_bytes()
    assert start_two(tmp_path / "killed.py", int(signal.SIGTERM), 4)[0] == [EXIT_INTERRUPTED] * 2
    codes, printed = start_two("tools/embed.py")
    assert codes == [0, 0] and "going on with 5 of 12" in printed
    assert shared.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_images_that_cannot_be_read(run, scans, tmp_path, capsys):
    folder, out = tmp_path / "folder", tmp_path / "new" / "out.parquet"
    shutil.copytree(scans, folder)
    for name in ("d.png", "sub/e.png"):
        (folder / name).write_bytes((folder / "b.png").read_bytes()[:-40])
    (folder / "table.csv").write_text("image\na.jpg\nnowhere.jpg\nd.png\n")
    words = ("--run", run, "--out", out, "--images")
    code, _, errors = call(capsys, *words, folder)
    assert code == 2 and "d.png: the image cannot be read" in errors and "(2 such files)" in errors
    code, _, errors = call(capsys, *words, folder / "table.csv")
    assert code == 2 and "table.csv, row 3: the image 'nowhere.jpg' is not there" in errors
    assert not (tmp_path / "new").exists()
    code, printed, errors = call(capsys, *words, folder / "table.csv", "--skip-broken")
    assert code == 0, errors
    assert pq.read_table(out)["id"].to_pylist() == ["a"] and "2 images left out" in printed
    named = (tmp_path / "new" / "out.left_out.txt").read_text().splitlines()
    assert len(named) == 2 and "nowhere.jpg" in named[0] and "d.png" in named[1]
    assert "--skip-broken" not in named[1]  # it was passed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "{scans}", "--captions"), "--captions: {scans} comes without captions"),
        (
            ("--images", "{scans}/table.csv", "--image-column", "x"),
            "--image-column x: {scans}/table.csv has only image",
        ),
        (("--images", "{scans}", "--id-column", "x"), "--id-column: is for a table, and {scans} is none"),
        (("--images", "{scans}/a.jpg"), "a.jpg: neither a folder, a table"),
        (("--images", "{scans}/none.csv"), "none.csv: no such file"),
        (("--images", "{run}"), "{run}: holds no image"),
        (("--images", "{scans}", "--out", "out.txt"), "--out out.txt: give a file that is called .parquet"),
        (("--images", "{scans}", "--window", "40", "0"), "--window: two numbers, and a width of more than 0"),
        (("--images", "{scans}", "--out", "{scans}/table.parquet"), "is there, and not of this program"),
    ],
)
def test_bad_input(run, scans, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    if "table.parquet" in words[-1]:
        (scans / "table.parquet").write_bytes(b"PAR1")
    words = [word.format(scans=scans, run=run) for word in words]
    code, _, errors = call(capsys, "--out", "out.parquet", "--run", run, *words)
    assert code == 2 and message.format(scans=scans, run=run) in errors and len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_another_process_is_kept_out(run, scans, tmp_path, capsys):
    partial = tmp_path / "out.parquet.partial"
    partial.mkdir()
    with lock.Lock(partial, "--out"):
        code, _, errors = call(capsys, "--out", tmp_path / "out.parquet", "--run", run, "--images", scans)
    assert code == 2 and "is writing to it" in errors and "give another --out" in errors

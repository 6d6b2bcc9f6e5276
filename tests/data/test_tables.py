"""Tables: the same pairs in every format, columns by name, splits by file, column or patients, and bad rows by name."""

import gzip
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datasets
from conftest import make_roco, picture
from data import images, splits, table_files
from data.table_images import Template
from utils import InputError


def entry(path, **keys) -> dict:
    return {"type": "table", "name": "mine", "path": str(path), "window": "", **keys}


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)


def train(path, **keys):
    return datasets.paired_set(entry(path, **keys), "train")


FORMATS = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "tsv": lambda table, path: table.to_csv(path, sep="\t", index=False),
    "csv.gz": lambda table, path: table.to_csv(path, index=False),
    "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
    "jsonl.gz": lambda table, path: table.to_json(path, orient="records", lines=True),
    "parquet": lambda table, path: table.to_parquet(path, row_group_size=5),
}


@pytest.mark.parametrize("ending", [*FORMATS, "stored"])
def test_the_same_pairs_as_in_rocos_layout(tmp_path, ending):
    root = make_roco(tmp_path / "roco", train=12, validation=4, absent=1)
    with open(root / "train" / "radiology" / "captions.txt", "a") as file:
        file.write('ROCO_00003x\t"Axial  CT", a\rmass,\u00a0 5" long.\n')
    picture(9).save(root / "train" / "radiology" / "images" / "ROCO_00003x.jpg")
    for split in ("train", "validation"):
        lines = (root / split / "radiology" / "captions.txt").read_bytes().decode().split("\n")[:-1]
        rows = [one.split("\t", 1) for one in lines]
        table = pd.DataFrame(rows, columns=["id", "caption"])
        table["caption"] = table["caption"].str.replace(" showing", "\n\tshowing")  # collapsed as ROCO's white space is
        table["image"] = f"{split}/radiology/images/" + table["id"]
        if ending == "stored":
            table["image"] = [
                {"bytes": path.read_bytes(), "path": path.name} if path.exists() else None
                for path in map(root.joinpath, table["image"] + ".jpg")
            ]
            FORMATS["parquet"](table, tmp_path / f"{split}.parquet")
        else:
            FORMATS[ending](table, tmp_path / f"{split}.{ending}")
    for split in ("train", "validation"):
        expected = datasets.read_pairs(root, split)
        found = datasets.paired_set(entry(tmp_path, images="roco"), split)
        assert list(found.ids) == list(expected.ids) and list(found.captions) == list(expected.captions)
        assert found.missing == expected.missing and found.counts == expected.counts
        assert found.notes["columns"] == "image from 'image', caption from 'caption', id from 'id'"
        for i in range(len(found)):
            mine, theirs = (images.read_image(some.path(i)) for some in (found, expected))
            assert mine.tobytes() == theirs.tobytes() and mine.size == theirs.size
        assert images.unreadable(found.paths(), decode=True) == {}


def test_open_clips_table_has_tabs_whatever_its_name(tmp_path):
    pictures(tmp_path, "images/a, b.jpg", "images/c.png")
    path = write(
        tmp_path / "train.csv", "filepath\ttitle\nimages/a, b.jpg\tone, two\nimages/c.png\t\nimages/c\tthree\n"
    )
    pairs = train(path, share="0")
    assert list(pairs.ids) == ["images/a, b", "images/c"] and list(pairs.captions) == ["one, two", "three"]
    assert list(pairs.files) == ["images/a, b.jpg", "images/c.png"] and pairs.root == str(tmp_path)
    assert pairs.notes["columns"] == "image from 'filepath', caption from 'title'"


def test_pmc_oa(tmp_path):
    pictures(tmp_path, "images/PMC1_1.jpg", "images/PMC1_2.jpg", "images/PMC2_1.jpg")
    rows = [
        {"image": f"PMC{a}_{n}.jpg", "caption": f"caption {a} {n}", "pmcid": f"PMC{a}"}
        for a, n in ((1, 1), (1, 2), (2, 1))
    ]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    write(tmp_path / "valid.jsonl", json.dumps(rows[2]))
    pairs = train(tmp_path, images="images")
    assert [pairs.articles.get(i) for i in range(3)] == ["PMC1", "PMC1", "PMC2"] and len(pairs.articles.strings) == 2
    assert list(pairs.ids) == ["PMC1_1", "PMC1_2", "PMC2_1"] and pairs.files[0] == "images/PMC1_1.jpg"
    validation = datasets.paired_set(entry(tmp_path, images="images"), "validation", optional=True)
    assert list(validation.captions) == ["caption 2 1"]


def test_hugging_face_folders(tmp_path):
    pictures(tmp_path, "train/a.png", "train/sub/b.png", "validation/c.png")
    write(tmp_path / "train" / "metadata.csv", "file_name,text\na.png,one\nsub/b.png,two\n")
    write(tmp_path / "validation" / "metadata.csv", "file_name,text\nc.png,three\n")
    pairs = train(tmp_path)
    assert list(pairs.files) == ["train/a.png", "train/sub/b.png"] and list(pairs.captions) == ["one", "two"]
    assert list(datasets.paired_set(entry(tmp_path), "validation").files) == ["validation/c.png"]
    alone = tmp_path / "train"
    write(alone / "metadata.jsonl", '{"file_name": "a.png", "caption": "three"}\n')
    (alone / "metadata.csv").unlink()
    assert list(train(alone, share="0").captions) == ["three"]


def test_images_by_a_template(tmp_path):
    pictures(tmp_path, "files/p10/p10000032/s5/ab.jpg")
    path = write(
        tmp_path / "reports.csv",
        "dicom_id,study_id,subject_id,split,report\nab,5,10000032,train,No effusion.\n,6,10000033,train,Effusion.\n"
        "cd,7,10000034,validate,Normal.\n",
    )
    pairs = train(path, images="files/p{subject_id:2}/p{subject_id}/s{study_id}/{dicom_id}.jpg")
    assert list(pairs.ids) == ["ab"] and pairs.files[0] == "files/p10/p10000032/s5/ab.jpg"
    assert pairs.missing == ["reports.csv_2"] and pairs.counts["without image"] == 1
    assert Template("{a}{b:1}-").fill(("x", "yz")) == "xy-"
    with pytest.raises(InputError, match=r"reports\.csv: no column 'study', only dicom_id, study_id"):
        train(path, images="{study}.jpg")


def test_several_captions_of_an_image_and_images_of_a_caption(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    path = write(
        tmp_path / "rows.jsonl",
        '{"image": "a.png", "caption": ["one", " ", "two"]}\n{"image": ["b.png", "a.png"], "caption": "three"}\n'
        '{"image": "a.png", "caption": "four"}\n{"image": ["a.png", "c.png"], "caption": null}\n',
    )
    pairs = train(path, share="0")
    assert list(pairs.ids) == ["a", "a_2", "b", "b_2", "a_3"]
    assert list(pairs.files) == ["a.png", "a.png", "b.png", "a.png", "a.png"] and len(pairs.files.strings) == 2
    assert list(pairs.captions) == ["one", "two", "three", "three", "four"]
    assert datasets.paired_set(entry(path, share="0"), "validation", optional=True) is None


def test_ids_that_repeat(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    same = "id,image,caption\nx,a.png,one\nx,a.png,two\nx_2,b.png,three\n"
    assert list(train(write(tmp_path / "t.csv", same), share="0").ids) == ["x", "x_3", "x_2"]
    with pytest.raises(InputError, match=r"t\.csv, row 4: the id 'x' is that of an earlier row with another image"):
        train(write(tmp_path / "t.csv", same.replace("x_2", "x")), share="0")


def test_a_split_column(tmp_path, caplog):
    caplog.set_level("INFO", logger="medslip")
    pictures(tmp_path, *(f"{n}.png" for n in range(6)))
    names = ("training", "VAL", "test", "train", "", "dev")
    text = "image,caption,split\n" + "".join(f"{n}.png,caption {n},{name}\n" for n, name in enumerate(names))
    path = write(tmp_path / "t.csv", text)
    assert list(train(path).ids) == ["0", "3"]
    assert "t.csv: 1 rows whose 'split' is empty left out" in caplog.text
    validation = datasets.paired_set(entry(path), "validation", optional=True)
    assert (
        list(validation.ids) == ["1", "5"]
        and validation.notes["split"] == "the rows of t.csv whose 'split' is validation"
    )
    with pytest.raises(InputError, match=r"t\.csv, row 4: the split 'tset' is none of train, validation and test"):
        train(write(path, text.replace("test", "tset")))
    write(path, text.replace("VAL", "test").replace("dev", "test"))  # no validation: a share of the training rows
    assert set(train(path, share="0.5", seed="2").ids) | set(
        datasets.paired_set(entry(path, share="0.5", seed="2"), "validation", optional=True).ids
    ) == {"0", "3"}


@pytest.mark.parametrize("train_name", ["t.csv", "./t.csv", "*.csv"])
def test_a_table_that_is_named_for_two_splits_needs_a_split_column(tmp_path, train_name):
    pictures(tmp_path, *(f"{n}.png" for n in range(3)))
    write(tmp_path / "t.csv", "image,caption,label,split\n0.png,a,x,train\n1.png,b,x,val\n2.png,c,x,test\n")
    one = entry(tmp_path, train=train_name, validation="t.csv", test="t.csv")
    assert [list(datasets.labelled_set(one, split).ids) for split in ("train", "test")] == [["0"], ["2"]]
    assert [list(datasets.paired_set(one, split).ids) for split in ("train", "validation")] == [["0"], ["1"]]
    del one["validation"]
    assert list(train(tmp_path, train=train_name, test="t.csv").ids) == ["0"]
    write(tmp_path / "t.csv", "image,caption,label\n0.png,a,x\n1.png,b,x\n2.png,c,x\n")
    for read in (datasets.labelled_set, datasets.paired_set):
        with pytest.raises(InputError, match=r"t\.csv is both 'train' and 'test', and has no column 'split'"):
            read(one, "train")
    with pytest.raises(InputError, match=r"t\.csv is both 'test' and 'train'"):
        datasets.labelled_set(one, "test")


def test_a_share_of_the_patients(tmp_path):
    n = 400
    rows = [(f"{i}.png", f"caption {i}", f"p{i // 4}") for i in range(n)]
    for name, _, _ in rows:
        (tmp_path / name).touch()
    table = pd.DataFrame(rows, columns=["image", "caption", "patient"])
    table.to_csv(tmp_path / "t.csv", index=False)

    def sides(**keys):
        both = [datasets.paired_set(entry(tmp_path / "t.csv", **keys), split) for split in ("train", "validation")]
        return [{table.patient[int(key)] for key in some.ids} for some in both], both

    (first, second), (pairs, held) = sides()
    assert not first & second and len(first | second) == 100 and len(pairs) + len(held) == n
    assert 4 <= len(second) <= 18  # of 100, a tenth is expected
    assert "t.csv: a share of 0.9 of its 100 patients, by a hash with seed 0" in pairs.notes["split"]
    assert sides(seed="1")[0][1] != second
    table.rename(columns={"patient": "Patient ID"}).to_csv(tmp_path / "t.csv", index=False)
    assert sides()[0] == [first, second]
    table[::-1].iloc[: n // 2].to_csv(tmp_path / "t.csv", index=False)
    assert sides()[0][1] <= second, "patients stay where they are when others come or go"
    table.rename(columns={"patient": "pmcid"}).to_csv(tmp_path / "t.csv", index=False)
    assert sides()[0] == [first, second] and "100 articles" in sides()[1][0].notes["split"]
    table[["image", "caption"]].to_csv(tmp_path / "t.csv", index=False)
    assert "400 images" in sides()[1][0].notes["split"]
    for share in ("1", "-0.1", "a", "nan"):
        with pytest.raises(InputError, match="is not a number from 0 to below 1"):
            sides(share=share)


def test_a_share_of_nothing_and_of_almost_all():
    assert not any(splits.Share(0, "0").holds_out(str(i)) for i in range(100))
    assert np.mean([splits.Share(0.3, "0").holds_out(str(i)) for i in range(4000)]) == pytest.approx(0.3, abs=0.03)


def test_subsets_by_captions_and_keywords(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    path = write(
        tmp_path / "t.jsonl",
        '{"image": "a.png", "caption": "Mammogram"}\n'
        '{"image": "b.png", "caption": "A mass", "keywords": ["x-ray", "chest"]}\n'
        '{"image": "c.png", "caption": "Mammogram", "keywords": "ultrasound"}\n',
    )
    both = datasets.paired_set(entry(path, share="0"), "train", subset="mammo+xray")
    assert list(both.ids) == ["a", "b"] and both.counts == {
        "captions": 3,
        "mammo+xray": 2,
        "pairs": 2,
        "without image": 0,
    }
    assert list(datasets.paired_set(entry(path, share="0"), "train", subset="mammo").ids) == ["a"]
    with pytest.raises(InputError, match="no caption belongs to --subset mammo"):
        datasets.paired_set(entry(write(path, '{"image": "b.png", "caption": "A mass"}')), "train", subset="mammo")
    with pytest.raises(InputError, match="--metadata: is ROCO's"):
        datasets.paired_set(entry(path), "train", metadata="list.txt")


def test_absolute_paths_and_folders_beside_the_table(tmp_path):
    pictures(tmp_path, "one/a.png", "two/b.jpg", "tables/c.png")
    text = f"image,caption\n{tmp_path}/one/a.png,one\nb,two\nc.png,three\ntwo/b.jpg,four\n"
    pairs = train(write(tmp_path / "tables" / "t.csv", text), images="../one, ../two", share="0")
    read = [os.path.relpath(os.path.realpath(pairs.path(i)), tmp_path) for i in range(4)]
    assert read == ["one/a.png", "two/b.jpg", "tables/c.png", "two/b.jpg"]


GOOD = "image,caption\na.png,one\na.png,two\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", r"t\.csv: is empty"),
        ("t.csv", "\n\n", r"t\.csv: is empty"),
        (
            "t.csv",
            "picture,caption\na.png,one\n",
            r"no column for 'image' \(image, filepath, .*\), only picture, caption",
        ),
        ("t.csv", "image,words\na.png,one\n", r"no column for 'caption' \(caption, text, .*\), only image, words"),
        ("t.csv", "image,image,caption\na.png,b.png,one\n", r"two columns 'image'"),
        ("t.csv", GOOD + "a.png,one,two\n", r"t\.csv, row 4: 3 cells for 2 columns: quote a cell that holds a comma"),
        ("t.csv", GOOD + "a.png\n", r"t\.csv, row 4: 1 cells for 2 columns"),
        ("t.csv", GOOD + 'a.png,"one\n', r"t\.csv, row 4: unexpected end of data: correct the quotes"),
        ("t.csv", GOOD + "../a.png,three\n", r"t\.csv, row 4: '\.\./a\.png' leaves the data folder"),
        ("t.csv", GOOD + "x\0.png,three\n", r"t\.csv, row 4: 'x\0\.png' leaves the data folder"),
        ("t.csv", b"image,caption\na.png,one\na.png,\xff\n", r"t\.csv, row 3: not UTF-8 text"),
        ("t.csv", "image,caption\nb.png,one\nc,two\n", r"no image for any of its 2 captions \(the first is 'b'\)"),
        ("t.csv", "image,caption\na.png,\n", "holds no captions of the train split"),
        ("t.jsonl", "", r"t\.jsonl: holds no rows"),
        ("t.jsonl", '{"image": "a.png", "caption": "one"}\n["a.png"]\n', r"t\.jsonl, row 2: not a JSON object"),
        ("t.jsonl", '{"image": "a.png", "caption": "one"}\n{"image"\n', r"t\.jsonl, row 2: not JSON \(Expecting"),
        (
            "t.jsonl",
            '{"image": "a.png", "caption": {"text": "one"}}\n',
            r"row 1: the column 'caption' has an object where",
        ),
        ("t.jsonl", '{"image": "a.png", "caption": "\\ud800"}\n', r"row 1: not JSON \(it is no text"),
        ("t.parquet", "PAR1", r"t\.parquet: not a parquet file"),
        ("t.csv.gz", "image,caption\n", r"t\.csv\.gz: cannot be read"),
        ("t.xlsx", "PK", r"t\.xlsx: not a table by its name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name, text, message):
    pictures(tmp_path, "a.png")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        train(tmp_path / name, share="0")
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_an_entry(tmp_path):
    pictures(tmp_path, "a.png")
    path = write(tmp_path / "t.csv", GOOD)
    for keys, message in (
        ({"caption": "text"}, r"t\.csv: no column 'text', only image, caption: correct 'caption' or the file"),
        ({"train": "t.csv"}, "is a file: give its folder as 'path', beside 'train'"),
        ({"images": "{image"}, r"'\{image': expected columns in braces, \{NAME\} or \{NAME:2\}"),
        ({"images": "x/{image:two}.png"}, r"expected columns in braces"),
        ({"images": ".,nowhere"}, "nowhere: no such folder: correct 'images' in the entry 'mine'"),
    ):
        with pytest.raises(InputError, match=message):
            train(path, **keys)
    for keys, message in (
        ({}, "no train.csv, metadata.csv or such in it"),
        ({"train": "x.csv"}, r"x\.csv: no such file"),
        ({"train": "x-*.csv"}, r"x-\*\.csv: no such file"),
        ({"test": "t.csv"}, "names 'test' and not 'train'"),
    ):
        with pytest.raises(InputError, match=message):
            train(tmp_path, **keys)
    with pytest.raises(InputError, match="nowhere: no such folder or file"):
        train(tmp_path / "nowhere")


def test_files_of_one_split_have_the_same_columns(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    for number, name in enumerate("ab"):
        table = pa.table({"image": [f"{name}.png"], "caption": [f"caption {number}"]})
        pq.write_table(table, tmp_path / f"train-0000{number}-of-00002.parquet")
    assert list(train(tmp_path, share="0").captions) == ["caption 0", "caption 1"]
    pq.write_table(table.rename_columns(["image", "words"]), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet: no column 'caption', which .*00000"):
        train(tmp_path, share="0")


def test_cells():
    cells = ["a", None, 3, 3.0, 2.5, float("nan"), b"b", True]
    assert [table_files.text(cell) for cell in cells] == ["a", "", "3", "3", "2.5", "", "b", "True"]
    assert table_files.lines([" a\n b", None, ""]) == ["a b"] and table_files.lines("  ") == []


# Labelled


def probes(path, **keys):
    return [datasets.labelled_set(entry(path, **keys), split) for split in ("train", "test")]


def test_labels(tmp_path, caplog):
    pictures(tmp_path, *(f"{n}.png" for n in range(6)))
    write(tmp_path / "train.csv", "image,label,patient\n0.png,10,a\n1.png,9,b\n2.png,,b\n3.png,9,\nx.png,11,c\n")
    write(tmp_path / "test.csv", "image,label,patient\n4.png,9,d\n5.png,10,e\n")
    first, second = probes(tmp_path)
    assert first.classes == second.classes == ["9", "10", "11"] and not first.multi
    assert (
        first.labels.tolist() == [1, 0, 0] and first.ids == ["0", "1", "3"] and first.patients == ["a", "b", "(of 3)"]
    )
    assert "1 of 4 rows" in caplog.text and "have no image and are left out: x" in caplog.text
    assert second.labels.tolist() == [0, 1] and second[1].levels[0].ndim == 2
    write(tmp_path / "test.csv", "image,label,patient\n4.png,9,d\n5.png,12,e\n")
    with pytest.raises(InputError, match=r"test\.csv, row 3: '12' is no class of the training split \(9, 10, 11\)"):
        probes(tmp_path)
    write(tmp_path / "test.csv", "image,label,patient\nx.png,9,d\n")
    with pytest.raises(InputError, match=r"1 of 1 rows of .*test\.csv have no image: x"):
        probes(tmp_path)


def test_a_share_of_the_patients_is_tested(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.png").touch()
    rows = [(f"{i}.png", f"p{i // 3}", "ab"[i % 2]) for i in range(60)]
    pd.DataFrame(rows, columns=["image", "patient", "label"]).to_csv(tmp_path / "t.csv", index=False)
    first, second = probes(tmp_path / "t.csv", share="0.4")
    assert not set(first.patients) & set(second.patients) and len(first) + len(second) == 60
    assert "of its 20 patients" in second.notes["split"]


def test_chexpert(tmp_path):
    names = ("train/patient00001/study1/view1_frontal.jpg", "train/patient00002/study1/view1_frontal.jpg")
    held = "valid/patient64541/study1/view1_frontal.jpg"
    pictures(tmp_path, *names, held)
    header = "Path,Sex,No Finding,Edema,Pleural Other\n"
    rows = [
        f"CheXpert-v1.0-small/{name},F,{cells}\n" for name, cells in zip(names, ("1.0,,-1.0", ",0.0,1.0"), strict=True)
    ]
    write(tmp_path / "train.csv", header + "".join(rows))
    write(tmp_path / "valid.csv", header + f"CheXpert-v1.0-small/{held},F,0.0,1.0,-1.0\n")
    keys = {"train": "train.csv", "validation": "valid.csv", "labels": "Edema, Pleural Other", "uncertain": "ones"}
    first, second = probes(tmp_path, **keys)
    assert first.multi and first.classes == ["Edema", "Pleural Other"] and first.labels.tolist() == [[0, 1], [0, 1]]
    assert second.labels[0, 0] == 1 and np.isnan(second.labels[0, 1]), "what is scored is not guessed"
    assert first.patients == ["patient00001", "patient00002"] and second.patients == ["patient64541"]
    assert first.images[1] == str(tmp_path / names[1]) and "-1 is taken as ones" in first.notes["labels"]
    above = probes(tmp_path / "train.csv", labels="Edema", share="0.5", seed="1")
    assert sum(map(len, above)) == 2
    first, _ = probes(tmp_path, **{**keys, "blank": "ignore", "uncertain": "ignore"})
    assert np.isnan(first.labels).tolist() == [[True, True], [False, False]]
    write(tmp_path / "train.csv", header + "".join(rows).replace("-1.0", "2"))
    with pytest.raises(InputError, match=r"train\.csv, column Pleural Other, row 2: '2' is not 1, 0, -1 or blank"):
        probes(tmp_path, **keys)
    with pytest.raises(InputError, match=r"no column 'Oedema', only Path, Sex, .*: correct 'labels'"):
        probes(tmp_path, **{**keys, "labels": "Oedema"})


def test_gzip(tmp_path):
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(GOOD)
    contents = (tmp_path / "t.csv.gz").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(contents[:-12])
    with pytest.raises(InputError, match=r"t\.csv\.gz: cannot be read"):
        train(tmp_path / "t.csv.gz")

"""A user's own text, images and tables: what is read, how it is divided, and every way it can be wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from softgate.errors import ArgumentValueError, StateError
from softgate.lab.compare.dataset import TEST, TRAIN, VALIDATION, Dataset, divided
from softgate.lab.compare.image_data import image_folder, image_set
from softgate.lab.compare.sizes import SIZES
from softgate.lab.compare.sources import Source, load_source
from softgate.lab.compare.table_data import csv_file, synthetic_table
from softgate.lab.compare.tasks import make_task
from softgate.lab.compare.text_data import synthetic_text, text_dataset, text_file


def write_csv(folder, rows, header="size,colour,kind"):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def good_rows(count=100):
    return [f"{i / 10},{('red', 'blue', 'green')[i % 3]},{('cat', 'dog')[i % 2]}" for i in range(count)]


def images(folder, counts, grey=True):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((10, 12, 3), (20 * i) % 256, np.uint8)
            pixels[0, 0] = 0 if grey else (255, 0, 0)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_parts_are_disjoint_stratified_and_a_small_class_is_trained_on():
    labels = np.repeat([0, 1, 2], [60, 40, 3])
    part = divided(labels)
    for label, count in ((0, 6), (1, 4)):
        assert [int((part[labels == label] == p).sum()) for p in (VALIDATION, TEST)] == [count, count]
    assert (part[labels == 2] == TRAIN).all()
    assert (divided(labels) == part).all()


def test_a_dataset_survives_its_file_and_its_digest_tells_content_apart(tmp_path):
    data = synthetic_table()
    data.save(tmp_path)
    back = Dataset.load(tmp_path)
    assert back.digest == data.digest and back.classes == data.classes and back.kind == "table"
    other = {**data.arrays, "labels": data.arrays["labels"][::-1].copy()}
    assert Dataset("table", "t", other).digest != data.digest
    (tmp_path / "data.npz").write_bytes(b"broken")
    with pytest.raises(StateError, match="every worker must see"):
        Dataset.load(tmp_path)


def test_text_is_bytes_and_its_parts_do_not_overlap():
    content = bytes(range(256)) * 100
    task = make_task(text_dataset(content, "t", "s"), SIZES["tiny"]["text"], 0)
    assert task.shape.classes == 257
    validation, test = (set(map(tuple, part[1].tolist())) for part in (task.validation, task.test))
    held_out = content[-len(content) // 10 :]
    windows = [tuple(held_out[i : i + 64]) for i in range(0, len(held_out) - 64, 64)]
    half = len(windows) // 2
    assert validation <= set(windows[:half]) and test <= set(windows[half:])


def test_batches_depend_on_seed_and_step_alone():
    for data, kind in ((synthetic_text(), "text"), (synthetic_table(), "table")):
        first, again, other = (make_task(data, SIZES["tiny"][kind], seed) for seed in (0, 0, 1))
        again.batch(7)
        for x, y, z in zip(first.batch(3), again.batch(3), other.batch(3), strict=True):
            assert torch.equal(x, y) and not torch.equal(x, z)
        assert torch.equal(first.test[0], other.test[0])


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "no file"), (b"", "empty"), (b" \n", "empty"), (b"too short", "5120 are needed")],
)
def test_bad_texts_say_why(tmp_path, content, word):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArgumentValueError, match=word):
        make_task(text_file(path), SIZES["tiny"]["text"], 0)


def test_columns_become_standardised_numbers_and_one_hot_words(tmp_path):
    data = csv_file(write_csv(tmp_path, good_rows()))
    assert data.classes == ("cat", "dog") and data.arrays["features"].shape == (100, 4)
    assert data.arrays["numeric"].tolist() == [True, False, False, False]
    task = make_task(data, SIZES["tiny"]["table"], 0)
    inputs = torch.cat([task.batch(step)[0] for step in range(50)])
    assert set(inputs[:, 1:].flatten().tolist()) == {0.0, 1.0} and float(inputs[:, 0].abs().max()) < 2.0
    named = csv_file(write_csv(tmp_path, good_rows()), "colour")
    assert named.classes == ("blue", "green", "red") and named.arrays["features"].shape == (100, 3)


def test_semicolons_numbers_as_classes_and_a_constant_column(tmp_path):
    rows = [f"1;{i};{i % 2 + 9}" for i in range(60)]
    data = csv_file(write_csv(tmp_path, rows, "\ufeffone;x;y"))
    assert data.classes == ("9", "10")
    assert bool(torch.isfinite(make_task(data, SIZES["tiny"]["table"], 0).test[0]).all())


def test_a_column_of_names_is_left_out_and_said(tmp_path):
    rows = [f"{i},person {i},{'ab'[i % 2]}" for i in range(100)]
    data = csv_file(write_csv(tmp_path, rows))
    assert data.arrays["features"].shape == (100, 1) and "'colour' is left out: 100" in data.notes[0]


#: What is wrong -> rows, first line, --target, what the error says.
BAD_TABLES = {
    "target": (good_rows(), "a,b,c", "nowhere", "--target must be one of 'a', 'b', 'c'"),
    "gaps": ([*good_rows(), "1,,cat", "?,red,dog"], "a,b,c", None, "misses 2 value.*row 102, column 'b'"),
    "short row": ([*good_rows(), "1,red"], "a,b,c", None, "2 values in row 102"),
    "numbers": ([f"{i},{i}" for i in range(50)], "a,b", None, "50 different labels.*--target"),
    "one class": ([f"{i},x" for i in range(50)], "a,b", None, "one class only"),
    "few rows": ([f"{i},{i % 2}" for i in range(20)], "a,b", None, "give more rows"),
    "no names": ([f"{i},{i % 2}" for i in range(50)], "1,2", None, "names of the columns"),
    "twins": ([f"{i},{i % 2}" for i in range(50)], "a,a", None, "twice"),
    "huge": ([f"1e300,{i % 2}" for i in range(100)], "a,b", None, "range of 32-bit"),
    "words": ([f"inf{i},{i % 2}" for i in range(100)], "a,b", None, "no usable column"),
    "empty": ([], "a,b", None, "not a table"),
    "one column": (["1", "2"], "a", None, "not a table"),
    "quotes": (['"1,2'], "a,b", None, "not a CSV"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_say_why(tmp_path, case):
    rows, header, target, word = BAD_TABLES[case]
    with pytest.raises(ArgumentValueError, match=word):
        csv_file(write_csv(tmp_path, rows, header), target)


def test_no_table_and_no_text_file(tmp_path):
    with pytest.raises(ArgumentValueError, match="no file"):
        csv_file(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"a,b\n\xe9,1\n")
    with pytest.raises(ArgumentValueError, match="UTF-8"):
        csv_file(tmp_path / "latin.csv")


def test_a_folder_of_images_is_read_by_class(tmp_path):
    grey = image_folder(images(tmp_path / "grey", {"cat": 30, "dog": 30}), 8)
    assert grey.classes == ("cat", "dog") and grey.arrays["images"].shape == (60, 1, 8, 8)
    assert np.bincount(grey.arrays["labels"]).tolist() == [30, 30]
    colour = image_folder(images(tmp_path / "colour", {"cat": 30, "dog": 30}, grey=False), 8)
    assert colour.arrays["images"].shape == (60, 3, 8, 8)


def test_bad_folders_of_images_say_why(tmp_path):
    with pytest.raises(ArgumentValueError, match="no folder"):
        image_folder(tmp_path / "nowhere", 8)
    with pytest.raises(ArgumentValueError, match="no subfolders; put one subfolder per class"):
        image_folder(tmp_path, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentValueError, match="holds no image"):
        image_folder(tmp_path, 8)
    with pytest.raises(ArgumentValueError, match="class 'empty'"):
        image_folder(images(tmp_path, {"full": 3}), 8)
    with pytest.raises(ArgumentValueError, match="one class only"):
        image_folder(images(tmp_path / "one", {"only": 30}), 8)
    broken = images(tmp_path / "broken", {"a": 30, "b": 30})
    (broken / "a" / "3.png").write_bytes(b"no image")
    with pytest.raises(ArgumentValueError, match=r"3\.png is no readable image"):
        image_folder(broken, 8)


def test_a_built_in_set_keeps_its_official_test_images(monkeypatch):
    class Fake:
        def __init__(self, split):
            count = {"train": 50, "test": 20}[split]
            self.images = torch.full((count, 4, 4), int(split == "test"), dtype=torch.uint8)
            self.labels, self.classes, self.source, self.note = torch.arange(count) % 2, ("a", "b"), "s", ""

        def __len__(self):
            return len(self.labels)

    monkeypatch.setitem(image_set.__globals__["IMAGE_SETS"], "mnist", lambda split, download: Fake(split))
    monkeypatch.setitem(image_set.__globals__, "_MOST", 40)
    data = image_set("mnist", download=False)
    part, pixels = data.arrays["part"], data.arrays["images"].reshape(-1, 16).max(1)
    assert np.bincount(part).tolist() == [40, 10, 20]
    assert ((pixels == 1) == (part == TEST)).all()


@pytest.mark.parametrize(
    ("site", "kinds", "given", "word"),
    [
        ("attention", ("text", "images"), {}, "needs one source of data: --text FILE.*got none"),
        ("attention", ("text",), {"text": "a", "data": "synthetic"}, "got --text and --data"),
        ("attention", ("text", "images"), {"csv": "a"}, "cannot be compared on --csv"),
        ("router", ("text",), {"data": "mnist"}, "--data must be one of tinyshakespeare, stdlib, synthetic"),
        ("loss", ("table",), {"data": "synthetic", "target": "y"}, "--target names the label column of --csv"),
    ],
    ids=["none", "two", "table", "images", "target"],
)
def test_bad_sources_say_what_to_type(tmp_path, site, kinds, given, word):
    paths = {name: tmp_path / value if name in ("text", "csv") else value for name, value in given.items()}
    with pytest.raises(ArgumentValueError, match=word):
        load_source(Source(**paths), site, kinds, "tiny")


def test_the_synthetic_sets_are_the_same_everywhere():
    assert synthetic_text().digest == synthetic_text().digest
    assert len(synthetic_text().arrays["bytes"]) > 100_000
    assert load_source(Source(data="synthetic"), "loss", ("images", "table"), "tiny").kind == "table"
    assert load_source(Source(data="synthetic"), "router", ("text",), "tiny").kind == "text"

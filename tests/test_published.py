"""The networks that AMR's authors published: found, known by their contents, converted; and those of the paper."""

import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from real import needs

from margins import datasets, published
from margins._sources import NotAvailable
from margins.errors import MarginsError
from margins.published import NETWORKS, Network, convert, digest, load, main


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A linear network of our own in the place of a published one: its arrays and its authors' file."""
    arrays = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.ones(2, np.float32)}
    file = tmp_path / "SMALL.tar"
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model_state_dict": state, "test_acc": 0.5}, file, _use_new_zipfile_serialization=False)
    original = hashlib.sha256(file.read_bytes()).hexdigest()
    network = Network("Model/SMALL.tar", original, digest(arrays), 50.0, "linear", {"inputs": 3, "classes": 2}, ("fc",))
    monkeypatch.setattr(published, "NETWORKS", {"small": network})
    monkeypatch.setenv("MARGINS_DATA", str(tmp_path))
    return arrays, file, tmp_path / "amr-official" / "small.npz"


@needs("mnist", *NETWORKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_are_those_of_table_1(name):
    data, model = datasets.load("mnist", "test"), load(name).to(memory_format=torch.channels_last)
    assert not model.training
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) == y for x, y in zip(data.x.split(100), data.y.split(100), strict=True)])
    assert 100 * right.double().mean().item() == pytest.approx(NETWORKS[name].accuracy, abs=1e-9)


def test_an_authors_file_becomes_a_network(small, capsys):
    arrays, file, out = small
    assert not published.available("small")
    assert main([str(file), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: small\n"
    assert published.available("small")
    model = load("small")
    x = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(model(x), x @ torch.from_numpy(arrays["fc.weight"]).T + 1)


def test_without_a_file_the_error_says_how_to_get_it(small):
    _, _, out = small
    with pytest.raises(NotAvailable) as error:
        load("small")
    for said in (str(out), "github.com/watml/rob-margin", "d79e197", "Model/SMALL.tar", "python -m margins.published"):
        assert said in str(error.value)


def test_the_command_in_the_error_is_the_one_that_helps(small):
    _, file, _ = small
    with pytest.raises(NotAvailable) as error:
        load("small")
    command = str(error.value).split("python -m margins.published ")[1].split()
    assert command[0] == file.name
    assert main([str(file), command[1]]) == 0
    load("small")


def test_the_cache_is_looked_at_after_the_folder_that_margins_data_names(small, tmp_path, monkeypatch):
    _, file, _ = small
    monkeypatch.setattr(published.paths, "CACHE", tmp_path / "cache")
    convert(file, tmp_path / "cache" / "amr-official" / "small.npz")
    assert published.available("small")
    load("small")


def test_a_page_that_did_without_a_network_notes_where_it_looked(small, tmp_path, monkeypatch):
    _, _, out = small
    monkeypatch.setenv("MARGINS_TRACE", str(tmp_path / "trace"))
    assert not published.available("small")
    assert str(out) in (tmp_path / "trace").read_text().splitlines()


@pytest.mark.parametrize("change", ["value", "type", "name", "missing"])
def test_arrays_that_are_not_the_published_ones_are_refused(small, change):
    arrays, file, out = small
    convert(file, out)
    if change == "value":
        arrays["fc.bias"][0] += 1e-6
    elif change == "type":
        arrays["fc.bias"] = arrays["fc.bias"].astype(np.float64)
    elif change == "name":
        arrays["fc.offset"] = arrays.pop("fc.bias")
    else:
        del arrays["fc.bias"]
    np.savez(out, **arrays)
    before = out.read_bytes()
    with pytest.raises(MarginsError, match="does not hold small"):
        load("small")
    assert out.read_bytes() == before


def test_packing_does_not_matter(small):
    arrays, _, out = small
    out.parent.mkdir()
    np.savez(out, **dict(reversed(arrays.items())))
    load("small")


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


def test_code_in_a_file_is_never_run(small, tmp_path):
    _, _, out = small
    (tmp_path / "bomb.tar").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(MarginsError, match=r"none of Model/SMALL\.tar"):
        convert(tmp_path / "bomb.tar", out)
    assert not out.exists()
    out.parent.mkdir()
    with zipfile.ZipFile(out, "w") as archive:
        array = io.BytesIO()
        np.save(array, np.array([_Bomb()], dtype=object), allow_pickle=True)
        archive.writestr("fc.bias.npy", array.getvalue())
    with pytest.raises(MarginsError, match=r"small\.npz can't be read"):
        load("small")


def test_a_file_of_a_known_digest_is_still_opened_without_code(small, tmp_path, monkeypatch):
    _, _, out = small
    bomb = tmp_path / "bomb.tar"
    torch.save({"model_state_dict": {"fc.weight": _Bomb()}}, bomb)
    original = hashlib.sha256(bomb.read_bytes()).hexdigest()
    network = Network("bomb", original, "", 0.0, "linear", {}, ("fc",))
    monkeypatch.setattr(published, "NETWORKS", {"bomb": network})
    with pytest.raises(pickle.UnpicklingError):
        convert(bomb, out)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_one_clear_error(small, content):
    _, _, out = small
    out.parent.mkdir()
    out.write_bytes(content)
    with pytest.raises(MarginsError, match="can't be read"):
        load("small")


def test_bad_names_and_files(small, tmp_path, capsys):
    with pytest.raises(MarginsError, match="no such published network; there are small"):
        load("mnist-cnn")
    assert main([str(tmp_path / "nothing.tar"), str(tmp_path / "out.npz")]) == 1
    assert "nothing.tar can't be read: No such file" in capsys.readouterr().err

"""Points of every kind of file, surfaces, and files that are broken, each with its reason."""

import io
import warnings
import zipfile

import numpy as np
import pytest

from deltatune.core.errors import DataError
from deltatune.core.mesh import Mesh, on_surface, triangles
from deltatune.core.point_files import MOST_BYTES, read_points

CLOUD = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
KINDS = ("ascii", "binary_little_endian", "binary_big_endian")
ORDER = {"binary_little_endian": "<", "binary_big_endian": ">"}


def ply(kind, table, faces=None, *, before=b"", header="", after="", index="int"):
    """A PLY file of columns {name: (type, values)}; faces are lists of corners."""
    count = len(next(iter(table.values()))[1])
    lines = ["ply", f"format {kind} 1.0", "comment made by a test", *header.splitlines(), f"element vertex {count}"]
    lines += [f"property {word} {name}" for name, (word, _) in table.items()]
    if faces is not None:
        lines += [f"element face {len(faces)}", f"property list uchar {index} vertex_indices", *after.splitlines()]
    head = ("\n".join([*lines, "end_header"]) + "\n").encode()
    codes = {"float": "f4", "double": "f8", "uchar": "u1", "ushort": "u2"}
    rows = list(zip(*(values for _, values in table.values()), strict=True))
    if kind == "ascii":
        text = [" ".join(map(repr, map(float, row))) for row in rows]
        text += [" ".join(map(str, [len(face), *face, *([7] if after else [])])) for face in faces or ()]
        return head + before + ("\n".join(text) + "\n").encode()
    order = ORDER[kind]
    dtype = np.dtype([(name, order + codes[word]) for name, (word, _) in table.items()])
    body = np.array(rows, dtype).tobytes()
    for face in faces or ():
        body += bytes([len(face)]) + np.array(face, order + "i4").tobytes() + (b"\x07" if after else b"")
    return head + before + body


def columns(points, names=("x", "y", "z"), word="float"):
    return {name: (word, points[:, index]) for index, name in enumerate(names)}


def off(points, faces=(), first="OFF\n"):
    text = f"{first}{len(points)} {len(faces)} 0\n# a comment\n"
    text += "".join(" ".join(map(repr, map(float, point))) + "\n" for point in points)
    return (text + "".join(f"{len(face)} {' '.join(map(str, face))}\n" for face in faces)).encode()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def written(path, content):
    path.write_bytes(content)
    return path


def sorted_rows(points):
    return points[np.lexsort(points.T[::-1])]


FILES = {
    "f4.npy": npy(CLOUD),
    "f8.npy": npy(CLOUD.astype(np.float64)),
    "big-endian.npy": npy(CLOUD.astype(">f4")),
    "fortran.npy": npy(np.asfortranarray(CLOUD)),
    "a.off": off(CLOUD),
    **{f"{kind}.ply": ply(kind, columns(CLOUD)) for kind in KINDS},
    **{f"{kind}-double.ply": ply(kind, columns(CLOUD, word="double")) for kind in KINDS},
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_back_its_points_whatever_their_order(name, tmp_path):
    found = read_points(written(tmp_path / name, FILES[name]))
    assert found.dtype == np.float32
    assert np.array_equal(found, sorted_rows(CLOUD))


def test_whole_numbers_are_points_too(tmp_path):
    assert np.array_equal(read_points(written(tmp_path / "a.npy", npy(CUBE.astype(np.int16)))), sorted_rows(CUBE))


@pytest.mark.parametrize("kind", KINDS)
def test_normals_and_colours_of_a_ply_come_behind_the_place(kind, tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (20, 3))
    table = {
        **columns(colours, ("red", "green", "blue"), "uchar"),
        "quality": ("float", CLOUD[:, 0]),
        **columns(-CLOUD, ("nx", "ny", "nz")),
        **columns(CLOUD),
    }
    found = read_points(written(tmp_path / "a.ply", ply(kind, table)))
    assert np.allclose(found, sorted_rows(np.concatenate([CLOUD, -CLOUD, colours / 255], 1)), atol=1e-7)


MESHES = {
    "a.off": off(CUBE, QUADS),
    "modelnet.off": off(CUBE, QUADS, first="OFF"),
    "colours.off": off(np.concatenate([CUBE, CUBE], 1), QUADS, first="COFF\n"),
    **{f"{kind}.ply": ply(kind, columns(CUBE), QUADS) for kind in KINDS},
    **{f"{kind}-flags.ply": ply(kind, columns(CUBE), QUADS, after="property uchar flags") for kind in KINDS},
}


@pytest.mark.parametrize("name", MESHES)
def test_of_a_mesh_points_are_drawn_on_its_surface(name, tmp_path):
    found = read_points(written(tmp_path / name, MESHES[name]))
    assert found.shape == (4096, 3)
    on = np.isclose(found, 0, atol=1e-6) | np.isclose(found, 1, atol=1e-6)
    assert on.any(1).all() and (found > -1e-6).all() and (found < 1 + 1e-6).all()
    sides = [np.isclose(found[:, axis], end, atol=1e-6).sum() for axis in range(3) for end in (0, 1)]
    assert all(abs(count - 4096 / 6) < 4 for count in sides)  # as many on each as its area asks for


def test_faces_of_several_lengths_are_cut_alike_in_text_and_binary(tmp_path):
    faces = [[0, 1, 3, 2], [4, 6, 7], [4, 7, 5], *QUADS[2:]]
    found = [read_points(written(tmp_path / f"{kind}.ply", ply(kind, columns(CUBE), faces))) for kind in KINDS]
    found.append(read_points(written(tmp_path / "a.off", off(CUBE, faces))))
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_points_of_a_surface_are_uniform_on_every_triangle():
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [0, 3, 5], [0, 0, 8]])
    found = on_surface(Mesh(corners, np.array([[0, 1, 2], [3, 4, 5]])), 10_000)
    lower = found[:, 2] == 0
    assert abs(lower.sum() - 1000) <= 1  # areas 0.5 and 4.5
    assert np.allclose(found[lower].mean(0), corners[:3].mean(0), atol=0.03)
    assert np.allclose(found[~lower].mean(0), corners[3:].mean(0), atol=0.03)


def test_polygons_are_fans():
    assert triangles([[3, 1, 2, 0, 4]], 5).tolist() == [[3, 1, 2], [3, 2, 0], [3, 0, 4]]
    with pytest.raises(DataError, match="a face has corner 7, the points are 0 to 4"):
        triangles([[0, 1, 7]], 5)


def test_other_elements_of_a_ply_are_skipped(tmp_path):
    header = "obj_info x\nelement camera 2\nproperty float zoom\nproperty list uchar short marks"
    text = ply("ascii", columns(CLOUD), before=b"1.5 2 4 5\n2.5 0\n", header=header)
    assert np.array_equal(read_points(written(tmp_path / "a.ply", text)), sorted_rows(CLOUD))
    rows = b"\0\0\xc0\x3f\x02\4\0\5\0" + b"\0\0\xc0\x3f\0"
    binary = ply("binary_little_endian", columns(CLOUD), before=rows, header=header)
    assert np.array_equal(read_points(written(tmp_path / "b.ply", binary)), sorted_rows(CLOUD))


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a.npy", npy(CLOUD))
    return file.getvalue()


HEADER = "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\n"
BROKEN = {
    "flat.npy": (npy(CLOUD[:, :2]), "shape (20, 2) is none of"),
    "one.npy": (npy(CLOUD[:, 0]), "shape (20,) is none of"),
    "words.npy": (npy(np.array([["a", "b", "c"]] * 9)), "no numbers (<U1)"),
    "complex.npy": (npy(CLOUD.astype(np.complex64)), "no numbers (<c8)"),
    "objects.npy": (npy(np.array([[{}, 1, 2]] * 9, dtype=object)), "cannot be read"),
    "archive.npy": (archive(), "cannot be read"),
    "text.npy": (b"1 2 3\n" * 20, "cannot be read"),
    "nan.npy": (npy(np.where(CLOUD > 1, np.nan, CLOUD)), "not finite"),
    "huge.npy": (npy(CLOUD.astype(np.float64) * 1e300), "not finite"),
    "few.npy": (npy(CLOUD[:7]), "too few points"),
    "none.npy": (npy(CLOUD[:0]), "none.npy"),
    "same.npy": (npy(np.repeat(CLOUD[:1], 20, 0)), "all of its 20 points are the same"),
    "empty.ply": (b"", "shape file is empty"),
    "image.ply": (b"\x89PNG\r\n\x1a\n" * 9, "no header of a PLY file"),
    "open.ply": (HEADER.encode(), "no header of a PLY file"),
    "flat.ply": (HEADER.encode() + b"end_header\n" + b"1 2\n" * 8, "no x, y and z (x, y)"),
    "kind.ply": (HEADER.replace("ascii", "zipped").encode() + b"end_header\n", "not known ('format zipped 1.0')"),
    "type.ply": (
        HEADER.encode() + b"property half z\nend_header\n",
        "property of its header is not known ('half z')",
    ),
    "list.ply": (HEADER.encode() + b"property list uchar int z\nend_header\n", "its vertices have lists"),
    "format.ply": (b"ply\nelement vertex 8\nend_header\n", "names no format"),
    "points.ply": (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "no element vertex"),
    "many.ply": (HEADER.replace("8", "999999999").encode() + b"end_header\n", "999,999,999 rows of vertex are more"),
    "early.ply": (ply("ascii", columns(CLOUD))[:-200], "it ends early"),
    "binary.ply": (ply("binary_big_endian", columns(CLOUD))[:-1], "it ends early"),
    "words.ply": (ply("ascii", columns(CLOUD)).replace(b"0.", b"o."), "could not convert"),
    "corner.ply": (ply("binary_little_endian", columns(CUBE), [[0, 1, 8]]), "corner 8, the points are 0 to 7"),
    "uneven.ply": (ply("ascii", columns(CUBE), QUADS).replace(b"\n4 0 1 3 2", b"\n5 0 1 3 2"), "fewer numbers"),
    "line.ply": (ply("ascii", columns(CUBE), [[0, 0, 0]]), "have no area"),
    "a.off": (b"8 6 0\n", "its first line is not OFF"),
    "binary.off": (b"OFF BINARY\n\0\0", "binary OFF is not known"),
    "counts.off": (b"OFF\neight six\n", "numbers of points and faces are missing"),
    "alone.off": (b"OFF\n", "numbers of points and faces are missing"),
    "early.off": (off(CUBE, QUADS)[:-12], "it ends early: 8 points and 6 faces are announced, 13 lines follow"),
    "short.off": (off(CUBE[:, :2]), "a point has 2 of 3 numbers"),
    "face.off": (off(CUBE, QUADS).replace(b"\n4 0 1 3 2", b"\n9 0 1 3 2"), "a face of 9 corners names 4"),
    "minus.off": (off(CUBE, QUADS).replace(b"\n4 0 1 3 2", b"\n-4 0 1 3 2"), "a face of -4 corners"),
    "a.stl": (b"solid", "of no known kind"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_used_say_why(name, tmp_path):
    content, reason = BROKEN[name]
    with pytest.raises(DataError, match="shape") as raised:
        read_points(written(tmp_path / name, content))
    assert reason in str(raised.value) and name in str(raised.value)


def test_missing_files_folders_and_files_that_are_too_large(tmp_path):
    with pytest.raises(DataError, match="shape is missing"):
        read_points(tmp_path / "none.ply")
    (tmp_path / "a.ply").mkdir()
    with pytest.raises(DataError, match="shape is a folder"):
        read_points(tmp_path / "a.ply")
    with (tmp_path / "b.ply").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # holes, no bytes on the disk
    with pytest.raises(DataError, match="too large"):
        read_points(tmp_path / "b.ply")


WHOLE = {"a.npy": npy(CLOUD), "a.off": MESHES["a.off"]} | {f"{kind}.ply": MESHES[f"{kind}.ply"] for kind in KINDS}


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_read_or_refused_and_nothing_else(name, tmp_path):
    chance = np.random.default_rng(0)
    content, path = WHOLE[name], tmp_path / name
    read = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in chance.integers(len(damaged), size=chance.integers(1, 6)):
            damaged[place] = chance.integers(256)
        path.write_bytes(damaged[: chance.integers(1, len(damaged) + 1)] if chance.random() < 0.5 else damaged)
        with warnings.catch_warnings():
            warnings.filterwarnings("error")
            try:
                found = read_points(path)
            except DataError:
                continue
        read += 1
        assert np.isfinite(found).all() and found.shape[1] >= 3
    assert read

import importlib.metadata
import re
import tomllib

import pytest
import yaml
from conftest import ROOT
from faults import supply
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [
    Requirement(line.removesuffix("\\"))
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and line[0] not in "# "
]


def test_the_lock_serves_every_dependency_exactly_on_each_python() -> None:
    asked = [
        Requirement(text)
        for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    ]
    for python in ("3.11", "3.12", "3.13"):
        where = {
            "python_version": python,
            "python_full_version": f"{python}.1",
            "sys_platform": "linux",
        }
        locked = {
            canonical(r.name): r for r in LOCK if r.marker is None or r.marker.evaluate(where)
        }
        for need in asked:
            pin = locked[canonical(need.name)]
            version = re.fullmatch(r"==([\w.+]+)", str(pin.specifier))
            assert version, f"{pin} is not exact"
            assert need.specifier.contains(version[1]), f"{pin} does not meet {need}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_users_get_the_same_lock() -> None:
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in wanted if isinstance(entry, dict))
    assert pip == [
        "-r requirements.lock"
    ]  # a lock with hashes allows no editable package beside it
    assert f"python{PROJECT['requires-python']}" in wanted


def test_every_package_of_the_lock_has_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == len(LOCK) == len(supply.pins())
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


def test_the_set_up_refuses_a_package_without_its_hash() -> None:
    made = (ROOT / "Makefile").read_text()
    assert "--require-hashes -r requirements.lock" in made
    assert "--no-build-isolation -e ." in made  # with the lock's setuptools, and no other
    assert "setuptools" in {r.name for r in LOCK}


# ---- licences and known faults -------------------------------------------------------------------
def test_security_md_lists_every_locked_package_once_with_its_licence() -> None:
    table = supply.TABLE.search((ROOT / "SECURITY.md").read_text())
    assert table, "make sbom writes it between two comments"
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table[0].splitlines()[2:]]
    listed = [name for row in rows for name in row[3].split(", ")]
    assert sorted(listed) == sorted({canonical(r.name) for r in LOCK}), "make sbom writes it again"
    for said, flag, count, names in rows:
        assert int(count) == len(names.split(", "))
        assert flag == supply.flag(said)
    for name, version in (("numpy", None), ("certifi", None), ("nvidia-cublas", None)):
        version = next((v for n, v in supply.pins() if n == name and installed(n) == v), version)
        if version:  # otherwise not installed here: the registry would be asked
            row = next(row for row in rows if name in row[3].split(", "))
            assert row[0] == supply.licence(name, version)


def installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@pytest.mark.parametrize(
    ("said", "name", "flag"),
    [
        ("MIT License", "MIT", ""),
        ("Apache 2.0", "Apache-2.0", ""),
        ("Apache Software License; BSD License", "Apache Software License; BSD License", ""),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", "copyleft"),
        (
            "GNU Affero General Public License v3",
            "GNU Affero General Public License v3",
            "copyleft",
        ),
        ("Other/Proprietary License", "Proprietary (NVIDIA)", "proprietary"),
        ("UNKNOWN", "not stated", "unknown"),
        ("", "not stated", "unknown"),
    ],
)
def test_licences_have_one_name_and_a_flag_where_a_reader_must_look(said, name, flag) -> None:
    assert (supply.one_name(said), supply.flag(supply.one_name(said))) == (name, flag)


def answer(version: str, *known: str, withdrawn: bool = False) -> dict:
    faults = [{"id": i, "link": "", "fixed_in": [], "withdrawn": None} for i in known]
    releases = {v: [{"yanked": withdrawn}] for v in ("1.0", "2.0")}
    return {"info": {"version": version}, "vulnerabilities": faults, "releases": releases}


def refuses(*_: str) -> dict:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("ask", "code", "said"),
    [
        (lambda *_: answer("1.0"), 0, "1 of 1 locked versions checked"),
        (lambda *_: answer("1.0", "PYSEC-1"), 1, "one 1.0: PYSEC-1 , fixed in no version"),
        (lambda *_: answer("1.0", withdrawn=True), 1, "one 1.0: withdrawn"),
        (lambda *_: answer("2.0", "PYSEC-1"), 2, "1 not checked: the registry knows the newest"),
        (refuses, 2, r"no answer: one (no network)"),
    ],
)
def test_an_audit_fails_on_a_known_fault_and_names_what_it_could_not_check(
    tmp_path, capsys, ask, code, said
) -> None:
    (tmp_path / "lock").write_text("one==1.0 \\\n    --hash=sha256:00\n")
    assert supply.audit(ask, tmp_path / "lock") == code
    assert said in capsys.readouterr().out


def test_nothing_but_what_the_user_fixed_lies_at_the_top() -> None:
    import subprocess

    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if not tracked:
        return
    fixed = {"book", "notebooks", "cxrstudy", "data_cards", "environment.yml", "tests", "README.md"}
    tools = {
        "pyproject.toml",
        "requirements.lock",
        "LICENSE",
        "CITATION.cff",
        "SECURITY.md",
        "Makefile",
        ".ci",
        ".gitignore",
    }
    assert {path.split("/")[0] for path in tracked} <= fixed | tools
